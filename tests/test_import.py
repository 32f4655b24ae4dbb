"""Lead files: whatever people export goes in, and what cannot is named; nothing is lost or counted twice."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import phonenumbers
import pytest

from dispatcher.errors import InputError
from dispatcher.intake import csv_file, phones
from dispatcher.intake.csv_file import CsvFile, Record, RejectedError
from dispatcher.intake.lead_file import LIST_TOO_LONG, NO_MOMENT, UNKNOWN_ZONE, Lead, LeadReader
from dispatcher.intake.leads import LeadImport
from dispatcher.intake.phones import read_phone
from dispatcher.intake.rejects_file import RejectsFile

DATA = Path(__file__).parents[2] / "shared" / "data"
SAMPLES = [
    ("leads-1000.csv", "Phone 1"),
    ("leads-duplicates-1000.csv", "phone 1"),
    ("people-1000.csv", "Phone"),
    ("customers-10000.csv", "Phone 2"),
]

needs_samples = pytest.mark.skipif(not DATA.is_dir(), reason="the sample files lie beside the checkout, not in it")


@pytest.fixture
def csv_path(tmp_path: Path):
    """Writes text or bytes as a file and returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "leads.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def records(path: Path, **options: str) -> list[Record]:
    with CsvFile(path, **options) as file:
        return list(file.records())


def cells(path: Path, **options: str) -> list[list[str]]:
    return [record.cells for record in records(path, **options)]


async def take(connection, path: Path, columns=None, *, region=None, tags=(), dry_run=False, **options):
    """Imports ``path``; the counts as (imported, merged, rejected), and the rejects as (line, reason)."""
    rejects: list[tuple[int, str]] = []
    with CsvFile(path) as file:
        reader = LeadReader(file, columns or {}, tags=tags, region=region)
        note = lambda record, reason: rejects.append((record.line, reason))  # noqa: E731
        counts = await LeadImport(connection, reader, dry_run=dry_run, on_reject=note).run(file, **options)
    assert counts.rows == counts.imported + counts.merged + counts.rejected
    assert counts.reasons == Counter(reason for _, reason in rejects)
    return (counts.imported, counts.merged, counts.rejected), rejects


async def table(connection) -> list[dict]:
    rows = await connection.fetch("SELECT phone, name, trigger, attributes FROM leads ORDER BY phone")
    return [dict(row) | {"attributes": json.loads(row["attributes"])} for row in rows]


async def versions(connection) -> tuple:
    """What changes with any write to a lead, even a lock."""
    rows = await connection.fetch("SELECT id, xmin::text, xmax::text, ctid::text FROM leads ORDER BY id")
    return rows, await connection.fetchval("SELECT sum(cardinality(leads)) FROM lead_changes")


# Phones ---


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("60123456789", None, "60123456789"),
        ("+60 12-345 6789", None, "60123456789"),
        ("012-345 6789", "MY", "60123456789"),
        ("60123456789", "MY", "60123456789"),
        ("60123456789.0", "MY", "60123456789"),
        ("(202) 456-1111", "US", "12024561111"),
        ("202.456.1111x56739", "US", "12024561111"),
        ("+1-202-456-1111 ext. 7", "MY", "12024561111"),
        ("001-202-456-1111x12", "US", "12024561111"),
        ("0060 12 345 6789", "US", "60123456789"),
        ("0060123456789", None, "60123456789"),
        ("020 7946 0018", "GB", "442079460018"),
        ("+39 06 6982", None, "39066982"),
    ],
)
def test_phones_are_read_as_they_are_dialled(text, region, expected):
    assert read_phone(text, region) == expected


@pytest.mark.parametrize(
    ("text", "region", "reason"),
    [
        ("", "US", phones.MISSING),
        ("   ", "US", phones.MISSING),
        ("n/a", "US", phones.NOT_A_NUMBER),
        ("0123456789", None, phones.NO_COUNTRY),
        ("+999 123456789", "US", phones.NO_COUNTRY),
        ("456-1111", "US", phones.TOO_SHORT),
        ("60123456789", "US", phones.TOO_LONG),
        ("1" * 300, "US", phones.TOO_LONG),
        ("394-387-5749", "US", phones.UNASSIGNED),
        ("001-545-714-1581", "US", phones.UNASSIGNED),
        ("6.01235E+10", "MY", phones.DIGITS_LOST),
    ],
)
def test_numbers_that_cannot_be_dialled_are_rejected_with_the_reason(text, region, reason):
    with pytest.raises(RejectedError) as caught:
        read_phone(text, region)
    assert caught.value.reason == reason


