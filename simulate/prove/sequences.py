"""What marketers do to sequences, and what the tester writes down of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Step
from simulate.memory_store import MemoryDatabase
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.stage import Stage

_LATER: Final = "sequence switched on later"


class Sequences:
    """Marketers with their sequences.

    Args:
        stage: where they act.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._database: MemoryDatabase = stage.database
        self.paused: dict[int, list[tuple[int, int | None]]] = {}
        """When each sequence was switched off, and until when."""
        self.catalogues: list[Catalogue] = []
        """Every version there was."""
        self.acts: dict[str, Callable[[Dice, Fault], None]] = {
            _LATER: self._switch_on,
            "text edited": self._edit_text,
            "delay edited": self._edit_delay,
            "graph broken": self._break_graph,
            "step removed": self._remove_step,
        }

    def begin(self, faults: tuple[Fault, ...]) -> None:
        """Write them; what one of ``faults`` switches on is off until then."""
        for plan in self._stage.world.sequences:
            self._database.add_sequence(
                plan.name,
                plan.steps,
                reentry=plan.reentry,
                reentry_interval_h=plan.reentry_interval_h,
                sender_policy=plan.sender_policy,
                requires_opt_in=plan.requires_opt_in,
                exit_on_reply=plan.exit_on_reply,
                send_window=plan.send_window,
                max_lateness_h=plan.max_lateness_h,
                when_late=None if plan.max_lateness_h is None else "skip",
                goal=plan.goal,
            )
        for fault in faults:
            sequence = self._later(fault)
            if fault.kind == _LATER and sequence not in self.paused:
                self._database.set_active(sequence, False)
                self.paused[sequence] = [(self._stage.true_us(), None)]
        self._keep_catalogue()

    def _done(self, fault: Fault, what: str) -> None:
        self._stage.strike(fault.kind, "people", what)

    def _keep_catalogue(self) -> None:
        self.catalogues.append(self._database.catalogue())

    # On and off ----------------------------------------------------------------------------------------------

    def _later(self, fault: Fault) -> int:
        return self._stage.dice.of("switched on", fault.number).pick(list(self._database.sequences))

    def _switch_on(self, _: Dice, fault: Fault) -> None:
        sequence = self._later(fault)
        if not self._database.sequences[sequence].is_active:
            self._resume(sequence)
            self._done(fault, f"sequence {sequence}")

    def pause(self, dice: Dice, fault: Fault) -> None:
        """Switch one off for a while."""
        sequence = dice.pick(list(self._database.sequences))
        if self._database.sequences[sequence].is_active:
            self._database.set_active(sequence, False)
            self.paused.setdefault(sequence, []).append((self._stage.true_us(), None))
            self._stage.after(fault.lasts_s, self._resume, sequence)
            self._keep_catalogue()
            self._done(fault, f"sequence {sequence} for {fault.lasts_s:.0f} s")

    def _resume(self, sequence: int) -> None:
        since_us, until_us = self.paused[sequence][-1]
        if until_us is None:
            self._database.set_active(sequence, True)
            self.paused[sequence][-1] = since_us, self._stage.true_us()
            self._keep_catalogue()
            self._stage.note("people", f"sequence {sequence} resumed")

    # Steps ---------------------------------------------------------------------------------------------------

    def _trigger(self, dice: Dice) -> str:
        return dice.pick([step.trigger for row in self._database.sequences.values() for step in row.steps])

    def _edit_text(self, dice: Dice, fault: Fault) -> None:
        """All texts of a sequence, each to another one."""
        sequence = dice.pick(list(self._database.sequences))
        for step in self._database.sequences[sequence].steps:
            others = [text for text in self._stage.world.texts if text != step.message_text]
            self._database.edit_step(step.trigger, message_text=dice.pick(others))
        self._keep_catalogue()
        self._done(fault, f"sequence {sequence}")

    def _edit_delay(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        self._database.edit_step(trigger, delay_h=dice.whole(1, 4))
        self._keep_catalogue()
        self._done(fault, trigger)

    def _break_graph(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        step = self._database.catalogue().step[trigger]
        if step.next_trigger != "nowhere":
            self._database.edit_step(trigger, next_trigger="nowhere")
            self._keep_catalogue()
            self._stage.after(fault.lasts_s, self._mend_graph, trigger, step.next_trigger)
            self._done(fault, f"{trigger} leads nowhere for {fault.lasts_s:.0f} s")

    def _mend_graph(self, trigger: str, following: str | None) -> None:
        self._database.edit_step(trigger, next_trigger=following)
        self._keep_catalogue()
        self._stage.note("people", f"{trigger} mended")

    def _remove_step(self, dice: Dice, fault: Fault) -> None:
        trigger = self._trigger(dice)
        row = next(row for row in self._database.sequences.values() if any(s.trigger == trigger for s in row.steps))
        step = self._database.catalogue().step[trigger]
        if len(row.steps) > 1 and row.id is not None and step.next_trigger != "nowhere":  # somebody is to mend that one
            self._database.remove_step(trigger)
            self._keep_catalogue()
            self._stage.after(fault.lasts_s, self._bring_step_back, row.id, step)
            self._done(fault, f"{trigger} for {fault.lasts_s:.0f} s")

    def _bring_step_back(self, sequence: int, step: Step) -> None:
        self._database.add_step(sequence, step)
        self._keep_catalogue()
        self._stage.note("people", f"{step.trigger} is back")
