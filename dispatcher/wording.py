"""What messages say: a batch of leases becomes texts, or approved templates, and the reasons why some have neither."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Coded, Indices, Leased
from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Template
from dispatcher.core.messages import Template as Text
from dispatcher.core.messages import compiled
from dispatcher.core.outcomes import Outcome

NO_TEMPLATE = "the lead has not written in the last 24 hours, and the step has no template"


@dataclass(frozen=True, slots=True)
class Said:
    """What the rows of a batch say; None where nothing leaves, with the reason where it cannot be said."""

    texts: Coded[str | None]
    media_urls: Coded[str | None]
    templates: list[str | None] | None
    """What leaves instead of the text, as ``Outgoing.template``; None altogether: nowhere."""
    errors: dict[int, tuple[Outcome, str]]


def say(
    leased: Leased,
    leaves: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    catalogue: Catalogue,
    texts_of: Mapping[str, Text],
) -> Said:
    """What each row says, a batch a step: a resend what it said before, one that does not leave nothing.

    Args:
        leaves: which rows leave at all.
        outside: where free text may not be sent, so that the step's template is.
        texts_of: the compiled message texts, by the step's trigger.
    """
    texts: list[str | None] = [None]
    media_urls: list[str | None] = [None]
    text, media_url = np.zeros((2, len(leased)), np.intp)
    errors: dict[int, tuple[Outcome, str]] = {}
    templates: list[str | None] | None = [None] * len(leased) if outside.any() else None

    def put(rows: Indices, said: Sequence[str | None], media: Sequence[str | None]) -> None:
        text[rows] = len(texts) + np.arange(len(said))
        media_url[rows] = len(media_urls) + np.arange(len(media))
        texts.extend(said)
        media_urls.extend(media)

    again = Coded.of(leased.resend_text).where(lambda before: before is not None)
    repeated = leased.take(rows := np.flatnonzero(leaves & again))
    put(rows, repeated.resend_text, repeated.resend_media_url)
    step = np.where(leaves & ~again, catalogue.indices(leased.step), -1)
    for index in np.flatnonzero(np.bincount(step + 1)[1:]).tolist():
        rows = np.flatnonzero(step == index)
        trigger = catalogue.triggers[index]
        template = texts_of[trigger]
        media = [catalogue.step[trigger].media_url]
        failed: dict[int, tuple[Outcome, str]] = {}
        if template.constant is not None:
            put(rows, [template.constant], media)
        else:
            part = leased.take(rows)
            rendered, problems = template.render_batch(part.phone, part.name, part.attributes)
            put(rows, rendered, media)
            failed = {place: (Outcome.REJECTED, f"content: {problem}") for place, problem in problems.items()}
        if templates is not None and outside[rows].any():
            within = np.flatnonzero(outside[rows])
            filled, lacking = _filled(catalogue.step[trigger].template, leased.take(rows[within]))
            for place, approved in zip(within.tolist(), filled, strict=True):
                templates[int(rows[place])] = approved
            failed |= {int(within[place]): reason for place, reason in lacking.items()}
        for place, reason in failed.items():
            errors[int(rows[place])], text[rows[place]] = reason, 0
    return Said(Coded(texts, text), Coded(media_urls, media_url), templates, errors)


def _filled(template: Template | None, part: Leased) -> tuple[list[str | None], dict[int, tuple[Outcome, str]]]:
    """The approved template with its gaps filled for each row, and by row why there is none."""
    if template is None:
        return [None] * len(part), dict.fromkeys(range(len(part)), (Outcome.SERVICE_WINDOW, NO_TEMPLATE))
    errors: dict[int, tuple[Outcome, str]] = {}
    columns: list[list[str]] = []
    for number, parameter in enumerate(template.parameters, 1):
        values, problems = compiled(parameter).render_batch(part.phone, part.name, part.attributes)
        columns.append(values)
        for row, problem in problems.items():
            errors.setdefault(row, (Outcome.REJECTED, f"content: template parameter {number}: {problem}"))
    named = {"name": template.name, "language": template.language}
    filled = [json.dumps({**named, "parameters": [column[row] for column in columns]}) for row in range(len(part))]
    return [None if row in errors else text for row, text in enumerate(filled)], errors