def test_asking_the_main_region_first_never_changes_whether_a_number_is_valid():
    draw = random.Random(7)
    for _ in range(4000):
        code = draw.choice(["1", "7", "44", "47", "60", "212", "290", "358", "39", "599", "800"])
        text = "+" + code + "".join(draw.choice("0123456789") for _ in range(draw.randint(4, 10)))
        try:
            is_valid = phonenumbers.is_valid_number(phonenumbers.parse(text))
        except phonenumbers.NumberParseException:
            is_valid = False
        try:
            accepted = bool(read_phone(text, None))
        except RejectedError:
            accepted = False
        assert (text, accepted) == (text, is_valid)


def test_a_region_without_telephones_is_named():
    with pytest.raises(InputError, match=r"--region: unknown region 'UK' - .*such as GB"):
        phones.check_region("UK")
    assert phones.check_region("gb") == "GB"


# Files ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encoding_delimiter_and_line_ends_are_found_out(csv_path, encoding, delimiter, newline):
    rows = [
        ["Name", "Phone", "Notes, remarks"],
        ["José", "+60123456789", "a;b"],
        ["Müller", "+60123456780", "-"],
    ]
    text = newline.join(
        delimiter.join(f'"{c}"' if set(c) & set(csv_file.DELIMITERS) else c for c in row) for row in rows
    )
    path = csv_path(text.encode(encoding))
    with CsvFile(path) as file:
        assert [file.columns, *(record.cells for record in file.records())] == rows


def test_quotes_newlines_and_blank_lines(csv_path):
    path = csv_path('name,phone\n"Ann ""A"", Lee\nJunior",1\n\n\r\n"",2\n   \nBob,"3"')
    assert records(path) == [
        Record(2, ['Ann "A", Lee\nJunior', "1"]),
        Record(6, ["", "2"]),
        Record(7, ["   "], "row: fewer cells than the header"),
        Record(8, ["Bob", "3"]),
    ]


def test_a_bad_row_costs_only_itself(csv_path):
    path = csv_path(
        b'name,phone\nshort\nAnn,1\ntoo,many,cells\nnul\0byte,2\nJos\xc3\xa9,3\nbad\xff,4\n"Acme" Ltd,5\nBob,6\n'
    )
    assert [(r.line, r.reason) for r in records(path)] == [
        (2, "row: fewer cells than the header"),
        (3, None),
        (4, "row: more cells than the header"),
        (5, "row: NUL byte"),
        (6, None),
        (7, "row: bytes that are not utf-8"),
        (8, "row: ',' expected after '\"'"),
        (9, None),
    ]


@pytest.mark.parametrize("later", ["", 'Zoe,"9"\n'])
def test_a_quote_that_is_never_closed_swallows_nothing_but_its_line(csv_path, later):
    rows = "".join(f"Lead{n},{n}\n" for n in range(20_000))
    path = csv_path('name,phone\nAnn,1\n"Bob,2\n' + rows + later)
    found = records(path)
    assert [r.line for r in found if r.reason] == [3]
    assert len(found) == 20_002 + bool(later)
    assert [r.line for r in found] == list(range(2, len(found) + 2))


def test_cells_and_lines_over_the_limits_are_rejected(csv_path, monkeypatch):
    monkeypatch.setattr(csv_file, "LINE_CHARACTERS", 200_000)
    path = csv_path("name,phone\n" + "x" * 150_000 + ",1\n" + "y" * 900_000 + ",2\nAnn,3\n")
    first, second, third = records(path)
    assert (first.line, first.reason) == (2, "row: field larger than field limit (131072)")
    assert (second.line, second.reason) == (3, "row: a line of more than 200000 characters")
    assert third == Record(4, ["Ann", "3"])
    assert len(first.cells[0]) == csv_file.SHOWN_CHARACTERS


