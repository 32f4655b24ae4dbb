"""Delimited files as people export them: encoding, delimiter and header found out, records streamed.

Memory is bounded whatever the file. A record that cannot be read costs only its first line: reading goes on
with the next one, also when a quote that was never closed had swallowed thousands of them.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Self

from charset_normalizer import from_bytes

from dispatcher.errors import InputError

DELIMITERS: Final = ",;\t|"
LINE_CHARACTERS: Final = 1 << 20
"""A longer line is no record; it is skipped in pieces of this size."""
SHOWN_CHARACTERS: Final = 1000
"""How much of an unreadable line is kept."""

_SAMPLE_BYTES: Final = 256 * 1024
_SAMPLE_RECORDS: Final = 100
_SEP_LINE: Final = re.compile(r"sep=(.)\s*", re.IGNORECASE)
_BOMS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class RejectedError(Exception):
    """A record cannot be taken; the one argument is the reason, of few fixed texts: they are counted."""

    @property
    def reason(self) -> str:
        """Why, as the rejects file says it."""
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    line: int
    """Number of its first line; the first line of the file is 1."""
    cells: list[str]
    reason: str | None = None
    """Why it cannot be read. A record that could not even be split has its line as its only cell."""


class CsvFile:
    """An open delimited file; a context manager.

    Args:
        path: a regular file with a header line.
        encoding: a Python codec name; found out when None.
        delimiter: one character; found out among comma, semicolon, tab and bar when None.

    Raises:
        InputError: the file is missing, empty or not text, or an option is wrong.
    """

    def __init__(self, path: Path, *, encoding: str | None = None, delimiter: str | None = None) -> None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise InputError("--delimiter", f"{delimiter!r} is not one character that can separate cells")
        self.path = path
        self._binary = _open(path)
        try:
            sample = self._binary.read(_SAMPLE_BYTES)
            self._binary.seek(0)
            self.bytes_total = path.stat().st_size
            self.encoding = _known(encoding) if encoding else _detect_encoding(path, sample)
            # Bytes that are not of the encoding travel as surrogates: they cost their own record only.
            errors = "replace" if self.encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
            self._lines = _Lines(io.TextIOWrapper(self._binary, self.encoding, errors=errors, newline=""))
            self.delimiter = delimiter or self._detect_delimiter(sample.decode(self.encoding, "replace"))
            self.columns = self._header()
        except BaseException:
            self._binary.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._binary.close()

    @property
    def bytes_read(self) -> int:
        """How much of the file has been read, for progress."""
        return self._binary.tell()

    def column(self, name: str, option: str) -> int:
        """Position of the column called ``name``: exactly, else without regard to case.

        Raises:
            InputError: none or several are called so; the subject is ``option``.
        """
        folded = [column.casefold() for column in self.columns]
        for wanted, columns in ((name, self.columns), (name.strip().casefold(), folded)):
            if columns.count(wanted) > 1:
                raise InputError(option, f"{self.path} has several columns {name!r}", "rename all but one")
            if wanted in columns:
                return columns.index(wanted)
        near = difflib.get_close_matches(name.casefold(), folded, 3, 0.5)
        shown = ", ".join(repr(column) for column in self.columns[:20] if not near or column.casefold() in near)
        advice = f"did you mean {shown}?" if near else f"it has {shown}"
        raise InputError(option, f"{self.path} has no column {name!r}", advice)

    def records(self) -> Iterator[Record]:
        """Every record below the header, readable or not, in order; blank lines are no records."""
        width = len(self.columns)
        lines = self._lines
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield lines.reject_first(f"row: {error}")
                continue
            if not cells:
                continue
            line, text = lines.taken[0]
            torn = len(lines.taken) > 1
            if len(cells) != width and torn:
                yield lines.reject_first("row: a quote is not closed, or cells are missing")
            elif len(cells) != width:
                yield Record(line, cells, f"row: {'fewer' if len(cells) < width else 'more'} cells than the header")
            else:
                raw = "".join(piece for _, piece in lines.taken) if torn else text
                yield Record(line, cells, _unreadable(raw, self.encoding))

    def _detect_delimiter(self, sample: str) -> str:
        # csv.Sniffer guesses from quotes and letter counts; this asks what is needed: which delimiter
        # splits the records into as many cells as the header.
        if sep := _SEP_LINE.fullmatch(sample.lstrip("\ufeff").partition("\n")[0]):
            return sep[1]
        return max(DELIMITERS, key=lambda delimiter: _agreement(sample, delimiter))

    def _header(self) -> list[str]:
        reader = csv.reader(self._lines, delimiter=self.delimiter)
        try:
            for cells in reader:
                columns = [cell.strip("\ufeff \t\r\n\0") for cell in cells]
                if any(columns) and not _SEP_LINE.fullmatch(self.delimiter.join(cells)):
                    return columns
        except csv.Error as error:
            raise InputError(str(self.path), f"the header cannot be read: {error}") from None
        raise InputError(str(self.path), "the file has no header line", "name the columns in its first line")


class _Lines:
    """The lines of a text with their numbers; lines taken for a record can be given back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._number = 0
        self._again: deque[tuple[int, str]] = deque()
        self.taken: list[tuple[int, str]] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._again:
            number, text = self._again.popleft()
        else:
            text = self._text.readline(LINE_CHARACTERS)
            if not text:
                raise StopIteration
            self._number += 1
            number = self._number
            if _is_cut(text):
                while _is_cut(self._text.readline(LINE_CHARACTERS)):
                    continue
        self.taken.append((number, text))
        if len(text) == LINE_CHARACTERS and _is_cut(text):
            raise csv.Error(f"a line of more than {LINE_CHARACTERS} characters")
        return text

    def begin(self) -> None:
        """Forget the lines taken so far: the next record starts."""
        self.taken = []

    def reject_first(self, reason: str) -> Record:
        """The first line taken as an unreadable record; the others will be read again."""
        (number, text), *others = self.taken
        self._again.extendleft(reversed(others))
        return Record(number, [text.rstrip("\r\n")[:SHOWN_CHARACTERS]], reason)


