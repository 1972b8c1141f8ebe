"""The spans of real processes, as a collector receives them: one order is one trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from otlp import check_one_trace, collecting
from shop import SERVICES, Shop, copy_shop, free_ports

from oyez.testing.ticks import Ticks, ticking, until
from servers import server

POISON = """
from pathlib import Path

from oyez import Retry

POISONED = Path(__file__).parents[1] / "poisoned"


@service.on(OrderPlaced, retry=Retry(attempts=2, first=0.1))
async def prepare(event: OrderPlaced, parcel: Parcel) -> ShipmentReady | None:
    \"\"\"Pack the parcel, unless it is poisoned.\"\"\"
    if POISONED.exists():
        raise ValueError("it is poisoned")
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
APART = f"00-{TRACE}-b7ad6b7169203331-00"
"""Of a trace that is not recorded."""


def poison(shop: Shop) -> Path:
    """Let a handler of the shop fail as long as the returned file is there."""
    file = shop.root / "shipping" / "service.py"
    text = file.read_text()
    head = "@service.on(OrderPlaced)\nasync def prepare"
    begin = text.index(head)
    body = text.index("    parcel.prepared = True", begin)
    file.write_text(text[:begin] + POISON + text[body:])
    poisoned = shop.root / "poisoned"
    poisoned.touch()
    return poisoned


async def place(shop: Shop, apart: dict[str, str]) -> str:
    """Place an order whose first charge fails, and wait until it is shipped."""
    wish = {"lines": [{"sku": "bell", "quantity": 1}], "email": "a@example.org"}
    poisoned = shop.root / "poisoned"
    async with httpx.AsyncClient(base_url=shop.url, timeout=20.0) as client:
        (await client.post("/session", headers=apart)).raise_for_status()
        answer = await client.post("/orders", json={**wish, "card": "tok_flaky"})
        assert answer.status_code == 202, answer.text
        order = str(answer.json()["order_id"])

        await until(lambda: is_dead(shop), why=lambda: str(shop.lines[-5:]))
        poisoned.unlink()
        redriven = shop.run("dead", "redrive", "shipping", "1")
        assert redriven.returncode == 0, redriven.stderr

        async def shipped() -> bool:
            found = await client.get(f"/orders/{order}", headers=apart)
            return found.json()["status"] == "shipped"

        await until(shipped, why=lambda: str(shop.lines[-5:]))
    return order


async def is_dead(shop: Shop) -> bool:
    shop.refresh()
    return any(line.get("event") == "dead letter" for line in shop.lines)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("broker", ["embedded", "kafka", "rabbitmq"])
async def test_one_order_is_one_trace(tmp_path: Path, broker: str) -> None:
    with collecting() as collector:
        # None is sent before a process drains.
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        if broker != "embedded":
            environment |= {
                "OYEZ_NAME": f"shop-{uuid4().hex[:8]}",
                "OYEZ_BROKER": server(broker).url,
            }
        shop = copy_shop(tmp_path, environment=environment)
        poison(shop)
        shop.start()
        try:
            await place(shop, {"traceparent": APART})
            await until(lambda: settled(shop), why=lambda: str(shop.lines[-5:]))
        finally:
            shop.stop()
        check_one_trace(collector.spans)
        assert {each.service for each in collector.spans} == {"gateway", *SERVICES}
        (root,) = [each for each in collector.spans if not each.parent]
        assert (root.service, root.name) == ("gateway", "POST /orders")
        attempts = {
            (each.attributes["oyez.handler"], each.attributes["oyez.attempt"]): each
            for each in collector.spans
            if "oyez.handler" in each.attributes
            and each.attributes["oyez.outcome"] in ("retry", "dead")
        }
        assert ("charge", 1) in attempts
        assert ("prepare", 1) in attempts
        assert attempts["prepare", 2].attributes["oyez.outcome"] == "dead"
        assert "it is poisoned" in attempts["prepare", 2].error
        done = [
            each
            for each in collector.spans
            if each.attributes.get("oyez.handler") == "prepare"
            and each.attributes["oyez.outcome"] == "done"
        ]
        assert len(done) == 1
        systems = {each.attributes.get("messaging.system") for each in collector.spans} - {None}
        assert systems == {"oyez" if broker == "embedded" else broker}
        names = {each.name.split()[0] for each in collector.spans}
        assert names == {"POST", "send", "publish", "process"}
        failed = [line for line in shop.lines if line.get("event") == "handler failed, will retry"]
        assert {line["trace_id"] for line in failed} == {root.trace}
        spans = {each.span for each in collector.spans}
        assert {line["span_id"] for line in failed} <= spans


async def settled(shop: Shop) -> bool:
    """Whether nothing of the shop waits: all that was announced is published and handled."""
    listed = shop.run("lag", "--json")
    rows = json.loads(listed.stdout)
    return listed.returncode == 0 and not _waits(rows)


def _waits(rows: object) -> bool:
    if isinstance(rows, dict):
        return any(
            (key in ("lag", "parked", "outbox", "due") and isinstance(value, int) and value > 0)
            or _waits(value)
            for key, value in rows.items()
        )
    return isinstance(rows, list) and any(_waits(each) for each in rows)


