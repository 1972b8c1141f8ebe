"""Spans for OpenTelemetry: what the core does, by the conventions for messages and for HTTP.

The parent of a ``process`` span is the ``send`` span of its event, whose context the event carries,
so what follows from a request is one trace, however often it is retried, delayed or redriven. The
context of a ``send`` span is fixed when its event is announced, and the span is exported once that
is committed.

In a handler, or a request, its span is the current one of OpenTelemetry: `Current` stands for
whatever is being done, and is set where tasks begin, so a call costs nothing for it.

Nothing is recorded of an event but its type and its ids, and nothing of a request's address but
the path of its route: the rest may be secret.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
)

from oyez.ambient import Ambient
from oyez.errors import ConfigurationError
from oyez.logger import Logger
from oyez.observe.environment import EXPORTER, Asked
from oyez.observe.recorded import (
    NAME,
    Attributes,
    Deferred,
    Ids,
    Provider,
    Recorded,
    hidden,
    nanoseconds,
    traceparent,
)
from oyez.spans import Copied, Failure, Message, Span, here

FLUSH = 2.0
"""Seconds that a process which ends waits, at most, until its last spans are exported."""
QUIET = 60.0
"""Seconds for which what the exporter complains of is not said again."""
_ODD = frozenset("13579bdf")
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
_SYSTEMS = {"amqp": "rabbitmq", "sns+sqs": "aws_sqs", "embedded": "oyez", "memory": "oyez"}
"""The names that OpenTelemetry has for brokers, where they are not those of Oyez."""
_FROM = ("opentelemetry.exporter", "opentelemetry.sdk")
"""The loggers whose lines are said in full."""


def tracing(
    asked: Asked, ambient: Ambient, *, system: str, service: str, broker: str = ""
) -> Tracing:
    """Return what records the spans of a process; ``broker`` is its kind, such as ``kafka``.

    If a provider was set before, as ``opentelemetry-instrument`` does, that one exports them.
    Raises ConfigurationError if what is asked for is not installed.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        return Tracing(provider, ambient, system=system, service=service, broker=broker)
    provider = provider_of(ambient, system=system, service=service)
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_Complaints())
    logger.propagate = False
    for name in asked.exporters:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name, asked.protocol)))
    trace.set_tracer_provider(provider)
    return Tracing(
        provider, ambient, system=system, service=service, broker=broker, inherits=asked.inherits
    )


def provider_of(ambient: Ambient, *, system: str, service: str) -> Provider:
    """Return a provider of a process's own, without an exporter; the environment adds names."""
    given = OTELResourceDetector().detect().attributes
    found = Resource.create({"service.name": service, "service.namespace": system, **given})
    return Provider(Ids(ambient), Hashed(dict(found.attributes), found.schema_url))


class Hashed(Resource):
    """A resource that knows its hash: exporters ask for it span by span, and it is JSON's."""

    def __init__(self, attributes: Mapping[str, Any], schema_url: str | None = None) -> None:
        super().__init__(attributes, schema_url)
        self._hash = super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash


class Tracing:
    """What records the spans of a process: the core's `oyez.spans.Tracer`."""

    def __init__(
        self,
        provider: TracerProvider,
        ambient: Ambient,
        *,
        system: str,
        service: str,
        broker: str = "",
        inherits: bool = False,
    ) -> None:
        """``inherits``: the sampler records a span with a parent exactly if that is recorded."""
        self._provider = provider
        self._tracer = provider.get_tracer(NAME)
        self._inherits = inherits
        self._service = service
        self._current = Current()
        self._common: Attributes = {"messaging.system": _SYSTEMS.get(broker, broker) or "oyez"}
        self._group = f"{system}.{service}"
        self._place = lru_cache(maxsize=512)(_place)
        self.make_current()

    def make_current(self) -> None:
        """Let `Current` be OpenTelemetry's span in tasks that begin here, and in this one."""
        if trace.get_current_span() is not self._current:
            attach(trace.set_span_in_context(self._current))

    def close(self, seconds: float = FLUSH) -> None:
        """Export what is left, for at most so many seconds. Safe when called twice."""
        # Its own thread, which nobody waits for at the end: a collector may be down.
        thread = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(seconds)

    # -- the core's tracer -------------------------------------------------------------------------

    def wants(self, parent: str | None) -> bool:
        """See `oyez.spans.Tracer`."""
        return parent is None or not self._inherits or parent[-1:] in _ODD

    def root(self, at: float) -> str:
        """See `oyez.spans.Tracer`."""
        span = self._tracer.start_span(
            f"begin {self._service}", _outside(self._current), start_time=nanoseconds(at)
        )
        span.end(nanoseconds(at))
        return traceparent(span.get_span_context())

    def send(self, parent: str, headers: Mapping[str, str], stream: str, at: float) -> Span | None:
        """See `oyez.spans.Tracer`."""
        place = self._place(parent, headers.get("tracestate"))
        own = trace.get_current_span()
        if own is not self._current:
            inner = own.get_span_context()  # of a span of the handler's own
            if place is not None and place.trace_id == inner.trace_id:
                place = inner
        span = self._begin(
            f"send {stream}",
            place,
            SpanKind.PRODUCER,
            {
                **self._common,
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": stream,
                "messaging.message.id": headers["id"],
                "messaging.message.conversation_id": headers["correlationid"],
                "cloudevents.event_type": headers["type"],
            },
            at,
        )
        return span if span.recording else None

    def process(
        self,
        handler: str,
        messages: Sequence[Message],
        stream: str,
        partition: int,
        attempt: int,
        at: float,
    ) -> Span:
        """See `oyez.spans.Tracer`."""
        self.make_current()
        attributes: Attributes = {
            **self._common,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": stream,
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": self._group,
            "oyez.handler": handler,
            "oyez.attempt": attempt,
        }
        links: list[Link] = []
        lead = messages[0]
        if len(messages) == 1:
            attributes["messaging.message.id"] = lead.id
            attributes["messaging.message.conversation_id"] = lead.correlationid or lead.id
            attributes["cloudevents.event_type"] = lead.type
        else:
            attributes["messaging.batch.message_count"] = len(messages)
            wanted = [each for each in messages if self.wants(each.traceparent)]
            lead = wanted[0]
            for each in wanted:
                creation = self._place(each.traceparent, each.tracestate)
                if creation is not None:
                    kind: Attributes = {"cloudevents.event_type": each.type}
                    links.append(Link(creation, {**kind, "messaging.message.id": each.id}))
        return self._begin(
            f"process {stream}",
            self._place(lead.traceparent, lead.tracestate),
            SpanKind.CONSUMER,
            attributes,
            at,
            links,
        )

    def publish(
        self,
        records: Sequence[Copied],
        since: float,
        until: float,
        failure: Failure | None = None,
    ) -> None:
        """See `oyez.spans.Tracer`."""
        found: dict[tuple[str, str], list[Mapping[str, str]]] = {}
        for record in records:
            parent = record.headers.get("traceparent", "")
            # As `wants` does, which would be a call for each of many records.
            if parent[-1:] in _ODD or (parent and not self._inherits):
                found.setdefault((record.stream, parent[:36]), []).append(record.headers)
        for (stream, _), members in found.items():
            creations = [
                self._place(each["traceparent"], each.get("tracestate")) for each in members
            ]
            if creations[0] is None:
                continue
            self._begin(
                f"publish {stream}",
                creations[0],
                SpanKind.CLIENT,
                {
                    **self._common,
                    "messaging.operation.name": "publish",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": stream,
                    "messaging.batch.message_count": len(records),
                },
                since,
                [Link(creation, {}) for creation in creations if creation is not None],
            ).end(until, failure)

    def serve(
        self, method: str, scheme: str, parent: str | None, state: str | None, at: float
    ) -> Span | None:
        """See `oyez.spans.Tracer`."""
        self.make_current()
        if not self.wants(parent):
            return None
        word = method if method in _METHODS else "_OTHER"
        return self._begin(
            method if method in _METHODS else "HTTP",
            self._place(parent, state),
            SpanKind.SERVER,
            {"http.request.method": word, "url.scheme": scheme},
            at,
        )

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
        """See `oyez.spans.Tracer`."""
        if not self.wants(parent):
            return None
        span = self._begin(
            f"{method} {path}",
            self._place(parent, state),
            SpanKind.CLIENT,
            {
                "http.request.method": method,
                "url.template": path,
                "server.address": host,
                "server.port": port,
            },
            at,
        )
        return span if span.recording else None

    def _begin(
        self,
        name: str,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes,
        at: float,
        links: Sequence[Link] = (),
    ) -> Recorded | Deferred:
        provider = self._provider
        if (
            parent is not None
            and parent.trace_flags.sampled
            and self._inherits
            and isinstance(provider, Provider)
            and provider.defers
        ):
            return Deferred(provider, name, parent, kind, attributes, at, links)
        return Recorded(
            self._tracer.start_span(
                name, _within(parent), kind, attributes, links, start_time=nanoseconds(at)
            )
        )


