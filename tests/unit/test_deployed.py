"""The record of what is deployed: who says what, what stands, who may join."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from oyez import Event, Service
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.contracts.between import joining
from oyez.contracts.model import ServiceContract, contract_of
from oyez.errors import ConfigurationError, OyezError
from oyez.handler import Handler
from oyez.inspection import history
from oyez.inspection.deployed import (
    FORGOTTEN,
    SNAPSHOT,
    Said,
    Snapshot,
    deployed,
    of_file,
    of_url,
    say,
    write_snapshot,
)
from oyez.partitioning import is_own
from oyez.ports import Record
from oyez.testing.clock import VirtualAmbient


class Placed(Event, type="shop.placed", key="order"):
    order: str
    email: str


class PlacedWithout(Event, type="shop.placed", key="order"):
    order: str


class PlacedByMail(Event, type="shop.placed", key="email"):
    order: str
    email: str


class Closed(Event, type="shop.closed", key="order"):
    order: str


def orders(*events: type) -> ServiceContract:
    return contract_of(Service("orders", publishes=events), "shop")


def mail(event: type = Placed) -> ServiceContract:
    service = Service("mail")

    def send(event: object) -> None: ...

    send.__annotations__["event"] = event
    service.on(event)(send)
    return contract_of(service, "shop")


def test_streams_of_our_own_hold_no_events() -> None:
    assert is_own("shop._contracts")
    assert not is_own("shop.orders")
    assert not is_own("_shop.orders")
    service = Service("mail")

    @service.on(Placed)
    def send(event: Placed) -> None: ...

    handler: Handler = service.handlers[0]
    assert handler.subscribes("shop.orders", "shop")
    assert not handler.subscribes("shop._contracts", "shop")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    made = embedded(tmp_path)
    await made.open()
    yield made
    await made.close()


def embedded(folder: Path) -> EmbeddedBroker:
    from oyez import brokers

    made = brokers.connect("embedded:events.db", VirtualAmbient(1), root=folder)
    assert isinstance(made, EmbeddedBroker)
    return made


async def told(broker: EmbeddedBroker, *all_of_it: Said, now: float = 0.0) -> Snapshot:
    for number, each in enumerate(all_of_it):
        await say(broker, each, f"e{number}", 1.0)
    found, unread = await deployed(broker, "shop", None, now)
    assert unread == []
    return found


async def test_what_runs_stands_else_what_ran_last(broker: EmbeddedBroker) -> None:
    old, new = orders(Placed), orders(Placed, Closed)
    a, b = (
        Said(contract=old, release="1", replica="a"),
        Said(contract=new, release="2", replica="b"),
    )

    def names(snapshot: Snapshot) -> list[str | None]:
        return [each.release for each in snapshot.deployed]

    assert names(await told(broker, a, msgspec.structs.replace(a, replica="a2"))) == ["1"]
    assert names(await told(broker, b)) == ["1", "2"]  # a rollout
    assert names(await told(broker, msgspec.structs.replace(a, gone=True))) == ["1", "2"]
    gone = msgspec.structs.replace(a, replica="a2", gone=True)
    assert names(await told(broker, gone)) == ["2"]
    seen = (await told(broker)).deployed[0].seen
    assert names(await told(broker, now=seen + FORGOTTEN + 1)) == ["2"]  # nothing runs
    assert names(await told(broker, msgspec.structs.replace(b, gone=True))) == ["2"]
    assert names(await told(broker, Said(contract=new, release="3"))) == ["3"]  # a pipeline says it
    assert names(await told(broker, b)) == ["3", "2"]
    elsewhere = Said(contract=old, release="9", environment="staging")
    assert names(await told(broker, elsewhere)) == ["3", "2"]
    assert names((await deployed(broker, "shop", "staging", 0.0))[0]) == ["9"]
    assert await history.streams(broker) == {}


async def test_what_is_no_record_is_left_out_and_named(broker: EmbeddedBroker) -> None:
    await told(broker, Said(contract=orders(Placed)))
    headers = {"specversion": "1.0", "id": "1", "source": "/x", "type": "y"}
    strange = json.loads(msgspec.json.encode(Said(contract=mail())))
    strange["contract"]["reads"][0]["schema"]["properties"] = 1
    for data in (b"{}", b"[" * 100_000, b"\xff", json.dumps(strange).encode()):
        record = Record(stream="shop._contracts", key="k", headers=headers, data=data)
        await broker.publish([record])
    found, unread = await deployed(broker, "shop", None, 0.0)
    assert len(found.deployed) == 1
    assert len(unread) == 4
    assert all("shop._contracts, record" in each for each in unread)
    assert "reads[0].schema.properties" in unread[-1]


async def test_a_broker_without_history_says_so() -> None:
    class Forgetful(EmbeddedBroker):
        capabilities = msgspec.structs.replace(EmbeddedBroker.capabilities, history=False)

    broker = Forgetful.__new__(Forgetful)
    with pytest.raises(OyezError, match=r"keeps no history.*--from"):
        await deployed(broker, "shop", None, 0.0)
    with pytest.raises(OyezError, match="keeps no history"):
        await say(broker, Said(contract=orders(Placed)), "1", 0.0)


class TestJoining:
    def faults(self, build: ServiceContract, *others: ServiceContract) -> list[tuple[str, ...]]:
        return [
            (each.level, each.rule, each.reader or "", each.path) for each in joining(build, others)
        ]

    def test_a_build_that_fits(self) -> None:
        assert self.faults(orders(Placed, Closed), orders(Placed), mail()) == []
        assert self.faults(mail(), orders(Placed)) == []

    def test_each_deployed_build_of_a_consumer_counts(self) -> None:
        (fault,) = joining(orders(PlacedWithout), [orders(Placed), mail(PlacedWithout), mail()])
        assert (fault.rule, fault.reader, fault.handlers) == ("FIELD_MISSING", "mail", ("send",))
        assert fault.witness == '{"order":"x"}'

    def test_a_consumer_that_needs_more(self) -> None:
        (fault,) = joining(mail(), [orders(PlacedWithout)])
        assert (fault.rule, fault.publisher, fault.reader) == ("FIELD_MISSING", "orders", "mail")

    def test_a_key_that_changes(self) -> None:
        found = self.faults(orders(PlacedByMail), orders(Placed))
        assert found == [("error", "KEY_CHANGED", "", "$")]

    def test_a_type_that_goes(self) -> None:
        found = self.faults(orders(Closed), orders(Placed), mail())
        assert found == [("error", "TYPE_UNPUBLISHED", "mail", "$")]

    def test_what_nobody_publishes_yet_and_what_was_wrong_before_warn(self) -> None:
        assert self.faults(mail()) == [("warning", "TYPE_UNPUBLISHED", "mail", "$")]
        broken = orders(PlacedWithout)
        found = self.faults(orders(PlacedWithout, Closed), broken, mail())
        assert found == [("warning", "FIELD_MISSING", "mail", "$.email")]


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, bytes]]]:
    """An HTTP server with some files, by path."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("location", "/snapshot.json")
                self.end_headers()
                return
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()


