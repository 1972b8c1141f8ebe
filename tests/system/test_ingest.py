"""What `POST /events` has accepted is on the broker, although the gateway is killed meanwhile.

``OYEZ_TEST_EVENTS`` is the number of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.ports import BEGINNING
from oyez.testing.ticks import until

EVENTS = int(os.environ.get("OYEZ_TEST_EVENTS", "20000"))
BATCH = 256
CLIENTS = 8
KILLS = 3
KEY = "key of the meters"

CONTRACT = """
from oyez import Event

class Reading(Event, type="iot.reading.taken", key="meter"):
    meter: str
    number: int
    celsius: float
"""


class Gateway:
    """`oyez gateway` in a process of its own, at an address that it keeps."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        (folder / "contract.py").write_text(CONTRACT)
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        (folder / "keys.toml").write_text(f'[keys.meters]\nsha256 = "{digest}"\n')
        (folder / "keys.toml").chmod(0o600)
        (folder / "oyez.toml").write_text(
            f"""
            [system]
            name = "iot"
            log = "json"
            [gateway]
            listen = "127.0.0.1:{self.port}"
            keys = "keys.toml"
            access_log = 0
            [gateway.ingest.senders.meters]
            principals = ["key:meters"]
            events = ["contract:Reading"]
            """
        )

    def start(self) -> None:
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oyez", "gateway"],
                cwd=self.folder,
                env={**os.environ, "OYEZ_PROJECT": str(self.folder)},
                stdout=log,
                stderr=log,
            )

    async def is_ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "gateway.log").read_text()
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{self.port}/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 200

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Gateway]:
    gateway = Gateway(folder)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.process.terminate()
        code = gateway.process.wait(20)
    assert code == 0, (folder / "gateway.log").read_text()


def batch_of(numbers: range) -> bytes:
    return json.dumps(
        [
            {
                "specversion": "1.0",
                "id": f"r-{n}",
                "source": "/iot/gateway/key:meters",
                "type": "iot.reading.taken",
                "time": "2026-11-29T12:00:00Z",
                "data": {"meter": f"m{n % 100}", "number": n, "celsius": 20.5},
            }
            for n in numbers
        ]
    ).encode()


class Sender:
    """Clients that repeat each batch until it is accepted."""

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.repeated = 0
        self._url = f"http://127.0.0.1:{port}/events"
        self._batches = iter(range(0, EVENTS, BATCH))

    async def run(self) -> None:
        headers = {"x-api-key": KEY, "content-type": "application/cloudevents-batch+json"}
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            for start in self._batches:
                numbers = range(start, min(start + BATCH, EVENTS))
                body = batch_of(numbers)
                while not await self._accepts(client, body):
                    self.repeated += 1
                    await asyncio.sleep(0.05)
                self.accepted += len(numbers)

    async def _accepts(self, client: httpx.AsyncClient, body: bytes) -> bool:
        try:
            answer = await client.post(self._url, content=body)
        except httpx.TransportError:
            return False
        assert answer.status_code in (202, 503), answer.text
        return answer.status_code == 202


@pytest.mark.parametrize("kills", [0, KILLS])
async def test_what_is_accepted_is_on_the_broker_after_a_kill(tmp_path: Path, kills: int) -> None:
    with running(tmp_path) as gateway:
        await until(gateway.is_ready)
        sender = Sender(gateway.port)
        began = time.monotonic()
        sending = asyncio.gather(*(sender.run() for _ in range(CLIENTS)))
        for number in range(1, kills + 1):

            async def reached(wanted: int = EVENTS * number // (kills + 1)) -> bool:
                return sender.accepted >= wanted

            await until(reached)
            gateway.kill()
            gateway.start()
        await sending
        seconds = time.monotonic() - began
    assert sender.accepted == EVENTS
    assert bool(sender.repeated) == bool(kills)
    found = await ids_on_the_broker(tmp_path)
    assert found.keys() == {f"r-{n}" for n in range(EVENTS)}
    copies = sum(found.values()) - EVENTS
    assert copies <= sender.repeated * BATCH
    print(
        f"\n{EVENTS} events in {seconds:.1f} s: {EVENTS / seconds:,.0f} events/s, {kills} kills, "
        f"{sender.repeated} batches repeated, {copies} events twice on the broker"
    )


async def ids_on_the_broker(folder: Path) -> Counter[str]:
    """How often each id is on the broker; the readings of a meter that came once, in order."""
    broker = connect("embedded:.oyez/events.db", SystemAmbient(), root=folder)
    await broker.open()
    found: Counter[str] = Counter()
    try:
        for partition, end in enumerate(await broker.ends("iot.gateway")):
            position = BEGINNING
            reader = broker.read("iot.gateway", partition, position)
            async with contextlib.aclosing(reader) as batches:  # type: ignore[type-var]
                while position < end:
                    batch = await asyncio.wait_for(anext(batches), 30)
                    found.update(each.headers["id"] for each in batch.records)
                    position = batch.records[-1].position
    finally:
        await broker.close()
    return found
