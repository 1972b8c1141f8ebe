"""Spans of OpenTelemetry: which there are, what they hold, and that one request is one trace."""

from __future__ import annotations

import asyncio
import contextvars
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from parts import BY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from test_gateway import Upstream, listening, settings
from test_saga import Charge, OrderPlaced
from test_saga_runtime import Others, orders

from oyez import After, Command, Event, Retry, Service, Transaction
from oyez.ambient import Ambient, SystemAmbient
from oyez.config import Listen
from oyez.envelope import open_record
from oyez.errors import ConfigurationError
from oyez.gateway import serve
from oyez.logger import Logger, configure
from oyez.observe.environment import Asked, asked
from oyez.observe.recorded import Deferred, Ids, Provider
from oyez.observe.traced import traced
from oyez.observe.tracing import Tracing
from oyez.ports import Record
from oyez.runtime.dead import redrive
from oyez.saga import Saga, starts, step
from oyez.spans import here
from oyez.testing import System, VirtualAmbient, running
from oyez.transaction import Origin

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-1] + "0"


class Placed(Event, type="test.placed", key="order"):
    order: str


class Charged(Event, type="test.charged", key="order"):
    order: str


class Recorder:
    """What records spans in memory, for all services of a test."""

    defers = True

    def __init__(self, root: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self._root = root
        self._providers: list[Provider] = []

    def __call__(self, service: str, ambient: Ambient) -> Tracing:
        provider = Provider(Ids(ambient), sampler=ParentBased(self._root))
        provider.defers = self.defers
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._providers.append(provider)
        return Tracing(provider, ambient, system="test", service=service, inherits=True)

    def add(self, processor: SpanProcessor) -> None:
        """Let a processor of the program's own have the spans of its first service too."""
        self._providers[0].add_span_processor(processor)

    @property
    def user(self) -> trace.Tracer:
        """A tracer of the program's own."""
        return self._providers[0].get_tracer("user")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def check_one_trace(self) -> None:
        """Fail unless all spans are one tree with one root."""
        check_one_trace(self.spans)


@pytest.fixture(params=[True, False], ids=["deferred", "begun"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorders of the test make spans at their end, and at their beginning."""
    monkeypatch.setattr(Recorder, "defers", request.param)


BOTH = pytest.mark.usefixtures("recorder")


def check_one_trace(spans: list[ReadableSpan]) -> None:
    own = {span.context.span_id for span in spans}
    assert len(own) == len(spans)
    assert len({span.context.trace_id for span in spans}) == 1
    roots = [span for span in spans if span.parent is None]
    assert len(roots) == 1, [span.name for span in roots]
    lost = [s.name for s in spans if s.parent is not None and s.parent.span_id not in own]
    assert not lost


def about(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def desk(**options: Any) -> Service:
    """A service whose HTTP side places an order."""
    service = Service("desk", publishes=(Placed,), **options)

    async def place(request: Request) -> Response:
        async with service.transaction() as tx:
            Logger().info("placing")
            tx.publish(Placed(order=request.path_params["order"]))
        return Response(status_code=202)

    service.http = Starlette(routes=[Route("/orders/{order}", place, methods=["POST"])])
    return service


async def order(system: System, *ids: str, **headers: str) -> None:
    async with system.http("desk") as client:
        for each in ids or ("1",):
            answer = await client.post(f"/orders/{each}", headers=headers)
            assert answer.status_code == 202


@BOTH
async def test_a_request_its_retries_and_a_redrive_are_one_trace() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))
    broken, who, address = True, "bob@example.org", "http://u:hunter2@bank/?key=abc"

    @till.on(Placed, retry=Retry(attempts=2, first=1.0, jitter=0.0))
    async def charge(event: Placed, tx: Transaction) -> Charged:
        if broken:
            raise ValueError(f"the card of {who}, {address}, fails")
        return Charged(order=event.order)

    @till.on(Charged)
    async def note(event: Charged, tx: Transaction) -> None:
        return None

    async with running(desk(), till, tracer=record) as system:
        await order(system)
        await system.settled()
        await system.advance(2.0)
        broken = False
        (letter,) = await system.dead("till")
        await redrive(system.processes["till"].store, letter["id"], system.ambient, by=BY)
        system.processes["till"].parked._work.ring()
        await system.advance(1.5)
    record.check_one_trace()
    assert Counter(span.name for span in record.spans) == {
        "POST /orders/{order}": 1,
        "send test.desk": 1,
        "publish test.desk": 1,
        "process test.desk": 4,
        "send test.till": 1,
        "publish test.till": 1,
        "process test.till": 1,
    }
    (served,) = record.named("POST /orders/{order}")
    assert served.kind is SpanKind.SERVER
    assert dict(about(served)) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.response.status_code": 202,
        "http.route": "/orders/{order}",
    }
    (sent,) = record.named("send test.desk")
    assert sent.kind is SpanKind.PRODUCER
    assert sent.parent is not None
    assert sent.parent.span_id == served.context.span_id
    tries = record.named("process test.desk")
    assert {each.kind for each in tries} == {SpanKind.CONSUMER}
    assert {each.parent.span_id for each in tries if each.parent} == {sent.context.span_id}
    outcomes = [(about(each)["oyez.attempt"], about(each)["oyez.outcome"]) for each in tries]
    # It fails among the events of its batch, then alone; then again, and after the redrive not.
    assert outcomes == [(1, "repeated"), (1, "retry"), (2, "dead"), (1, "done")]
    assert about(tries[0])["messaging.consumer.group.name"] == "test.till"
    assert about(tries[0])["messaging.message.id"] == about(sent)["messaging.message.id"]
    for failed in tries[:3]:
        assert failed.status.status_code is StatusCode.ERROR
        assert about(failed)["error.type"] == "ValueError"
        (event,) = failed.events
        assert event.name == "exception"
        assert "in charge" in str((event.attributes or {})["exception.stacktrace"])
    assert tries[3].status.status_code is StatusCode.UNSET
    (published,) = record.named("publish test.desk")
    assert published.kind is SpanKind.CLIENT
    assert [link.context.span_id for link in published.links] == [sent.context.span_id]
    told = " ".join(span.to_json() for span in record.spans)
    assert "fails" in told
    for secret in ("hunter2", "abc", "bob@example"):
        assert secret not in told
    assert '"order"' not in told


class Reserve(Command, type="test.reserve", to="stock", key="order"):
    order: str


class Reserved(Event, type="test.reserved", key="order"):
    order: str


class Release(Command, type="test.release", to="stock", key="order"):
    order: str


class Released(Event, type="test.released", key="order"):
    order: str


class Pay(Command, type="test.pay", to="bank", key="order"):
    order: str


class Deal(Saga, key="order", ends=("paid", "cancelled")):
    order: str = ""

    @starts
    def placed(self, event: Placed) -> None:
        self.take(event)

    @step(done=Reserved, within=5)
    def reserve(self) -> Reserve:
        return Reserve(order=self.order)

    @reserve.undo(done=Released, within=5)
    def release(self) -> Release:
        return Release(order=self.order)

    @step(done=Charged, within=5)
    def pay(self) -> Pay:
        return Pay(order=self.order)


@BOTH
async def test_a_saga_with_a_time_out_and_what_it_undoes_is_one_trace() -> None:
    record, deals, stock = Recorder(), Service("deals"), Service("stock")
    undone: list[str] = []
    deals.saga(Deal)

    @stock.on(Reserve)
    async def reserve(event: Reserve, tx: Transaction) -> Reserved:
        return Reserved(order=event.order)

    @stock.on(Release)
    async def release(event: Release, tx: Transaction) -> Released:
        undone.append(event.order)
        return Released(order=event.order)

    async with running(desk(), deals, stock, tracer=record) as system:
        await order(system)
        await system.settled()
        await system.advance(12.0)
    assert undone == ["1"]
    record.check_one_trace()
    timers = record.named("process oyez:timers")
    assert len(timers) == 1
    armed = {s.context.span_id for s in record.spans if about(s).get("oyez.handler") == "Deal"}
    assert timers[0].parent is not None
    assert timers[0].parent.span_id in armed


@BOTH
async def test_a_delayed_event_and_a_dead_command_stay_in_the_trace() -> None:
    record, service, others = Recorder(), orders(), Others()
    others.deadly = {Charge}
    later = Service("later")

    @later.on(OrderPlaced)
    async def hear(event: OrderPlaced, tx: Transaction) -> Placed:
        tx.publish(Charged(order="1"), delay=30.0)
        return Placed(order="1")

    @later.on(Charged)
    async def end(event: Charged, tx: Transaction) -> None:
        return None

    async with running(service, later, *others.all, tracer=record) as system:
        async with service.transaction() as tx:
            tx.publish(OrderPlaced())
        await system.settled()
        await system.advance(60.0)
    record.check_one_trace()
    kinds = {about(span).get("cloudevents.event_type") for span in record.spans}
    assert {"oyez.command.died", "test.charged"} <= kinds


@BOTH
@pytest.mark.parametrize("blocking", [False, True], ids=["async def", "def"])
async def test_spans_attributes_and_lines_of_a_handler_join(
    blocking: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    record, till = Recorder(), Service("till")

    def inside(tx: Transaction) -> None:
        trace.get_current_span().set_attribute("mine", 7)
        with record.user.start_as_current_span("inner"):
            tx.publish(Charged(order="1"))
        Logger().info("charging")

    if blocking:

        @till.on(Placed)
        def charge(event: Placed, tx: Transaction) -> None:
            inside(tx)
    else:

        @till.on(Placed)
        async def charge(event: Placed, tx: Transaction) -> None:
            await asyncio.sleep(0)
            inside(tx)

    configure("json")
    try:
        async with running(desk(), till, tracer=record) as system:
            await order(system)
            await system.settled()
            Logger().info("outside")
    finally:
        configure("console")
    record.check_one_trace()
    (process,), (inner,) = record.named("process test.desk"), record.named("inner")
    (sent,) = record.named("send test.till")
    assert about(process)["mine"] == 7
    assert inner.parent is not None
    assert inner.parent.span_id == process.context.span_id
    assert sent.parent is not None
    assert sent.parent.span_id == inner.context.span_id
    lines = {line["event"]: line for line in map(json.loads, capsys.readouterr().err.splitlines())}
    assert lines["charging"]["span_id"] == f"{process.context.span_id:016x}"
    assert lines["charging"]["trace_id"] == f"{process.context.trace_id:032x}"
    (served,) = record.named("POST /orders/{order}")
    assert lines["placing"]["span_id"] == f"{served.context.span_id:016x}"
    assert "trace_id" not in lines["outside"]


@BOTH
async def test_threads_have_the_span_of_their_call() -> None:
    record, ambient = Recorder(), SystemAmbient()
    tracer = record("till", ambient)
    seen: list[int] = []

    class Doing:
        traceparent = SAMPLED
        recorded = tracer.serve("GET", "http", SAMPLED, None, 0.0)

    def work() -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    here.set(Doing())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, work).result()
    here.set(None)
    assert seen == [int(Doing.recorded.traceparent[36:52], 16) if Doing.recorded else 0]


@BOTH
async def test_what_is_not_sampled_has_no_spans_and_stays_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        Logger().info("charging")
        with record.user.start_as_current_span("inner") as inner:
            assert not inner.is_recording()
            assert f"{inner.get_span_context().trace_id:032x}" == UNSAMPLED[3:35]
        assert not trace.get_current_span().is_recording()
        return Charged(order=event.order)

    configure("json")
    try:
        async with running(desk(), till, tracer=record) as system:
            await order(system, traceparent=UNSAMPLED, tracestate="a=1,b=2")
            await system.settled()
            found = system.history()
    finally:
        configure("console")
    assert record.spans == []
    assert [each.type for each in found] == ["test.placed", "test.charged"]
    for each in found:
        assert each.traceparent is not None
        assert each.traceparent[:36] == UNSAMPLED[:36]
        assert each.traceparent.endswith("-00")
        assert each.tracestate == "a=1,b=2"
    lines = list(map(json.loads, capsys.readouterr().err.splitlines()))
    assert [line["trace_id"] for line in lines] == [UNSAMPLED[3:35]] * 2
    assert all(line["span_id"] for line in lines)


@BOTH
async def test_the_sampler_decides_for_a_request_that_is_in_no_trace() -> None:
    record, till = Recorder(ALWAYS_OFF), Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        return Charged(order=event.order)

    async with running(desk(), till, tracer=record) as system:
        await order(system)
        await system.publish_raw(
            {"specversion": "1.0", "id": "1", "source": "/x", "type": "test.placed"},
            b'{"order":"2"}',
        )
        await system.settled()
        assert {each.traceparent[-2:] for each in system.history() if each.traceparent} == {"00"}
        assert len({each.traceparent[:36] for each in system.history() if each.traceparent}) == 2
    assert record.spans == []


@BOTH
async def test_an_event_without_a_trace_begins_one() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        return Charged(order=event.order)

    headers = {"specversion": "1.0", "id": "1", "source": "/x", "type": "test.placed"}
    for bad in ({}, {"traceparent": "of another layer1"}):
        record.exporter.clear()
        async with running(till, tracer=record) as system:
            await system.publish_raw({**headers, **bad}, b'{"order":"1"}')
            await system.settled()
        record.check_one_trace()
        assert len(record.named("process test.outside")) == 1


@BOTH
async def test_the_tracestate_goes_with_the_trace() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        return Charged(order=event.order)

    async with running(desk(), till, tracer=record) as system:
        await order(system, traceparent=SAMPLED, tracestate="a=1")
        await system.settled()
        assert {each.tracestate for each in system.history()} == {"a=1"}
    assert {span.context.trace_id for span in record.spans} == {int(SAMPLED[3:35], 16)}
    assert {span.context.trace_state.to_header() for span in record.spans} == {"a=1"}


def test_what_follows_from_a_replayed_event_is_not_recorded() -> None:
    headers = {"specversion": "1.0", "id": "1", "source": "/x", "type": "test.placed"}
    known = open_record({**headers, "traceparent": SAMPLED, "tracestate": "a=1"}, b"{}")
    again = open_record({**headers, "traceparent": SAMPLED, "replayed": "mend"}, b"{}")
    assert (Origin.of(known).traceparent, Origin.of(known).tracestate) == (SAMPLED, "a=1")
    assert Origin.of(again).traceparent == UNSAMPLED


@BOTH
async def test_a_backfill_s_events_are_a_trace() -> None:
    record, source, till = Recorder(), desk(), Service("till")

    @source.backfill(Placed)
    async def have(tx: Transaction, after: str | None) -> list[Placed]:
        return [] if after else [Placed(order="1"), Placed(order="2")]

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> None:
        return None

    async with running(source, till, tracer=record) as system:
        assert await system.backfill("desk", Placed, recipient="till") == 2
        await system.settled()
    assert len(record.named("process test.desk")) == 2
    traces = {span.context.trace_id for span in record.spans}
    for each in traces:
        check_one_trace([span for span in record.spans if span.context.trace_id == each])


@BOTH
async def test_only_what_is_committed_was_sent() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))

    @till.on(Placed, retry=Retry(attempts=1))
    async def charge(event: Placed, tx: Transaction) -> Charged:
        if event.order == "bad":
            raise ValueError("no")
        return Charged(order=event.order)

    async with running(desk(), till, tracer=record, partitions=1) as system:
        service = system.processes["desk"].service
        async with service.transaction() as tx:
            for each in ("1", "2", "bad", "3"):
                tx.publish(Placed(order=each))
        await system.settled()
    check_one_trace(record.spans)
    outcomes = Counter(about(s)["oyez.outcome"] for s in record.named("process test.desk"))
    assert outcomes == {"done": 3, "dead": 1, "repeated": 3}
    assert len(record.named("send test.till")) == 3
    failed = [s for s in record.named("process test.desk") if s.events]
    assert [about(span)["oyez.outcome"] for span in failed] == ["repeated", "dead"]


@BOTH
async def test_a_list_of_events_links_to_each_of_them() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))
    sizes: list[int] = []

    @till.on(Placed, batch=True)
    async def charge(events: list[Placed], tx: Transaction) -> Charged:
        sizes.append(len(events))
        return Charged(order=events[0].order)

    async with running(desk(), till, tracer=record, partitions=1) as system:
        headers = {"specversion": "1.0", "source": "/x", "type": "test.placed"}
        await system.broker.publish(
            [
                Record(
                    stream="test.outside",
                    key=None,
                    headers={**headers, "id": str(number), "traceparent": parent},
                    data=b'{"order":"1"}',
                )
                for number, parent in enumerate(
                    (UNSAMPLED, SAMPLED, SAMPLED.replace("b7ad", "b7ae"), UNSAMPLED)
                )
            ]
        )
        await system.settled()
    assert sizes == [4]
    (span,) = record.named("process test.outside")
    assert about(span)["messaging.batch.message_count"] == 4
    assert "messaging.message.id" not in about(span)
    assert [f"{link.context.span_id:016x}"[:4] for link in span.links] == ["b7ad", "b7ae"]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SAMPLED[36:52]
    (sent,) = record.named("send test.till")
    assert sent.parent is not None
    assert sent.parent.span_id == span.context.span_id


@BOTH
async def test_a_handler_without_a_transaction_has_its_spans() -> None:
    record, till = Recorder(), Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, after: After) -> Charged:
        after.publish(Charged(order="by hand"))
        return Charged(order=event.order)

    async with running(desk(), till, tracer=record) as system:
        await order(system)
        await system.settled()
    record.check_one_trace()
    assert len(record.named("send test.till")) == 2


@BOTH
async def test_a_publish_is_in_each_trace_that_it_carries() -> None:
    record = Recorder()
    async with running(desk(), tracer=record) as system:
        await order(system, "1", "2")
        await system.settled()
    published = record.named("publish test.desk")
    sent = record.named("send test.desk")
    assert {span.context.trace_id for span in published} == {s.context.trace_id for s in sent}
    assert len({span.context.trace_id for span in sent}) == 2
    for span in published:
        assert [link.context.trace_id for link in span.links] == [span.context.trace_id]


async def test_lines_have_their_trace_though_nothing_records_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    till = Service("till", publishes=(Charged,))

    @till.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        Logger().info("charging")
        return Charged(order=event.order)

    configure("json")
    try:
        async with running(desk(), till) as system:
            await order(system)
            await system.settled()
            placed, charged = system.history()
    finally:
        configure("console")
    placing, charging = map(json.loads, capsys.readouterr().err.splitlines())
    assert placed.traceparent is not None
    assert charged.traceparent is not None
    assert (placing["trace_id"], placing["span_id"]) == (
        placed.traceparent[3:35],
        placed.traceparent[36:52],
    )
    assert (charging["trace_id"], charging["span_id"]) == (
        charged.traceparent[3:35],
        charged.traceparent[36:52],
    )


# -- what the environment asks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": " "}, None),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Asked(("otlp",))),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, Asked(("otlp",))),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://x/v1/traces"}, Asked(("otlp",))),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, Asked(("otlp", "console"))),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "always_on"},
            Asked(("otlp",), inherits=False),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Asked(("otlp",), "grpc"),
        ),
    ],
)
def test_tracing_is_on_if_an_exporter_or_an_endpoint_asks_for_it(
    given: dict[str, str], wanted: Asked | None
) -> None:
    assert asked(given) == wanted


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OTEL_TRACES_EXPORTER", "otlp,none", "otlp, console, none"),
        ("OTEL_TRACES_EXPORTER", ",", "otlp, console, none"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "a URL such as"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf, or grpc"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "one of always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "1%", "a share from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "a share from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "a share from 0 to 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "a whole number above 0"),
    ],
)
def test_a_wrong_value_is_one_clear_line(name: str, value: str, expected: str) -> None:
    about = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_SAMPLER": "traceidratio"}
    with pytest.raises(ConfigurationError, match=f"^{name}: expected {expected}") as caught:
        asked({**about, name: value})
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.delitem(sys.modules, "oyez.observe.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with traced(VirtualAmbient(), system="s", service="till") as tracer:
        assert tracer is None
    assert "no traces: install oyez[otel]" in capsys.readouterr().err


def test_a_provider_that_was_set_before_exports_the_spans() -> None:
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from oyez.ambient import SystemAmbient
from oyez.observe.environment import Asked
from oyez.observe.tracing import tracing

provider, exporter = TracerProvider(), InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = tracing(Asked(("otlp",)), SystemAmbient(), system="shop", service="till")
parent = tracer.root(1.0)
tracer.serve("GET", "http", parent, None, 1.0).end(2.0)
print(*(span.name for span in exporter.get_finished_spans()))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["begin", "till", "GET"]
    assert ran.stderr == ""


@BOTH
async def test_a_request_that_fails_says_so() -> None:
    record, service = Recorder(), Service("desk")

    async def fail(request: Request) -> Response:
        raise ValueError("no password=hunter2 today")

    service.http = Starlette(routes=[Route("/fail", fail)])
    async with running(service, tracer=record) as system, system.http("desk") as client:
        with pytest.raises(ValueError, match="hunter2"):
            await client.get("/fail")
        await client.request("BREW", "/nowhere")
    failed, unknown = record.spans
    assert failed.name == "GET /fail"
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ValueError: no password=*** today"
    assert about(failed)["http.response.status_code"] == 500
    assert about(failed)["error.type"] == "ValueError"
    assert unknown.name == "HTTP"
    assert about(unknown)["http.request.method"] == "_OTHER"
    assert unknown.status.status_code is StatusCode.UNSET


@BOTH
async def test_the_gateway_and_its_request_to_a_service_are_spans(tmp_path: Path) -> None:
    record, upstream = Recorder(), Upstream()
    ambient, ready = SystemAmbient(), asyncio.Event()
    addresses: list[Listen] = []

    def at(listen: Listen, _: Listen) -> None:
        addresses.append(listen)
        ready.set()

    async with listening(upstream) as port:
        tracer = record("gateway", ambient)
        config = settings(tmp_path, port)
        work = asyncio.create_task(serve(config, ambient, ready=at, tracer=tracer))
        await ready.wait()
        async with httpx.AsyncClient(base_url=f"http://{addresses[0]}") as client:
            assert (await client.get("/open/no-4711?token=hunter2")).status_code == 200
            headers = {"traceparent": UNSAMPLED, "tracestate": "a=1"}
            assert (await client.get("/open", headers=headers)).status_code == 200
            headers = {"traceparent": SAMPLED, "tracestate": "a=1"}
            assert (await client.get("/open", headers=headers)).status_code == 200
            upstream_is_up = record.spans
            assert (await client.get("/nowhere")).status_code == 404
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    first, unsampled, third = (seen["map"] for seen in upstream.seen)
    asked, served, asked_again, served_again = upstream_is_up
    assert (served.name, served.kind, served.parent) == ("GET /open", SpanKind.SERVER, None)
    assert (asked.name, asked.kind) == ("GET /open", SpanKind.CLIENT)
    assert asked.parent is not None
    assert asked.parent.span_id == served.context.span_id
    assert about(asked)["server.port"] == port
    assert about(asked)["http.response.status_code"] == 200
    assert first[b"traceparent"].decode()[36:52] == f"{asked.context.span_id:016x}"
    assert unsampled[b"traceparent"].decode()[:36] == UNSAMPLED[:36]
    assert unsampled[b"traceparent"].endswith(b"-00")
    assert f"{served_again.context.trace_id:032x}" == SAMPLED[3:35]
    assert served_again.parent is not None
    assert f"{served_again.parent.span_id:016x}" == SAMPLED[36:52]
    assert third[b"tracestate"] == b"a=1"
    assert third[b"traceparent"].decode()[36:52] == f"{asked_again.context.span_id:016x}"
    told = " ".join(span.to_json() for span in record.spans)
    assert "hunter2" not in told
    assert "no-4711" not in told
    assert about(record.spans[-1])["http.response.status_code"] == 404


@BOTH
async def test_a_service_that_is_away_is_an_error_of_both_spans(tmp_path: Path) -> None:
    record, ambient = Recorder(), SystemAmbient()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = settings(tmp_path, taken.getsockname()[1])
        ready: asyncio.Future[Listen] = asyncio.get_running_loop().create_future()
        work = asyncio.create_task(
            serve(
                config,
                ambient,
                ready=lambda listen, _: ready.set_result(listen),
                tracer=record("gateway", ambient),
            )
        )
        async with httpx.AsyncClient(base_url=f"http://{await ready}") as client:
            assert (await client.get("/open")).status_code == 503
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    asked, served = record.spans
    assert about(asked)["error.type"] == "no_answer"
    assert "http.response.status_code" not in about(asked)
    assert about(served)["error.type"] == "503"
    assert {each.status.status_code for each in (asked, served)} == {StatusCode.ERROR}


def spans_of(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One event's spans as JSON, from a process with this environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ambient, exporter = VirtualAmbient(7), InMemorySpanExporter()
    provider = Provider(Ids(ambient))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = Tracing(provider, ambient, system="shop", service="till", inherits=True)
    given = {"specversion": "1.0", "id": "1", "source": "/test/desk", "type": "test.placed"}
    headers = {**given, "correlationid": "9", "tracestate": "other=1"}
    event = open_record({**given, "traceparent": SAMPLED, "tracestate": "other=1"}, b"{}")
    process = tracer.process("charge", [event], "shop.desk", 3, 1, 5.0)
    sent = tracer.send(process.traceparent, headers, "shop.till", 5.1)
    assert sent is not None
    sent.end(5.2)
    process.end(5.3, None, {"oyez.outcome": "done"})
    tracer.publish(
        [
            Record(
                stream="shop.till",
                key="1",
                headers={**headers, "traceparent": sent.traceparent},
                data=b"{}",
            )
        ],
        5.4,
        5.5,
    )
    served = tracer.serve("GET", "http", SAMPLED, None, 6.0)
    assert served is not None
    served.end(6.5, None, {"http.route": "/orders/{order}"})
    return [span.to_json() for span in exporter.get_finished_spans()]


@pytest.mark.parametrize(
    "variable", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"]
)
def test_a_deferred_span_is_as_one_that_was_begun(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[type[Deferred]] = []

    class Noted(Deferred):
        __slots__ = ()

        def __init__(self, *given: Any) -> None:
            made.append(Deferred)
            super().__init__(*given)

    monkeypatch.setattr("oyez.observe.tracing.Deferred", Noted)
    deferred = spans_of({}, monkeypatch)
    assert len(made) == 4
    begun = spans_of({variable: "500"}, monkeypatch)
    assert len(made) == 4
    assert len(deferred) == 4
    assert [json.loads(each) for each in deferred] == [json.loads(each) for each in begun]


def test_a_processor_that_looks_at_the_beginning_sees_it() -> None:
    class Begins(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            span.set_attribute("team", "till")

    record = Recorder()
    tracer = record("till", SystemAmbient())
    record.add(Begins())
    span = tracer.serve("GET", "http", SAMPLED, None, 1.0)
    assert span is not None
    span.end(2.0)
    assert [about(span)["team"] for span in record.spans] == ["till"]
