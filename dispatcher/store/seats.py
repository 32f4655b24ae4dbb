"""Leadership and epochs: who may act, as PostgreSQL sees it."""

from __future__ import annotations

from dispatcher.ports import Beat
from dispatcher.store.session import Session


class PostgresSeat:
    """The ``Seat`` port: one name's epoch, ``coordinator`` or ``shard-<n>``.

    Args:
        session: statements of ``epochs.sql``.
        name: whose seat.
        holder: who sits on it; the same for all incarnations of one running installation.
    """

    def __init__(self, session: Session, name: str, holder: str) -> None:
        self._session, self.name, self._holder = session, name, holder

    async def raise_epoch(self) -> int:
        """Take the seat: every earlier incarnation is superseded once this has committed."""
        return int(await self._session.value("raise_epoch", self.name, self._holder))

    async def beat(self, lifetime_s: float) -> Beat:
        """Show that the holder is alive for ``lifetime_s`` more, and read the epoch in force."""
        await self._session.changed("beat", self.name, self._holder, lifetime_s)
        row = await self._session.row("read_epoch", self.name)
        return Beat(row["epoch"], row["wall_us"])

    async def wall_us(self) -> int:
        """The database's clock."""
        return int((await self._session.row("read_epoch", self.name))["wall_us"])

    async def lead(self, lifetime_s: float) -> bool:
        """Take or renew leadership for ``lifetime_s``; False while another installation leads."""
        return await self._session.value("take_leadership", self._holder, lifetime_s) is not None

    async def leader(self) -> str | None:
        """The holder of the leadership, for messages."""
        value = await self._session.value("current_leader")
        return None if value is None else str(value)

    async def leave(self) -> None:
        """Give leadership up at once, so that a successor need not wait."""
        await self._session.changed("end_leadership", self._holder)
