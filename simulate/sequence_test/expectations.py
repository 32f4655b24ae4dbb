"""What was expected and did not come true, in words, and what happened instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dispatcher.core import triggers
from dispatcher.core.outcomes import Outcome
from dispatcher.intake.yaml_file import Keys
from simulate.memory_store.rows import Enrolment
from simulate.sequence_test.gateway import Attempt
from simulate.sequence_test.schema import CaseKeys, ExpectKeys, MessageKeys
from simulate.sequence_test.times import told
from simulate.sequence_test.world import Act, Person, Played

_ANSWERS: Final = {
    Outcome.IN_DOUBT: "in doubt",
    Outcome.OPTED_OUT: "refused: the recipient has opted out",
    Outcome.REPEAT: "asked again: it had arrived",
}
_TEXT_SHOWN: Final = 70


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that did not come true."""

    keys: Keys
    """The way to it in the test."""
    lead: str | None
    """Whom it is about, where the test has several."""
    problem: str
    """What was expected, and what happened."""

    def __str__(self) -> str:
        return self.problem if self.lead is None else f"{self.lead}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of what happened to a lead."""

    at_us: int | None
    """Since the beginning; None: at the end."""
    what: str

    def __str__(self) -> str:
        return f"{'end' if self.at_us is None else told(self.at_us):<12} {self.what}"


def failures(case: CaseKeys, played: Played) -> list[Failure]:
    """All that did not come true."""
    return [
        Failure((*keys, *below), person.said.name if case.leads else None, problem)
        for keys, expected in case.expected
        for person in played.people
        if expected.lead in (None, person.said.name)
        for below, problem in _judge(expected, person, played)
    ]


def timeline(person: Person, played: Played) -> list[Line]:
    """What happened to a lead, and where its enrolments stand in the end."""
    lines = []
    for each in played.story:
        if isinstance(each, Act):
            if person.phone in each.phones or not each.phones:
                lines.append(Line(each.at_us - played.begin_us, each.what))
        elif each.phone == person.phone:
            lines.append(Line(each.at_us - played.begin_us, _said(each)))
    ends = [f"{played.sequences[row.sequence]}: {_where(row)}" for row in person.enrolments]
    return lines + [Line(None, end) for end in ends or [_why_never(person, played)]]


def _why_never(person: Person, played: Played) -> str:
    strange = [token for token in triggers.parse(person.trigger) if token not in played.entries]
    return "was never enrolled" + (f": no entry step has the trigger {', '.join(strange)}" if strange else "")


def _said(attempt: Attempt) -> str:
    text = attempt.text if len(attempt.text) <= _TEXT_SHOWN else f"{attempt.text[: _TEXT_SHOWN - 3]}..."
    if attempt.answer is Outcome.ACCEPTED:
        return f"{attempt.step}  {text!r}"
    arrived = f", but it arrived: {text!r}" if attempt.arrived else ""
    return f"{attempt.step}  {_ANSWERS.get(attempt.answer, attempt.answer.label)}{arrived}"


def _where(row: Enrolment) -> str:
    """Where an enrolment stands, and why."""
    at, cause = "" if row.status == "completed" else f" at {row.step}", _cause(row)
    return row.status.replace("_", " ") + at + (f" ({cause})" if cause else "")


def _cause(row: Enrolment) -> str | None:
    return row.stop_reason if row.status == "stopped" else row.last_error


def _judge(expected: ExpectKeys, person: Person, played: Played) -> Iterator[tuple[Keys, str]]:
    """What did not come true of ``expected`` for a lead: the way to it, and the problem."""
    attempts = [each for each in played.attempts(person) if expected.sequence in (None, each.sequence)]
    arrived = [each for each in attempts if each.arrived]
    if expected.messages is not None:
        came_us = person.said.at.after(played.begin_us)
        yield from _judge_messages(expected.messages, arrived, expected.within.span_us, played.begin_us, came_us)
    if expected.count is not None and expected.count != len(arrived):
        yield ("count",), f"expected {_messages(expected.count)}, but {_messages(len(arrived))} arrived"
    for n, step in enumerate(expected.never or ()):
        left = [each for each in attempts if each.step == step]
        if left:
            at = told(left[0].at_us - played.begin_us)
            yield ("never", n), f"expected {step} never to be sent, but it was at {at}"
    if expected.triggers is not None and set(expected.triggers) != set(triggers.parse(person.trigger)):
        wanted, carried = ", ".join(expected.triggers) or "no trigger", person.trigger or "none"
        yield ("triggers",), f"expected the lead to carry {wanted}, but it carries {carried}"
    yield from _judge_enrolments(expected, person, played)


