"""What a benchmark has measured: medians, spread, ratios and counts, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.page import table


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that was measured several times."""

    name: str
    unit: str
    """Of ``values``: ``sends/s``, ``ms``, ``µs``, ``MB``."""
    values: tuple[float, ...]
    """In the order they were taken; at least one."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What does not vary with the machine, by name: ``WAL B a send``, ``buffers``, ``rows read``."""
    note: str = ""
    """What has to be said beside the figure: sizes, versions, inequality of the work."""

    @property
    def median(self) -> float:
        """The figure that is quoted."""
        return median(self.values)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two medians of one run, and what was asked for."""

    name: str
    value: float
    asked: float
    """The least (or, ``below``, the greatest) value that will do."""
    stretch: float | None = None
    below: bool = False
    """The smaller the better."""
    whole: bool = True
    """Whether it was measured at the size that was asked for; at another one nothing is reached, and nothing missed."""

    @property
    def reached(self) -> str:
        """In a word: ``stretch``, ``yes`` or ``no``, or that it cannot be said."""
        if not self.whole:
            return "at full size only"
        if self.stretch is not None and self._within(self.stretch):
            return "stretch"
        return "yes" if self._within(self.asked) else "**no**"

    def _within(self, bound: float) -> bool:
        return self.value <= bound if self.below else self.value >= bound


@dataclass(slots=True)
class Part:
    """Everything one part of the benchmark has found."""

    measures: list[Measure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """What could not be measured here, and why."""
    remarks: list[str] = field(default_factory=list)
    """Sentences for the reader of the page."""
    files: dict[str, str] = field(default_factory=dict)
    """What lies beside the page, by name."""

    def of(self, name: str) -> Measure:
        """The measure of that name."""
        return next(measure for measure in self.measures if measure.name == name)

    def as_json(self) -> dict[str, Any]:
        """Plain data, medians included; no files."""
        found = asdict(self)
        del found["files"]
        for measure, plain in zip(self.measures, found["measures"], strict=True):
            plain["median"] = measure.median
        return found

    def as_markdown(self) -> list[str]:
        """The part's tables."""
        rows = [
            (
                measure.name,
                f"{number(measure.median)} {measure.unit}",
                f"{number(min(measure.values))} - {number(max(measure.values))}" if len(measure.values) > 1 else "",
                "; ".join(f"{number(count)} {name}" for name, count in measure.counts.items()),
                measure.note,
            )
            for measure in self.measures
        ]
        lines = table(("what", "median", "spread", "counts", ""), rows) if rows else []
        if self.ratios:
            lines += ["", *table(("ratio", "measured", "asked", "stretch", "reached"), map(_ratio, self.ratios))]
        if self.skipped:
            lines += ["", *(f"Skipped: {name} - {why}." for name, why in self.skipped.items())]
        return lines + [line for remark in self.remarks for line in ("", remark)]


def number(value: float) -> str:
    """With three significant digits, or whole with separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(ratio: Ratio) -> tuple[str, ...]:
    sign = "≤" if ratio.below else "≥"
    stretch = "" if ratio.stretch is None else f"{sign} {number(ratio.stretch)}"
    return ratio.name, number(ratio.value), f"{sign} {number(ratio.asked)}", stretch, ratio.reached
