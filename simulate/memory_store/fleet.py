"""Rows of devices as the columns that the services read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dispatcher.core.fleet import Fleet, Terms, is_left
from simulate.memory_store.rows import Device


def fleet_of(rows: Sequence[Device]) -> Fleet:
    """The devices as the services read them."""
    return Fleet(
        number=np.array([row.number for row in rows], np.int32),
        shard=np.array([-1 if row.shard_id is None else row.shard_id for row in rows], np.int32),
        quota_per_hour=np.array([row.quota_per_hour for row in rows], np.int32),
        quota_per_day=np.array([row.day_quota for row in rows], np.int32),
        in_flight_max=np.array([row.in_flight_max for row in rows], np.int32),
        min_gap_s=np.array([row.min_gap_s for row in rows], np.float64),
        available=np.array([row.health == "available" and not row.paused for row in rows], np.bool_),
        left=np.array(
            [is_left(row.health, row.health_cause, row.trips) for row in rows],
            np.bool_,
        ),
        trips=np.array([row.trips for row in rows], np.int32),
        probe_us=np.array([row.probe_us if row.trips else 0 for row in rows], np.int64),
        idempotent=np.array([row.gateway_idempotent for row in rows], np.bool_),
        device_id=[row.id for row in rows],
        name=[row.name for row in rows],
        gateway_url=[row.gateway_url for row in rows],
        gateway_token=[row.gateway_token for row in rows],
        group=[row.group_name for row in rows],
        terms=[
            Terms(
                row.gateway_kind,
                row.gateway_phone_number_id,
                row.gateway_account,
                row.account_rests_until_us or 0,
            )
            for row in rows
        ],
    )
