"""The ``dripline`` command. Commands are listed by name and loaded when called: help answers at once."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
import typer.core
import typer.main

from dispatcher.errors import DriplineError

COMMANDS: Final = {
    "simulate": (
        "simulate.command:app",
        "Rehearse in virtual time with production code.",
    ),
    "compare": ("simulate.compare:app", "Two rehearsals side by side."),
    "forecast": ("simulate.forecast.command:app", "When will it finish, what limits it, how many devices would do?"),
    "test": ("simulate.sequence_test.command:app", "Sequences held against what is expected of them."),
    "prove": ("simulate.prove.command:app", "Thousands of seeds of faults: nothing lost, nothing twice."),
    "run": ("actors.command:app", "Run the engine against real gateways."),
    "webhooks": ("dispatcher.cli.webhooks:app", "Take in what gateways tell, without the engine."),
    "pause": ("dispatcher.cli.pause:pausing", "Stop every hand-over."),
    "resume": ("dispatcher.cli.pause:resuming", "Go on after a pause of everything."),
    "status": ("dispatcher.cli.status:app", "The seed's monitoring at a glance."),
    "import": ("dispatcher.cli.import_leads:app", "Bring in leads from a CSV file."),
    "apply": ("dispatcher.cli.apply:app", "Bring in sequences from a file."),
    "devices": ("dispatcher.cli.devices:app", "List, add, import, change, pause, drain and retire devices."),
    "sequences": ("dispatcher.cli.sequences:app", "Check, list, pause and resume sequences."),
    "leads": ("dispatcher.cli.leads:app", "Pause, resume and delete leads; triggers that match no open sequence."),
    "suppressions": ("dispatcher.cli.suppressions:app", "Numbers that must never be messaged."),
    "in-doubt": ("dispatcher.cli.in_doubt:app", "Attempts sent or not: list them, and say what became of them."),
    "retry": ("dispatcher.cli.retry:app", "Try again what has failed."),
    "archive": ("dispatcher.cli.archive:app", "Move what has long finished into Parquet files."),
    "explain": ("dispatcher.cli.explain:app", "Why a lead got a message, or did not."),
    "db": ("dispatcher.cli.db:app", "Migrate and recover the database; start and stop the embedded server."),
    "doctor": ("dispatcher.cli.doctor:app", "Check this machine and the database."),
}
"""Where each command lives, and its line in the help. The upper layers are reached by name only."""

_INTERRUPTED: Final = 130
"""The exit status after Ctrl-C."""
_NOT_WRITTEN: Final = 74
"""The exit status where results could not be written: ``EX_IOERR`` of sysexits.h."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
_WITHOUT_TWIN: Final = frozenset({"help", "version", "install_completion", "show_completion"})


class LazyCommands(typer.core.TyperGroup):
    """A group that knows its commands' names and imports a command when it is resolved."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, line) in COMMANDS.items():
            self.add_command(typer.core.TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that ``args`` name, loaded; a mistyped one is a usage error that suggests the nearest."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else command, rest


def load(name: str) -> Any:
    """Import command ``name``; every flag without an environment variable gets ``DRIPLINE_<FLAG>``.

    A flag that must never come from the environment says ``envvar=[]``.
    """
    module, _, attribute = COMMANDS[name][0].partition(":")
    app = getattr(importlib.import_module(module), attribute)
    app.rich_markup_mode = None
    app._add_completion = False
    command = typer.main.get_command(app)
    command.name = name
    _give_twins(command)
    return command


def main() -> None:
    """Run the command line. A person's error is one line on stderr; its class decides the exit status."""
    try:
        typer.main.get_command(_root)(prog_name="dripline")
    except DriplineError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        sys.stderr.write(f"error: {error.filename or 'output'}: {error.strerror}\n")
        sys.exit(_NOT_WRITTEN)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, KeyboardInterrupt) or end.code == _INTERRUPTED:
            # Everything is closed: a second one, while Python leaves, would only print a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(_INTERRUPTED)
        raise


def _give_twins(command: Any) -> None:
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in _WITHOUT_TWIN:
            flag = max(parameter.opts, key=len).lstrip("-")
            if parameter.envvar is None:
                parameter.envvar = f"DRIPLINE_{flag.replace('-', '_').upper()}"
            elif not parameter.envvar:
                parameter.envvar = None  # else click shows the empty list
    for below in getattr(command, "commands", {}).values():
        _give_twins(below)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dripline {version('dripline')}")
        raise typer.Exit


_root = typer.Typer(
    name="dripline",
    cls=LazyCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: dripline simulate --devices 300 --leads 10000 --days 3",
)


@_root.callback()
def dripline(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Trigger-based message sequences over thousands of devices: exact, rehearsable, explainable."""
