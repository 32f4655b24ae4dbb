"""What the services need from outside, each narrow enough that its in-memory twin is boring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, DueSoon, Int8s, Int32s, Int64s, Leased, Outcomes, Outgoing, SlotOffer
from dispatcher.core.breaker import Turned
from dispatcher.core.catalogue import Catalogue, Openings
from dispatcher.core.fleet import Fleet, Gateway
from dispatcher.core.group_log import Group
from dispatcher.core.lateness import Late, LateMoves
from dispatcher.core.leases import EndedLeases, Ends, Usage, Want


class Clock(Protocol):
    """Business time. Live it follows the database's clock; in a rehearsal the driver owns it."""

    def now_us(self) -> int:
        """The current business time in microseconds; never goes back."""


class Sender(Protocol):
    """Hands messages over. Answers are values: only a bug raises."""

    def send(self, batch: Outgoing) -> AsyncIterator[Outcomes]:
        """Hand over every message of ``batch`` and yield outcomes as they become known, each row exactly once.

        No message leaves after its ``deadline_us``; every row that is not proven otherwise is ``IN_DOUBT``.
        """

    def update(self, gateways: Mapping[int, Gateway]) -> None:
        """Use these gateways, by device number, for what is handed over from now on."""

    async def close(self) -> None:
        """Give up connections; messages already handed over stay handed over."""


class Fate(IntEnum):
    """What a shard says of a lease that the rescuer asks about."""

    NEVER_SEEN = 0
    """It never was, and never will be, handed over: from now on the shard refuses it."""
    IN_HAND = 1
    """Pending, handed over, about to be written, or not this incarnation's to speak of. Leave it alone."""


class Shards(Protocol):
    """The coordinator's way to its shards. Calls are hints: lost, doubled or late, they change latency only.

    Every method raises ``ShardUnavailableError`` when the shard does not answer in time.
    """

    async def offer(self, shard: int, now_us: int, horizon_us: int, devices: Int32s) -> SlotOffer:
        """The free slots of ``devices`` within the horizon, held until the delivery."""

    async def deliver(self, shard: int, offer: int, leased: Leased | None) -> DueSoon:
        """Route what was claimed for ``offer``, None when nothing was; returns what became due again meanwhile."""

    async def take_due(self, shard: int) -> DueSoon:
        """What became due again since the shard was asked last, and the devices with an attempt that has ended."""

    async def refresh(self, shard: int) -> None:
        """Devices have changed: the shard sees it before this returns, not within a second."""

    async def fate(self, shard: int, token: Int64s, epoch: Int64s, enrolment: Int64s) -> Int8s:
        """``Fate`` of each lease, by the live incarnation; those of another one it says to leave alone."""


# The store ---------------------------------------------------------------------------------------------------------
#
# Every method is one statement or one transaction: it happens whole or not at all. All of them raise
# ``StoreUnavailableError`` when it is unknown whether it happened; all may then be repeated.


class Versions(NamedTuple):
    """What a pass asks first: counters that every change of sequences or devices raises, and whether all is paused."""

    sequences: int
    devices: int
    paused: bool = False
    """Whether the fleet is: nothing may be handed over."""


class Beat(NamedTuple):
    """What a renewal reads."""

    epoch: int | None
    wall_us: int
    """The database's clock."""


Homes = Callable[[int], list[UUID]]
"""The home devices of so many leads without one, in order; none when no device is available."""


class Enrolled(NamedTuple):
    """What one batch of lead changes led to."""

    taken: int
    """Leads that had changed; one that changed twice counts twice."""
    stopped: int
    home: dict[UUID | None, int]
    """New enrolments by home device."""


class Search(NamedTuple):
    """One stretch of the search for leads that carried a trigger before its entry opened."""

    trigger: str
    queued: int
    done: bool