def _is_cut(text: str) -> bool:
    return len(text) == LINE_CHARACTERS and not text.endswith(("\n", "\r"))


def _unreadable(text: str, encoding: str) -> str | None:
    if "\0" in text:
        return "row: NUL byte"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"row: bytes that are not {encoding}"
    return None


def _agreement(sample: str, delimiter: str) -> tuple[int, int]:
    """How many records have as many cells as the first, and how many cells; nothing for a single column."""
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
    try:
        widths = [len(cells) for cells in islice(reader, _SAMPLE_RECORDS) if cells]
    except csv.Error:
        return (0, 0)
    if not widths or widths[0] == 1:
        return (0, 0)
    return widths.count(widths[0]), widths[0]


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise InputError(str(path), "not a file" if path.exists() else "no such file")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)  # refuses codecs that are not of text
        return codecs.lookup(encoding).name
    except LookupError:
        raise InputError("--encoding", f"unknown encoding {encoding!r}", "such as utf-8, cp1252, utf-16") from None


def _detect_encoding(path: Path, sample: bytes) -> str:
    """The mark at the start, else UTF-8 where that fits, else what charset-normalizer says."""
    for mark, encoding in _BOMS.items():
        if sample.startswith(mark):
            return encoding
    if sample.startswith(b"PK\x03\x04"):
        raise InputError(str(path), "this is a spreadsheet or an archive, not text", "export it as CSV")
    for first_zero, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if sample[first_zero::2].count(0) * 4 > len(sample):
            return encoding
    read_as_utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    strange = sum("\udc80" <= character <= "\udcff" for character in read_as_utf8)
    # A few bad bytes in a file of good UTF-8 are damage in those rows, not another encoding of the whole.
    if strange == 0 or 2 * strange <= sum(character > "\x7f" for character in read_as_utf8):
        return "utf-8"
    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        raise InputError(str(path), "its encoding cannot be told", "name it, such as --encoding cp1252")
    # Western text fits several Central European code pages as well; the commonest of all is likelier meant.
    if any("cp1252" in match.could_be_from_charset for match in matches):
        return "cp1252"
    return best.encoding
