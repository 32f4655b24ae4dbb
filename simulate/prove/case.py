"""One seed: the world is drawn, played under faults until everything has drained, and judged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from dispatcher.core.outcomes import Outcome
from simulate.checker import check, findings
from simulate.memory_store.rows import Enrolment
from simulate.prove import world as worlds
from simulate.prove.cluster import Cluster
from simulate.prove.faults import Fault, plan
from simulate.prove.gateway import Gateways, Request
from simulate.prove.people import People
from simulate.prove.stage import Stage
from simulate.prove.storm import Storm
from simulate.prove.verdict import gathered, use_of
from simulate.prove.world import World


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a seed."""

    seed: int
    violations: dict[str, int]
    """By rule, only those that were broken; empty when all held."""
    findings: list[str]
    """What exactly was broken."""
    injected: Counter[str]
    """Faults that struck, by kind."""
    sends: int
    """Messages accepted by gateways."""
    virtual_s: float
    steps: int
    """Callbacks run."""
    trace: list[tuple[int, str, str]]
    faults: tuple[Fault, ...]
    """Those that were planned."""
    use: tuple[int, int] | None
    """Saturated worlds: messages sent after the faults, and how many quotas and guard would have allowed."""


def play(seed: int, without: Collection[int] = ()) -> Result:
    """Play ``seed``, leaving out the faults whose numbers are in ``without``."""
    world = worlds.draw(seed)
    faults = tuple(fault for fault in plan(seed, world) if fault.number not in without)
    case = _Case(seed, world, faults)
    with case.listening():
        return case.run()


class _Heard(logging.Handler):
    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._errors.append(error)


class _Case:
    def __init__(self, seed: int, world: World, faults: tuple[Fault, ...]) -> None:
        self._world, self._faults = world, faults
        self._stage = Stage(seed, world)
        self._gateways = Gateways(self._stage, self._hear)
        self._people = People(self._stage, self._gateways)
        self._cluster = Cluster(self._stage, self._gateways)

    def _hear(self, request: Request) -> None:
        self._people.receipts.hear(request)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take what the services complain of in earnest - something broke off - for what it is: a finding."""
        log = logging.getLogger("dispatcher")
        before, heard = (log.level, log.propagate), _Heard(self._stage.loop.errors)
        log.addHandler(heard)
        log.setLevel(logging.ERROR)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(heard)
            log.level, log.propagate = before

    def run(self) -> Result:
        stage = self._stage
        self._people.begin(self._faults)
        Storm(stage, self._cluster, self._people).plan(self._faults)
        self._cluster.begin()
        stage.at(self._world.faults_end_s, self._heal)
        stage.loop.run_until(lambda: False, self._world.faults_end_s + 1.0)
        stage.loop.run_until(self._drained, self._bound_s())
        result = self._judge()
        stage.loop.close()
        return result

    def _heal(self) -> None:
        self._stage.heal()
        self._cluster.heal()
        self._people.heal()
        self._stage.note("world", "faults are over")

    def _bound_s(self) -> float:
        """By when everything must have drained, generously."""
        settings = self._world.settings
        database = self._stage.database
        sends = sum(len(row.steps) for row in database.sequences.values()) * (len(database.leads) + 1)
        # All of them may be one device's.
        most = [device.quota_per_day for device in database.devices.values()]
        most += [group.most_per_day // 2 for group in self._world.groups]  # its limit may be lowered on the way
        days = 2 + sends / max(1, min(most))
        return self._world.faults_end_s + days * 24 * settings.hour_s * 1.2

    def _drained(self) -> bool:
        database = self._stage.database
        return not database.queue and not self._unsearched() and next(self._waiting(), None) is None

    def _unsearched(self) -> bool:
        """Whether leads may not have been found yet that an entry which has opened is for."""
        database = self._stage.database
        opened = database.open_entries
        return opened.keys() != database.catalogue().entries.keys() or not all(e.scan_done for e in opened.values())

    def _waiting(self) -> Iterator[Enrolment]:
        """What is active and can get on: not at a step that was edited away under it."""
        database = self._stage.database
        steps = database.catalogue().step
        for row in database.enrolments.values():
            if row.status == "active" and (row.due_us is None or row.device is not None or row.step in steps):
                yield row

    def _judge(self) -> Result:
        stage, drained = self._stage, self._drained()
        receipts = self._gateways.receipts()
        evidence = gathered(stage, self._people, drained=drained)
        violations = {name: count for name, count in asdict(check(receipts, evidence)).items() if count}
        found = findings(receipts, evidence, limit=20) if violations else []
        if stage.loop.errors:
            violations["broke_off"] = len(stage.loop.errors)
            found += [f"broke off: {error!r}" for error in stage.loop.errors]
        if not drained:
            waiting = list(self._waiting())
            violations["stuck"] = violations.get("stuck", 0) + len(waiting) + len(stage.database.queue)
            found += [
                f"not drained: enrolment {row.id} ({row.phone}, {row.step}, visit {row.visit})" for row in waiting
            ]
        return Result(
            seed=stage.seed,
            violations=violations,
            findings=found,
            injected=stage.injected,
            sends=int(receipts.answered(Outcome.ACCEPTED).sum()),
            virtual_s=stage.loop.time(),
            steps=stage.loop.steps,
            trace=stage.trace,
            faults=self._faults,
            use=use_of(stage) if self._world.saturated else None,
        )