def _judge_enrolments(expected: ExpectKeys, person: Person, played: Played) -> Iterator[tuple[Keys, str]]:
    rows = [row for row in person.enrolments if expected.sequence in (None, played.sequences[row.sequence])]
    if expected.enrolments is not None and expected.enrolments != len(rows):
        yield ("enrolments",), f"expected {_enrolments(expected.enrolments)}, but there {_are(len(rows))}"
    if expected.state is None:
        return
    wanted = expected.state.replace("_", " ")
    if not rows:
        yield ("state",), f"expected {wanted}, but the lead was never enrolled"
    for row in {row.sequence: row for row in rows}.values():  # the last of each sequence
        where = f"{played.sequences[row.sequence]} is {_where(row)}"
        if row.status != expected.state:
            yield ("state",), f"expected {wanted}, but {where}"
        elif expected.because is not None and expected.because.lower() not in (_cause(row) or "").lower():
            yield ("because",), f"expected {wanted} because {expected.because!r}, but {where}"


def _judge_messages(
    expected: list[MessageKeys], arrived: list[Attempt], within_us: int, begin_us: int, came_us: int
) -> Iterator[tuple[Keys, str]]:
    """Message by message, until one is missing, too many or another one."""
    before_us = came_us
    for n in range(max(len(expected), len(arrived))):
        if n >= len(expected):
            extra, at = arrived[n], told(arrived[n].at_us - begin_us)
            yield ("messages",), f"expected no more messages, but {extra.step} arrived at {at}"
            return
        wanted = expected[n]
        if n >= len(arrived):
            yield ("messages", n), f"expected {_wanted(wanted)}, but nothing more arrived"
            return
        came = arrived[n]
        if came.step != wanted.step:
            at = told(came.at_us - begin_us)
            yield ("messages", n), f"expected {_wanted(wanted)}, but {came.step} arrived at {at}"
            return
        off_us = within_us if wanted.within is None else wanted.within.span_us
        judged = _judge_message(wanted, came, off_us, begin_us, before_us)
        yield from ((("messages", n, key), problem) for key, problem in judged)
        before_us = came.at_us


def _judge_message(
    wanted: MessageKeys, came: Attempt, within_us: int, begin_us: int, before_us: int
) -> Iterator[tuple[str, str]]:
    if wanted.at is not None and abs(came.at_us - wanted.at.after(begin_us)) > within_us:
        yield "at", f"expected {_wanted(wanted)}, but it arrived at {told(came.at_us - begin_us)}"
    if wanted.after is not None and abs(came.at_us - before_us - wanted.after.span_us) > within_us:
        yield "after", f"expected {_wanted(wanted)}, but it arrived after {told(came.at_us - before_us)}"
    if wanted.text is not None and came.text != wanted.text:
        yield "text", f"expected {wanted.step} to say {wanted.text!r}, but it says {came.text!r}"
    if wanted.contains is not None and wanted.contains not in came.text:
        yield "contains", f"expected {wanted.step} to contain {wanted.contains!r}, but it says {came.text!r}"


def _wanted(message: MessageKeys) -> str:
    if message.at is not None:
        return f"{message.step} at {message.at}"
    return message.step if message.after is None else f"{message.step} after {message.after}"


def _messages(number: int) -> str:
    return f"{number} message{'' if number == 1 else 's'}"


def _enrolments(number: int) -> str:
    return "no enrolment" if not number else f"{number} enrolment{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return f"{'is' if number == 1 else 'are'} {number}"
