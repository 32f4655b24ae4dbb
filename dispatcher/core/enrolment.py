"""The life of an enrolment: the one table that says what may happen to it, what follows, and what is written.

Services and statements follow this table; an event that a state does not know is a bug of the caller.

Three rules stand behind the rows:

- A claimed attempt is settled before anything else. A reason to stop that comes meanwhile is only noted; once
  the attempt's fate is known, ``STOP`` follows in the same transaction.
- A refusal proves nothing about an earlier attempt of the same visit whose fate is unknown. While one is
  unknown, what would fail or stop the enrolment is ``DOUBT`` (``core.outcomes.verdict``).
- An acceptance counts whatever the row says by then, as long as the row is still on that visit. Every other
  outcome needs the row's token. What comes too late for that is ``LATE`` and reaches the ledger only.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple


class State(Enum):
    """Where an enrolment stands; ``status`` is what the column of that name holds."""

    WAITING = "waiting"
    """Due at some time; without one, the last step is accepted and completion waits for the lead's row."""
    LEASED = "leased"
    """Claimed: device, slot, deadline and token stand in the row, and a message may leave."""
    IN_DOUBT = "in_doubt"
    """An attempt was sent or not: unknown. Held, without a lease, for proof; never blindly resent."""
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def status(self) -> str:
        """The text of ``sequence_contacts.status``; a lease is told by ``lease_token``."""
        return "active" if self in (State.WAITING, State.LEASED) else self.value


class Event(Enum):
    """What happens to an enrolment."""

    CLAIM = auto()
    """It is due and has a slot."""
    ACCEPT = auto()
    """The gateway has the message, says the gateway, a receipt or an operator; a step follows."""
    ACCEPT_LAST = auto()
    """As ``ACCEPT``, of the last step, and the lead's row is free."""
    ACCEPT_LAST_LOCKED = auto()
    """As ``ACCEPT_LAST`` while somebody else holds the lead's row."""
    FINISH = auto()
    """The lead's row is free again."""
    SNOOZE = auto()
    """Surely not handed over: slot, window or device gone, or the lease ended and its owner never sent it."""
    DEFER = auto()
    """The gateway refused without fault of the contact: throttled, expired, credentials."""
    RETRY = auto()
    """Surely not sent, and another try is left."""
    EXHAUST = auto()
    """Surely not sent, and that was the last try."""
    REJECT = auto()
    """Refused for good: invalid number, content."""
    OPT_OUT = auto()
    """Refused because the recipient wants no messages."""
    DOUBT = auto()
    """No answer after hand-over, or any refusal while an earlier attempt of the visit is unknown."""
    NOT_SENT = auto()
    """The attempt in doubt was surely not sent, says its owner, a receipt or an operator."""
    RESEND = auto()
    """The gateway honours keys and still remembers this one, and resends are left."""
    SKIP = auto()
    """The step is later than the sequence allows; a step follows."""
    SKIP_LAST = auto()
    """As ``SKIP``, of the last step."""
    STOP = auto()
    """Opt-out, exit, trigger taken off the lead, or an operator."""
    REOPEN = auto()
    """An operator retries."""
    LATE = auto()
    """An outcome of an attempt that the row is no longer about."""


class Write(Enum):
    """What a transition writes, beside the status."""

    LEASE = auto()
    """Device, slot, deadline, token and epoch; attempt + 1."""
    LEASE_END = auto()
    """Device, slot, deadline, token and epoch are cleared."""
    LEDGER = auto()
    """The attempt's row, or its one update from ``in_doubt``."""
    VISIT = auto()
    """Visit + 1 and the next step's trigger; attempts, retries and pin start anew."""
    DUE = auto()
    """When it is due."""
    NO_DUE = auto()
    """Due is cleared: nothing is left to send."""
    RETRIES = auto()
    """``retry_count`` + 1."""
    ERROR = auto()
    """``last_error``."""
    REASON = auto()
    """``stop_reason``."""
    PIN = auto()
    """Only the device of the attempt in doubt may send it."""
    GENERATION = auto()
    """Generation + 1, so the key changes; audited."""
    TRIGGER_OFF = auto()
    """The entry trigger leaves the lead's list."""


class Transition(NamedTuple):
    """The state that follows and what is written on the way there, in one transaction."""

    next: State
    writes: frozenset[Write]


class TransitionError(RuntimeError):
    """An event came to a state that does not know it: a bug of the caller.

    Args:
        state: where the enrolment stands.
        event: what was said to have happened.
    """

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(state, event)
        self.state, self.event = state, event

    def __str__(self) -> str:
        return f"an enrolment that is {self.state.value} cannot {self.event.name}"


def _to(state: State, *writes: Write) -> Transition:
    return Transition(state, frozenset(writes))


_W, _L, _D = State.WAITING, State.LEASED, State.IN_DOUBT
_C, _F, _S = State.COMPLETED, State.FAILED, State.STOPPED

