"""Goals: what ends a sequence for a lead, because it has done what the sequence was for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.core import triggers
from dispatcher.core.messages import HOLDS, TemplateError, condition


@dataclass(frozen=True, slots=True, repr=False)
class Goal:
    """Reached once the lead carries ``trigger``, or ``condition`` holds of it; at least one is given."""

    trigger: str | None = None
    condition: str | None = None
    """As after ``if`` in a message text. Where it reads what the lead lacks, it does not hold."""

    def __repr__(self) -> str:
        parts = [*[f"trigger {self.trigger}"] * (self.trigger is not None), *filter(None, [self.condition])]
        return " or ".join(parts)

    @property
    def problem(self) -> str | None:
        """Why the condition cannot be read; None where it can, or there is none."""
        try:
            if self.condition is not None:
                condition(self.condition)
        except TemplateError as error:
            return error.problem
        return None

    def reached(
        self,
        trigger_lists: Sequence[str | None],
        phones: Sequence[str],
        names: Sequence[str | None],
        attributes_json: Sequence[str | None],
    ) -> list[bool]:
        """Which of these leads have reached it."""
        found = [self.trigger is not None and self.trigger in triggers.parse(list_) for list_ in trigger_lists]
        if self.condition is not None:
            texts, _ = condition(self.condition).render_batch(phones, names, attributes_json)
            found = [there or text == HOLDS for there, text in zip(found, texts, strict=True)]
        return found
