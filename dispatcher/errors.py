"""What can go wrong for a person, as opposed to what can happen to a message (see ``core.outcomes``).

    DriplineError
    ├── InputError        a file, an option or a setting is wrong; the command ends with exit status 2
    │   ├── GraphError    a sequence cannot be followed; names the step
    │   └── NotMigratedError   the database lacks tables of ours
    ├── RefusedError      the operation would be unsafe here (rehearsal on a live database, …); exit status 2
    ├── StoreError        PostgreSQL is missing, too old, or answered with something unexpected; exit status 3
    │   └── StoreUnavailableError   it did not answer: try again
    ├── ShardUnavailableError   a shard did not answer: it is left out of the pass
    └── FencedError       a newer incarnation owns this shard or coordinator: stop, do not retry

Every argument is passed to ``super().__init__``, so that errors cross processes whole.
"""

from __future__ import annotations


class DriplineError(Exception):
    """Base of every error that is shown to a person as one line."""

    exit_code = 1


class InputError(DriplineError):
    """Something a person wrote is wrong.

    Args:
        subject: the file, option, row or setting.
        problem: what is wrong with it.
        advice: what to do about it.
    """

    exit_code = 2

    def __init__(self, subject: str, problem: str, advice: str = "") -> None:
        super().__init__(subject, problem, advice)
        self.subject, self.problem, self.advice = subject, problem, advice

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}" + (f" - {self.advice}" if self.advice else "")


class NotMigratedError(InputError):
    """The database lacks tables of ours."""

    def __init__(self) -> None:
        super().__init__("database", "it is not migrated", "run: dripline db migrate")

    def __reduce__(self) -> tuple[type[NotMigratedError], tuple[()]]:
        return type(self), ()


class GraphError(InputError):
    """A sequence's steps do not form a path that can be followed; ``subject`` names the sequence and the step."""


class RefusedError(InputError):
    """The operation is refused because of what the target is, not because of how it was asked for."""


class StoreError(DriplineError):
    """PostgreSQL could not be used."""

    exit_code = 3


class FencedError(DriplineError):
    """A newer incarnation has raised the epoch: the owner must stop acting.

    Args:
        name: ``coordinator`` or ``shard-<n>``.
        epoch: the epoch that is no longer current.
    """

    def __init__(self, name: str, epoch: int) -> None:
        super().__init__(name, epoch)
        self.name, self.epoch = name, epoch

    def __str__(self) -> str:
        return f"{self.name}: epoch {self.epoch} has been superseded"


class StoreUnavailableError(StoreError):
    """PostgreSQL did not answer or went away half-way: whether a commit took place is unknown; try again."""


class ShardUnavailableError(DriplineError):
    """A shard did not answer in time: it is left out of this pass."""
