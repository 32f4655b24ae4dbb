"""What operators do to devices, and what the tester writes down of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from dispatcher.core.leases import Want
from simulate.evidence import ALWAYS_US, UNLIMITED
from simulate.memory_store import MemoryDatabase
from simulate.memory_store.rows import BreachError
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.gateway import Gateways
from simulate.prove.stage import Stage

_TRY_AGAIN_S: Final = 5.0
_STALL_S: Final = 10.0
"""The longest a statement is held up."""


class Devices:
    """Operators with their devices.

    Args:
        stage: where they act.
        gateways: what the devices' messages are handed over to.
    """

    def __init__(self, stage: Stage, gateways: Gateways) -> None:
        self._stage, self._gateways = stage, gateways
        self._database: MemoryDatabase = stage.database
        self.quotas: list[tuple[int, int, int, int]] = []
        """Device number, since when, hour and day quota: by the true clock."""
        self.group_quotas: list[tuple[int, int, int, int]] = []
        """The same of groups, numbered from 1."""
        self.memberships: list[tuple[int, int, int]] = []
        """Device number, group number or 0, since when."""
        self._leaving: set[int] = set()
        """Drained to be removed."""
        self.acts: dict[str, Callable[[Dice, Fault], None]] = {
            "device offline": self._set_offline,
            "device draining": self._drain,
            "device added": self._add,
            "device removed": self._remove,
            "device moved": self._move,
            "quota lowered": self._lower_quota,
            "quota raised": self._raise_quota,
            "keys no longer honoured": self._give_up_keys,
        }

    def begin(self) -> None:
        """Add those of the world."""
        for group in self._stage.world.groups:
            self._put_group(group.name, group.quota_per_hour, group.quota_per_day)
        for number, device in enumerate(self._stage.world.devices, 1):
            self._put(
                f"d-{number}",
                device.idempotent,
                quota_per_hour=device.quota_per_hour,
                quota_per_day=device.quota_per_day,
                in_flight_max=device.in_flight_max,
                min_gap_s=device.min_gap_s,
                shard_id=device.shard,
                group_name=device.group,
            )

    def heal(self) -> None:
        """All that are there work again; who wanted one to leave has given up."""
        self._leaving.clear()
        for number, device in self._database.devices.items():
            if device.health != "available":
                self._make_available(number)

    def _done(self, fault: Fault, what: str) -> None:
        self._stage.strike(fault.kind, "people", what)

    def _device(self, dice: Dice) -> int:
        return dice.pick(list(self._database.devices))

    def _keep_quota(self, number: int) -> None:
        device = self._database.devices[number]
        self.quotas.append((number, self._stage.true_us(), device.quota_per_hour, device.quota_per_day))

    def _put(self, name: str, idempotent: bool, **columns: float | str | None) -> int:
        number = self._database.add_device(name, gateway_idempotent=idempotent, **columns)
        self._gateways.honour_keys(number, idempotent)
        self._keep_quota(number)
        # It has been there from its beginning: nothing can have been sent before.
        self.memberships.append((number, self._group_number(columns.get("group_name")), ALWAYS_US))
        return number

    # Health --------------------------------------------------------------------------------------------------

    def _set_health(self, dice: Dice, fault: Fault, health: str) -> None:
        number = self._device(dice)
        if number not in self._leaving:
            self._database.set_device(number, health=health)
            self._stage.after(fault.lasts_s, self._make_available, number)
            self._done(fault, f"device {number} for {fault.lasts_s:.0f} s")

    def _make_available(self, number: int) -> None:
        if number in self._database.devices and number not in self._leaving:
            self._database.set_device(number, health="available", health_cause=None)

    def _set_offline(self, dice: Dice, fault: Fault) -> None:
        self._set_health(dice, fault, "offline")

    def _drain(self, dice: Dice, fault: Fault) -> None:
        self._set_health(dice, fault, "draining")

    # Coming and going ----------------------------------------------------------------------------------------

    def _add(self, dice: Dice, fault: Fault) -> None:
        number = self._put(
            f"d-{max(self._database.devices) + 1}-late",
            dice.chance(0.5),
            quota_per_hour=dice.whole(2, 6),
            quota_per_day=dice.whole(10, 40),
            min_gap_s=1.0,
            in_flight_max=dice.whole(1, 5),
        )
        self._done(fault, f"device {number}")

    def _remove(self, dice: Dice, fault: Fault) -> None:
        """Drained first, like an operator would; the last one stays."""
        staying = [number for number in self._database.devices if number not in self._leaving]
        if len(staying) > 1:
            number = dice.pick(staying)
            self._leaving.add(number)
            self._database.set_device(number, health="draining")
            self._stage.note("people", f"device {number} is to leave")
            self._try_to_remove(number, fault)

    def _try_to_remove(self, number: int, fault: Fault) -> None:
        if number not in self._leaving:
            return
        try:
            self._database.remove_device(number)
        except BreachError:
            self._stage.after(_TRY_AGAIN_S, self._try_to_remove, number, fault)
        else:
            self._leaving.remove(number)
            self._done(fault, f"device {number}")

    def _move(self, dice: Dice, fault: Fault) -> None:
        """To another shard: while messages wait on it, or under a claim for it that reaches the database too late."""
        if dice.chance(0.3):
            pending = [row.device.number for row in self._database.leased.values() if row.device is not None]
            self._move_one(dice.pick(pending) if pending else self._device(dice), dice, fault)
        else:
            self._stage.waylay("claim", partial(self._move_under_claim, dice, fault))

    async def _move_under_claim(self, dice: Dice, fault: Fault, want: Want, *_: object, **__: object) -> None:
        """What the former owner has on offer is claimed when the new owner has just read what counts."""
        if self._move_one(int(dice.pick(want.number.tolist())), dice, fault):
            read = asyncio.Event()
            self._stage.listen("usage", read.set)
            with suppress(TimeoutError):
                async with asyncio.timeout(_STALL_S):
                    await read.wait()

    def _move_one(self, number: int, dice: Dice, fault: Fault) -> bool:
        device = self._database.devices.get(number)
        others = [] if device is None else [n for n in range(self._stage.world.shards) if n != device.shard_id]
        if device is None or device.shard_id is None or not others:
            return False
        shard = dice.pick(others)
        self._database.set_device(number, shard_id=shard)
        self._done(fault, f"device {number} to shard {shard}")
        return True

    # Groups --------------------------------------------------------------------------------------------------

    def _group_number(self, name: float | str | None) -> int:
        return [None, *(group.name for group in self._stage.world.groups)].index(name)  # type: ignore[arg-type]

    def _put_group(self, name: str, per_hour: int | None, per_day: int | None) -> None:
        self._database.put_group(name, per_hour, per_day)
        limits = (UNLIMITED if limit is None else limit for limit in (per_hour, per_day))
        hour, day = limits
        self.group_quotas.append((self._group_number(name), self._stage.true_us(), hour, day))

    def _change_group(self, dice: Dice, fault: Fault, by: float) -> bool:
        """In worlds with groups, half of the time: other limits for one, or another group for a device."""
        groups = self._stage.world.groups
        if not groups or dice.chance(0.5):
            return False
        if dice.chance(0.5):
            planned = dice.pick(groups)
            limits = [None if limit is None else max(1, int(limit * by)) for limit in
                      (planned.quota_per_hour, planned.quota_per_day)]  # fmt: skip
            self._put_group(planned.name, *limits)
            self._done(fault, f"group {planned.name}: {limits[0]} an hour, {limits[1]} a day")
            return True
        number, name = self._device(dice), dice.pick((None, *(group.name for group in groups)))
        self._database.set_device(number, group_name=name)
        self.memberships.append((number, self._group_number(name), self._stage.true_us()))
        self._done(fault, f"device {number} to group {name}")
        return True

    # Quotas and keys -----------------------------------------------------------------------------------------

    def _lower_quota(self, dice: Dice, fault: Fault) -> None:
        if self._change_group(dice.of("group"), fault, 0.5):
            return
        number = self._device(dice)
        device = self._database.devices[number]
        if device.quota_per_hour > 1:
            day = max(device.quota_per_day // 2, device.quota_per_hour + 4)
            self._database.set_device(
                number, quota_per_hour=device.quota_per_hour - 1, quota_per_day=min(day, device.quota_per_day)
            )
            self._keep_quota(number)
            self._done(fault, f"device {number}")

    def _raise_quota(self, dice: Dice, fault: Fault) -> None:
        if self._change_group(dice.of("group"), fault, 1.5):
            return
        number = self._device(dice)
        device = self._database.devices[number]
        self._database.set_device(
            number, quota_per_hour=device.quota_per_hour + 2, quota_per_day=device.quota_per_day + 9
        )
        self._keep_quota(number)
        self._done(fault, f"device {number}")

    def _give_up_keys(self, dice: Dice, fault: Fault) -> None:
        """Announced first: the gateway goes on honouring keys until everything asked for before has come."""
        honouring = [number for number, device in self._database.devices.items() if device.gateway_idempotent]
        if honouring:
            number, settings = dice.pick(honouring), self._stage.world.settings
            self._database.set_device(number, gateway_idempotent=False)
            announced_s = settings.look_s + settings.deadline_s + settings.lease_s
            self._stage.after(announced_s, self._gateways.honour_keys, number, False)
            self._done(fault, f"device {number}, from {announced_s:.1f} s from now on")
