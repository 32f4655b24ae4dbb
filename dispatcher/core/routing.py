"""Which shard owns a device and which device an enrolment calls home: each goes where the least stands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dispatcher.core.batches import Indices, Int32s, Int64s


def shard_count(devices: int, devices_per_shard: int) -> int:
    """How many shards ``devices`` devices need; at least one, so that the first device finds one."""
    return max(1, -(-devices // devices_per_shard))


def assign(shard_ids: NDArray[np.integer], shards: int) -> Int32s:
    """A shard in [0, ``shards``) for every device.

    Args:
        shard_ids: the present shard of each device; -1 for none.
        shards: how many shards there are.

    A device whose shard still exists stays there, because moving one raises the epochs of two shards; all
    others go, in order, each to the shard that has the fewest by then.
    """
    assigned = shard_ids.astype(np.int32)
    homeless = (assigned < 0) | (assigned >= shards)
    sizes = np.bincount(assigned[~homeless], minlength=shards).astype(np.int64)
    assigned[homeless] = plan_homes(sizes, np.ones(shards), int(homeless.sum()))
    return assigned


def plan_homes(load: Int64s, weight: NDArray[np.float64], n: int) -> Indices:
    """The devices of the next ``n`` assignments, in order.

    Each goes to the device with the smallest (load + 1) / weight, loads growing on the way; the lower index
    wins a tie.

    Args:
        load: what each device carries already.
        weight: what each device can carry, relative to the others; 0 for one that is not available.
        n: how many assignments are wanted.

    Returns ``n`` indices into ``load``, or none when no device is available.
    """
    open_ = np.flatnonzero(weight > 0)
    if n <= 0 or not len(open_):
        return np.empty(0, np.intp)
    carried, share = load[open_], weight[open_]
    # Taking one by one is merging the devices' ascending rows (load + 1) / weight, (load + 2) / weight, …
    # Below the level that divisible loads would reach with n and one more a device, at least n are whole.
    order = np.argsort(carried / share)
    level = ((n + len(open_) + np.cumsum(carried[order])) / np.cumsum(share[order])).min()
    # One more each, against rounding of the level.
    rows = np.maximum(np.ceil(level * share).astype(np.int64) - carried, 0) + 1
    device = np.repeat(np.arange(len(open_)), rows)
    nth = np.arange(1, len(device) + 1) - np.repeat(np.cumsum(rows) - rows, rows)
    ranked = np.argsort((carried[device] + nth) / share[device], kind="stable")
    return open_[device[ranked[:n]]]
