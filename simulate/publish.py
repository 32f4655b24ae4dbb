"""What a rehearsal leaves in files besides its figures and receipts: the report and the run data."""

from __future__ import annotations

import shlex
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from dispatcher.cli.common import err
from simulate.rehearsal import Rehearsed

_OF_THIS_PLACE: Final = frozenset({
    "database_url", "reset", "json_file", "receipts", "report", "parquet", "keep", "quiet", "data_dir",
})  # fmt: skip
"""Parameters that change nothing of what happens in a run; one of them may hold a password."""


def publish(done: Rehearsed, report: Path | None, run_data: Path | None, command: str, *, quiet: bool) -> None:
    """Write what was asked for.

    Args:
        done: the run.
        report: the HTML file; None: no report.
        run_data: the directory of the tables; None: none.
        command: how the run can be made again.
        quiet: say nothing.
    """
    if report is not None:
        from simulate.report.page import write

        _say(f"report: {report}", quiet)
        write(report, done, command)
    if run_data is not None:
        from simulate.run_data import write as write_tables

        _say(f"run data: {run_data}", quiet)
        write_tables(run_data, done)


def command_line(context: Any) -> str:
    """The command that makes the same run again: what was given on the command line or in the environment."""
    words = ["dripline", context.command.name]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        value = context.params.get(parameter.name)
        if parameter.name in _OF_THIS_PLACE or value is None or source is None or source.name == "DEFAULT":
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += _words(parameter, each)
    return shlex.join(words)


def _words(parameter: Any, value: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [str(value)]
    if isinstance(value, bool):
        return [(parameter.opts if value else parameter.secondary_opts)[0]]
    if isinstance(value, datetime):
        value = value.isoformat()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        value = f"{value:.12g}"
    return [max(parameter.opts, key=len), str(value)]


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        err.out(text)
