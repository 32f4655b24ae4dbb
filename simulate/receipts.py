"""Receipts: every request that reached the referee, as columns in a file that grows before each answer."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Int64s
from dispatcher.core.moments import to_datetime
from dispatcher.core.outcomes import Outcome

RECEIPT: Final = np.dtype(
    [
        ("slot_us", "<i8"),
        ("arrived_us", "<i8"),
        ("device", "<i4"),  # devices.number
        ("step", "<i4"),  # index into Receipts.steps
        ("visit", "<i4"),
        ("attempt", "<i4"),
        ("phone", "S16"),
        ("key", "V16"),
        ("answer", "i1"),  # core.outcomes.Outcome
        ("body", "<u4"),  # checksum of what the message says
    ]
)
COLUMNS: Final = (
    "slot", "arrived_at", "device_id", "device", "phone", "sequence", "step_trigger", "visit", "key", "answer",
)  # fmt: skip
_CHUNK: Final = 100_000


@dataclass(frozen=True, slots=True)
class Receipts:
    """All receipts of a run."""

    rows: NDArray[np.void]
    """``RECEIPT`` records, in the order of arrival at the referee's process."""
    steps: list[tuple[str, str]]
    """Sequence name and step trigger by index."""

    def __len__(self) -> int:
        return len(self.rows)

    def answered(self, outcome: Outcome) -> NDArray[np.bool_]:
        """Which receipts were answered with ``outcome``."""
        return np.asarray(self.rows["answer"] == outcome)

    def order(self, device_name: dict[int, str]) -> Int64s:
        """Row numbers sorted by slot, device name, phone, step trigger."""
        names = sorted(device_name.items(), key=lambda item: item[1])
        rank_of_device = np.zeros(max(device_name, default=0) + 1, np.int32)
        rank_of_device[[number for number, _ in names]] = np.arange(len(names))
        rank_of_step = np.zeros(len(self.steps), np.int32)
        rank_of_step[sorted(range(len(self.steps)), key=lambda index: self.steps[index][1])] = np.arange(
            len(self.steps)
        )
        rows = self.rows
        phone = np.ascontiguousarray(rows["phone"]).view(">u8").reshape(-1, 2)  # words sort as the text does
        keys = (rows["attempt"], rank_of_step[rows["step"]], phone[:, 1], phone[:, 0], rank_of_device[rows["device"]])
        return np.lexsort((*keys, rows["slot_us"])).astype(np.int64)

    def sha256(self, device_name: dict[int, str]) -> str:
        """Hash of slot, device name, phone, sequence, step, visit and answer; no generated id takes part."""
        digest = hashlib.sha256()
        order = self.order(device_name)
        for start in range(0, len(order), _CHUNK):
            part = self.rows[order[start : start + _CHUNK]]
            columns = zip(
                part["slot_us"].tolist(),
                part["device"].tolist(),
                part["phone"].tolist(),
                part["step"].tolist(),
                part["visit"].tolist(),
                part["answer"].tolist(),
                strict=True,
            )
            lines = [
                f"{slot}|{device_name[device]}|{phone.decode()}|{self.steps[step][0]}|{self.steps[step][1]}|{visit}|{answer}\n"
                for slot, device, phone, step, visit, answer in columns
            ]
            digest.update("".join(lines).encode())
        return digest.hexdigest()

    def write(self, path: Path, devices: dict[int, tuple[str, str]]) -> None:
        """Write a CSV or, by its suffix, a Parquet file, in the order of ``order``.

        Args:
            path: where to; ``.parquet`` writes Parquet.
            devices: id and name by number.
        """
        order = self.order({number: name for number, (_, name) in devices.items()})
        if path.suffix == ".parquet":
            self._write_parquet(path, devices, order)
            return
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for start in range(0, len(order), _CHUNK):
                writer.writerows(self._texts(self.rows[order[start : start + _CHUNK]], devices))

    def _texts(self, part: NDArray[np.void], devices: dict[int, tuple[str, str]]) -> list[tuple[object, ...]]:
        return [
            (
                to_datetime(row["slot_us"]).isoformat(),
                to_datetime(row["arrived_us"]).isoformat(),
                *devices[int(row["device"])],
                row["phone"].decode(),
                *self.steps[int(row["step"])],
                int(row["visit"]),
                _uuid_text(row["key"].tobytes()),
                Outcome(row["answer"]).label,
            )
            for row in part
        ]

    def _write_parquet(self, path: Path, devices: dict[int, tuple[str, str]], order: Int64s) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        stamp = pa.timestamp("us", tz="UTC")
        numbers = sorted(devices)
        place = {number: at for at, number in enumerate(numbers)}
        labels = [outcome.label for outcome in Outcome]

        def coded(codes: NDArray[np.int32], values: list[str]) -> pa.Array:
            return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values, pa.string()))

        with pq.ParquetWriter(path, self._schema(pa)) as writer:
            for start in range(0, max(len(order), 1), _CHUNK):
                part = self.rows[order[start : start + _CHUNK]]
                device = np.array([place[number] for number in part["device"].tolist()], np.int32)
                columns = [
                    pa.array(part["slot_us"].copy(), stamp),
                    pa.array(part["arrived_us"].copy(), stamp),
                    coded(device, [devices[number][0] for number in numbers]),
                    coded(device, [devices[number][1] for number in numbers]),
                    pa.array([phone.decode() for phone in part["phone"].tolist()], pa.string()),
                    coded(part["step"].astype(np.int32), [sequence for sequence, _ in self.steps]),
                    coded(part["step"].astype(np.int32), [step for _, step in self.steps]),
                    pa.array(part["visit"].copy(), pa.int32()),
                    pa.array([_uuid_text(key.tobytes()) for key in part["key"]], pa.string()),
                    coded(part["answer"].astype(np.int32), labels),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=self._schema(pa)))

    @staticmethod
    def _schema(pa: object) -> object:
        coded = pa.dictionary(pa.int32(), pa.string())  # type: ignore[attr-defined]
        stamp = pa.timestamp("us", tz="UTC")  # type: ignore[attr-defined]
        kinds = [stamp, stamp, coded, coded, pa.string(), coded, coded, pa.int32(), pa.string(), coded]  # type: ignore[attr-defined]
        return pa.schema(list(zip(COLUMNS, kinds, strict=True)))  # type: ignore[attr-defined]


def body_sum(text: str, media_url: str | None) -> int:
    """The checksum of a message's body."""
    return crc32(f"{text}\0{media_url or ''}".encode())


def _uuid_text(key: bytes) -> str:
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def read(path: Path, steps: list[tuple[str, str]]) -> Receipts:
    """The receipts in the referee's file."""
    return Receipts(np.fromfile(path, RECEIPT), steps)
