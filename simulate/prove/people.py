"""Everybody outside the engine: leads, marketers, operators. What the tester writes down of them stands with each."""

from __future__ import annotations

from collections.abc import Callable

from simulate.prove.devices import Devices
from simulate.prove.dice import Dice
from simulate.prove.faults import Fault
from simulate.prove.gateway import Gateways
from simulate.prove.leads import Leads
from simulate.prove.pauses import Pauses
from simulate.prove.receipts import Receipts
from simulate.prove.sequences import Sequences
from simulate.prove.stage import Stage


class People:
    """Who acts, and by which faults.

    Args:
        stage: where they act.
        gateways: whose logs they look into, and which keys they have them honour.
    """

    def __init__(self, stage: Stage, gateways: Gateways) -> None:
        self._stage = stage
        self.leads = Leads(stage)
        self.sequences = Sequences(stage)
        self.devices = Devices(stage, gateways)
        self.receipts = Receipts(stage, gateways.accepted)
        self.pauses = Pauses(stage, self.sequences.pause)
        self._acts: dict[str, Callable[[Dice, Fault], None]] = {
            **self.leads.acts,
            **self.sequences.acts,
            **self.devices.acts,
            **self.receipts.acts,
            **self.pauses.acts,
        }

    def begin(self, faults: tuple[Fault, ...]) -> None:
        """Fill the tables; leads come when they come, and what ``faults`` switch on later is off until then."""
        self.devices.begin()
        self.sequences.begin(faults)
        self.leads.begin()

    def act(self, fault: Fault) -> bool:
        """Do what ``fault`` says, if it is people who do it."""
        act = self._acts.get(fault.kind)
        if act is not None:
            act(self._stage.dice.of("people", fault.number), fault)
        return act is not None

    def heal(self) -> None:
        """Faults are over: whoever was asked to look after devices and locks has done so."""
        self.leads.heal()
        self.devices.heal()
