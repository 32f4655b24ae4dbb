"""Suppression lists: in from files and by hand, out again, and what they mean for leads."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from dispatcher.cli import main as cli
from dispatcher.errors import InputError
from dispatcher.intake.csv_file import CsvFile
from dispatcher.intake.suppressions import ListReader, export, import_list
from dispatcher.store.connect import connect

LIST = """Number,reason,at,source
+60 12-345 6789,complaint,2026-01-02T03:04:05Z,desk
12025550123,,,
nobody,complaint,,
12025550124,complaint,someday,
0060123456789,again,,
"""
ROWS = [
    ("12025550123", "asked", "list.csv"),
    ("60123456789", "complaint", "desk"),
]


@pytest.fixture
def listed(tmp_path):
    """A file whose rows are new, twice the same number, and wrong in two ways."""
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    return path


async def take(connection, path, columns=None, **options):
    rejects = []
    with CsvFile(path) as file:
        reader = ListReader(file, columns or {}, reason="asked", source="list.csv")
        note = lambda record, reason: rejects.append((record.line, reason))  # noqa: E731
        counts = await import_list(connection, file, reader, on_reject=note, **options)
    return (counts.imported, counts.merged, counts.rejected), rejects


async def test_a_list_is_taken_row_by_row_and_once(connection, listed):
    await connection.execute("INSERT INTO leads (phone) VALUES ('60123456789'), ('12025550199')")
    rejects = [(4, "phone: not a phone number"), (5, "at: not a date and time (ISO 8601)")]
    for chunk_rows, new in ((2, (2, 1, 2)), (100, (0, 3, 2))):
        assert await take(connection, listed, {"phone": "Number"}, chunk_rows=chunk_rows) == (new, rejects)
    found = await connection.fetch("SELECT phone, reason, source FROM suppressions ORDER BY phone")
    assert [tuple(row) for row in found] == ROWS
    at = await connection.fetchval("SELECT at FROM suppressions WHERE phone = '60123456789'")
    assert at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    out = await connection.fetch("SELECT phone FROM leads WHERE opted_out_at IS NOT NULL")
    assert [row["phone"] for row in out] == ["60123456789"]


async def test_an_export_comes_in_again_and_has_everybody_whose_number_is_known(connection, listed, tmp_path):
    await take(connection, listed, {"phone": "Number"})
    await connection.execute(
        "INSERT INTO leads (phone, opted_out_at) VALUES ('12025550150', now()), ('12025550151', now()),"
        " ('60123456789', now())"
    )
    await connection.execute("DELETE FROM leads WHERE phone = '12025550151'")
    out = tmp_path / "out.csv"
    assert await export(connection, out) == 3
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == [
        "phone", "12025550123", "12025550150", "60123456789",
    ]  # fmt: skip
    assert list(tmp_path.glob("*.partial")) == []
    await connection.execute("TRUNCATE suppressions")
    assert await take(connection, out) == ((3, 0, 0), [])
    assert await connection.fetchval("SELECT source FROM suppressions WHERE phone = '12025550150'") == "lead"


def test_the_commands(database_url, listed, tmp_path, capsys):
    def dripline(*arguments: str) -> tuple[str, str]:
        cli.load("suppressions").main([*arguments, "--database-url", database_url], standalone_mode=False)
        return tuple(capsys.readouterr())

    said, _ = dripline("import", str(listed), "--map", "phone=Number", "--reason", "asked")
    assert said == (
        "5 rows: 2 new, 1 were there, 2 rejected\n        1  phone: not a phone number\n"
        f"        1  at: not a date and time (ISO 8601)\nrejected rows: {listed}.rejects.csv\n"
    )
    assert (tmp_path / "list.csv.rejects.csv").read_text().splitlines()[
        1
    ] == "4,phone: not a phone number,nobody,complaint,,"
    assert dripline("add", "+1 202 555 0160", "60123456789", "--by", "ann") == ("1 new, 1 were there\n", "")
    shown, counts = dripline("list", "--limit", "1")
    assert shown.split("\t")[::2] == ["12025550160", "must not be messaged"]
    assert counts == "3 on the list, 0 leads have opted out, 0 of deleted leads are remembered\n"
    assert dripline("remove", "12025550160", "12025550161") == ("1 removed\n", "12025550161: is not on the list\n")
    with pytest.raises(InputError, match="none with this phone or id; the number is suppressed: complaint - see"):
        cli.load("explain").main(["60123456789", "--database-url", database_url], standalone_mode=False)
    said, _ = dripline("export", str(tmp_path / "out.csv"))
    assert said == f"2 numbers: {tmp_path / 'out.csv'}\n"

    async def forget() -> None:
        connection = await connect(database_url)
        await connection.execute("INSERT INTO leads (phone) VALUES ('60123456789')")
        await connection.execute("DELETE FROM leads")
        await connection.close()

    asyncio.run(forget())
    assert dripline("remove", "60123456789") == ("1 removed\n", "")
    assert dripline("list")[1] == "1 on the list, 0 leads have opted out, 0 of deleted leads are remembered\n"
