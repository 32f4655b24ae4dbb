"""Lets the planned faults strike, each at its moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dispatcher.core.moments import SECOND_US
from simulate.prove.cluster import Cluster
from simulate.prove.dice import Dice
from simulate.prove.faults import WEATHER, Fault
from simulate.prove.people import People
from simulate.prove.stage import Member, Stage
from simulate.prove.virtual_loop import Life

_HOUR_US = 3600 * SECOND_US
_STATEMENTS = 12


class Storm:
    """The faults of one seed.

    Args:
        stage: on which they strike.
        cluster: the processes.
        people: what people do.
    """

    def __init__(self, stage: Stage, cluster: Cluster, people: People) -> None:
        self._stage, self._cluster, self._people = stage, cluster, people
        self._acts: dict[str, Callable[[Dice, Fault], None]] = {
            "shard killed": self._kill_shard,
            "shard killed before a statement": partial(self._doom_shard, "before"),
            "shard killed after a statement": partial(self._doom_shard, "after"),
            "shard killed in hand-over": partial(self._doom_shard, "hand-over"),
            "shard stopped": self._stop_shard,
            "shard replaced, lives on": self._split_shard,
            "coordinator killed": self._kill_coordinator,
            "coordinator killed before a statement": partial(self._doom_coordinator, "before"),
            "coordinator killed after a statement": partial(self._doom_coordinator, "after"),
            "coordinator stopped": self._stop_coordinator,
            "coordinator replaced, lives on": self._split_coordinator,
            "second coordinator": self._second_coordinator,
            "database restarted": self._restart_database,
            "database clock an hour ahead": partial(self._set_database_clock, _HOUR_US),
            "database clock an hour behind": partial(self._set_database_clock, -_HOUR_US),
            "database clock off a little": self._shift_database_clock,
            "machine clock an hour ahead": partial(self._set_machine_clock, _HOUR_US),
            "machine clock an hour behind": partial(self._set_machine_clock, -_HOUR_US),
        }

    def plan(self, faults: tuple[Fault, ...]) -> None:
        """Have each strike when its moment comes."""
        for fault in faults:
            if fault.kind in WEATHER:
                self._stage.at(fault.at_s, self._stage.begin, fault)
                self._stage.at(fault.at_s + fault.lasts_s, self._stage.end, fault)
            else:
                self._stage.at(fault.at_s, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        if not self._people.act(fault):
            self._acts[fault.kind](self._stage.dice.of("strike", fault.number), fault)

    def _shard(self, dice: Dice) -> Member:
        return self._cluster.shards[dice.whole(0, self._stage.world.shards - 1)]

    # Processes -----------------------------------------------------------------------------------------------

    def _kill(self, member: Member, fault: Fault) -> None:
        if member.life is not Life.DEAD:
            self._stage.strike(fault.kind, member.name)
            member.kill()

    def _kill_shard(self, dice: Dice, fault: Fault) -> None:
        self._kill(self._shard(dice), fault)

    def _kill_coordinator(self, _: Dice, fault: Fault) -> None:
        self._kill(self._cluster.coordinator, fault)

    def _doom_shard(self, phase: str, dice: Dice, fault: Fault) -> None:
        calls = dice.whole(1, 3 if phase == "hand-over" else _STATEMENTS)
        self._shard(dice).die_at(phase, calls, fault.kind)

    def _doom_coordinator(self, phase: str, dice: Dice, fault: Fault) -> None:
        self._cluster.coordinator.die_at(phase, dice.whole(1, 3 * _STATEMENTS), fault.kind)

    def _stop(self, member: Member, fault: Fault) -> None:
        if member.life is Life.RUNNING:
            self._stage.strike(fault.kind, member.name, f"for {fault.lasts_s:.1f} s")
            member.stop()
            self._stage.after(fault.lasts_s, member.go_on)

    def _stop_shard(self, dice: Dice, fault: Fault) -> None:
        self._stop(self._shard(dice), fault)

    def _stop_coordinator(self, _: Dice, fault: Fault) -> None:
        self._stop(self._cluster.coordinator, fault)

    def _split_shard(self, dice: Dice, fault: Fault) -> None:
        self._cluster.lets_live += 1
        self._cluster.replace_now(dice.whole(0, self._stage.world.shards - 1))

    def _split_coordinator(self, _: Dice, fault: Fault) -> None:
        self._stage.strike(fault.kind, self._cluster.coordinator.name)
        self._cluster.start_coordinator()

    def _second_coordinator(self, _: Dice, fault: Fault) -> None:
        self._stage.strike(fault.kind)
        other = self._cluster.start_coordinator("another installation")
        self._stage.after(fault.lasts_s, other.kill)

    # Database and clocks -------------------------------------------------------------------------------------

    def _restart_database(self, dice: Dice, fault: Fault) -> None:
        down_s = min(fault.lasts_s, dice.between(0.1, 10))
        self._stage.strike(fault.kind, "database", f"down for {down_s:.1f} s")
        self._stage.restarts += 1
        self._stage.down_until_s = max(self._stage.down_until_s, self._stage.loop.time() + down_s)

    def _set_database_clock(self, step_us: int, _: Dice, fault: Fault) -> None:
        self._stage.strike(fault.kind, "database", f"for {fault.lasts_s:.1f} s")
        self._stage.database_step_us = step_us
        self._stage.after(fault.lasts_s, self._mend_database_clock)

    def _mend_database_clock(self) -> None:
        self._stage.database_step_us = 0

    def _shift_database_clock(self, dice: Dice, fault: Fault) -> None:
        self._stage.database_error_us = self._stage.error_us(dice)
        self._stage.strike(fault.kind, "database", f"by {self._stage.database_error_us / SECOND_US:+.3f} s")

    def _set_machine_clock(self, step_us: int, dice: Dice, fault: Fault) -> None:
        member = self._shard(dice)
        self._stage.strike(fault.kind, member.name, f"for {fault.lasts_s:.1f} s")
        member.clock_step_us = step_us
        self._stage.after(fault.lasts_s, _mend_clock, member)


def _mend_clock(member: Member) -> None:
    member.clock_step_us = 0
