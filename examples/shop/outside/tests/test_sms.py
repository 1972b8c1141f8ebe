from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.fixture(scope="module")
def sms(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    client: httpx.Client = start_for_module("sms", tmp_path_factory.mktemp("sms")).http
    return client


def send(
    sms: httpx.Client, key: str, to: str = "+31612345678", text: str = "Shipped"
) -> httpx.Response:
    return sms.post("/messages", json={"to": to, "text": text}, headers={"Idempotency-Key": key})


def sent(sms: httpx.Client, key: str) -> list[dict[str, Any]]:
    return [message for message in sms.get("/messages").json() if message["key"] == key]


def test_one_key_sends_once(sms: httpx.Client) -> None:
    first, second = send(sms, "once"), send(sms, "once")
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    (message,) = sent(sms, "once")
    assert (message["to"], message["text"], message["repeats"]) == ("+31612345678", "Shipped", 1)


def test_a_key_with_another_text_is_refused(sms: httpx.Client) -> None:
    send(sms, "other")
    assert send(sms, "other", text="Cancelled").status_code == 422
    assert sent(sms, "other")[0]["text"] == "Shipped"


@pytest.mark.parametrize(
    ("to", "text", "field"),
    [
        ("0612345678", "x", "$.to"),
        ("+31 6", "x", "$.to"),
        ("+31612345678\n", "x", "$.to"),
        ("+31612345678", "", "$.text"),
        ("+31612345678", "x" * 1601, "$.text"),
    ],
)
def test_a_wrong_field_is_named(sms: httpx.Client, to: str, text: str, field: str) -> None:
    answer = send(sms, "wrong", to, text)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert sent(sms, "wrong") == []


def test_a_large_body_is_refused(sms: httpx.Client) -> None:
    assert send(sms, "large", text="x" * 70_000).status_code == 413


def test_kill_9_loses_nothing(start: Any, tmp_path: Path) -> None:
    running = start("sms", tmp_path)
    message_id = send(running.http, "kept").json()["message_id"]
    running.kill()
    again = start("sms", tmp_path).http
    assert sent(again, "kept")[0]["message_id"] == message_id
    assert send(again, "kept").json()["message_id"] == message_id
