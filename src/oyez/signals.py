"""The signals that the core emits for logs, metrics and traces.

======================  ===========================================================================
signal                  when, and its fields
======================  ===========================================================================
BatchHandled            a lane committed: service, stream, partition, events, seconds
HandlerCalled           a handler was called, for listeners to calls alone: service, handler,
                        event id, type, attempt, start, seconds, outcome, error, trace, span and
                        parent id
HandlerTimed            calls of a handler ended with one outcome: service, handler, outcome,
                        seconds of each, trace id of the longest
EventRetried            a handler failed and will run again: service, handler, event id, type,
                        attempt, error, in how many seconds
EventDead               an event became a dead letter: service, handler, event id, type, reason
EventsPublished         the broker acknowledged records: service, stream, events, seconds
EventsMissed            retention deleted records before they were handled: service, stream,
                        partition, events
EventsLate              events came after their window had closed: service, window, events
Committed               a unit of work was committed: service, seconds
Claimed, Released       a replica took or gave up a partition: service, stream, partition, epoch
ClaimLost               a commit was fenced, as another replica owns the partition: the same fields
LagMeasured             the lag of a partition: service, stream, partition, records, seconds
BrokerMeasured          the broker was looked at: service, seconds
StoreMeasured           the store was looked at: service, seconds, and what waits in it
ViewMeasured            how far a view is behind: service, view, version, seconds
Stalled, Resumed        a partition with lag makes no progress, or does again: service, stream,
                        partition, seconds
Trouble                 broker or store raised an error, to be retried: service, part, error
Unfinished              a part of a drain failed, or was not done in time: service, part, error
Started, Stopped        a service process: service, owner, and its addresses
RequestAnswered         the gateway answered a request: service, route, method, status, seconds,
                        code of a refusal, trace id
RequestLimited          the gateway refused a request over a rate limit: service, route, limit
RequestRepeated         the gateway sends a request once more, that was broken off: service, route
CircuitChanged          the gateway begins or ends to refuse requests to a service that does not
                        answer: service, upstream, state
LimitsShared            replicas count rate limits together, or each alone: service, whether shared
======================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


class HandlerTimed(Signal, frozen=True, kw_only=True):
    """Calls of a handler ended with one outcome, and their effects were committed or rolled back.

    The calls of one batch are one signal. As for `HandlerCalled`, those are left out that are
    repeated because another one of their batch failed.
    """

    handler: str
    outcome: str
    """``done``, ``retry`` or ``dead``."""
    seconds: Sequence[float]
    """The duration of each call, without the commit; a list of events is one call."""
    trace_id: str = ""
    """The trace of the longest call, if it is sampled."""


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
    """The broker acknowledged records that a relay or the gateway sent ``seconds`` before."""

    stream: str
    events: int
    seconds: float


class EventsMissed(Signal, frozen=True, kw_only=True):
    """Records were deleted by retention before this service read them."""

    stream: str
    partition: int
    events: int


class EventsLate(Signal, frozen=True, kw_only=True):
    """Events came to windows that had closed, each counted once for each window that it missed.

    The first one of a process may tell of none.
    """

    window: str
    events: int


class Committed(Signal, frozen=True, kw_only=True):
    """The store committed a unit of work, ``seconds`` after it was handed over."""

    seconds: float


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
    """The lag of an owned partition; None where it is not known."""

    stream: str
    partition: int
    records: int | None
    seconds: float | None = None
    """How old its oldest event is that was not handled; 0 without lag."""


class BrokerMeasured(Signal, frozen=True, kw_only=True):
    """The broker told its streams within ``seconds``; None where it did not."""

    seconds: float | None


class StoreMeasured(Signal, frozen=True, kw_only=True):
    """What waits in a service's store, whichever replica looks; None where it is not known.

    Numbers end at `oyez.tables.COUNTED`, those of parked events at `oyez.tables.COUNTED_PARKED`.
    """

    seconds: float | None
    """The time that the look took."""
    outbox: int | None = None
    """Events that are due, and that the broker has not acknowledged."""
    outbox_seconds: float | None = None
    """How long the first of them has waited; 0 for none."""
    refused: int | None = None
    """Events of the outbox that the broker refused."""
    parked: int | None = None
    parked_seconds: float | None = None
    """How long ago the oldest of them was parked; 0 for none."""
    dead: int | None = None
    """Dead letters that were neither redriven nor discarded."""
    stuck: Mapping[str, int] | None = None
    """The instances that need a person, by saga."""


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


class Unfinished(Signal, frozen=True, kw_only=True):
    """``part`` of a drain failed, or was not done in time; the drain went on without it."""

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


class RequestAnswered(Signal, frozen=True, kw_only=True):
    """The gateway answered a request; ``seconds`` is to the last byte of the answer."""

    route: str
    """The path in the configuration; ``static`` for files, ``-`` for none."""
    method: str
    """Whatever the client sent."""
    status: int
    """0 if the client left before there was an answer."""
    seconds: float | None
    """None for what was refused before it was a request."""
    code: str = ""
    """The code of a refusal by the gateway itself."""
    trace_id: str = ""
    """The trace of the request, if it is sampled."""


class RequestLimited(Signal, frozen=True, kw_only=True):
    """The gateway refused a request that was more than a rate limit lets through."""

    route: str
    """The path in the configuration."""
    limit: str
    """The name of the limit that takes longest to let one through again."""


class RequestRepeated(Signal, frozen=True, kw_only=True):
    """The gateway sends a request once more, as its service broke off before it answered."""

    route: str
    """The path in the configuration."""


class CircuitChanged(Signal, frozen=True, kw_only=True):
    """The circuit breaker before a service has changed; emitted at the start too."""

    upstream: str
    """The name of that service."""
    state: str
    """``closed``: requests are sent; ``open``: they are refused; ``half-open``: one is sent."""


class LimitsShared(Signal, frozen=True, kw_only=True):
    """Whether this replica of the gateway counts by the store that all of them share."""

    shared: bool


Listener = Callable[[Signal], None]


class Signals:
    """The dispatcher of signals. Listeners run in order, must be quick and never raise."""

    def __init__(self) -> None:
        self.calls = False
        """Whether there are listeners to calls; without them no `HandlerCalled` is needed."""
        self.heard = False
        """Whether there are listeners at all; without them no durations are needed."""
        self._listeners: list[Listener] = []
        self._callers: list[Listener] = []

    def listen(self, listener: Listener, *, calls: bool = False) -> None:
        """Add a listener for signals from now on.

        ``calls``: it also receives every `HandlerCalled`, which costs some microseconds per event.
        """
        self._listeners.append(listener)
        self.heard = True
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
