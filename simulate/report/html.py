"""HTML files that need nothing else: what is inside them, what a browser may do with them, how values are said."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dispatcher.core.moments import to_datetime

_HERE: Final = Path(__file__).parent


def rendered(template: str, styles: str, scripts: Sequence[str], **values: Any) -> str:
    """The file ``template`` with these styles and scripts inside it."""
    html: str = (
        _environment()
        .get_template(template)
        .render(styles=styles, scripts=scripts, policy=_policy(styles, scripts), **values)
    )
    return html


@cache
def asset(name: str) -> str:
    """A file of this package as text."""
    return (_HERE / name).read_text(encoding="utf-8")


def span(seconds: float | None) -> str:
    """A span as people say it."""
    if seconds is None:
        return "–"
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size * 1.5:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def moment(at: datetime) -> str:
    """A moment to the minute, in UTC."""
    return f"{at:%a} {at.day} {at:%b %Y, %H:%M}"


def _policy(styles: str, scripts: Sequence[str]) -> str:
    """What a browser may do: run and apply what is inside, fetch nothing, send nothing."""
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'sha256-{_digest(styles)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"span": span, "moment": moment, "at": to_datetime}
    return environment
