"""Hot statements read bounded rows: at 100,000 enrolments none scans a table, and none reads what it was not for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from dispatcher.store import arrays
from dispatcher.store.connect import connect, open_pool
from dispatcher.store.statements import statements

BIG = ("leads", "sequence_contacts", "message_ledger", "handovers", "message_receipts")
ENROLMENTS, DEVICES, LEASED, RETRIED, PER_DEVICE, HANDOVERS = 100_000, 100, 500, 300, 1500, 20_000
NOW_US = 1_767_600_000_000_000
DAY_AGO_US = NOW_US - 86_400_000_000
NOBODY = UUID(int=0)

FILL = f"""
INSERT INTO dripline_database (kind, clock) VALUES ('rehearsal', dripline_at({NOW_US}));
SELECT dripline_ledger_partition((dripline_at({NOW_US}) AT TIME ZONE 'UTC')::date + day)
FROM generate_series(-3, 1) day;
INSERT INTO devices (name, shard_id) SELECT 'd-' || n, n % 10 FROM generate_series(1, {DEVICES}) n;
INSERT INTO sequences (name, is_active) VALUES ('Fitness', true), ('Paused', false);
INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, is_entry_point)
VALUES (1, 'fitness_start', 'one', 'fitness_day2', true), (1, 'fitness_day2', 'two', NULL, false),
       (2, 'paused_start', 'one', NULL, true);
ALTER TABLE leads DISABLE TRIGGER USER;
INSERT INTO leads (phone, trigger) SELECT '9991' || n, 'fitness_start' FROM generate_series(1, {ENROLMENTS}) n;
ALTER TABLE leads ENABLE TRIGGER USER;
INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, home_device_id,
    next_trigger_time, status, finished_at, processing_device_id, processing_started_at, lease_deadline_at, lease_token,
    lease_epoch, attempt, retry_count)
SELECT 1, n, '9991' || n, 'fitness_start', 'fitness_start', d.id,
       dripline_at({NOW_US}) + (n % 1000 - 500) * interval '1 minute',
       CASE WHEN n > {ENROLMENTS} * 0.9 THEN 'completed' ELSE 'active' END, NULL,
       CASE WHEN n <= {LEASED} THEN d.id END,
       CASE WHEN n <= {LEASED} THEN dripline_at({NOW_US}) - interval '1 hour' END,
       CASE WHEN n <= {LEASED} THEN dripline_at({NOW_US}) - interval '1 hour' END,
       CASE WHEN n <= {LEASED} THEN 7 END, CASE WHEN n <= {LEASED} THEN 5 END, (n <= {LEASED})::integer,
       (n BETWEEN {LEASED} + 1 AND {LEASED} + {RETRIED})::integer
FROM generate_series(1, {ENROLMENTS}) n JOIN devices d ON d.number = 1 + n % {DEVICES};
INSERT INTO claims (token, shard_epoch, enrolments)
SELECT 7, 5, array_agg(id) FROM sequence_contacts WHERE lease_token = 7;
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger)
SELECT n, 1, n, 1, at, at, at, at, d.id, gen_random_uuid(), 0, 0, 1, 'accepted', 'fitness_start'
FROM generate_series(1, {DEVICES * PER_DEVICE}) n JOIN devices d ON d.number = 1 + n % {DEVICES},
     LATERAL (SELECT dripline_at({NOW_US}) - n * interval '1 second' AS at) t;
INSERT INTO handovers (token, shard_epoch, handed_at, enrolments, bodies)
SELECT 1000 + n, 1, dripline_at({NOW_US}) - n * interval '10 seconds', ARRAY (SELECT generate_series(n, n + 9)), '\\x00'
FROM generate_series(1, {HANDOVERS}) n;
"""


class Cost(NamedTuple):
    """What a statement did."""

    scanned: set[str]
    """Big tables that were read from one end to the other."""
    rows: int
    """Rows that scans of big tables looked at, whether they were wanted or not."""
    blocks: int


@pytest.fixture(scope="module")
def big_url(new_database, server) -> Iterator[str]:
    """Leads, enrolments and ledger at a size where a bad plan shows."""
    url = new_database()

    async def fill() -> None:
        connection = await connect(url)
        await connection.execute(FILL)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()

    asyncio.run(fill())
    return url


@pytest.fixture
async def engine(big_url):
    """A connection as the engine's; what it does is rolled back."""
    pool = await open_pool(big_url, size=1)
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()
    pool.terminate()


