"""Seeds that once failed, a line each; the tests play them again for ever.

seed 17 without 0,3,5  # duplicate, lost
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dispatcher.errors import InputError

_LINE = re.compile(r"seed (\d+)(?: without (\d+(?:,\d+)*))?(?:\s*#\s*(.*))?")


class Regression(NamedTuple):
    """One of them."""

    seed: int
    without: tuple[int, ...]
    """Faults that it fails without."""
    broke: str
    """What was broken when it was found."""

    def __str__(self) -> str:
        without = f" without {','.join(map(str, self.without))}" if self.without else ""
        return f"seed {self.seed}{without}  # {self.broke}"

    @property
    def command(self) -> str:
        """What plays it again."""
        without = f" --without {','.join(map(str, self.without))}" if self.without else ""
        return f"dripline prove --seed {self.seed}{without} --trace"


def read(path: Path) -> list[Regression]:
    """All of a file; empty lines and comments are skipped.

    Raises:
        InputError: a line is something else; names it.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise InputError(f"{path}:{number}", f"{line!r} names no seed", "write: seed 17 without 0,3,5  # why")
            without = tuple(int(part) for part in (match[2] or "").split(",") if part)
            found.append(Regression(int(match[1]), without, match[3] or ""))
    return found


def append(path: Path, regression: Regression) -> None:
    """Add one, unless the file has it."""
    known = read(path) if path.exists() else []
    if regression not in known:
        with path.open("a") as file:
            file.write(f"{regression}\n")