def test_a_spreadsheet_says_its_delimiter(csv_path):
    assert cells(csv_path("sep=;\nname;phone\nA,B;1\n")) == [["A,B", "1"]]


def test_options_beat_what_was_found_out(csv_path):
    path = csv_path("name|phone,x\nPaw\xb3|1,2\n".encode("latin-1"))
    assert cells(path, encoding="cp1250", delimiter="|") == [["Pawł", "1,2"]]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "has no header line"),
        (b"\n\n", {}, "has no header line"),
        (b"PK\x03\x04...", {}, "is a spreadsheet or an archive.* export it as CSV"),
        (b"a,b\n", {"encoding": "utf-99"}, "--encoding: unknown encoding"),
        (b"a,b\n", {"delimiter": "||"}, "--delimiter: '||' is not one character".replace("|", r"\|")),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(csv_path, content, options, message):
    with pytest.raises(InputError, match=message):
        CsvFile(csv_path(content), **options)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        CsvFile(tmp_path / "none.csv")
    with pytest.raises(InputError, match="not a file"):
        CsvFile(tmp_path)


def test_columns_are_found_exactly_then_without_case_and_else_suggested(csv_path):
    with CsvFile(csv_path("Phone,phone,Full Name,X,X\n")) as file:
        assert (file.column("phone", "--map"), file.column("full name", "--map")) == (1, 2)
        with pytest.raises(InputError, match=r"--map: .* has no column 'Ful name' - did you mean 'Full Name'\?"):
            file.column("Ful name", "--map")
        with pytest.raises(InputError, match="several columns 'PHONE'"):
            file.column("PHONE", "--map")
        with pytest.raises(InputError, match="several columns 'x'"):
            file.column("x", "--map")


# Records as leads ---


def test_columns_become_fields_and_attributes(csv_path):
    path = csv_path(
        "Phone,First,Zone,Tags,Since,Company,Seats\n"
        ' +60123456789 , Ann ,Asia/Kuala_Lumpur,"b, a,,b",2026-01-02T03:04:05+08:00,Acme,\n'
    )
    columns = {
        "name": "First", "time_zone": "zone", "trigger": "Tags", "opted_in_at": "Since",
        "company": "Company", "attributes.seats": "Seats",
    }  # fmt: skip
    with CsvFile(path) as file:
        (record,) = file.records()
        assert LeadReader(file, columns, tags=["x", "a"]).read(record) == Lead(
            "60123456789", "Ann", None, "x,a,b", "Asia/Kuala_Lumpur",
            datetime(2026, 1, 1, 19, 4, 5, tzinfo=UTC), {"company": "Acme"},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"phone": "a"}, None),
        ({}, "has no column 'phone'"),
        ({"phone": "a", "time zone": "b"}, "'time zone' is no name for an attribute"),
        ({"phone": "a", "timezone": "b"}, r"unknown field 'timezone' - did you mean 'time_zone'\?"),
        ({"phone": "a", "attributes.timezone": "b"}, None),
        ({"phone": "a", "attributes.name": "b"}, "an attribute cannot be called 'name'"),
    ],
)
def test_what_a_column_can_be_mapped_to(csv_path, columns, message):
    with CsvFile(csv_path("a,b\n1,2\n")) as file:
        if message is None:
            LeadReader(file, columns)
        else:
            with pytest.raises(InputError, match=f"--map: .*{message}"):
                LeadReader(file, columns)


async def test_cells_that_cannot_be_stored_reject_their_row(connection, csv_path):
    path = csv_path(
        "phone,zone,since,tags\n"
        "60123456781,Mars/Olympus,,a\n"
        "60123456782,,yesterday,a\n"
        f"60123456783,,,{'t' * 1001}\n"
        f"60123456784,,,{'t' * 1000}\n"
        "60123456785,Asia/Tokyo,2026-01-02,a\n"
    )
    columns = {"time_zone": "zone", "opted_in_at": "since", "trigger": "tags"}
    assert await take(connection, path, columns) == (
        (2, 0, 3),
        [(2, UNKNOWN_ZONE), (3, NO_MOMENT), (4, LIST_TOO_LONG)],
    )


