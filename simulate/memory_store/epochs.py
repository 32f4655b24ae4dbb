"""Who may act: epochs, heartbeats, leadership."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.core.moments import span_us
from dispatcher.ports import Beat
from simulate.memory_store.rows import Epoch, Heartbeat

if TYPE_CHECKING:
    from simulate.memory_store.database import MemoryDatabase

COORDINATOR: Final = "coordinator"
_SHARD: Final = "shard-"


def shard_seat(shard: int) -> str:
    """The name of a shard's seat."""
    return f"{_SHARD}{shard}"


def shard_of(name: str) -> int:
    """The shard of a seat that is one's."""
    return int(name.removeprefix(_SHARD))


class MemorySeat:
    """The ``Seat`` port.

    Args:
        database: where the epochs stand.
        name: whose seat.
        holder: who sits on it; the same for all incarnations of one running installation.
    """

    def __init__(self, database: MemoryDatabase, name: str, holder: str) -> None:
        self._database, self.name, self._holder = database, name, holder

    async def raise_epoch(self) -> int:
        """Take the seat: every earlier incarnation is superseded."""
        epochs = self._database.epochs
        number = self._database.next_number()
        if self.name in epochs:
            # The row that PostgreSQL proposes and does not insert has taken a number too.
            number = self._database.next_number()
        epochs[self.name] = Epoch(number, self._holder)
        return number

    async def beat(self, lifetime_s: float) -> Beat:
        """Show that the holder is alive for ``lifetime_s`` more, and read the epoch in force."""
        self._renew(self.name, lifetime_s)
        row = self._database.epochs.get(self.name)
        return Beat(None if row is None else row.epoch, self._database.wall_us())

    async def wall_us(self) -> int:
        """The database's clock."""
        return self._database.wall_us()

    async def lead(self, lifetime_s: float) -> bool:
        """Take or renew leadership for ``lifetime_s``; False while another installation leads."""
        return self._renew(COORDINATOR, lifetime_s)

    async def leader(self) -> str | None:
        """The holder of the leadership, for messages."""
        row = self._database.heartbeats.get(COORDINATOR)
        return None if row is None else row.holder

    async def leave(self) -> None:
        """Give leadership up at once, so that a successor need not wait."""
        row = self._database.heartbeats.get(COORDINATOR)
        if row is not None and row.holder == self._holder:
            row.expires_us = float("-inf")

    def _renew(self, name: str, lifetime_s: float) -> bool:
        """Take a heartbeat that is the holder's, has ended, or lies ahead as none can unless the clock stepped back."""
        now_us, lifetime_us, row = self._database.wall_us(), span_us(lifetime_s), self._database.heartbeats.get(name)
        if row is None or row.holder == self._holder or not now_us <= row.expires_us <= now_us + 2 * lifetime_us:
            self._database.heartbeats[name] = Heartbeat(self._holder, now_us + lifetime_us)
            return True
        return False
