"""The rejects file: what could not be taken, as it stood, so that it can be corrected and imported again.

Cells are kept to the letter. A cell that starts with ``=`` is not defused: this file goes back into an
import, and a spreadsheet can be told to open its columns as text.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import IO, Any, Self

from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile, Record


class RejectsFile:
    """Made when the first record is rejected; without rejects there is no file. A context manager.

    Columns: ``line`` (the record's first line in the file), ``reason``, then the columns of the file.

    Raises:
        InputError: it could not be written there, or would overwrite the file that is read.
    """

    def __init__(self, path: Path, source: CsvFile) -> None:
        if path.exists() and path.samefile(source.path):
            raise InputError("--rejects", f"{path} is the file that is imported", "name another one")
        target = path if path.exists() else path.parent
        if path.is_dir() or not os.access(target, os.W_OK):
            raise InputError("--rejects", f"{path} cannot be written", "name another file with --rejects FILE")
        self.path = path
        self._columns = source.columns
        self._file: IO[str] | None = None
        self._rows: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def written(self) -> bool:
        """Whether there were rejects."""
        return self._file is not None

    def write(self, record: Record, reason: str) -> None:
        """Add ``record``."""
        if self._file is None:
            # Bytes that did not decode go back as the bytes they were.
            self._file = self.path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            self._rows = csv.writer(self._file)
            self._rows.writerow(["line", "reason", *self._columns])
        self._rows.writerow([record.line, reason, *record.cells])
