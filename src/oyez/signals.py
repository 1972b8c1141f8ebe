"""What the core says happened: plain facts that logs, metrics and traces listen to.

======================  ===========================================================================
signal                  when, and its fields
======================  ===========================================================================
BatchHandled            a lane committed: service, stream, partition, events, seconds
HandlerCalled           a handler was called, for those who listen to calls: service, handler,
                        event id, type, attempt, start, seconds, outcome, error, trace, span and
                        parent id
EventRetried            a handler failed and will run again: service, handler, event id, type,
                        attempt, error, in how many seconds
EventDead               an event became a dead letter: service, handler, event id, type, reason
EventsPublished         the relay got records confirmed: service, stream, events, seconds
EventsMissed            retention deleted records before they were handled: service, stream,
                        partition, events
Claimed, Released       a replica took or gave up a partition: service, stream, partition, epoch
Fenced                  a commit was refused as another replica owns the partition: the same fields
LagMeasured             how far a partition is behind: service, stream, partition, records
Stalled, Resumed        a partition makes no progress though there is lag, or does again: service,
                        stream, partition, seconds
Trouble                 broker or store gave an error, work goes on later: service, part, error
Started, Stopped        a service process: service, owner, and where it listens
======================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """The parent of all signals; ``service`` is the name of the one it happened in."""

    service: str


class BatchHandled(Signal, frozen=True, kw_only=True):
    """A lane committed a batch; ``seconds`` is from its arrival to the commit."""

    stream: str
    partition: int
    events: int
    seconds: float


class HandlerCalled(Signal, frozen=True, kw_only=True):
    """One call of a handler ended, and what it did was committed or undone.

    What it announced names ``span_id`` as its parent. A call that was undone because another one
    of its batch failed is not told; it is made again.
    """

    handler: str
    event_id: str
    """Of a list of events, that of the first."""
    type: str
    events: int = 1
    """How many events it was given: more than one in a list only."""
    attempt: int
    start: float
    """In seconds since 1970."""
    seconds: float
    """From the call to its return, without the commit."""
    outcome: str
    """``done``, ``retry`` or ``dead``."""
    error: str = ""
    trace_id: str
    """W3C Trace Context: 32 hexadecimal digits."""
    span_id: str
    """This call's: 16 hexadecimal digits."""
    parent_id: str
    """The span that announced the event; empty where the event names none."""


class EventRetried(Signal, frozen=True, kw_only=True):
    """A handler failed; the event waits ``seconds`` for attempt ``attempt`` + 1."""

    handler: str
    event_id: str
    type: str
    attempt: int
    seconds: float
    error: str


class EventDead(Signal, frozen=True, kw_only=True):
    """An event became a dead letter."""

    handler: str
    event_id: str
    type: str
    reason: str


class EventsPublished(Signal, frozen=True, kw_only=True):
    """The broker confirmed what the relay sent."""

    stream: str
    events: int
    seconds: float


class EventsMissed(Signal, frozen=True, kw_only=True):
    """Records were deleted by retention before this service read them."""

    stream: str
    partition: int
    events: int


class Claimed(Signal, frozen=True, kw_only=True):
    """This replica owns the partition now."""

    stream: str
    partition: int
    epoch: int


class Released(Signal, frozen=True, kw_only=True):
    """This replica gave the partition up."""

    stream: str
    partition: int
    epoch: int


class Fenced(Signal, frozen=True, kw_only=True):
    """A commit was refused: another replica owns the partition."""

    stream: str
    partition: int
    epoch: int


class LagMeasured(Signal, frozen=True, kw_only=True):
    """How many positions an owned partition is behind its end; None where that is not known."""

    stream: str
    partition: int
    records: int | None


class Stalled(Signal, frozen=True, kw_only=True):
    """Nothing was handled for ``seconds`` although there is something to handle."""

    stream: str
    partition: int
    seconds: float


class Resumed(Signal, frozen=True, kw_only=True):
    """A stalled partition moves again."""

    stream: str
    partition: int


class Trouble(Signal, frozen=True, kw_only=True):
    """The broker or the store gave an error; ``part`` is what will try again."""

    part: str
    error: str


class Started(Signal, frozen=True, kw_only=True):
    """A service process is up. Addresses are empty where it does not listen."""

    owner: str
    http: str
    admin: str


class Stopped(Signal, frozen=True, kw_only=True):
    """A service process has drained and let go."""

    owner: str


Listener = Callable[[Signal], None]


class Signals:
    """Hands each signal to every listener, in order. A listener must be quick and never raise."""

    def __init__(self) -> None:
        self.calls = False
        """Whether anyone listens to calls; nobody need make a `HandlerCalled` otherwise."""
        self._listeners: list[Listener] = []
        self._callers: list[Listener] = []

    def listen(self, listener: Listener, *, calls: bool = False) -> None:
        """Add a listener for what is emitted from now on.

        ``calls``: hear of every call of a handler, too. That costs some microseconds an event.
        """
        self._listeners.append(listener)
        if calls:
            self._callers.append(listener)
            self.calls = True

    def emit_call(self, signal: HandlerCalled) -> None:
        """Hand a call to those who listen to calls."""
        for listener in self._callers:
            listener(signal)

    def emit(self, signal: Signal) -> None:
        """Hand the signal to the listeners."""
        for listener in self._listeners:
            listener(signal)
