"""How long the verdict takes: a clean synthetic run of 3.3 million messages, and one of a tiny world.

python -m bench.checker
"""

from __future__ import annotations

import time

import numpy as np

from dispatcher.core.catalogue import Catalogue
from dispatcher.core.graph import Sequence, Step
from dispatcher.core.identity import idempotency_keys
from dispatcher.core.moments import SECOND_US
from dispatcher.core.outcomes import Outcome
from simulate.checker import Violations, check
from simulate.evidence import ENROLMENT, LEDGER, QUOTA, STATUSES, Evidence, stamps
from simulate.receipts import RECEIPT, Receipts

START_US = 1_767_571_200_000_000
STEPS = 3
GAP_US = 46 * SECOND_US
"""Between two messages of a device: below 80 an hour."""
WAVE_US = (24 * 3600 + 60) * SECOND_US
LABELS = tuple(outcome.label for outcome in Outcome)


def clean_run(enrolments: int, devices: int) -> tuple[Receipts, Evidence]:
    """Receipts and evidence of a run in which every enrolment got ``STEPS`` messages, a day apart, in random order."""
    draw = np.random.default_rng(1)
    steps = [Step(f"s{n}", "Hi", f"s{n + 1}" if n < STEPS else None, is_entry=n == 1) for n in range(1, STEPS + 1)]
    catalogue = Catalogue.of([Sequence(1, "Bench", True, tuple(steps))])
    enrolment = np.repeat(np.arange(1, enrolments + 1), STEPS)
    visit = np.tile(np.arange(1, STEPS + 1, dtype=np.int32), enrolments)
    device = enrolment % devices + 1
    slot_us = START_US + visit.astype(np.int64) * WAVE_US + enrolment // devices * GAP_US
    rows = np.zeros(len(enrolment), RECEIPT)
    rows["slot_us"], rows["arrived_us"] = slot_us, slot_us + draw.integers(50_000, 1_000_000, len(slot_us))
    rows["device"], rows["step"], rows["visit"], rows["attempt"] = device, visit - 1, visit, 1
    rows["phone"] = (999_100_000_000 + enrolment).astype("S16")
    keys = b"".join(idempotency_keys(enrolment, visit, np.zeros_like(visit)))
    rows["key"] = np.frombuffer(keys, "V16")
    ledger = np.zeros(len(enrolment), LEDGER)
    for name, column in {"key": rows["key"], "enrolment": enrolment, "visit": visit, "device": device}.items():
        ledger[name] = column
    ledger["due"], ledger["reserved"] = stamps(slot_us), stamps(slot_us)
    ledger["accepted"], ledger["attempt"] = stamps(rows["arrived_us"].astype(np.int64)), 1
    ledger["outcome"] = LABELS.index("accepted") + 1
    ended = np.zeros(enrolments, ENROLMENT)
    ended["id"] = ended["lead"] = np.arange(1, enrolments + 1)
    ended["enrolled"] = ended["due"] = stamps(np.array([START_US]))
    ended["entry"], ended["step"], ended["visit"] = 1, STEPS, STEPS + 1
    ended["status"] = STATUSES.index("completed") + 1
    numbers = np.arange(1, devices + 1)
    quotas = np.array([(number, START_US, 80, 800) for number in numbers.tolist()], QUOTA)
    evidence = Evidence(
        ledger=draw.permutation(ledger),
        enrolments=ended,
        catalogue=catalogue,
        outcomes=LABELS,
        quotas=quotas,
        opted_out={},
        missed=0,
        devices={number: (str(number), f"d-{number}") for number in numbers.tolist()},
        hour_s=3600.0,
    )
    return Receipts(rows[np.argsort(slot_us, kind="stable")], [("Bench", step.trigger) for step in steps]), evidence


def main() -> None:
    """Print the times."""
    for enrolments, devices, rounds in ((100, 10, 200), (1_100_000, 3000, 3)):
        receipts, evidence = clean_run(enrolments, devices)
        taken = []
        for _ in range(rounds):
            begun = time.process_time()
            assert check(receipts, evidence) == Violations()
            taken.append(time.process_time() - begun)
        print(f"{len(receipts):>9,} receipts: {min(taken) * 1e3:8,.1f} ms of processor time")


if __name__ == "__main__":
    main()