TRANSITIONS: Final[dict[tuple[State, Event], Transition]] = {
    # The claim is the intent, committed before anything leaves. The key says enrolment, visit, generation -
    # never the device - so every attempt of a visit is the same message.
    (_W, Event.CLAIM): _to(_L, Write.LEASE),
    # A lease was given up as unsent, and the gateway says otherwise.
    (_W, Event.ACCEPT): _to(_W, Write.LEDGER, Write.VISIT, Write.DUE),
    (_W, Event.ACCEPT_LAST): _to(_C, Write.LEDGER, Write.NO_DUE, Write.TRIGGER_OFF),
    (_W, Event.ACCEPT_LAST_LOCKED): _to(_W, Write.LEDGER, Write.NO_DUE),
    # Completion and the trigger's removal are one transaction, so whoever sees one sees the other.
    (_W, Event.FINISH): _to(_C, Write.TRIGGER_OFF),
    (_W, Event.SKIP): _to(_W, Write.VISIT, Write.DUE),
    (_W, Event.SKIP_LAST): _to(_C, Write.NO_DUE, Write.TRIGGER_OFF),
    # The trigger stays where it is: only completion takes it off.
    (_W, Event.STOP): _to(_S, Write.REASON),
    (_W, Event.LATE): _to(_W, Write.LEDGER),
    #
    (_L, Event.ACCEPT): _to(_W, Write.LEASE_END, Write.LEDGER, Write.VISIT, Write.DUE),
    (_L, Event.ACCEPT_LAST): _to(_C, Write.LEASE_END, Write.LEDGER, Write.NO_DUE, Write.TRIGGER_OFF),
    # A bulk update may hold the lead for minutes; the ledger and the lease do not wait for it.
    (_L, Event.ACCEPT_LAST_LOCKED): _to(_W, Write.LEASE_END, Write.LEDGER, Write.NO_DUE),
    # Nothing reached a gateway, so the ledger, which records attempts, says nothing.
    (_L, Event.SNOOZE): _to(_W, Write.LEASE_END, Write.DUE),
    # The contact is not to blame: the retry count stays.
    (_L, Event.DEFER): _to(_W, Write.LEASE_END, Write.LEDGER, Write.ERROR, Write.DUE),
    (_L, Event.RETRY): _to(_W, Write.LEASE_END, Write.LEDGER, Write.RETRIES, Write.ERROR, Write.DUE),
    (_L, Event.EXHAUST): _to(_F, Write.LEASE_END, Write.LEDGER, Write.RETRIES, Write.ERROR),
    (_L, Event.REJECT): _to(_F, Write.LEASE_END, Write.LEDGER, Write.ERROR),
    (_L, Event.OPT_OUT): _to(_S, Write.LEASE_END, Write.LEDGER, Write.ERROR, Write.REASON),
    # The ledger's row keeps the device's quota charged; the count bounds the resends.
    (_L, Event.DOUBT): _to(_D, Write.LEASE_END, Write.LEDGER, Write.RETRIES, Write.ERROR),
    # The message may be on its way: ending the lease here would forget that it counts against the device.
    (_L, Event.STOP): _to(_L, Write.REASON),
    (_L, Event.LATE): _to(_L, Write.LEDGER),
    #
    (_D, Event.ACCEPT): _to(_W, Write.LEDGER, Write.VISIT, Write.DUE),
    (_D, Event.ACCEPT_LAST): _to(_C, Write.LEDGER, Write.NO_DUE, Write.TRIGGER_OFF),
    (_D, Event.ACCEPT_LAST_LOCKED): _to(_W, Write.LEDGER, Write.NO_DUE),
    (_D, Event.NOT_SENT): _to(_W, Write.LEDGER, Write.DUE),
    # The late answer of the attempt in doubt itself, with no other unknown.
    (_D, Event.REJECT): _to(_F, Write.LEDGER, Write.ERROR),
    (_D, Event.OPT_OUT): _to(_S, Write.LEDGER, Write.ERROR, Write.REASON),
    # Same key, same bytes, same device: wherever the first went, this is no second message.
    (_D, Event.RESEND): _to(_W, Write.PIN, Write.DUE),
    (_D, Event.STOP): _to(_D, Write.REASON),
    (_D, Event.LATE): _to(_D, Write.LEDGER),
    #
    (_C, Event.LATE): _to(_C, Write.LEDGER),
    #
    # What looked like proof of failure was none.
    (_F, Event.ACCEPT): _to(_W, Write.LEDGER, Write.VISIT, Write.DUE),
    (_F, Event.ACCEPT_LAST): _to(_C, Write.LEDGER, Write.NO_DUE, Write.TRIGGER_OFF),
    (_F, Event.ACCEPT_LAST_LOCKED): _to(_W, Write.LEDGER, Write.NO_DUE),
    (_F, Event.REOPEN): _to(_W, Write.GENERATION, Write.DUE),
    (_F, Event.LATE): _to(_F, Write.LEDGER),
    #
    # The reason to stop outlives the message that slipped out before it.
    (_S, Event.ACCEPT): _to(_S, Write.LEDGER),
    (_S, Event.ACCEPT_LAST): _to(_S, Write.LEDGER),
    (_S, Event.ACCEPT_LAST_LOCKED): _to(_S, Write.LEDGER),
    (_S, Event.LATE): _to(_S, Write.LEDGER),
}
"""Every event a state knows."""


def transition(state: State, event: Event) -> Transition:
    """What ``event`` does to an enrolment in ``state``.

    Raises:
        TransitionError: the state does not know the event.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(state, event) from None


def next_state(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        TransitionError: the state does not know the event.
    """
    return transition(state, event).next
