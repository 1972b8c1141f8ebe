"""Where a process is in a trace, and the seam to what records spans.

Oyez makes the ids of W3C Trace Context itself, so events and log lines carry them although nobody
records a span. What records them is a `Tracer`, which `oyez.observe.tracing` has; where there is
none, the core pays one test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Protocol

import msgspec


class Failure(msgspec.Struct, frozen=True):
    """An error as a span records it: its type, one line of text, and where it was raised."""

    type: str
    text: str = ""
    stack: str = ""


class Span(Protocol):
    """A span that has begun. Times are in seconds since 1970."""

    @property
    def traceparent(self) -> str:
        """The span, as the parent of others."""
        ...

    def end(
        self,
        at: float,
        failure: Failure | None = None,
        attributes: Mapping[str, str | int] = MappingProxyType({}),
    ) -> None:
        """End it, once, with further attributes."""
        ...


class Traced(Protocol):
    """What a process is doing: a call of a handler, or a request."""

    @property
    def traceparent(self) -> str:
        """Its span (W3C Trace Context)."""
        ...

    @property
    def recorded(self) -> Span | None:
        """Its span, if that is recorded."""
        ...


here: ContextVar[Traced | None] = ContextVar("oyez_here", default=None)
"""What is being done here, for log lines and for the spans of what is called."""


class Message(Protocol):
    """What a span says of an event: an `oyez.envelope.Envelope`, for one."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def type(self) -> str:
        """Its type."""
        ...

    @property
    def correlationid(self) -> str | None:
        """The id of what it belongs to."""
        ...

    @property
    def traceparent(self) -> str | None:
        """The span that it was announced in."""
        ...

    @property
    def tracestate(self) -> str | None:
        """What other tracing systems have added to that."""
        ...


class Copied(Protocol):
    """What a span says of a record that is published."""

    @property
    def stream(self) -> str:
        """Its stream."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, under their plain names."""
        ...


class Tracer(Protocol):
    """What records spans. No method waits, or raises for what an event or a request holds.

    A parent is a traceparent, valid or not; None, or an invalid one, makes the span a root.
    """

    def wants(self, parent: str | None) -> bool:
        """Return whether a span with this parent may be recorded: not if the parent is not.

        It is asked before each call of a handler, so it is quick.
        """
        ...

    def root(self, at: float) -> str:
        """Record that something begins that neither an event nor a request caused.

        Return its traceparent.
        """
        ...

    def send(self, parent: str, headers: Mapping[str, str], stream: str, at: float) -> Span | None:
        """Begin the span of an event that is announced; None if it is not recorded."""
        ...

    def process(
        self,
        handler: str,
        messages: Sequence[Message],
        stream: str,
        partition: int,
        attempt: int,
        at: float,
    ) -> Span:
        """Begin the span of a handler's call with one event, or with a list of them."""
        ...

    def publish(
        self,
        records: Sequence[Copied],
        since: float,
        until: float,
        failure: Failure | None = None,
    ) -> None:
        """Record the publishing of announced events: one span for each stream and trace."""
        ...

    def serve(
        self, method: str, scheme: str, parent: str | None, state: str | None, at: float
    ) -> Span | None:
        """Begin the span of a request that is answered; None if its parent is not recorded."""
        ...

    def ask(
        self,
        method: str,
        path: str,
        host: str,
        port: int,
        parent: str,
        state: str | None,
        at: float,
    ) -> Span | None:
        """Begin the span of a request to a service; None if it is not recorded."""
        ...
