"""Who may tell us anything: HMAC-SHA256 over what came, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from dispatcher.webhooks.refusals import unauthorized

TIMESTAMP: Final = "Dripline-Timestamp"
SIGNATURE: Final = "Dripline-Signature"
META_SIGNATURE: Final = "X-Hub-Signature-256"

_PREFIX: Final = "sha256="
_LONGEST_TIMESTAMP: Final = 12


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """What a gateway of the generic contract writes into ``Dripline-Signature``.

    Args:
        timestamp: Unix seconds in digits, as in ``Dripline-Timestamp``.
    """
    return _digest(secret, timestamp.encode() + b"." + body)


def sign_as_meta(app_secret: str, body: bytes) -> str:
    """What Meta writes into ``X-Hub-Signature-256``."""
    return _digest(app_secret, body)


class GatewayKey:
    """Checks requests of the generic contract.

    Args:
        secret: what gateways sign with.
        window_s: how far their time may be from ours: what was recorded cannot be told again later.
    """

    body_bytes: Final = 1 << 20

    def __init__(self, secret: str, window_s: float) -> None:
        self._secret, self._window_s = secret, window_s

    def precheck(self, headers: Mapping[str, str], now_s: float) -> None:
        """Look at what can be judged without the body.

        Raises:
            RefusalError: a header is missing, or the time is not ours.
        """
        told = headers.get(TIMESTAMP, "")
        if not (told.isascii() and told.isdigit() and len(told) <= _LONGEST_TIMESTAMP):
            raise unauthorized(f"{TIMESTAMP} must be seconds since 1970")
        if abs(now_s - int(told)) > self._window_s:
            raise unauthorized(f"{TIMESTAMP} is more than {self._window_s:g} s from the time here")
        _require(headers, SIGNATURE)

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Compare signatures.

        Raises:
            RefusalError: somebody else signed, or signed something else.
        """
        _compare(headers[SIGNATURE], sign(self._secret, headers[TIMESTAMP], body))


class MetaKey:
    """Checks webhooks of a Meta app.

    Args:
        app_secret: the app's.
    """

    body_bytes: Final = 3 << 20
    """As large as Meta says that its webhooks may be."""

    def __init__(self, app_secret: str) -> None:
        self._secret = app_secret

    def precheck(self, headers: Mapping[str, str], now_s: float) -> None:
        """Look at what can be judged without the body. Meta's signatures carry no time.

        Raises:
            RefusalError: the signature is missing.
        """
        _require(headers, META_SIGNATURE)

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Compare signatures.

        Raises:
            RefusalError: somebody else signed, or signed something else.
        """
        _compare(headers[META_SIGNATURE], sign_as_meta(self._secret, body))


def same(told: str, expected: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell how much of them is."""
    return hmac.compare_digest(told.encode(errors="replace"), expected.encode())


def _require(headers: Mapping[str, str], name: str) -> None:
    if not headers.get(name, "").startswith(_PREFIX):
        raise unauthorized(f"{name} must be {_PREFIX}...")


def _compare(told: str, expected: str) -> None:
    if not same(told, expected):
        raise unauthorized("the signature does not fit the body")


def _digest(secret: str, message: bytes) -> str:
    return _PREFIX + hmac.new(secret.encode(), message, "sha256").hexdigest()