def test_filling_a_lead_overwrites_nothing_and_leaves_the_same_object_when_nothing_is_new():
    there = Lead("1", "Ann", "", " a ,b", None, None, {"city": "", "age": 3, "pet": None})
    more = Lead("1", "Bob", "gym", "b,c", "Asia/Tokyo", None, {"city": "Oslo", "age": "4", "new": "x"})
    filled = there.filled_from(more)
    assert filled == Lead(
        "1", "Ann", "gym", " a ,b,c", "Asia/Tokyo", None, {"city": "Oslo", "age": 3, "pet": None, "new": "x"}
    )
    assert filled.filled_from(more) is filled
    assert there.filled_from(Lead("1")) is there


# Into the table ---

TINY = (
    "Phone,Name,City\n"
    "60123456781,Ann,\n"
    "n/a,Nobody,\n"
    "+60 12-345 6782,Bob,Ipoh\n"
    "012-3456781,Anna,Johor\n"
    "60123456783,,\n"
    "60123456782,Robert,Melaka\n"
)
TINY_TABLE = [
    {"phone": "60123456781", "name": "Ann", "trigger": "fitness_start", "attributes": {"city": "Johor"}},
    {"phone": "60123456782", "name": "Bob", "trigger": "fitness_start", "attributes": {"city": "Ipoh"}},
    {"phone": "60123456783", "name": None, "trigger": "fitness_start", "attributes": {}},
]
TINY_COLUMNS = {"name": "Name", "city": "City"}
AS_TINY = {"columns": TINY_COLUMNS, "region": "MY", "tags": ["fitness_start"]}


@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
async def test_duplicates_are_merged_wherever_the_chunks_end(connection, csv_path, chunk_rows):
    path = csv_path(TINY)
    expected = (3, 2, 1), [(3, phones.NOT_A_NUMBER)]
    tried = await take(connection, path, **AS_TINY, dry_run=True, chunk_rows=chunk_rows)
    assert (tried, await table(connection)) == (expected, [])
    assert await take(connection, path, **AS_TINY, chunk_rows=chunk_rows) == expected
    assert await table(connection) == TINY_TABLE


async def test_a_second_import_writes_nothing(connection, csv_path):
    path = csv_path(TINY)
    await take(connection, path, **AS_TINY)
    before = await versions(connection)
    assert (await take(connection, path, **AS_TINY, dry_run=True))[0] == (0, 5, 1)
    assert (await take(connection, path, **AS_TINY))[0] == (0, 5, 1)
    assert await versions(connection) == before


async def test_an_import_only_adds_to_what_is_there(connection, csv_path):
    await connection.execute(
        "INSERT INTO leads (phone, name, trigger, attributes, opted_out_at) VALUES"
        " ('60123456781', 'Ann', ' a ,fitness_starter', '{\"city\": \"Kuching\"}', '2026-01-01'),"
        " ('60123456782', NULL, NULL, '{}', NULL), ('60123456784', 'Dan', 'a', '{}', NULL)"
    )
    await connection.execute("DELETE FROM lead_changes")
    assert (await take(connection, csv_path(TINY), **AS_TINY))[0] == (1, 4, 1)
    assert await table(connection) == [
        {
            "phone": "60123456781",
            "name": "Ann",
            "trigger": " a ,fitness_starter,fitness_start",
            "attributes": {"city": "Kuching"},
        },
        TINY_TABLE[1],
        TINY_TABLE[2],
        {"phone": "60123456784", "name": "Dan", "trigger": "a", "attributes": {}},
    ]
    opted_out = await connection.fetch("SELECT phone FROM leads WHERE opted_out_at IS NOT NULL")
    assert [row["phone"] for row in opted_out] == ["60123456781"]
    queued = await connection.fetch(
        "SELECT trigger, old_trigger, opted_out FROM lead_changes q JOIN leads l ON l.id = ANY (q.leads) ORDER BY 1"
    )
    assert [tuple(row) for row in queued] == [
        (" a ,fitness_starter,fitness_start", None, False),
        ("fitness_start", None, False),
        ("fitness_start", None, False),
    ]


