"""What goes wrong, and when: drawn from the seed before anything runs, so that each fault can be left out alone.

A **strike** happens at a moment. **Weather** lasts: while it does, it strikes a share of the calls it is about. Every
fault has dice of its own, so leaving one out changes no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from simulate.prove.dice import Dice
from simulate.prove.world import World

STRIKES: Final = (
    "shard killed",
    "shard killed before a statement",
    "shard killed after a statement",
    "shard killed in hand-over",
    "shard stopped",
    "shard replaced, lives on",
    "coordinator killed",
    "coordinator killed before a statement",
    "coordinator killed after a statement",
    "coordinator stopped",
    "coordinator replaced, lives on",
    "second coordinator",
    "database restarted",
    "database clock an hour ahead",
    "database clock an hour behind",
    "database clock off a little",
    "machine clock an hour ahead",
    "machine clock an hour behind",
    "opt-out",
    "opt-in",
    "trigger removed",
    "trigger edited",
    "trigger comes back",
    "lead edited",
    "lead deleted",
    "leads locked",
    "pause",
    "sequence switched on later",
    "text edited",
    "delay edited",
    "graph broken",
    "step removed",
    "device offline",
    "device draining",
    "device added",
    "device removed",
    "device moved",
    "quota lowered",
    "quota raised",
    "keys no longer honoured",
    "operator resolves",
)
WEATHER: Final = (
    "request lost",
    "reply lost",
    "call doubled",
    "call late",
    "shard cut off",
    "statement stalled",
    "answer stalled",
    "connection lost before commit",
    "connection lost after commit",
    "gateway: accepts, answer lost",
    "gateway: request lost",
    "gateway: 5xx, accepted",
    "gateway: 5xx, not accepted",
    "gateway: garbage, accepted",
    "gateway: slow",
    "gateway: answers late",
    "gateway: 429",
    "gateway: not accepted",
    "gateway: rejects",
    "gateway: opted out",
    "gateway: credentials",
    "receipt doubled",
    "receipt late",
)
KINDS: Final = STRIKES + WEATHER
_RARE: Final = {"gateway: rejects": 0.15, "gateway: opted out": 0.1, "gateway: credentials": 0.1}
_CUT: Final = ("shard cut off",)


@dataclass(frozen=True, slots=True)
class Fault:
    """One planned fault."""

    number: int
    kind: str
    at_s: float
    lasts_s: float
    """Weather, stops and the like: until what they did is undone; 0 otherwise."""
    share: float
    """Weather: of the calls concerned."""

    def __str__(self) -> str:
        lasting = f", for {self.lasts_s:.1f} s" if self.lasts_s else ""
        share = f", {self.share:.0%} of calls" if self.kind in WEATHER else ""
        return f"fault {self.number}: {self.kind} at {self.at_s:.1f} s{lasting}{share}"


def plan(seed: int, world: World) -> tuple[Fault, ...]:
    """The faults of ``seed``, in order of time. Each seed leaves out about half of the kinds."""
    dice = Dice(seed, "faults")
    kinds = [kind for kind in KINDS if dice.chance(0.55)]
    if world.saturated:
        kinds = [kind for kind in kinds if kind not in _QUIETENING]
    if not kinds:
        return ()
    drawn = []
    # What gateways do twice as often: several of it have to meet on one message.
    pool = kinds + [kind for kind in kinds if kind.startswith("gateway")]
    for number in range(dice.whole(14, 36)):
        own = dice.of("fault", number)
        kind = own.pick(pool)
        at_s = own.between(0, world.faults_end_s)
        lasts_s = min(own.between(1, 120 if kind.startswith("gateway") else 60), world.faults_end_s - at_s)
        share = _RARE.get(kind, 1.0) * own.pick((0.05, 0.2, 0.5, 1.0)) if kind not in _CUT else 1.0
        drawn.append(Fault(number, kind, at_s, lasts_s, share))
    return tuple(sorted(drawn, key=lambda fault: fault.at_s))


_QUIETENING: Final = frozenset(
    {
        "opt-out", "trigger removed", "trigger edited", "lead deleted", "pause", "sequence switched on later",
        "graph broken", "step removed", "device offline", "device draining", "device added", "device removed",
        "device moved", "quota lowered", "quota raised", "keys no longer honoured", "delay edited",
        "gateway: rejects", "gateway: opted out", "gateway: credentials",
    }
)  # fmt: skip
"""Faults that take away what there is to send, or with what: no measure of how well a saturated fleet is used."""
