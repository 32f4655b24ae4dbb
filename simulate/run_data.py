"""The run as tables for people with questions of their own: Parquet files, described in docs/run-data.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int32s, Int64s
from dispatcher.core.moments import SECOND_US
from dispatcher.core.outcomes import Outcome
from simulate.checker.matched import Matched
from simulate.evidence import Evidence
from simulate.receipts import Receipts
from simulate.rehearsal import Rehearsed

_MINUTE_US: Final = 60 * SECOND_US
_CHUNK: Final = 200_000
_STAMP: Final = pa.timestamp("us", tz="UTC")
_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_COUNTS: Final = (
    ("sends", pa.int32()), ("not_accepted", pa.int32()), ("late_mean_s", pa.float64()), ("late_max_s", pa.float64()),
)  # fmt: skip
SENDS: Final = pa.schema(
    [
        ("due", _STAMP), ("slot", _STAMP), ("arrived_at", _STAMP), ("late_s", pa.float64()), ("device_id", _NAME),
        ("device", _NAME), ("phone", pa.string()), ("sequence", _NAME), ("step_trigger", _NAME),
        ("enrolment_id", pa.int64()), ("visit", pa.int32()), ("attempt", pa.int32()),
    ]
)  # fmt: skip
DEVICE_MINUTES: Final = pa.schema([("minute", _STAMP), ("device_id", _NAME), ("device", _NAME), *_COUNTS])
SEQUENCE_MINUTES: Final = pa.schema([("minute", _STAMP), ("sequence", _NAME), ("step_trigger", _NAME), *_COUNTS])
DEVICES: Final = pa.schema(
    [
        ("device_id", pa.string()), ("device", pa.string()), ("quota_per_hour", pa.int32()),
        ("quota_per_day", pa.int32()), ("in_flight_max", pa.int32()), ("min_gap_s", pa.float64()),
    ]
)  # fmt: skip
FAULTS: Final = pa.schema([("at", _STAMP), ("kind", pa.string()), ("subject", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True, slots=True)
class Requests(Columns):
    """What reached the gateway, one entry a receipt, by slot, then device."""

    receipt: Indices
    """Its row among the receipts."""
    slot_us: Int64s
    device: Int32s
    """``devices.number``."""
    step: Int32s
    """Index into ``Receipts.steps``."""
    accepted: NDArray[np.bool_]
    due_us: Int64s
    """Of its attempt in the ledger; -1 if that knows of none."""
    enrolment: Int64s
    """-1 if nobody knows it."""


def write(directory: Path, done: Rehearsed) -> None:
    """Write ``sends``, ``device_minutes``, ``sequence_minutes``, ``devices`` and ``faults`` into ``directory``."""
    directory.mkdir(exist_ok=True)
    receipts, devices = done.receipts, done.evidence.devices
    requests = requests_of(receipts, done.evidence)
    numbers = sorted(devices)
    ids, names = ([devices[number][part] for number in numbers] for part in (0, 1))
    sequences, triggers = ([step[part] for step in receipts.steps] for part in (0, 1))
    place = np.searchsorted(np.array(numbers, np.int64), requests.device).astype(np.int32)
    sent = requests.take(np.flatnonzero(requests.accepted))
    sent_place = place[requests.accepted]

    def sends(rows: slice) -> list[pa.Array]:
        part, at = receipts.rows[sent.receipt[rows]], sent_place[rows]
        due_us, slot_us = sent.due_us[rows], sent.slot_us[rows]
        return [
            pa.array(due_us, _STAMP, mask=due_us < 0),
            pa.array(slot_us, _STAMP),
            pa.array(part["arrived_us"].copy(), _STAMP),
            pa.array((slot_us - due_us) / SECOND_US, mask=due_us < 0),
            _coded(at, ids),
            _coded(at, names),
            pa.array([phone.decode() for phone in part["phone"].tolist()], pa.string()),
            _coded(sent.step[rows], sequences),
            _coded(sent.step[rows], triggers),
            pa.array(sent.enrolment[rows], mask=sent.enrolment[rows] < 0),
            pa.array(part["visit"].copy()),
            pa.array(part["attempt"].copy()),
        ]

    _write(directory / "sends.parquet", SENDS, len(sent), sends)
    for name, schema, code, labels in (
        ("device_minutes", DEVICE_MINUTES, place, (ids, names)),
        ("sequence_minutes", SEQUENCE_MINUTES, requests.step, (sequences, triggers)),
    ):
        minutes = minutes_of(requests, code)
        _write(directory / f"{name}.parquet", schema, len(minutes), _by_minute(minutes, labels))
    fleet, faults = done.frame.fleet, done.frame.faults
    named = [[devices[number][part] for number in fleet.number.tolist()] for part in (0, 1)]
    _write_whole(directory / "devices.parquet", DEVICES, [*named, *(getattr(fleet, f) for f in DEVICES.names[2:])])
    columns = [[fault.at_us for fault in faults], *([getattr(f, name) for f in faults] for name in FAULTS.names[1:])]
    _write_whole(directory / "faults.parquet", FAULTS, columns)


def requests_of(receipts: Receipts, evidence: Evidence) -> Requests:
    """Every receipt with what the ledger and the enrolments know of it."""
    matched, rows, ledger = Matched.of(receipts, evidence), receipts.rows, evidence.ledger
    width = int(max(rows["attempt"].max(initial=0), ledger["attempt"].max(initial=0))) + 1
    known = matched.ledger_key * width + ledger["attempt"]
    asked = matched.key * width + rows["attempt"]
    order = np.argsort(known)
    due_us = np.full(len(rows), -1, np.int64)
    if len(known):
        at = order[np.minimum(np.searchsorted(known[order], asked), len(known) - 1)]
        found = known[at] == asked
        due_us[found] = evidence.ledger_us("due")[at[found]]
    enrolment = np.full(len(rows), -1, np.int64)
    enrolment[matched.known] = matched.enrolment[matched.visit[matched.known]]
    order = np.lexsort((rows["device"], rows["slot_us"]))
    return Requests(
        order, rows["slot_us"][order], rows["device"][order], rows["step"][order],
        receipts.answered(Outcome.ACCEPTED)[order], due_us[order], enrolment[order],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Minutes(Columns):
    """One entry a minute and code in which a request reached the gateway, in that order."""

    minute_us: Int64s
    code: Int32s
    sends: Int32s
    not_accepted: Int32s
    late_mean_s: NDArray[np.float64]
    """Of the sends; NaN where there are none."""
    late_max_s: NDArray[np.float64]


def minutes_of(requests: Requests, code: Int32s) -> Minutes:
    """Requests counted by the minute of their slot and by ``code``, a device or a step."""
    minute = requests.slot_us // _MINUTE_US
    order = np.lexsort((code, minute))
    minute, code = minute[order], code[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (minute[1:] != minute[:-1]) | (code[1:] != code[:-1])
    first, group = np.flatnonzero(new), np.cumsum(new) - 1
    accepted = requests.accepted[order]
    known = accepted & (requests.due_us[order] >= 0)
    late_s = (requests.slot_us - requests.due_us)[order][known] / SECOND_US
    sends, dated = np.bincount(group[accepted], minlength=len(first)), np.bincount(group[known], minlength=len(first))
    most_s = np.full(len(first), -np.inf)
    np.maximum.at(most_s, group[known], late_s)
    return Minutes(
        minute[first] * _MINUTE_US,
        code[first],
        sends.astype(np.int32),
        np.bincount(group[~accepted], minlength=len(first)).astype(np.int32),
        np.where(dated > 0, np.bincount(group[known], late_s, len(first)) / np.maximum(dated, 1), np.nan),
        np.where(dated > 0, most_s, np.nan),
    )


def _by_minute(minutes: Minutes, labels: Sequence[list[str]]) -> Callable[[slice], list[pa.Array]]:
    def columns(rows: slice) -> list[pa.Array]:
        return [
            pa.array(minutes.minute_us[rows], _STAMP),
            *(_coded(minutes.code[rows], values) for values in labels),
            pa.array(minutes.sends[rows]),
            pa.array(minutes.not_accepted[rows]),
            pa.array(minutes.late_mean_s[rows], from_pandas=True),
            pa.array(minutes.late_max_s[rows], from_pandas=True),
        ]

    return columns


def _coded(codes: Int32s, values: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values, pa.string()))


def _write_whole(path: Path, schema: Any, columns: Sequence[Any]) -> None:
    """A file of few rows."""
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def _write(path: Path, schema: Any, count: int, columns: Callable[[slice], list[pa.Array]]) -> None:
    """A file of ``count`` rows, made some at a time."""
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _slices(count):
            writer.write_table(pa.Table.from_arrays(columns(rows), schema=schema))


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, max(count, 1), _CHUNK):
        yield slice(start, min(start + _CHUNK, count))