# -- one service -----------------------------------------------------------------------------------

CANARY = "canary-8Yq2"


def told(ticks: Ticks) -> list[dict[str, object]]:
    """What the newest replica has logged."""
    log = ticks.root / f"replica{len(ticks.replicas) - 1}.log"
    return [json.loads(line) for line in log.read_text().splitlines()]


def end(process: subprocess.Popen[bytes]) -> float:
    """Stop a process in order; the seconds that took."""
    began = time.monotonic()
    process.terminate()
    assert process.wait(30) == 0
    return time.monotonic() - began


def trace_by(monkeypatch: pytest.MonkeyPatch, url: str, **environment: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


async def test_a_password_of_the_configuration_is_in_no_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (closed,) = free_ports(1)
    broker = f"amqp://shop:{CANARY}@127.0.0.1:{closed}/"
    with collecting() as collector:
        trace_by(monkeypatch, collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
        ticks = Ticks(tmp_path, broker=broker)
        assert CANARY in (tmp_path / "oyez.toml").read_text()
        counter = ticks.start_replica()
        try:
            await until(lambda: has_started(ticks), why=lambda: str(told(ticks)))
            await ticks.wind("clock-0", 1, ticks.http())

            async def failed() -> bool:
                return any(each.name.startswith("publish ") for each in collector.spans)

            await until(failed, why=lambda: str(told(ticks)))
        finally:
            end(counter)
            await ticks.close()
    (published, *_) = [each for each in collector.spans if each.name.startswith("publish ")]
    assert published.error
    assert published.attributes["error.type"] == "BrokerUnavailable"
    assert "127.0.0.1" in published.error
    for body in collector.bytes:
        assert CANARY.encode() not in body
    assert CANARY not in json.dumps(told(ticks))


async def has_started(ticks: Ticks) -> bool:
    return any(line.get("event") == "started" for line in told(ticks))


async def test_a_collector_that_is_down_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (closed,) = free_ports(1)
    trace_by(monkeypatch, f"http://127.0.0.1:{closed}", OTEL_BSP_SCHEDULE_DELAY="50")
    names = [f"clock-{number}" for number in range(20)]
    async with ticking(tmp_path / "ticks") as ticks:
        counter = ticks.start_replica()
        await ticks.tick(*names)
        await ticks.all_seen(*names)

        async def complained() -> bool:
            return any(str(line["event"]).startswith("tracing: ") for line in told(ticks))

        await until(complained, why=lambda: str(told(ticks)))
        assert end(counter) < 10.0
        lines = told(ticks)
        assert [line["level"] for line in lines if line["level"] == "error"] == []
        complaints = [line for line in lines if str(line["event"]).startswith("tracing: ")]
        assert 1 <= len(complaints) <= 3
        assert len(ticks._last_words()) < 10_000


async def test_a_bridge_and_a_published_event_are_in_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = "embedded:.oyez/one.db", "embedded:.oyez/two.db"
    with collecting() as collector:
        trace_by(monkeypatch, collector.url)
        async with ticking(tmp_path / "ticks", broker=one) as ticks:
            file = ticks.root / "oyez.toml"
            own = f'[services.counter]\nbroker = "{two}"\n'
            bridge = (
                f'[bridges.over]\nsource = "{one}"\ntarget = "{two}"\nstreams = ["ticks.clock"]'
            )
            toml = file.read_text().replace("[services.counter]\n", own)
            clock = '[services.clock]\napp = "counter:service"\n'
            file.write_text(f"{toml}\n{clock}\n{bridge}\n")
            processes = [ticks.start_replica(), ticks.start_replica("bridge", "over")]
            data = json.dumps({"name": "clock-0", "number": 1})
            ran = ticks.run("publish", "ticks.tick", data, "--service", "clock")
            assert ran.returncode == 0, ran.stderr

            async def seen() -> bool:
                return bool(await ticks.seen("clock-0", table="heard"))

            await until(seen, why=ticks._last_words)
            for process in processes:
                end(process)
    check_one_trace(collector.spans)
    found = sorted((each.service, each.name) for each in collector.spans)
    assert found == [
        ("bridge-over", "publish ticks.clock"),
        ("cli", "begin cli"),
        ("cli", "send ticks.clock"),
        ("counter", "process ticks.clock"),
        ("counter", "process ticks.counter"),
        ("counter", "publish ticks.counter"),
        ("counter", "send ticks.counter"),
    ]
    assert {each.namespace for each in collector.spans} == {"ticks"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OTEL_TRACES_SAMPLER", "sometimes", "expected one of always_on"),
        ("OTEL_TRACES_EXPORTER", "smoke", "expected an exporter that is installed"),
    ],
)
def test_a_wrong_value_ends_a_service_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    trace_by(monkeypatch, "http://127.0.0.1:1", **{name: value})
    ran = Ticks(tmp_path).run("run", "counter")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert f"{name}: {expected}" in ran.stderr


def test_a_process_that_is_not_asked_to_trace_loads_nothing_of_it(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    code = (
        "import sys, oyez.cli.run, oyez.cli.gateway, oyez.cli.bridge, oyez.observe.traced\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