async def test_a_snapshot_at_a_url(
    site: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, files = site
    snapshot = Snapshot(system="shop", deployed=(Said(contract=orders(Placed), release="1"),))
    files["/snapshot.json"] = write_snapshot(snapshot)
    assert await of_url(f"{url}/snapshot.json") == snapshot
    for path, problem in (("none", "answered 404"), ("elsewhere", "answered 302")):
        with pytest.raises(OyezError, match=problem):
            await of_url(f"{url}/{path}")
    for wrong in ("http://example.org/x", "ftp://127.0.0.1/x", "http://2130706433/", "https://"):
        with pytest.raises(OyezError):
            await of_url(wrong)
    monkeypatch.setattr("oyez.inspection.deployed.SNAPSHOT", 100)
    with pytest.raises(ConfigurationError, match="larger than 100 bytes"):
        await of_url(f"{url}/snapshot.json")


def test_a_snapshot_in_a_file(tmp_path: Path) -> None:
    snapshot = Snapshot(system="shop", deployed=(Said(contract=mail()),))
    file = tmp_path / "deployed.json"
    file.write_bytes(write_snapshot(snapshot))
    assert of_file(str(file)) == snapshot
    told = json.loads(file.read_bytes())
    told["deployed"][0]["contract"]["reads"][0]["schema"]["properties"] = 1
    for text, problem in (
        (json.dumps(told), r"deployed\[0\].contract: reads\[0\].schema.properties"),
        ("[" * 100_000, "nested too deep"),
        ('{"deployed": 1}', "Expected `array`"),
        ('{"format": 9, "system": "s", "deployed": []}', "the format 9"),
        ("{", "truncated"),
        ("{}", "missing required field"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=problem):
            of_file(str(file))
    with file.open("wb") as sparse:
        sparse.truncate(SNAPSHOT + 1)
    with pytest.raises(ConfigurationError, match="is larger than"):
        of_file(str(file))
    with pytest.raises(ConfigurationError, match="expected a snapshot"):
        of_file(str(tmp_path / "none"))