class Current(trace.Span):
    """Whatever is being done here, as a span of OpenTelemetry.

    It is the recorded span of the call or request. If that is not recorded, neither is what begins
    within it; outside of both it is no span at all.
    """

    def get_span_context(self) -> SpanContext:
        """Return where this is in a trace."""
        traced = here.get()
        if traced is None:
            return INVALID_SPAN_CONTEXT
        if isinstance(traced.recorded, Recorded | Deferred):
            return traced.recorded.context
        return _place(traced.traceparent, None) or INVALID_SPAN_CONTEXT

    def is_recording(self) -> bool:
        """Return whether what is set on it is exported."""
        traced = here.get()
        recorded = None if traced is None else traced.recorded
        return isinstance(recorded, Recorded | Deferred) and recorded.recording

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: it ends with the call or the request."""

    def set_attributes(self, attributes: Any) -> None:
        """Set attributes of it."""
        self._span.set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute of it."""
        self._span.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Add an event to it."""
        self._span.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Add a link to it."""
        self._span.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def set_status(self, status: Any, description: str | None = None) -> None:
        """Set its status."""
        self._span.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an exception to it."""
        self._span.record_exception(exception, attributes, timestamp, escaped)

    @property
    def _span(self) -> trace.Span:
        traced = here.get()
        recorded = None if traced is None else traced.recorded
        return recorded.span if isinstance(recorded, Recorded | Deferred) else trace.INVALID_SPAN


class _Complaints(logging.Handler):
    """What OpenTelemetry complains of, such as a collector that is down, as log lines.

    Each is said once a minute at most.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        what = str(record.msg)
        if self._said.get(what, -QUIET) + QUIET > now:
            return
        self._said[what] = now
        # What it says of a setting shows the setting, and that of headers is a secret.
        text = record.getMessage() if record.name.startswith(_FROM) else what
        Logger().warning("tracing: spans may be lost", why=hidden(" ".join(text.split())[:500]))


def _exporter(name: str, protocol: str) -> SpanExporter:
    if name == "otlp":
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        try:
            made: SpanExporter = entry.load()()
        except (ImportError, ValueError, OSError) as error:
            raise ConfigurationError(f"{EXPORTER}: {name} can't be used: {error}") from error
        return made
    package = f"opentelemetry-exporter-{name.replace('_', '-')}"
    raise ConfigurationError(
        f"{EXPORTER}: expected an exporter that is installed, found {name!r}: perhaps install "
        f"{package}"
    )


def _outside(current: Current) -> Context:
    """Return the context of a span of the program's own that is current, else an empty one."""
    own = trace.get_current_span()
    return Context() if own is current else trace.set_span_in_context(own, Context())


def _place(parent: str | None, state: str | None) -> SpanContext | None:
    """Return where a parent is in its trace; None for none, or for one that is malformed."""
    if parent is None or len(parent) != 55:
        return None
    try:
        found = SpanContext(
            int(parent[3:35], 16),
            int(parent[36:52], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(parent[53:], 16)),
            trace_state=None if state is None else TraceState.from_header([state]),
        )
    except ValueError:
        return None
    return found if found.is_valid else None


def _within(parent: SpanContext | None) -> Context:
    """Return the context of a span with this parent, or of one without."""
    if parent is None:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())
