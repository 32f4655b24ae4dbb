"""What becomes known of a message later: receipts from gateways, and the word of operators who asked one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from dispatcher.core.leases import Ends
from dispatcher.core.moments import span_us
from dispatcher.core.outcomes import Outcome
from simulate.memory_store import MemoryDatabase, MemoryShardStore
from simulate.memory_store.rows import Attempt
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.gateway import Request
from simulate.prove.stage import Stage

_NOBODYS_TOKEN: Final = -1
_RECEIPT_S: Final = 20.0
_AGAIN_S: Final = 15.0


class Receipts:
    """Who passes on what gateways know.

    Args:
        stage: where they act.
        ask: what the gateways' logs say of a key: message id and moment, if it was accepted.
    """

    def __init__(self, stage: Stage, ask: Callable[[bytes], tuple[str, int] | None]) -> None:
        self._stage, self._ask = stage, ask
        self._database: MemoryDatabase = stage.database
        self.settled: set[tuple[int, int, int]] = set()
        """Enrolment, visit and generation of what an operator has settled."""
        self.acts: dict[str, Callable[[Dice, Fault], None]] = {"operator resolves": self._resolve}

    def hear(self, request: Request) -> None:
        """A gateway has accepted a message without telling its sender: half of them send a receipt later."""
        stage = self._stage
        if not stage.dice.chance(0.5):
            return
        delay_s = stage.dice.between(0.1, _RECEIPT_S)
        if stage.struck("receipt late", "gateway", str(request)):
            delay_s *= 10
        stage.after(delay_s, self._learn, request.key)
        if stage.struck("receipt doubled", "gateway", str(request)):
            stage.after(delay_s * stage.dice.between(0.5, 2), self._learn, request.key)

    def _resolve(self, dice: Dice, fault: Fault) -> None:
        """An operator asks the gateway what became of an attempt in doubt, and tries again what has failed."""
        failed = [row.id for row in self._database.enrolments.values() if row.status == "failed"]
        if retried := [id_ for id_ in failed if self._database.retry(id_)]:
            self._stage.strike(fault.kind, "people", f"tries {len(retried)} again")
        surely_us = self._stage.true_us() - 2 * span_us(self._stage.world.settings.skew_s)
        rows = self._database.ledger.rows
        steps = self._database.catalogue().step
        doubts = [
            row for row in rows if row.outcome == "in_doubt" and row.deadline_us < surely_us and row.step in steps
        ]
        if doubts:
            attempt = dice.pick(doubts)
            what = f"enrolment {attempt.enrolment} visit {attempt.visit} attempt {attempt.attempt}"
            self._stage.strike(fault.kind, "people", what)
            self.settled.add((attempt.enrolment, attempt.visit, attempt.generation))
            self._learn(attempt.key)

    def _learn(self, key: bytes) -> None:
        """Pass on what the gateway says of the earliest attempt in doubt under ``key``, once its step is there."""
        rows = [row for row in self._database.ledger.rows if row.key == key and row.outcome == "in_doubt"]
        if rows and rows[0].step not in self._database.catalogue().step:
            self._stage.after(_AGAIN_S, self._learn, key)
        elif rows:
            self._stage.note("people", f"receipt for enrolment {rows[0].enrolment} visit {rows[0].visit}")
            self._stage.start(self._write(rows[0]))

    async def _write(self, row: Attempt) -> None:
        stage = self._stage
        catalogue = self._database.catalogue()
        number = next((device.number for device in self._database.devices.values() if device.id == row.device), 0)
        now_us = stage.database_us()
        message_id, at_us = self._ask(row.key) or (None, now_us)
        outcome = Outcome.NOT_SENT if message_id is None else Outcome.ACCEPTED
        lead, hour_us = self._database.leads.get(row.lead), stage.world.settings.hours_us(1)
        zone = [None if lead is None else lead.time_zone]
        following, due_us = catalogue.advance(catalogue.indices([row.step]), np.array([at_us]), zone, hour_us)
        ends = Ends(
            enrolment=np.array([row.enrolment]),
            token=np.array([_NOBODYS_TOKEN]),
            lead=np.array([row.lead]),
            visit=np.array([row.visit], np.int32),
            generation=np.array([row.generation], np.int32),
            attempt=np.array([row.attempt], np.int32),
            device=np.array([number], np.int32),
            slot_us=np.array([row.slot_us]),
            due_us=np.array([row.due_us]),
            at_us=np.array([at_us]),
            step=[row.step],
            key=[row.key],
            outcome=[outcome.label],
            message_id=[message_id],
            error=[None],
            next_trigger=following.tolist(),
            next_due_us=np.array([at_us]) if message_id is None else due_us,
            next=["waiting"],
            counted=np.array([0], np.int32),
            pinned=np.array([False]),
            handed=np.array([True]),
            text=[None],
            media_url=[None],
        )
        settings = stage.world.settings
        store = MemoryShardStore(self._database, 0, "people")
        await store.end(ends, now_us, epoch=row.epoch, deadline_us=span_us(settings.deadline_s))