class Seat(Protocol):
    """One name's epoch, ``coordinator`` or ``shard-<n>``, and its heartbeat."""

    @property
    def name(self) -> str:
        """Whose seat."""

    async def raise_epoch(self) -> int:
        """Take the seat: every earlier incarnation is superseded once this has committed."""

    async def beat(self, lifetime_s: float) -> Beat:
        """Show that the holder is alive for ``lifetime_s`` more, and read the epoch in force."""

    async def wall_us(self) -> int:
        """The database's clock."""

    async def lead(self, lifetime_s: float) -> bool:
        """Take or renew leadership for ``lifetime_s``; False while another installation leads."""

    async def leader(self) -> str | None:
        """The holder of the leadership, for messages."""

    async def leave(self) -> None:
        """Give leadership up at once, so that a successor need not wait."""


class EnrolStore(Protocol):
    """What the enroller needs."""

    async def home_load(self) -> dict[UUID, int]:
        """Live enrolments by home device."""

    async def enrol(
        self, catalogue: Catalogue, homes: Homes, now_us: int, *, epoch: int, rows: int, hour_us: int
    ) -> Enrolled:
        """Turn queued changes of ``rows`` leads, and few more, into enrolments and ends.

        Args:
            homes: the home devices of so many leads without one, in order, or none; asked when changes were taken.

        Raises:
            FencedError: another coordinator has taken over; nothing was written.
        """

    async def search_entries(self, rows: int) -> Search | None:
        """Look for leads of a newly opened entry among the next ``rows`` leads; None when nothing is open."""


class RescueStore(Protocol):
    """What the rescuer needs."""

    async def ended_leases(self, before_us: int, rows: int) -> EndedLeases:
        """Leases whose slot is before ``before_us`` or whose incarnation is superseded, at most ``rows``."""

    async def return_leases(self, enrolment: Int64s, token: Int64s, due_us: int, now_us: int) -> int:
        """End leases that surely were not handed over; one whose hand-over is on record stays."""

    async def doubt(
        self, leases: EndedLeases, keys: list[bytes], resend: NDArray[np.bool_], due_us: Int64s, now_us: int
    ) -> int:
        """Record leases as in doubt: waiting again under the same key where ``resend``, else held as in doubt."""


class BalanceStore(Protocol):
    """What the rebalancer needs."""

    async def hold(self, sequence: int, rows: int) -> int:
        """Take up to ``rows`` waiting enrolments of a sequence out of the claim's index."""

    async def hold_step(self, step: str, rows: int) -> int:
        """Take up to ``rows`` enrolments that wait at a step out of the claim's index."""

    async def unhold(self, sequence: int, rows: int, now_us: int) -> int:
        """Put up to ``rows`` held enrolments of a sequence back, but those of leads and at steps that are paused."""

    async def held_sequences(self) -> list[int]:
        """Sequences with held enrolments."""

    async def finish_waiting(self, rows: int, now_us: int) -> int:
        """Complete enrolments whose lead was locked when the last step was accepted; mark opt-outs that waited so."""

    async def misplaced(self, left: list[UUID], rows: int) -> Int64s:
        """Waiting enrolments whose home device is among ``left``, or that have none; at most ``rows``."""

    async def rehome(self, enrolment: Int64s, device_id: list[UUID]) -> int:
        """Give waiting enrolments another home device."""


class CoordinatorStore(EnrolStore, RescueStore, BalanceStore, Protocol):
    """What the coordinator needs, for itself and its passes."""

    @property
    def seat(self) -> Seat:
        """The coordinator's."""

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""

    async def catalogue(self, now_us: int) -> Catalogue:
        """All sequences; what is broken is recorded for everybody to see, and open entries are opened."""

    async def fleet(self) -> Fleet:
        """All devices."""

    async def assign_shards(self, number: Int32s, shard: Int32s) -> None:
        """Give devices to shards; a former owner is superseded with it."""

    async def groups(self, since_us: int) -> list[Group]:
        """Groups of devices by name, with the devices that are in them, or were since ``since_us``."""

    async def usage(self, number: Int32s, since_us: int) -> list[Usage]:
        """Every slot of these devices after ``since_us``, from ledger and leases in one snapshot.

        Counted as for ``ShardStore.usage``, but all at their slots.
        """

    async def begin_day(self, now_us: int, days_ahead: int, kept_us: int) -> int:
        """Ledger partitions from yesterday to ``days_ahead`` days after ``now_us``; how many were made.

        Records of hand-overs older than ``kept_us`` are given up, what was written about erased leads since, and pauses
        of leads that are over; ramps of devices grow by a day's step.
        """

    async def claim(self, want: Want, now_us: int, *, epoch: int, deadline_us: int, lead_fields: bool) -> Leased | None:
        """Lease what is due to the offered slots, committed before this returns.

        Args:
            deadline_us: how long after its slot a message may leave.
            lead_fields: whether names and attributes are read.

        Returns None when nothing is due, or an epoch is superseded.
        """

    async def next_due(self, device_id: list[UUID]) -> Int64s:
        """The earliest due moment of each device; ``NEVER_US`` where nothing waits."""

    async def close(self) -> None:
        """Close the connections."""


