"""``dripline compare``: two rehearsals side by side, from the files that ``simulate --json`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dispatcher.cli.common import out, require_writable
from dispatcher.errors import InputError

app = typer.Typer()

ASKED: Final = ("seed", "devices", "leads", "shards", "tick_s", "pacing")
"""What was asked for, beside ``settings``."""
_NO_FIGURES: Final = frozenset({*ASKED, "settings", "made"})
_NEEDED: Final = frozenset({"seed", "devices", "leads", "sends", "violations", "receipts_sha256", "lateness_s"})
"""Keys that every run's file has, and no other one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One that differs."""

    name: str
    a: Any
    """None where a file does not name it."""
    b: Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both runs."""

    name: str
    a: float | str | None
    b: float | str | None
    difference: float | None
    """b - a; None where they are no numbers."""
    ratio: float | None
    """b / a; None where they are no numbers, or a is 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs have in common, and what not."""

    same_receipts: bool
    settings: tuple[Setting, ...]
    """Those that differ."""
    figures: tuple[Figure, ...]
    """All."""


@app.command(name="compare", epilog="Example: dripline compare burst.json even.json")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A file that simulate --json wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", envvar="DRIPLINE_JSON_FILE", help="Write the comparison here."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write it as a page here.")
    ] = None,
) -> None:
    """Say which settings of two rehearsals differ, and show their figures side by side."""
    require_writable("--json", json_file, a, b)
    require_writable("--report", report, a, b)
    found = compared(read_run(a), read_run(b))
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    if report is not None:
        report.write_text(_page(found, a.name, b.name), encoding="utf-8")
    out.print(_shown(found, a.name, b.name))


def read_run(path: Path) -> dict[str, Any]:
    """The figures of a run.

    Raises:
        InputError: the file cannot be read, or is none of a rehearsal.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), error.strerror or "it cannot be read", "name a file that exists") from None
    except ValueError:  # also where it is not UTF-8
        raise InputError(str(path), "it is not JSON", "name a file that simulate --json wrote") from None
    if not isinstance(found, dict) or not found.keys() >= _NEEDED:
        raise InputError(str(path), "it holds no figures of a rehearsal", "name a file that simulate --json wrote")
    return found


def compared(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Two runs beside each other, everything in the order in which the files name it."""
    asked_a, asked_b = _asked(a), _asked(b)
    figures_a, figures_b = _figures(a), _figures(b)
    return Comparison(
        same_receipts=a["receipts_sha256"] == b["receipts_sha256"],
        settings=tuple(
            Setting(name, asked_a.get(name), asked_b.get(name))
            for name in dict.fromkeys([*asked_a, *asked_b])
            if asked_a.get(name) != asked_b.get(name)
        ),
        figures=tuple(
            _figure(name, figures_a.get(name), figures_b.get(name)) for name in dict.fromkeys([*figures_a, *figures_b])
        ),
    )


def _asked(run: Mapping[str, Any]) -> dict[str, Any]:
    settings = run.get("settings")
    return {name: run.get(name) for name in ASKED} | (dict(settings) if isinstance(settings, dict) else {})


def _figures(run: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers and words by name; what is in an object by both names, with a space between."""
    flat: dict[str, float | str] = {}
    for name, value in run.items():
        if name in _NO_FIGURES or name == "receipts_sha256":
            continue
        if isinstance(value, dict):
            flat |= {f"{name} {part}": each for part, each in value.items() if isinstance(each, int | float)}
        elif isinstance(value, int | float | str):
            flat[name] = value
    return flat


def _figure(name: str, a: float | str | None, b: float | str | None) -> Figure:
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return Figure(name, a, b, None, None)
    return Figure(name, a, b, round(b - a, 6), round(b / a, 4) if a else None)


def _setting_cells(setting: Setting) -> tuple[str, str, str]:
    return setting.name, _said(setting.a), _said(setting.b)


def _figure_cells(figure: Figure) -> tuple[str, str, str, str, str]:
    difference = "" if figure.difference is None else "=" if not figure.difference else f"{figure.difference:+,.6g}"
    ratio = ""
    if figure.ratio is not None and figure.difference:
        ratio = f"{figure.ratio:,.0f}" if figure.ratio >= 100 else f"{figure.ratio:.3g}"
    return figure.name.replace("_", " "), _said(figure.a), _said(figure.b), difference, ratio


def _shown(found: Comparison, name_a: str, name_b: str) -> Group:
    settings = _table("settings that differ", name_a, name_b)
    for setting in found.settings:
        settings.add_row(*map(Text, _setting_cells(setting)))
    figures = _table("figures", name_a, name_b, "difference", "ratio")
    for figure in found.figures:
        figures.add_row(*map(Text, _figure_cells(figure)))
    same = "The receipts are the same." if found.same_receipts else "The receipts differ."
    return Group(settings if found.settings else "The settings are the same.", "", figures, "", same)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _page(found: Comparison, name_a: str, name_b: str) -> str:
    from simulate.report.html import asset, rendered

    return rendered(
        "compare.html",
        asset("page.css"),
        (),
        a=name_a,
        b=name_b,
        same_receipts=found.same_receipts,
        settings=[_setting_cells(setting) for setting in found.settings],
        figures=[_figure_cells(figure) for figure in found.figures],
    )


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