async def cost(connection: asyncpg.Connection, sql: str, *arguments: object) -> Cost:
    """Run a statement under EXPLAIN."""
    plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments))[0][
        "Plan"
    ]
    scanned, rows = set(), 0
    for node in nodes(plan):
        table = node.get("Relation Name", "")
        if not table.startswith(BIG):
            continue
        if node["Node Type"] == "Seq Scan" and node["Actual Loops"]:
            scanned.add(table)
        removed = sum(count for name, count in node.items() if name.startswith("Rows Removed"))
        if "Scan" in node["Node Type"]:
            rows += round((node["Actual Rows"] + removed) * node["Actual Loops"])
    return Cost(scanned, rows, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


async def columns(connection, sql: str) -> list[list]:
    return [list(column) for column in zip(*await connection.fetch(sql), strict=True)]


async def claim_arguments(connection, slots: int = 3) -> tuple:
    """Slots on every device, both epochs in force."""
    await connection.execute(
        "INSERT INTO epochs VALUES ('coordinator', 3, '', now()), ('shard-0', 4, '', now()) ON CONFLICT DO NOTHING"
    )
    (devices,) = await columns(connection, "SELECT id FROM devices")
    moments = [NOW_US + n for n in range(slots * DEVICES)]
    first = [slots * n for n in range(DEVICES)]
    devices_and_slots = arrays.uuids(b"".join(device.bytes for device in devices)), arrays.int4s([slots] * DEVICES)
    return (
        *devices_and_slots,
        arrays.int4s(first),
        arrays.int8s(moments),
        NOW_US,
        30_000_000,
        3,
        "shard-0",
        4,
        99,
        False,
        "1s",
        arrays.int8s([0] * DEVICES),
    )


LEASES = (
    "SELECT id, lease_token, dripline_us(processing_started_at), lead_id FROM sequence_contacts WHERE lease_token = 7"
)


async def ended(connection, *more: str) -> list:
    """The columns that advance and finish take for all leased rows."""
    id_, token, slot, lead = await columns(connection, LEASES)
    n = len(id_)
    accepted = [
        arrays.int8s(id_),
        arrays.int8s(token),
        arrays.int8s(slot),
        arrays.texts(["accepted"] * n),
        arrays.texts(["m"] * n),
        arrays.uuids(NOBODY.bytes * n),
        arrays.int4s([1] * n),
        arrays.int8s(slot),
        arrays.int8s(slot),
        arrays.texts(["fitness_start"] * n),
        5,
    ]
    extra = {
        "next": arrays.texts(["fitness_day2"] * n),
        "due": arrays.int8s([NOW_US] * n),
        "lead": arrays.int8s(lead),
    }
    return [*accepted, 30_000_000, *(extra[name] for name in more)]


async def test_the_claim_reads_what_it_leases(engine):
    found = await cost(engine, statements("claim")["claim_due"], *await claim_arguments(engine))
    assert found.scanned == set()
    leased = await engine.fetchval("SELECT count(*) FROM sequence_contacts WHERE lease_token = 99")
    assert leased == 3 * DEVICES
    assert found.rows <= 2 * leased + LEASED, "once to choose, once to write; what is leased already is stepped over"


async def test_the_next_due_moment_reads_one_row_a_device(engine):
    (devices,) = await columns(engine, "SELECT id FROM devices")
    found = await cost(engine, statements("claim")["next_due"], devices)
    assert (found.scanned, found.rows <= DEVICES + LEASED) == (set(), True)


async def test_the_last_look_reads_what_is_about_to_leave(engine):
    await claim_arguments(engine)
    id_, *_ = await columns(engine, LEASES)
    looked = (arrays.int8s(id_), arrays.bools([True] * LEASED), 7, "shard-0", 4, NOW_US, b"said", 0)
    found = await cost(engine, statements("shard")["last_look"], *looked)
    assert (found.scanned, found.rows) == (set(), 2 * LEASED)
    assert await engine.fetchval("SELECT array_length(enrolments, 1) FROM handovers WHERE token = 7") == LEASED
    await engine.execute("UPDATE sequence_contacts SET pinned = true WHERE lease_token = 7")
    again = await cost(engine, statements("shard")["last_look"], *looked)
    assert again.scanned == set()
    assert again.rows <= 3 * LEASED, "of a resend the attempts of its visit, too"


async def test_the_zones_of_a_batch_are_a_row_each(engine):
    found = await cost(engine, statements("shard")["time_zones"], arrays.int8s(range(1000, 1300)))
    assert (found.scanned, found.rows) == (set(), 300)


async def test_postponing_reads_what_it_moves(engine):
    """Of half of the 10,000 enrolments of a shard's devices, which are due; nothing of another sequence or zone."""
    opens = json.dumps({"1": {"": {"": NOW_US + 61_000_000}}})
    found = await cost(engine, statements("shard")["postpone"], 3, NOW_US, opens, 500)
    assert found.scanned == set()
    moved = f"SELECT count(*) FROM sequence_contacts WHERE next_trigger_time = dripline_at({NOW_US + 61_000_000})"
    assert await engine.fetchval(moved) == 500
    assert found.rows <= 3 * 500 + LEASED + DEVICES / 10, "to choose, with its lead, and to write"
    elsewhere = json.dumps({"2": {"": {"": NOW_US + 61_000_000}}})
    found = await cost(engine, statements("shard")["postpone"], 3, NOW_US, elsewhere, 500)
    assert (found.scanned, found.rows <= DEVICES / 10) == (set(), True)


@pytest.mark.parametrize(
    ("name", "more", "rows"),
    [("advance", ("next", "due"), LEASED), ("finish", ("lead",), 3 * LEASED), ("finish_later", (), LEASED)],
)
async def test_completion_reads_what_it_completes(engine, name, more, rows):
    found = await cost(engine, statements("complete")[name], *await ended(engine, *more))
    assert found.scanned == set()
    assert await engine.fetchval("SELECT count(*) FROM sequence_contacts WHERE lease_token = 7") == 0
    assert found.rows <= rows


async def test_the_end_of_attempts_reads_what_it_ends(engine):
    id_, token, *_ = await columns(engine, LEASES)
    n = len(id_)
    arguments = (
        id_,
        token,
        ["refused"] * n,
        ["no"] * n,
        [NOBODY] * n,
        ["waiting"] * n,
        [1] * n,
        [NOW_US] * n,
        [False] * n,
    )
    nothing = [None] * n
    found = await cost(engine, statements("complete")["end_attempts"], *arguments, NOW_US, nothing, nothing)
    assert (found.scanned, found.rows <= 2 * LEASED) == (set(), True)


async def test_the_release_of_a_doubt_reads_what_it_releases(engine):
    id_, *_ = await columns(engine, f"SELECT id FROM sequence_contacts WHERE id > {LEASED} ORDER BY id LIMIT 200")
    await engine.execute("UPDATE sequence_contacts SET status = 'in_doubt' WHERE id = ANY ($1)", id_)
    n = len(id_)
    released = (id_, [1] * n, [0] * n, ["waiting"] * n, ["no"] * n, [NOW_US] * n)
    found = await cost(engine, statements("complete")["release_doubt"], *released)
    assert found.scanned == set()
    written = "SELECT count(*) FROM sequence_contacts WHERE id = ANY ($1) AND last_error = 'no'"
    assert await engine.fetchval(written, id_) == n
    assert found.rows <= 2 * n


async def test_settling_reads_what_is_in_doubt_and_what_was_told_of_it(engine):
    await engine.execute(
        "INSERT INTO message_receipts (message, delivered_at) SELECT 'm-' || n, now() FROM generate_series(1, 20000) n"
    )
    await engine.execute("UPDATE sequence_contacts SET status = 'in_doubt' WHERE id BETWEEN 80001 AND 80050")
    page = await cost(engine, statements("receipts")["doubtful"], 80_010, 1000)
    assert (page.scanned, page.rows) == (set(), 40)
    ids, keys = list(range(80_001, 80_051)), [f"m-{n}" if n % 2 else "nobody's" for n in range(50)]
    told = await cost(engine, statements("receipts")["told_of"], ids, keys, [2] * 50, 5.0)
    assert (told.scanned, told.rows) == (set(), 25)


async def test_the_rescue_reads_leases_and_their_records_only(engine):
    (id_,) = await columns(engine, "SELECT id FROM sequence_contacts WHERE lease_token = 7 AND id % 2 = 0")
    await engine.execute("INSERT INTO handovers VALUES (7, 5, now(), $1, 'said')", id_)
    found = await cost(engine, statements("rescue")["ended_leases"], NOW_US, 1000)
    assert found.scanned == set()
    assert found.rows <= 2 * LEASED, "one record a lease"
    handed = await engine.fetch(statements("rescue")["ended_leases"], NOW_US, 1000)
    assert sorted(row["id"] for row in handed if row["handed"]) == sorted(id_)


async def test_rebalancing_reads_what_it_moves(engine):
    left = await engine.fetchval("SELECT array_agg(id) FROM devices WHERE number <= 2")
    await engine.execute("UPDATE sequence_contacts SET home_device_id = NULL WHERE id BETWEEN 2001 AND 2040")
    found = await cost(engine, statements("rescue")["misplaced"], left, 50)
    assert (found.scanned, found.rows <= 50 + LEASED) == (set(), True)
    found = await cost(engine, statements("rescue")["misplaced"], [], 50)
    assert (found.scanned, found.rows) == (set(), 40)


async def test_a_completion_leaves_the_indexes_of_leads_alone(big_url):
    """A heap-only update: the list of triggers stands in no index with an entry a row (PostgreSQL 16 and later)."""

    async def complete(connection) -> None:
        await connection.execute("UPDATE leads SET trigger = NULL WHERE id % 100 = 7")

    updated, hot = await heap_only(big_url, "leads", complete)
    assert updated == ENROLMENTS / 100
    assert hot >= 0.9 * updated


async def test_a_claim_leaves_the_indexes_of_enrolments_alone(big_url):
    async def claim(connection) -> None:
        await connection.fetchrow(statements("claim")["claim_due"], *await claim_arguments(connection))

    updated, hot = await heap_only(big_url, "sequence_contacts", claim)
    assert updated == 3 * DEVICES
    assert hot >= 0.6 * updated, "a page has room for new versions of most of its rows, all claimed at once here"


async def heap_only(url: str, table: str, act: Callable[[asyncpg.Connection], Awaitable[None]]) -> tuple[int, int]:
    """Updates that ``act`` makes in a table, and those of them that touch no index; all are rolled back."""
    pool = await open_pool(url, size=1)
    counts = []
    async with pool.acquire() as connection:
        await connection.execute(f"VACUUM {table}")  # what other tests have rolled back makes room
        for change in (None, act):
            transaction = connection.transaction()
            await transaction.start()
            if change is not None:
                await change(connection)
            await transaction.rollback()
            await connection.execute("SELECT pg_stat_force_next_flush()")
            counts.append(
                await connection.fetchrow(
                    "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1", table
                )
            )
    pool.terminate()
    before, after = counts
    return after[0] - before[0], after[1] - before[1]


async def test_looking_for_claims_reads_what_is_leased_and_marks_it_in_time(engine):
    await claim_arguments(engine)
    await engine.execute("UPDATE sequence_contacts SET processing_device_id = NULL WHERE lease_token = 7")
    await engine.execute("UPDATE devices SET shard_id = 0")
    looking = statements("shard")["leased_tokens"], 0, 5
    marked = "SELECT count(processing_device_id) FROM sequence_contacts WHERE lease_token = 7"
    await engine.execute("UPDATE claims SET claimed_at = clock_timestamp() + interval '1 minute'")
    assert await engine.fetchval(*looking) == 7
    assert await engine.fetchval(marked) == 0, "what ends within a second is not worth a mark"
    await engine.execute("UPDATE claims SET claimed_at = clock_timestamp() - interval '1 minute'")
    found = await cost(engine, *looking)
    assert found.scanned == set()
    assert found.rows <= 3 * LEASED, "once to look, once to lock, once to mark"
    assert await engine.fetchval(marked) == LEASED


async def test_the_bodies_of_few_hand_overs_are_few_rows(engine):
    found = await cost(engine, statements("rescue")["handed_bodies"], [1001, 1002, 1003])
    assert (found.scanned, found.rows) == (set(), 3)


async def test_forgetting_old_hand_overs_reads_what_it_forgets(engine):
    left = await engine.fetchval("SELECT count(*) FROM handovers WHERE handed_at >= dripline_at($1)", DAY_AGO_US)
    found = await cost(engine, statements("catalogue")["forget_handovers"], DAY_AGO_US)
    assert found.scanned == set()
    assert found.rows <= HANDOVERS - left + LEASED, "what is leased is not forgotten"
    assert await engine.fetchval("SELECT count(*) FROM handovers") == left > 0


async def test_a_takeover_reads_the_usage_of_its_own_devices(engine):
    (id_,) = await columns(engine, "SELECT id FROM sequence_contacts WHERE lease_token = 7")
    await engine.execute("INSERT INTO handovers VALUES (7, 5, now(), $1, 'said')", id_)
    found = await cost(engine, statements("shard")["load_usage"], 3, DAY_AGO_US)
    assert found.scanned == set()
    assert found.rows <= DEVICES / 10 * PER_DEVICE + 2 * LEASED, "the ledger's day, and its leases with their records"


async def test_lead_changes_read_the_leads_that_changed(engine):
    await engine.execute("UPDATE leads SET trigger = NULL WHERE id BETWEEN 1000 AND 1299")
    found = await cost(engine, statements("enrol")["take_changes"], 1000, NOW_US)
    assert found.scanned == set()
    assert await engine.fetchval("SELECT count(*) FROM sequence_contacts WHERE status = 'stopped'") == 300
    assert found.rows <= 4 * 300


@pytest.mark.parametrize(
    "openings", ["NULL", f"""'{{"fitness_start": {{"Asia/Tokyo": {NOW_US}}}}}'"""], ids=["no window", "windows"]
)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_enrolling_reads_its_batch_before_anybody_has_analysed_the_tables(
    connection, database_url, mode, openings
):
    """Right after a first import: the planner takes a table of thousands for one of a few rows."""
    await connection.execute(
        f"""
        ALTER TABLE sequence_contacts SET (autovacuum_enabled = false);
        INSERT INTO dripline_database (kind, clock) VALUES ('rehearsal', dripline_at({NOW_US}));
        INSERT INTO epochs VALUES ('coordinator', 1, 'me', now());
        INSERT INTO devices (name) VALUES ('d-1');
        INSERT INTO sequences (name, is_active) VALUES ('Fitness', true), ('Crypto', true);
        INSERT INTO leads (phone, trigger)
        SELECT '9991' || n, CASE WHEN n % 2 = 0 THEN 'fitness_start' ELSE 'fitness_start,crypto_start' END
        FROM generate_series(1, 6000) n;
        INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, status)
        SELECT 1, id, phone, 'fitness_start', 'fitness_start',
               CASE WHEN id <= 5000 THEN 'active' ELSE 'completed' END
        FROM leads WHERE id <= 5500;
        DELETE FROM lead_changes;
        UPDATE leads SET trigger = 'crypto_start' WHERE id BETWEEN 4001 AND 4500;
        UPDATE leads SET trigger = trigger || ',vip' WHERE id BETWEEN 4501 AND 5500
        """
    )
    pool = await open_pool(database_url, size=1)
    async with pool.acquire() as engine:
        await engine.execute(f"SET plan_cache_mode = {mode}")
        taking = await most_rows(engine, "take_changes", f"1500, {NOW_US}")
        enrolling = await most_rows(
            engine,
            "enrol",
            f"'{{{','.join(map(str, range(4001, 5501)))}}}', '{{fitness_start,crypto_start}}', '{{1,2}}', "
            f"'{{{','.join(['1'] * 1500)}}}', {NOW_US}, 1, 3600000000, '{{{NOBODY}}}', {openings}",
        )
        zones = await most_rows(engine, "time_zones", f"'{{{','.join(map(str, range(4001, 5501)))}}}'")
    pool.terminate()
    assert await connection.fetch("SELECT status, count(*) FROM sequence_contacts GROUP BY 1 ORDER BY 1") == [
        ("active", 4500 + 500 + 500 + 500),
        ("completed", 500),
        ("stopped", 500),
    ]
    assert max(taking, enrolling, zones) <= 2 * 1500


async def most_rows(connection, name: str, arguments: str) -> float:
    """Of any part of a statement's plan."""
    await connection.execute(f"PREPARE {name} AS {statements('enrol')[name]}")
    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {name} ({arguments})")
    return max(
        (node["Actual Rows"] + sum(count for key, count in node.items() if key.startswith("Rows Removed")))
        * node["Actual Loops"]
        for node in nodes(json.loads(plan)[0]["Plan"])
    )


async def test_an_idle_enrolling_pass_costs_the_same_however_many_leads_there_are(engine, connection):
    await engine.execute(f"INSERT INTO open_entries VALUES ('fitness_start', 1, now(), {ENROLMENTS}, true)")
    for name, arguments in (("take_changes", (1000, NOW_US)), ("search_entries", (1000,))):
        busy, empty = [await cost(on, statements("enrol")[name], *arguments) for on in (engine, connection)]
        assert (busy.scanned, busy.rows) == (set(), 0)
        assert busy.blocks <= empty.blocks + 20, name


MONITORING = {
    "processing": ("SELECT COUNT(*) FROM sequence_contacts WHERE processing_device_id IS NOT NULL", LEASED),
    "stuck": (
        "SELECT COUNT(*) FROM sequence_contacts WHERE processing_device_id IS NOT NULL "
        "AND processing_started_at < NOW() - INTERVAL '5 minutes'",
        LEASED,
    ),
    "retries": (
        "SELECT contact_phone, retry_count, last_error FROM sequence_contacts WHERE retry_count > 0 "
        "ORDER BY retry_count DESC",
        RETRIED,
    ),
}


@pytest.mark.parametrize("name", MONITORING)
async def test_the_seeds_monitoring_reads_what_it_shows(big_url, name):
    sql, rows = MONITORING[name]
    person = await connect(big_url)
    found = await cost(person, sql)
    await person.close()
    assert (found.scanned, found.rows) == (set(), rows)


async def test_a_paused_backlog_does_not_stand_in_the_way(big_url):
    """100,000 enrolments of a paused sequence, all due longer than everybody else's, on the same devices."""
    pool = await open_pool(big_url, size=1)
    async with pool.acquire() as connection:
        alone = await claim_and_roll_back(connection)
        await connection.execute(
            "INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger, "
            "home_device_id, next_trigger_time) SELECT 2, n, '9991' || n, 'paused_start', 'paused_start', d.id, "
            f"dripline_at({NOW_US}) - interval '1 day' FROM generate_series(1, 100000) n "
            f"JOIN devices d ON d.number = 1 + n % {DEVICES}"
        )
        await connection.execute("VACUUM ANALYZE sequence_contacts")
        behind = await claim_and_roll_back(connection)
        await connection.execute(statements("claim")["hold"], 2, 100_000)
        held = await claim_and_roll_back(connection)
    pool.terminate()
    assert alone.scanned == behind.scanned == held.scanned == set()
    assert alone.rows == behind.rows == held.rows, "what is paused is passed over inside the index"
    assert max(behind.blocks, held.blocks) <= 2 * alone.blocks


async def claim_and_roll_back(connection) -> Cost:
    transaction = connection.transaction()
    await transaction.start()
    found = await cost(connection, statements("claim")["claim_due"], *await claim_arguments(connection))
    await transaction.rollback()
    return found
