from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

keys = (f"key-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def provider(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    client: httpx.Client = start_for_module(
        "provider", tmp_path_factory.mktemp("provider"), "--stall", "1"
    ).http
    return client


@pytest.fixture
def key() -> str:
    return next(keys)


def charge(
    provider: httpx.Client, key: str, token: str = "tok_ok", **changes: Any
) -> httpx.Response:
    body = {"amount_cents": 3900, "currency": "EUR", "token": token, "reference": f"order-{key}"}
    return provider.post("/charges", json=body | changes, headers={"Idempotency-Key": key})


def refund(provider: httpx.Client, key: str, charge_key: str) -> httpx.Response:
    return provider.post(
        "/refunds", json={"charge_key": charge_key}, headers={"Idempotency-Key": key}
    )


def booked(provider: httpx.Client, key: str) -> list[dict[str, Any]]:
    charges = provider.get("/ledger").json()["charges"]
    return [entry for entry in charges if entry["key"] == key]


def test_a_charge_is_captured_and_booked(provider: httpx.Client, key: str) -> None:
    answer = charge(provider, key)
    assert answer.status_code == 201
    body = answer.json()
    assert body.pop("charge_id").startswith("ch_")
    assert body == {"status": "captured", "amount_cents": 3900}
    assert booked(provider, key) == [
        {
            "key": key,
            "reference": f"order-{key}",
            "status": "captured",
            "amount_cents": 3900,
            "refunded": False,
        }
    ]


def test_a_repeat_gets_the_recorded_answer(provider: httpx.Client, key: str) -> None:
    first, second = charge(provider, key), charge(provider, key)
    assert (second.status_code, second.json()) == (201, first.json())
    assert len(booked(provider, key)) == 1


def test_simultaneous_requests_of_one_key_capture_once(provider: httpx.Client, key: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: charge(provider, key), range(8)))
    assert len({answer.json()["charge_id"] for answer in answers}) == 1
    assert len(booked(provider, key)) == 1


def test_a_key_with_another_payload_is_refused(provider: httpx.Client, key: str) -> None:
    charge(provider, key)
    answer = charge(provider, key, amount_cents=1)
    assert (answer.status_code, answer.json()["code"]) == (422, "key_reused")


def test_a_declined_card(provider: httpx.Client, key: str) -> None:
    for _ in range(2):
        answer = charge(provider, key, "tok_declined")
        assert answer.status_code == 402
        assert answer.json() == {"status": "declined", "reason": "card_declined"}
    assert booked(provider, key)[0]["status"] == "declined"