async def test_triggers_that_do_not_fit_beside_the_leads_own_reject_the_rows(connection, csv_path):
    await connection.execute("INSERT INTO leads (phone, trigger) VALUES ('60123456781', $1)", "t" * 990)
    before = await versions(connection)
    for dry_run in (True, False):
        assert await take(connection, csv_path(TINY), **AS_TINY, dry_run=dry_run) == (
            (2, 1, 3),
            [(2, LIST_TOO_LONG), (3, phones.NOT_A_NUMBER), (5, LIST_TOO_LONG)],
        )
    after = await versions(connection)
    assert after[0][:1] == before[0]


async def test_a_lead_that_someone_else_inserts_meanwhile_is_merged(connection, database_url, csv_path, monkeypatch):
    other = await asyncpg.connect(database_url)
    insert, attempts = LeadImport._insert, []

    async def insert_late(self, table, new):
        if not attempts:
            await other.execute("INSERT INTO leads (phone, name) VALUES ('60123456781', 'Other')")
        attempts.append([lead.phone for lead in new])
        await insert(self, table, new)

    monkeypatch.setattr(LeadImport, "_insert", insert_late)
    assert (await take(connection, csv_path(TINY), **AS_TINY))[0] == (2, 3, 1)
    await other.close()
    assert attempts == [["60123456781", "60123456782", "60123456783"], ["60123456782", "60123456783"]]
    assert [lead["name"] for lead in await table(connection)] == ["Other", "Bob", None]


async def test_an_import_that_is_stopped_keeps_what_it_has_and_can_be_run_again(connection, csv_path):
    path = csv_path(TINY)
    chunks = []
    counts, _ = await take(
        connection, path, **AS_TINY, chunk_rows=2, stopped=lambda: len(chunks) == 1, on_progress=chunks.append
    )
    assert (counts, len(await table(connection))) == ((1, 0, 1), 1)
    assert (await take(connection, path, **AS_TINY))[0] == (2, 3, 1)
    assert await table(connection) == TINY_TABLE


def test_rejects_come_back_as_they_stood(csv_path, tmp_path):
    path = csv_path(b'name,phone\n=1+1,x\nJos\xe9,1\n"a\nb",2\n\xc3\xa9\xc3\xa9,3\n')
    target = tmp_path / "rejects.csv"
    with CsvFile(path, encoding="utf-8") as file, RejectsFile(target, file) as rejects:
        assert not rejects.written
        for record in file.records():
            rejects.write(record, record.reason or "phone")
    assert rejects.written
    assert target.read_bytes() == (
        b"line,reason,name,phone\r\n2,phone,=1+1,x\r\n3,row: bytes that are not utf-8,Jos\xe9,1\r\n"
        b'4,phone,"a\nb",2\r\n6,phone,\xc3\xa9\xc3\xa9,3\r\n'
    )


def test_rejects_never_overwrite_the_file_that_is_read(csv_path, tmp_path):
    path = csv_path("phone\n1\n")
    with CsvFile(path) as file:
        with pytest.raises(InputError, match="is the file that is imported"):
            RejectsFile(path, file)
        with pytest.raises(InputError, match="cannot be written"):
            RejectsFile(tmp_path / "none" / "rejects.csv", file)


@needs_samples
@pytest.mark.parametrize(("name", "column"), SAMPLES)
async def test_every_row_of_the_sample_files_ends_somewhere_and_a_second_import_writes_nothing(
    connection, name, column
):
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    arguments = {
        "columns": {"phone": column, "name": "First Name"},
        "region": "US",
        "tags": ["fitness_start"],
    }
    tried = await take(connection, DATA / name, **arguments, dry_run=True, chunk_rows=300)
    assert await table(connection) == []
    first = await take(connection, DATA / name, **arguments, chunk_rows=700)
    before = await versions(connection)
    second = await take(connection, DATA / name, **arguments)
    (imported, merged, rejected), rejects = first
    assert (tried, second) == (first, ((0, imported + merged, rejected), rejects))
    assert imported + merged + rejected == len(rows)
    assert await versions(connection) == before
    stored = {lead["phone"] for lead in await table(connection)}
    assert len(stored) == imported
    assert all(phonenumbers.is_valid_number(phonenumbers.parse("+" + phone)) for phone in stored)
