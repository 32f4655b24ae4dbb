"""Whatever stands in a lead's trigger, only exact tokens enrol, and what enrols nobody is listed."""

from __future__ import annotations

import asyncio
from collections import Counter

import asyncpg
import pytest

from dispatcher.intake.leads import Counts
from dispatcher.intake.unmatched import Unmatched, find_unmatched
from dispatcher.store.connect import connect

TRIGGERS = (
    ("fitness_start", {"fitness_start"}),
    (" fitness_start ,crypto_welcome,,crypto_welcome", {"fitness_start", "crypto_welcome"}),
    ("\tcrypto_welcome\n", {"crypto_welcome"}),
    ("fit", set()),
    ("fitness_start_vip", set()),
    ("my_fitness_start, Fitness_Start", set()),
    ("fitness_day2,crypto_welcome", {"crypto_welcome"}),
    (" , ,", set()),
    (None, set()),
    ("fitness_start crypto_welcome", set()),
)
"""What a lead carries and the sequences' entries that it enters by; two hundred leads each."""


async def two_thousand(connection: asyncpg.Connection) -> Counts:
    records = [(f"9991{n:07d}", TRIGGERS[n % len(TRIGGERS)][0]) for n in range(2000)]
    await connection.copy_records_to_table("leads", records=records, columns=("phone", "trigger"))
    return Counts(imported=2000)


async def unmatched(url: str) -> list[Unmatched]:
    connection = await connect(url)
    try:
        return await find_unmatched(connection)
    finally:
        await connection.close()


@pytest.mark.slow
def test_only_exact_tokens_enrol_and_the_rest_is_listed(world):
    done = world.rehearse(devices=50, shards=1, days=5, bring_leads=two_thousand)
    assert done.outcome.good
    entered = Counter(
        (row["phone"], row["entry_trigger"])
        for row in world.rows(
            "SELECT l.phone, c.entry_trigger FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id"
        )
    )
    assert entered == Counter((f"9991{n:07d}", entry) for n in range(2000) for entry in TRIGGERS[n % len(TRIGGERS)][1])
    assert done.outcome.completed == done.outcome.enrolled == 1000

    left = world.rows("SELECT trigger, count(*) FROM leads GROUP BY trigger")
    assert {row["trigger"]: row["count"] for row in left} == {
        None: 800,
        "fit": 200,
        "fitness_start_vip": 200,
        "my_fitness_start, Fitness_Start": 200,
        "fitness_day2": 200,
        " , ,": 200,
        "fitness_start crypto_welcome": 200,
    }
    unknown = "unknown: no step has this trigger"
    assert asyncio.run(unmatched(world.url)) == [
        Unmatched("Fitness_Start", 200, unknown),
        Unmatched("fit", 200, unknown),
        Unmatched("fitness_day2", 200, "a step of sequence '30 Day Fitness', but no entry"),
        Unmatched("fitness_start crypto_welcome", 200, unknown),
        Unmatched("fitness_start_vip", 200, unknown),
        Unmatched("my_fitness_start", 200, unknown),
    ]
