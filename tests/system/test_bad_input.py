"""Bad input, face by face: a clear error, and nothing lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shop import Shop, copy_shop, running_shop

from oyez import Event, Service, Transaction
from oyez.testing import running
from oyez.testing.ticks import Ticks

ORDER = {
    "lines": [{"sku": "bell", "quantity": 1}],
    "email": "a@example.org",
    "phone": None,
    "card": "tok_ok",
}


class Placed(Event, type="test.placed", key="order"):
    order: str


class NewerPlaced(Event, type="test.placed", key="order", version=2):
    order: str


# -- the shop's HTTP face, through the gateway --------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with running_shop(tmp_path_factory.mktemp("bad-input")) as running:
        yield running


@pytest.fixture
def client(shop: Shop) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop.url, timeout=20) as client:
        assert client.post("/session").status_code == 204
        yield client


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"email": "\xff"}', 400, None),
        (b"[" * 60_000, 422, "$"),
        (b'{"email": NaN}', 422, "$.email"),
        (b'{"email": "a@b.nl", "email": "c@d.nl"}', 422, "$"),
        (b'{"email": "\\ud800"}', 422, "$.email"),
        (b'{"email": "a\\u0000b"}', 422, "$.email"),
        (
            b'{"lines": [{"sku": "bell", "quantity": 1234567890123456789012}]}',
            422,
            "$.lines[0].quantity",
        ),
        (b'{"lines": [{"sku": "bell", "quantity": 1e400}]}', 422, "$.lines[0].quantity"),
        (b"[]", 422, "$"),
        (b"{}", 422, "$"),
        (b'{"lines": [], "email": 7, "card": "tok_ok"}', 422, "$.email"),
        (b'{"lines": [{"sku": "bell"}], "email": "a@b.nl", "card": "x"}', 422, "$.lines[0]"),
        (b'{"lines": [], "email": "no", "card": "tok_ok"}', 422, "$.email"),
        (b'{"lines": [], "email": "a@b.nl", "card": "tok_ok", "x": 1}', 422, "$"),
    ],
)
def test_a_bad_order_names_the_field(
    client: httpx.Client, body: bytes, status: int, field: str | None
) -> None:
    answer = client.post("/orders", content=body, headers={"content-type": "application/json"})
    problem = answer.json()
    assert answer.status_code == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert "Traceback" not in answer.text
    if field is not None:
        assert field in [error["field"] for error in problem["errors"]]


def test_ten_megabytes_are_refused_unread(client: httpx.Client) -> None:
    body = b'{"email": "' + b"a" * 10_000_000 + b'"}'
    answer = client.post("/orders", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert client.get("/catalogue").status_code == 200


def test_an_order_is_json(client: httpx.Client) -> None:
    answer = client.post("/orders", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_an_idempotency_key_belongs_to_one_order_of_one_customer(client: httpx.Client) -> None:
    key = {"Idempotency-Key": "once"}
    first = client.post("/orders", json=ORDER, headers=key)
    again = client.post("/orders", json=ORDER, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    other = {**ORDER, "email": "b@example.org"}
    assert client.post("/orders", json=other, headers=key).status_code == 422
    with httpx.Client(base_url=client.base_url) as stranger:
        stranger.post("/session")
        theirs = stranger.post("/orders", json=other, headers=key)
        assert theirs.status_code == 202
        assert stranger.get(first.json()["url"]).status_code == 404


def test_without_a_session_nothing_is_placed_or_read(shop: Shop) -> None:
    with httpx.Client(base_url=shop.url) as stranger:
        assert stranger.post("/orders", json=ORDER).status_code == 401
        assert stranger.get("/orders/1").status_code == 401
        claimed = {"x-oyez-principal": "session:1"}
        assert stranger.get("/orders/1", headers=claimed).status_code == 401


def test_past_the_gateway_nobody_is_somebody(shop: Shop) -> None:
    orders = f"http://127.0.0.1:{shop.ports['8101']}"
    claims = ({"x-oyez-principal": "session:1"}, {"x-oyez-identity": "e30.e30.e30"})
    with httpx.Client(base_url=orders) as past:
        for claimed in claims:
            for path in ("/catalogue", "/orders"):
                answer = past.get(path, headers=claimed)
                assert (answer.status_code, answer.json()["code"]) == (401, "identity_unproven")
        assert past.get("/catalogue").status_code == 200
        assert past.get("/orders").json()["code"] == "nobody"


# -- events from the wire -----------------------------------------------------------------------


async def test_broken_records_are_dead_letters_with_their_bytes_and_the_rest_flows() -> None:
    service = Service("payments")
    handled: list[str] = []

    @service.on(Placed)
    async def pay(event: Placed, tx: Transaction) -> None:
        handled.append(event.order)

    good = {
        "specversion": "1.0",
        "id": "1",
        "source": "/test/shop",
        "type": "test.placed",
        "subject": "k",
    }
    broken: list[tuple[dict[str, str], bytes | None, str]] = [
        ({**good, "specversion": "0.3"}, b'{"order": "1"}', "specversion"),
        ({**good, "id": ""}, b'{"order": "1"}', "id"),
        ({k: v for k, v in good.items() if k != "source"}, b'{"order": "1"}', "source"),
        ({k: v for k, v in good.items() if k != "type"}, b'{"order": "1"}', "type"),
        ({**good, "time": "yesterday"}, b'{"order": "1"}', "time"),
        ({**good, "subject": "a\r\nb"}, b'{"order": "1"}', "subject"),
        ({**good, "Upper": "x"}, b'{"order": "1"}', "Upper"),
        ({**good, "traceparent": "x" * 65_536}, b'{"order": "1"}', "traceparent"),
        ({**good, "id": "d1"}, None, "data"),
        ({**good, "id": "d2"}, b"not json", "$"),
        ({**good, "id": "d3"}, b'{"order": 7}', "$.order"),
        ({**good, "id": "d4"}, b"[" * 10_000, "$"),
        ({**good, "id": "d5", "dataschema": "urn:oyez:test.placed:9"}, b"{}", "version 9"),
    ]
    async with running(service) as system:
        for headers, data, _ in broken:
            await system.publish_raw(headers, data, key="k")
        await system.publish_raw({**good, "type": "nobody.knows", "id": "u"}, b"{}", key="k")
        await system.publish_raw({**good, "id": "last"}, b'{"order": "last"}', key="k")
        await system.settled()
        assert handled == ["last"]
        dead = await system.dead("payments")
        assert len(dead) == len(broken)
        for (_, data, word), letter in zip(broken, dead, strict=True):
            assert word in letter["reason"], letter
            rows = await system.fetch(
                "payments", "select data from oyez_dead where id = :id", id=letter["id"]
            )
            assert rows == [{"data": data}]


# -- configuration and commands -----------------------------------------------------------------


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "oyez", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "replacement", "words"),
    [
        ("replicas = 2", "replicsa = 2", ("oyez.toml:11", "replicsa", "replicas")),
        ("replicas = 2", "replicas = -2", ("oyez.toml:11", "services.counter.replicas", "-2")),
        ("lease = 2.0", 'lease = "2s"', ("oyez.toml:9", "services.counter.lease", "2s")),
        ('"counter:service"', '"counter"', ("oyez.toml:6", "app", "module:attribute")),
        ('"counter:service"', '"contuer:service"', ("app", "contuer")),
        ('"counter:service"', '"counter:servcie"', ("app", "servcie")),
        ('"counter:service"', '"counter:Tick"', ("app", "oyez.Service")),
        ("embedded:.oyez/events.db", "kafak://x", ("system.broker", "kafka")),
    ],
)
def test_a_wrong_setting_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, line: str, replacement: str, words: tuple[str, ...]
) -> None:
    Ticks(tmp_path)
    toml = (tmp_path / "oyez.toml").read_text()
    assert line in toml
    (tmp_path / "oyez.toml").write_text(toml.replace(line, replacement))
    done = run(tmp_path, "run", "counter")
    assert done.returncode == 2
    message = done.stderr.strip()
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_unknown_service_and_command_are_told(tmp_path: Path) -> None:
    Ticks(tmp_path)
    done = run(tmp_path, "run", "cuonter")
    assert (done.returncode, "counter" in done.stderr) == (2, True)
    assert run(tmp_path, "rnu", "counter").returncode == 2


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    Ticks(tmp_path)
    toml = (tmp_path / "oyez.toml").read_text()
    (tmp_path / "oyez.toml").write_text(
        toml.replace("sqlite:.oyez/counter.db", "sqlite:/sys/oyez/counter.db")
    )
    done = run(tmp_path, "run", "counter")
    assert done.returncode == 1
    assert "/sys/oyez" in done.stderr
    assert "writable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    shop = copy_shop(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", shop.ports["8080"]))
        taken.listen()
        for command in (("dev",), ("gateway",)):
            done = shop.run(*command)
            assert done.returncode == 2, done.stderr
            assert "gateway.listen" in done.stderr
            assert "in use" in done.stderr
    assert not (shop.root / ".oyez" / "orders.db").exists()
