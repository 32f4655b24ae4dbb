"""What the documents promise about the code, and the code about itself: quick looks over the whole tree."""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dispatcher.cli import main as cli
from dispatcher.config import Settings
from dispatcher.store.statements import statements

ROOT = Path(__file__).parent.parent
PACKAGES = ("dispatcher", "actors", "simulate")
SQL_FILES = sorted(path.stem for path in (ROOT / "dispatcher/store/sql").glob("*.sql"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
SKIPPED = {"__pycache__", "build", "dist", "venv"}
FILE_LINES, FUNCTION_LINES = 500, 70


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the product by its path below the root."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def texts() -> Iterator[tuple[str, str]]:
    """Every text file a reader of the checkout meets."""
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in SKIPPED and (not name.startswith(".") or name == ".ci")]
        for name in set(files) - {".git"}:  # a file in a further work tree
            path = Path(folder, name)
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and everything below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


# Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_an_example_that_its_own_parser_takes(name):
    for path, command in commands(cli.load(name), (name,)):
        begin, _, example = (command.epilog or "").partition(": ")
        assert begin == "Example", f"dripline {' '.join(path)} has no example"
        lines = [line.strip() for line in example.split(" | ") if "dripline " in line]
        assert lines
        assert all(command_of(line) in line for line in lines)
        assert command.help, f"dripline {' '.join(path)} does not say what it does"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_in_the_documents_is_one_that_the_program_takes(page):
    parts = [part for line in shell_lines(page) for part in re.split(r" && | \| ", line)]
    lines = [part for part in parts if part.startswith("dripline ")]
    assert all(command_of(line) in line for line in lines)


def command_of(line: str) -> str:
    """The command a line calls, as its own parser reads it; a wrong name, flag or value raises."""
    words = [word for word in shlex.split(re.sub(r'"\$\((.*)\)"', r"\1", line), comments=True) if word != "&"]
    words = words[words.index("dripline") + 1 :]
    if words[0] in ("--help", "--version"):
        return "dripline"
    path, command, words = ["dripline", words[0]], cli.load(words[0]), words[1:]
    context = command.make_context(command.name, list(words))
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, list(words))
        path.append(name)
        context = command.make_context(name, list(words))
    return " ".join(path)


# Code ------------------------------------------------------------------------------------------------------------


def test_no_file_and_no_function_is_longer_than_a_reader_can_hold():
    long_files = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".sql") and (lines := path.read_text(encoding="utf-8").count("\n")) > FILE_LINES
    }
    long_functions = {
        f"{name}:{node.lineno} {node.name}": lines
        for name, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - _body_start(node) + 1) > FUNCTION_LINES
    }
    assert (long_files, long_functions) == ({}, {})


def _body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Where a function's own lines begin: a command's flags are a table, not code to follow."""
    return node.body[0].lineno


def test_every_package_opens_with_its_map():
    maps = {name: ast.get_docstring(module) or "" for name, module in modules().items() if name.endswith("__init__.py")}
    missing = {
        f"{package}/{path.stem}"
        for package in ("actors", "simulate")
        for path in (ROOT / package).glob("*.py")
        if path.stem != "__init__" and not re.search(rf"^{path.stem}\b", maps[f"{package}/__init__.py"], re.MULTILINE)
    }
    assert missing == set()


def test_no_path_of_a_developers_machine():
    machine = re.compile(r"(?<![\w.~])/(?:home|Users|root|work)/[\w.]+")
    found = [f"{name}: {match[0]}" for name, text in texts() for match in machine.finditer(text)]
    assert found == []


# Database --------------------------------------------------------------------------------------------------------


def test_every_statement_has_a_caller_and_every_caller_a_statement():
    known = {name for file in SQL_FILES for name in statements(file)}
    said = {
        node.value
        for module in modules().values()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert known - said == set()
    called = {name for module in modules().values() for name in _called(module)}
    assert called - known == set()
    assert len(called) > len(known) / 2  # the search above finds calls at all


def _called(module: ast.Module) -> Iterator[str]:
    """Statement names in ``session.rows("name", …)`` and ``statements("file")["name"]``."""
    for node in ast.walk(module):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="row" | "rows" | "value" | "changed", value=ast.Attribute(attr="_session")),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case ast.Subscript(value=ast.Call(func=ast.Name(id="statements")), slice=ast.Constant(value=str(name))):
                yield name


async def test_the_seeds_columns_have_the_seeds_types(connection):
    rows = await connection.fetch(
        """SELECT table_name || '.' || column_name AS name,
                  udt_name || coalesce('(' || character_maximum_length || ')', '') AS type
           FROM information_schema.columns WHERE table_schema = 'public'"""
    )
    found = {row["name"]: row["type"] for row in rows}
    seed = {
        "leads.phone": "varchar(20)",
        "leads.niche": "text",
        "leads.trigger": "varchar(1000)",
        "sequences.name": "varchar(255)",
        "sequences.trigger_prefix": "varchar(255)",
        "sequences.is_active": "bool",
        "sequence_steps.sequence_id": "int8",
        "sequence_steps.day_number": "int4",
        "sequence_steps.message_text": "text",
        "sequence_steps.trigger": "varchar(255)",
        "sequence_steps.next_trigger": "varchar(255)",
        "sequence_steps.trigger_delay_hours": "int4",
        "sequence_steps.is_entry_point": "bool",
        "sequence_contacts.sequence_id": "int8",
        "sequence_contacts.contact_phone": "varchar(20)",
        "sequence_contacts.current_trigger": "varchar(255)",
        "sequence_contacts.next_trigger_time": "timestamptz",
        "sequence_contacts.processing_device_id": "uuid",
        "sequence_contacts.processing_started_at": "timestamptz",
        "sequence_contacts.retry_count": "int4",
        "sequence_contacts.last_error": "text",
        "sequence_contacts.status": "text",
        "device_load_balance.device_id": "uuid",
        "device_load_balance.messages_hour": "int4",
        "device_load_balance.messages_today": "int4",
        "device_load_balance.current_processing": "int4",
        "device_load_balance.is_available": "bool",
    }
    assert {name: found.get(name) for name in seed} == seed


# Documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    broken = [target for target in targets if not _leads_somewhere(page, target)]
    assert broken == []


def _leads_somewhere(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    there = page if not name else page.parent / name
    if not there.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_names_every_setting_with_its_default():
    told = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*?)`? \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE))
    settings = {
        name: "none" if field.default is None else f"{field.default:g}" if isinstance(field.default, float)
        else str(field.default)
        for name, field in Settings.model_fields.items()
    }  # fmt: skip
    assert {name: told.get(name) for name in settings} == settings
