"""Webhooks to others, by two real replicas of which one after the other is killed (G1, G3).

Each event reaches each endpoint at least once, under one id, the first time in the order of its
key. The endpoints are servers in the test; one of them is down at first.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_gateway import listening

from oyez import Event
from oyez.ambient import SystemAmbient
from oyez.config import load
from oyez.envelope import format_time
from oyez.ports import Record
from oyez.project import Project
from oyez.transaction import Announcer, Origin

EVENTS = 120
KEYS = 12
KILLS = 5
DEADLINE = 120.0
CONFIG = """
[system]
name = "shop"

[services.hooks]
app = "hooks:service"
http = "127.0.0.1:{http}"
store = "{store}"
lease = 1.0
replicas = 2

[gateway]
listen = "127.0.0.1:{listen}"
admin = "127.0.0.1:0"
keys = "keys.toml"

[[gateway.routes]]
path = "/webhooks"
service = "hooks"
methods = ["POST"]
"""
KEY = "canary-key-0123456789"
HOOKS = """
import os

from oyez import Event, Retry
from oyez.webhooks import webhooks

class Placed(Event, type="shop.order.placed", key="order"):
    order: str
    number: int

service = webhooks(
    "hooks",
    events=[Placed],
    allow=["127.0.0.1/32"],
    ports=[int(port) for port in os.environ["PORTS"].split()],
    plain_http=True,
    retry=Retry(attempts=60, first=0.2, factor=1.5, longest=1.0),
)
"""


class Placed(Event, type="shop.order.placed", key="order"):
    order: str
    number: int


class Endpoint:
    """It keeps the number and the id of what it takes, once the signature is right."""

    def __init__(self) -> None:
        self.took: list[tuple[str, int, str]] = []
        self.secret = ""
        self.up = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status = 503
        if self.up:
            assert headers["webhook-signature"] == self._signature(headers, body)
            data = json.loads(body)["data"]
            self.took.append((data["order"], data["number"], headers["webhook-id"]))
            status = 204
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _signature(self, headers: dict[str, str], body: bytes) -> str:
        text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        return "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()

    @property
    def numbers(self) -> set[int]:
        return {number for _, number, _ in self.took}


@pytest.mark.timeout(200)
async def test_kills_lose_no_delivery_and_give_none_a_second_id(
    tmp_path: Path, store_url: str
) -> None:
    steady, late = Endpoint(), Endpoint()
    late.up = False
    async with listening(steady) as first, listening(late) as second:
        hooks = Hooks(tmp_path, store_url, [first, second])
        try:
            async with httpx.AsyncClient(base_url=hooks.start_behind_a_gateway()) as client:
                for endpoint, port in ((steady, first), (late, second)):
                    endpoint.secret = await subscribe(client, f"http://127.0.0.1:{port}/")
                for part in range(KILLS):
                    await publish(tmp_path, part)
                    seen = len(steady.took)
                    await until(lambda seen=seen: len(steady.took) > seen + 3)
                    hooks.kill_the_older()
                    hooks.start()
                late.up = True
                for endpoint in (steady, late):
                    await until(lambda endpoint=endpoint: len(endpoint.numbers) == EVENTS)
            assert hooks.stop() == [0, 0]
        finally:
            hooks.end()
    for endpoint in (steady, late):
        ids, order = defaultdict(set), defaultdict(list)
        for key, number, message in endpoint.took:
            ids[number].add(message)
            if number not in order[key]:
                order[key].append(number)
        assert {len(found) for found in ids.values()} == {1}
        assert all(numbers == sorted(numbers) for numbers in order.values())
    assert {each[2] for each in steady.took}.isdisjoint({each[2] for each in late.took})


class Hooks:
    """The replicas of the service, and the gateway before them."""

    def __init__(self, folder: Path, store: str, ports: list[int]) -> None:
        self._folder = folder
        self._environment = {**os.environ, "PORTS": " ".join(map(str, ports))}
        self._processes: list[subprocess.Popen[bytes]] = []
        http, listen = free_ports()
        self._base = f"http://127.0.0.1:{listen}"
        settings = CONFIG.format(http=http, listen=listen, store=store)
        (folder / "oyez.toml").write_text(settings)
        (folder / "hooks.py").write_text(HOOKS)
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        (folder / "keys.toml").write_text(f'[keys.ada]\nsha256 = "{digest}"\n')
        (folder / "keys.toml").chmod(0o600)

    def start_behind_a_gateway(self) -> str:
        """Start all, and return where the gateway is asked."""
        self._run("gateway")
        self.start()
        self.start()
        return self._base

    def start(self) -> None:
        self._run("run", "hooks")

    def kill_the_older(self) -> None:
        """Kill the replica that has run for longer."""
        self._processes[1].send_signal(signal.SIGKILL)
        self._processes.pop(1).wait()

    def stop(self) -> list[int]:
        """Stop the replicas, and return their exit codes."""
        for each in self._processes[1:]:
            each.terminate()
        return [each.wait(60) for each in self._processes[1:]]

    def end(self) -> None:
        for each in self._processes:
            each.kill()
            each.wait()

    def _run(self, *command: str) -> None:
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "oyez", *command],
                cwd=self._folder,
                env=self._environment,
                stderr=log,
            )
        self._processes.append(process)


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


async def subscribe(client: httpx.AsyncClient, url: str) -> str:
    """Subscribe, once the service can be asked; return the secret."""
    asked = {"url": url, "types": ["shop.order.*"], "concurrency": 8}
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post("/webhooks", json=asked, headers={"x-api-key": KEY})
                if answer.status_code not in (502, 503):
                    assert answer.status_code == 201, answer.text
                    return str(answer.json()["secret"])
            await asyncio.sleep(0.05)  # between two looks at a condition with a deadline


async def publish(folder: Path, part: int) -> None:
    """Publish one of `KILLS` parts of the events, as the service of orders does."""
    ambient = SystemAmbient()
    announcer = Announcer("shop", "orders", ambient)
    each = EVENTS // KILLS
    records = []
    for number in range(part * each, (part + 1) * each):
        event = Placed(order=f"o{number % KEYS}", number=number)
        row = announcer.announce(event, Origin(), format_time(ambient.now()), 0.0, None)
        records.append(
            Record(stream="shop.orders", key=row.key, headers=row.headers, data=row.data)
        )
    async with Project(load(folder)).opened_broker(create=True) as broker:
        await broker.create("shop.orders", 8)
        await broker.publish(records)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)  # between two looks at a condition with a deadline