class ShardStore(Protocol):
    """What a shard and its completer need."""

    @property
    def seat(self) -> Seat:
        """The shard's."""

    async def versions(self) -> Versions:
        """Counters that tell whether catalogue or fleet have changed."""

    async def catalogue(self) -> Catalogue:
        """All sequences."""

    async def fleet(self) -> Fleet:
        """The shard's devices."""

    async def usage(self, since_us: int) -> list[Usage]:
        """Everything reserved after ``since_us``, from ledger and leases in one snapshot.

        Counted are attempts not proved unsent, an unknown one at its deadline, and leases that were, or may still be,
        handed over, at theirs.
        """

    async def leased_tokens(self, epoch: int) -> list[int]:
        """Tokens of the claims made under ``epoch`` that have no outcome yet."""

    async def read_lease(self, epoch: int, token: int) -> Leased | None:
        """The claim ``token`` as it stands; None when nothing of it is leased any more."""

    async def last_look(
        self,
        leased: Leased,
        texts: Sequence[str | None],
        media_urls: Sequence[str | None],
        now_us: int,
        key_known_us: int,
    ) -> dict[int, str]:
        """What may not leave after all, reason by row; of the rest it is recorded that, and with what, it leaves.

        Reasons: superseded, gone, trigger removed, opted out, stopped, replied, paused, step paused, key forgotten.

        Args:
            texts: what each will say; None for one that does not leave anyway.
            key_known_us: gateways have forgotten the keys of what was handed over before this.
        """

    async def time_zones(self, lead: Int64s) -> Coded[str | None]:
        """The time zones of leads, row by row; None where none is known."""

    async def open_windows(self, lead: Int64s, device: Int32s, since_us: int) -> NDArray[np.bool_]:
        """Row by row, whether the lead has written to the device (its number) since ``since_us``."""

    async def rest_accounts(self, device: Int32s, until_us: Int64s) -> int:
        """Let all devices of the accounts behind these ones rest; how many that told something new."""

    async def postpone(self, openings: Mapping[int, Openings], now_us: int, rows: int) -> int:
        """Move up to ``rows`` waiting enrolments that are due to where the send windows of their leads open.

        Those of the shard's devices; what somebody holds is left alone.

        Args:
            openings: by sequence; of what is not named nothing moves.
        """

    async def late(self, before_us: Mapping[int, int], rows: int) -> Late:
        """Up to ``rows`` waiting enrolments of the shard's devices that were due before this, by sequence.

        Never one with an attempt in doubt.
        """

    async def move_late(self, moves: LateMoves, now_us: int) -> int:
        """Skip or shift enrolments that wait as they did, around what somebody holds; each is written down."""

    async def give_back(
        self,
        enrolment: Int64s,
        token: Int64s,
        due_us: Int64s,
        stop: list[str | None],
        now_us: int,
        forgotten: list[bool],
        aside: list[bool],
    ) -> int:
        """End leases that were not handed over: waiting again, stopped for the given reason, or in doubt for good.

        Args:
            aside: which leave the claim's way, because their step is paused.
        """

    async def end(self, ends: Ends, now_us: int, *, epoch: int, deadline_us: int) -> None:
        """Write ends of attempts, ledger and progress, in one transaction."""

    async def set_breakers(self, turned: Turned) -> int:
        """Write how devices' breakers stand: quarantined until a message may try, or, with no trips, available again.

        Where somebody else has said what a device's health is, that stands. Returns how many were written.

        Args:
            turned: devices by their numbers.
        """

    async def close(self) -> None:
        """Close the connections."""
