"""Spans that have begun, and those that OpenTelemetry is given only when they end.

A span of OpenTelemetry's SDK is made when it begins, by a sampler, with a lock and attributes that
are bounded and checked one by one, since a program may write to it until it ends. To most spans of
the core nobody writes. So a `Deferred` notes what it will be, which costs a quarter of that; if
somebody does write to it, it becomes one of the SDK's, under the id that it has.

The outcome is the same where three things hold, and only there are spans deferred: its parent is
recorded, and the sampler follows that; no span processor looks at spans that begin; the environment
sets no limits of its own on what a span holds (`Provider.defers`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from oyez.ambient import Ambient
from oyez.endpoint import redact
from oyez.spans import Failure

NAME = "oyez"
"""The instrumentation scope of the core's spans."""

Attributes = dict[str, str | int]

_SCOPE = InstrumentationScope(NAME, "")
_NOTHING: Mapping[str, str | int] = MappingProxyType({})
_AT_THE_END = (BatchSpanProcessor, SimpleSpanProcessor)
"""The processors that do nothing with a span that begins."""
_UNLIKE = re.compile(r"OTEL_\w+_LIMIT|OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED")
"""The variables that ask the SDK for something that a deferred span does not do."""
_SECRET = re.compile(r"((?:pass|pwd|secret|token|key|sig)\w*=)\S+", re.IGNORECASE)


class Ids(IdGenerator):
    """Ids from the core's one source of random numbers."""

    def __init__(self, ambient: Ambient) -> None:
        self._bits = ambient.bits
        self._next = threading.local()

    def generate_span_id(self) -> int:
        """Return a new id of a span."""
        if vars(self._next):
            return int(vars(self._next).pop("id"))
        return self._bits(64) or 1

    def generate_trace_id(self) -> int:
        """Return a new id of a trace."""
        return self._bits(128) or 1

    def give(self, span_id: int) -> None:
        """Let this be the id of the next span that this thread begins."""
        self._next.id = span_id


class Provider(TracerProvider):
    """A provider of a process's own."""

    def __init__(
        self, ids: Ids, resource: Resource | None = None, sampler: Sampler | None = None
    ) -> None:
        """``sampler`` is by default the one that the environment names."""
        super().__init__(sampler, resource, shutdown_on_exit=False, id_generator=ids)
        self.ids = ids
        self.tracer = self.get_tracer(NAME)
        """What makes the core's own spans."""
        self.defers = not any(
            value and _UNLIKE.fullmatch(name) for name, value in os.environ.items()
        )
        """Whether a span may be given to the processors at its end only."""

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Let a processor have all spans from now on."""
        self.defers = self.defers and type(span_processor) in _AT_THE_END
        super().add_span_processor(span_processor)

    def take(self, span: ReadableSpan) -> None:
        """Give the processors a span that has ended."""
        self._active_span_processor.on_end(span)


class Recorded:
    """A span that has begun; one that its sampler left out records nothing."""

    __slots__ = ("context", "span", "traceparent")

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.context = span.get_span_context()
        self.traceparent = traceparent(self.context)

    @property
    def recording(self) -> bool:
        """Whether it is exported when it ends."""
        return self.span.is_recording()

    def end(
        self,
        at: float,
        failure: Failure | None = None,
        attributes: Mapping[str, str | int] = _NOTHING,
    ) -> None:
        """See `oyez.spans.Span`."""
        span = self.span
        if span.is_recording():
            if attributes:
                span.set_attributes(attributes)
            route = attributes.get("http.route")
            if route is not None:
                span.update_name(f"{getattr(span, 'name', 'HTTP')} {route}")
            if failure is not None:
                _record(span, failure, nanoseconds(at))
        span.end(nanoseconds(at))


class Deferred:
    """A span with a recorded parent that is made when it ends, or when it is written to."""

    __slots__ = (
        "_attributes",
        "_kind",
        "_links",
        "_made",
        "_name",
        "_parent",
        "_provider",
        "_start",
        "context",
        "traceparent",
    )

    def __init__(
        self,
        provider: Provider,
        name: str,
        parent: SpanContext,
        kind: SpanKind,
        attributes: Attributes,
        at: float,
        links: Sequence[Link] = (),
    ) -> None:
        """``provider`` is one that defers; ``at`` is in seconds since 1970."""
        self._provider = provider
        self._name = name
        self._parent = parent
        self._kind = kind
        self._attributes = attributes
        self._links = links
        self._start = nanoseconds(at)
        self._made: Recorded | None = None
        flags = parent.trace_flags & TraceFlags.RANDOM_TRACE_ID | TraceFlags.SAMPLED
        self.context = SpanContext(
            parent.trace_id,
            provider.ids.generate_span_id(),
            False,
            TraceFlags(flags),
            parent.trace_state,
        )
        self.traceparent = traceparent(self.context)

    @property
    def recording(self) -> bool:
        """Whether it is exported when it ends."""
        return True

    @property
    def span(self) -> trace.Span:
        """It as one of the SDK's, to write to."""
        if self._made is None:
            self._provider.ids.give(self.context.span_id)
            self._made = Recorded(
                self._provider.tracer.start_span(
                    self._name,
                    trace.set_span_in_context(NonRecordingSpan(self._parent), Context()),
                    self._kind,
                    self._attributes,
                    self._links,
                    self._start,
                )
            )
        return self._made.span

    def end(
        self,
        at: float,
        failure: Failure | None = None,
        attributes: Mapping[str, str | int] = _NOTHING,
    ) -> None:
        """See `oyez.spans.Span`."""
        if failure is not None and self._made is None:
            _ = self.span
        if self._made is not None:
            self._made.end(at, failure, attributes)
            return
        route = attributes.get("http.route")
        self._provider.take(
            ReadableSpan(
                self._name if route is None else f"{self._name} {route}",
                self.context,
                self._parent,
                self._provider.resource,
                {**self._attributes, **attributes},
                (),
                self._links,
                self._kind,
                start_time=self._start,
                end_time=nanoseconds(at),
                instrumentation_scope=_SCOPE,
            )
        )


def traceparent(context: SpanContext) -> str:
    """Return a place in a trace as W3C Trace Context writes it."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def nanoseconds(at: float) -> int:
    """Return a time in seconds in nanoseconds."""
    return int(at * 1e9)


def hidden(text: str) -> str:
    """Return the text without what may be a password in it."""
    return " ".join(redact(word) for word in _SECRET.sub(r"\1***", text).split(" "))


def _record(span: trace.Span, failure: Failure, at: int) -> None:
    text = hidden(failure.text)
    span.set_attribute("error.type", failure.type)
    span.set_status(Status(StatusCode.ERROR, text or None))
    if text:
        about = {"exception.type": failure.type, "exception.message": text}
        if failure.stack:
            about["exception.stacktrace"] = failure.stack
        span.add_event("exception", about, at)