def test_a_slow_charge_takes_the_money_before_it_stalls(provider: httpx.Client, key: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        provider.post(
            "/charges",
            json={"amount_cents": 5, "currency": "EUR", "token": "tok_slow", "reference": "r"},
            headers={"Idempotency-Key": key},
            timeout=0.5,
        )
    assert booked(provider, key)[0]["status"] == "captured"
    began = time.monotonic()
    answer = charge(provider, key, "tok_slow", amount_cents=5, reference="r")
    assert answer.status_code == 201
    assert time.monotonic() - began < 0.9  # less than the stall


def test_a_flaky_charge_fails_once_per_key(provider: httpx.Client, key: str) -> None:
    assert charge(provider, key, "tok_flaky").status_code == 500
    assert booked(provider, key) == []
    assert charge(provider, key, "tok_flaky").status_code == 201
    assert charge(provider, key, "tok_flaky").status_code == 201


def test_a_charge_is_refunded_once(provider: httpx.Client, key: str) -> None:
    charge(provider, key)
    before = provider.get("/ledger").json()["refunded_cents"]
    for refund_key in (f"refund-{key}", f"refund-{key}", f"again-{key}"):
        answer = refund(provider, refund_key, key)
        assert (answer.status_code, answer.json()) == (200, {"status": "refunded"})
    assert booked(provider, key)[0]["refunded"] is True
    assert provider.get("/ledger").json()["refunded_cents"] == before + 3900


@pytest.mark.parametrize("token", ["tok_ok", "tok_flaky"])
def test_a_void_stops_a_late_charge(provider: httpx.Client, key: str, token: str) -> None:
    if token == "tok_flaky":
        assert charge(provider, key, token).status_code == 500
    assert refund(provider, f"refund-{key}", key).json() == {"status": "voided"}
    answer = charge(provider, key, token)
    while answer.status_code == 500:
        answer = charge(provider, key, token)
    assert answer.status_code == 402
    assert answer.json() == {"status": "declined", "reason": "voided"}
    assert refund(provider, f"refund-{key}", key).json() == {"status": "voided"}


def test_a_refund_of_a_declined_charge_moves_nothing(provider: httpx.Client, key: str) -> None:
    charge(provider, key, "tok_declined")
    assert refund(provider, f"refund-{key}", key).json() == {"status": "voided"}
    assert booked(provider, key)[0]["refunded"] is False


def test_a_refund_key_with_another_charge_is_refused(provider: httpx.Client, key: str) -> None:
    refund(provider, f"refund-{key}", key)
    assert refund(provider, f"refund-{key}", "other").status_code == 422


def test_the_ledger_adds_up(provider: httpx.Client, key: str) -> None:
    charge(provider, key)
    ledger = provider.get("/ledger").json()
    captured = [entry for entry in ledger["charges"] if entry["status"] == "captured"]
    assert ledger["captured_cents"] == sum(entry["amount_cents"] for entry in captured)
    refunded = [entry for entry in captured if entry["refunded"]]
    assert ledger["refunded_cents"] == sum(entry["amount_cents"] for entry in refunded)


@pytest.mark.parametrize(("mode", "status"), [("down", 503), ("errors", 500)])
def test_bad_weather(provider: httpx.Client, key: str, mode: str, status: int) -> None:
    provider.post("/weather", json={"mode": mode})
    try:
        answer = charge(provider, key)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert refund(provider, key, key).status_code == status
        assert booked(provider, key) == []
    finally:
        assert provider.post("/weather", json={"mode": "fair"}).status_code == 200
    assert charge(provider, key).status_code == 201


def test_slow_weather_delays_before_the_money_moves(provider: httpx.Client, key: str) -> None:
    provider.post("/weather", json={"mode": "slow"})
    try:
        with pytest.raises(httpx.ReadTimeout):
            provider.get("/healthz", timeout=0.3)
        assert booked(provider, key) == []
    finally:
        provider.post("/weather", json={"mode": "fair"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount_cents": 0}, "$.amount_cents"),
        ({"amount_cents": -1}, "$.amount_cents"),
        ({"amount_cents": True}, "$.amount_cents"),
        ({"amount_cents": 1.5}, "$.amount_cents"),
        ({"amount_cents": 2**63}, "$.amount_cents"),
        ({"amount_cents": "39"}, "$.amount_cents"),
        ({"currency": "USD"}, "$.currency"),
        ({"token": "tok_unknown"}, "$.token"),
        ({"token": {}}, "$.token"),
        ({"reference": ""}, "$.reference"),
        ({"reference": "a\0b"}, "$.reference"),
        ({"reference": "x" * 256}, "$.reference"),
    ],
)
def test_a_wrong_field_is_named(
    provider: httpx.Client, key: str, changes: dict[str, Any], field: str
) -> None:
    answer = charge(provider, key, **changes)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert booked(provider, key) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"amount_cents": ' + b"9" * 5000 + b"}", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"amount_cents": NaN}', 422),
        (b'{"token": "tok_ok", "token": "tok_slow"}', 422),
        (b'{"reference": "\\ud800"}', 422),
        (b"[" * 60_000, 422),
        (b" " * (64 * 1024 + 1), 413),
    ],
)
def test_a_wrong_body_is_refused(
    provider: httpx.Client, key: str, body: bytes, status: int
) -> None:
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    answer = provider.post("/charges", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_endless_body_is_cut_off(provider: httpx.Client, key: str) -> None:
    def chunks() -> Any:
        while True:
            yield b" " * 1024

    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    try:
        answer = provider.post("/charges", content=chunks(), headers=headers)
    except httpx.WriteError:
        return  # the connection was closed while the client was still writing
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"Idempotency-Key": ""}, 400),
        ({"Idempotency-Key": "k" * 256}, 400),
        ({"Idempotency-Key": "two words"}, 400),
        ({"Idempotency-Key": "k", "Content-Type": "text/plain"}, 415),
        ({"Idempotency-Key": "k", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_wrong_headers_are_refused(
    provider: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = provider.post(
        "/charges", content=b"{}", headers={"Content-Type": "application/json"} | headers
    )
    assert answer.status_code == status


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/charges", 405)])
def test_a_wrong_address_is_a_problem_too(provider: httpx.Client, path: str, status: int) -> None:
    answer = provider.get(path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"


def test_kill_9_loses_no_answered_charge(start: Any, tmp_path: Path) -> None:
    running = start("provider", tmp_path)
    answered: dict[str, str] = {}
    enough = threading.Event()

    def charge_until_it_dies(worker: int) -> None:
        for number in itertools.count():
            key = f"{worker}-{number}"
            try:
                answered[key] = charge(running.http, key).json()["charge_id"]
            except httpx.TransportError:
                return
            if len(answered) >= 40:
                enough.set()

    with ThreadPoolExecutor(4) as pool:
        for worker in range(4):
            pool.submit(charge_until_it_dies, worker)
        assert enough.wait(30)
        running.kill()

    again = start("provider", tmp_path).http
    ledger = again.get("/ledger").json()
    booked_keys = [entry["key"] for entry in ledger["charges"]]
    assert set(answered) <= set(booked_keys)
    assert len(booked_keys) == len(set(booked_keys))
    for key, charge_id in itertools.islice(answered.items(), 5):
        assert charge(again, key).json()["charge_id"] == charge_id
