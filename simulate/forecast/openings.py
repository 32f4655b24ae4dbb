"""Which send windows are open where, and until when."""

from __future__ import annotations

import numpy as np

from dispatcher.core.batches import Coded, Int64s
from dispatcher.core.moments import NEVER_US, span_us
from dispatcher.core.windows import next_shut
from simulate.forecast.state import State
from simulate.forecast.world import WAITING, Steps, World


class Openings:
    """The windows of all sequences in the zones of all leads, as they are from one moment to the next change.

    Args:
        world: with the windows.
        steps: of all sequences.
        state: whose due moments move.
    """

    def __init__(self, world: World, steps: Steps, state: State) -> None:
        self._catalogue, self._windows, self._zones = world.catalogue, world.catalogue.windows, world.zones
        self._steps, self._state, self._zone = steps, state, world.leads.zone
        self._span_us = span_us(world.settings.deadline_s)
        shape = (len(self._windows), len(self._zones))
        self._opens_us, self._change_us = (np.full(shape, -NEVER_US, np.int64) for _ in range(2))

    def change_after(self, now_us: int) -> int:
        """When the next window opens or shuts; ``NEVER_US`` where there is none."""
        for place, at in np.argwhere(self._change_us <= now_us).tolist():
            window, zone = self._windows[place], self._zones[at]
            opens_us = window.first_open(zone, now_us, self._span_us)
            shut_us = next_shut(now_us, window.zone_of(zone), window, self._span_us)
            self._opens_us[place, at] = opens_us
            self._change_us[place, at] = opens_us if opens_us > now_us else shut_us
        return int(self._change_us.min(initial=NEVER_US))

    def postpone(self, now_us: int) -> None:
        """What is due while its window is shut is due when it opens; ``change_after`` was asked for this moment."""
        if not self._windows:
            return
        state = self._state
        who = np.flatnonzero(state.state == WAITING)
        window = self._steps.window[state.step[who]]
        who, window = who[window >= 0], window[window >= 0]
        opens_us: Int64s = self._opens_us[window, self._zone[state.lead[who]]]
        shut = (opens_us > now_us) & (state.due_us[who] < opens_us)
        zone = Coded(self._zones, self._zone[state.lead[who[shut]]])
        state.due_us[who[shut]] = self._catalogue.next_open(
            state.step[who[shut]].astype(np.intp), zone, np.maximum(state.due_us[who[shut]], now_us), self._span_us
        )
