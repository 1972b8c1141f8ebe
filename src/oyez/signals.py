"""The signals that the core emits for logs, metrics and traces.

======================  ===========================================================================
signal                  when, and its fields
======================  ===========================================================================
BatchHandled            a lane committed: service, stream, partition, events, seconds
HandlerCalled           a handler was called, for listeners to calls alone: service, handler,
                        event id, type, attempt, start, seconds, outcome, error, trace, span and
                        parent id
EventRetried            a handler failed and will run again: service, handler, event id, type,
                        attempt, error, in how many seconds
EventDead               an event became a dead letter: service, handler, event id, type, reason
EventsPublished         the broker acknowledged records: service, stream, events, seconds
EventsMissed            retention deleted records before they were handled: service, stream,
                        partition, events
Claimed, Released       a replica took or gave up a partition: service, stream, partition, epoch
ClaimLost               a commit was fenced, as another replica owns the partition: the same fields
LagMeasured             the lag of a partition: service, stream, partition, records
ViewMeasured            how far a view is behind: service, view, version, seconds
Stalled, Resumed        a partition with lag makes no progress, or does again: service, stream,
                        partition, seconds
Trouble                 broker or store raised an error, to be retried: service, part, error
Started, Stopped        a service process: service, owner, and its addresses
======================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """The base class of all signals; ``service`` is the name of the emitting service."""

    service: str


class BatchHandled(Signal, frozen=True, kw_only=True):
    """A lane committed a batch; ``seconds`` is from its arrival to the commit."""

    stream: str
    partition: int
    events: int
    seconds: float


class HandlerCalled(Signal, frozen=True, kw_only=True):
    """A call of a handler ended, and its effects were committed or rolled back.

    The events it published have ``span_id`` as their parent span. A call that was rolled back
    because another one of its batch failed is not reported, since it is repeated.
    """

    handler: str
    event_id: str
    """The id of the event, or of the first event of a list."""
    type: str
    events: int = 1
    """The number of events it was called with: more than 1 for a list only."""
    attempt: int
    start: float
    """In seconds since 1970."""
    seconds: float
    """The duration of the call, without the commit."""
    outcome: str
    """``done``, ``retry`` or ``dead``."""
    error: str = ""
    trace_id: str
    """W3C Trace Context: 32 hexadecimal digits."""
    span_id: str
    """The span of this call: 16 hexadecimal digits."""
    parent_id: str
    """The span that published the event; empty if the event names none."""


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
    """The broker acknowledged records of the relay."""

    stream: str
    events: int
    seconds: float


class EventsMissed(Signal, frozen=True, kw_only=True):
    """Records were deleted by retention before this service read them."""

    stream: str
    partition: int
    events: int


class Claimed(Signal, frozen=True, kw_only=True):
    """This replica claimed the partition."""

    stream: str
    partition: int
    epoch: int


class Released(Signal, frozen=True, kw_only=True):
    """This replica released the partition."""

    stream: str
    partition: int
    epoch: int


class ClaimLost(Signal, frozen=True, kw_only=True):
    """A commit was fenced: another replica owns the partition."""

    stream: str
    partition: int
    epoch: int


class LagMeasured(Signal, frozen=True, kw_only=True):
    """The lag of an owned partition in records; None where it is not known."""

    stream: str
    partition: int
    records: int | None


class ViewMeasured(Signal, frozen=True, kw_only=True):
    """The oldest event that a view has not applied, in this process, is ``seconds`` old."""

    view: str
    version: int
    seconds: float


class Stalled(Signal, frozen=True, kw_only=True):
    """A partition with events to handle has made no progress for ``seconds``.

    ``reader`` is empty for the service itself, else the one whose partition it is: a view's.
    """

    stream: str
    partition: int
    seconds: float
    reader: str = ""


class Resumed(Signal, frozen=True, kw_only=True):
    """A stalled partition makes progress again; ``reader`` as for `Stalled`."""

    stream: str
    partition: int
    reader: str = ""


class Trouble(Signal, frozen=True, kw_only=True):
    """The broker or the store raised an error; ``part`` will retry."""

    part: str
    error: str


class Started(Signal, frozen=True, kw_only=True):
    """A service process has started. Addresses are empty where it does not listen."""

    owner: str
    http: str
    admin: str


class Stopped(Signal, frozen=True, kw_only=True):
    """A service process has drained and closed its connections."""

    owner: str


Listener = Callable[[Signal], None]


class Signals:
    """The dispatcher of signals. Listeners run in order, must be quick and never raise."""

    def __init__(self) -> None:
        self.calls = False
        """Whether there are listeners to calls; without them no `HandlerCalled` is needed."""
        self._listeners: list[Listener] = []
        self._callers: list[Listener] = []

    def listen(self, listener: Listener, *, calls: bool = False) -> None:
        """Add a listener for signals from now on.

        ``calls``: it also receives every `HandlerCalled`, which costs some microseconds per event.
        """
        self._listeners.append(listener)
        if calls:
            self._callers.append(listener)
            self.calls = True

    def leave(self, listener: Listener) -> None:
        """Remove a listener. Safe for one that is not there."""
        self._listeners = [each for each in self._listeners if each != listener]
        self._callers = [each for each in self._callers if each != listener]
        self.calls = bool(self._callers)

    def emit_call(self, signal: HandlerCalled) -> None:
        """Pass a call to the listeners to calls."""
        for listener in self._callers:
            listener(signal)

    def emit(self, signal: Signal) -> None:
        """Pass a signal to the listeners."""
        for listener in self._listeners:
            listener(signal)
