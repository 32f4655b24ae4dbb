"""The devices as columns, in the order of their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Columns, Indices, Int32s, Int64s
from dispatcher.core.breaker import LEFT_AFTER

GatewayKind = Literal["http", "whatsapp"]
"""What a gateway speaks: the generic HTTP contract, or the official WhatsApp Cloud API."""

GRAPH_URL: Final = "https://graph.facebook.com/v23.0"
"""Where the WhatsApp Cloud API stands, with its version, unless a device's ``gateway_url`` says otherwise."""


def is_left(health: str, cause: str | None, trips: int) -> bool:
    """Whether what waits for a device of this health moves to others."""
    if health != "quarantined":
        return health != "available"
    return trips >= LEFT_AFTER if cause == "failures" else cause != "quality"


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a device's messages are handed over, and in which words."""

    number: int
    device_id: str
    url: str | None
    token: str | None
    idempotent: bool
    kind: GatewayKind = "http"
    phone_number_id: str | None = None
    """What the WhatsApp Cloud API calls the device's number."""


class Terms(NamedTuple):
    """On which terms a gateway takes a device's messages."""

    kind: GatewayKind = "http"
    phone_number_id: str | None = None
    account: str | None = None
    """Whose limits the device shares with others; None: its own only."""
    rest_until_us: int = 0
    """Until when the account rests, as far as the database knows."""


@dataclass(frozen=True, slots=True)
class Fleet(Columns):
    """Devices, one entry each, ascending by number."""

    number: Int32s
    shard: Int32s
    """-1 where none is assigned yet."""
    quota_per_hour: Int32s
    quota_per_day: Int32s
    in_flight_max: Int32s
    min_gap_s: NDArray[np.float64]
    available: NDArray[np.bool_]
    """False for draining, quarantined, offline and retired devices, and in production for those without a gateway."""
    left: NDArray[np.bool_]
    """True for devices whose waiting enrolments move elsewhere: draining, offline, retired, quarantined - because of
    failures only after many tries, and never because of a quality signal, which shifts no load onto other numbers."""
    trips: Int32s
    """How often in a row the device's breaker has opened; 0 where it is closed."""
    probe_us: Int64s
    """From when on a message may try a device with an open breaker; 0 where it is closed."""
    idempotent: NDArray[np.bool_]
    """Whether the gateway honours idempotency keys."""
    device_id: list[UUID]
    name: list[str]
    gateway_url: list[str | None]
    gateway_token: list[str | None]
    group: list[str | None]
    """Whose limit each shares; None: nobody's."""
    terms: list[Terms] | None = None
    """None: the generic contract everywhere, and no account that devices share."""

    @property
    def sends(self) -> NDArray[np.bool_]:
        """Devices that may send: the available ones, and, one message at a time, those with an open breaker."""
        return self.available | (self.trips > 0)

    def of_shard(self, shard: int) -> Fleet:
        """The devices that ``shard`` owns."""
        return self.take(np.flatnonzero(self.shard == shard))

    def of_account(self, row: int) -> Indices:
        """The rows of the devices that share the account of the device in ``row``, itself included."""
        account = self._terms[row].account
        if account is None:
            return np.array([row], np.intp)
        return np.flatnonzero([terms.account == account for terms in self._terms])

    @property
    def windowed(self) -> NDArray[np.bool_]:
        """Which devices may send free text only to those who have written to them lately."""
        return np.array([terms.kind == "whatsapp" for terms in self._terms], np.bool_)

    @property
    def rest_until_us(self) -> Int64s:
        """Until when each device's account rests, as far as the database knows."""
        return np.array([terms.rest_until_us for terms in self._terms], np.int64)

    @property
    def _terms(self) -> list[Terms]:
        return [Terms()] * len(self) if self.terms is None else self.terms

    def rows(self, numbers: Int32s) -> Indices:
        """The row of each device number, all of which must be in the fleet."""
        return np.searchsorted(self.number, numbers)

    def gateways(self) -> dict[int, Gateway]:
        """Every device's gateway, by device number."""
        columns = zip(
            self.number.tolist(),
            self.device_id,
            self.gateway_url,
            self.gateway_token,
            self.idempotent.tolist(),
            self._terms,
            strict=True,
        )
        return {
            number: Gateway(number, str(id_), url, token, idempotent, terms.kind, terms.phone_number_id)
            for number, id_, url, token, idempotent, terms in columns
        }
