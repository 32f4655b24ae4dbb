"""Why a request is refused: a status that says whether to come again, and a line that repeats nothing of it."""

from __future__ import annotations

from http import HTTPStatus


class RefusalError(Exception):
    """A request of which nothing is written.

    Args:
        status: what HTTP calls it.
        why: for whoever sent it.
    """

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why

    def __str__(self) -> str:
        return f"{self.status.value} {self.status.phrase}: {self.why}"


def malformed(why: str) -> RefusalError:
    """It is not what HTTP or JSON say."""
    return RefusalError(HTTPStatus.BAD_REQUEST, why)


def unauthorized(why: str) -> RefusalError:
    """Nobody knows who says this."""
    return RefusalError(HTTPStatus.UNAUTHORIZED, why)


def unreadable(why: str) -> RefusalError:
    """It is JSON, but not what the contract says."""
    return RefusalError(HTTPStatus.UNPROCESSABLE_ENTITY, why)
