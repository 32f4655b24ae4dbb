"""The keys of a test file as Markdown, as the documents hold them: ``python -m simulate.sequence_test.reference``."""

from __future__ import annotations

from simulate.scenario.reference import tables
from simulate.sequence_test.schema import SequenceTests

if __name__ == "__main__":
    print(tables(SequenceTests))
