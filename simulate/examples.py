"""The built-in example: the seed's fitness, crypto and real estate sequences, as they stand in ``examples/``."""

from __future__ import annotations

from pathlib import Path

from dispatcher.core.graph import Sequence
from dispatcher.intake.sequence_file import load

NAMES = ("fitness", "crypto", "realestate")


def builtin() -> list[Sequence]:
    """The sequences of the built-in example."""
    here = Path(__file__).parent
    # In a wheel the files lie beside this module, in a checkout in the folder people read.
    folder = here / "examples" if (here / "examples").is_dir() else here.parent / "examples"
    return [sequence for name in NAMES for sequence in load(folder / f"{name}.yaml")]
