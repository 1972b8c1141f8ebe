"""Events through ``POST /events``, beside the same events appended to the broker by who has them.

What the gateway does besides the append: HTTP, the API key, JSON read strictly, the event's class,
its attributes. Its clients are 8 connections, each with one request at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from benchmarks.comparison import Figures, Report, Row, Way, interleave
from benchmarks.machine import Surroundings
from benchmarks.servers import NotRunning
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.envelope import format_time
from oyez.ports import Record

CLIENTS = 8
STREAM = "iot.gateway"
_KEY = "a key of the benchmark"
_SOURCE = "/iot/gateway/key:bench"
_TYPE = "iot.reading.taken"
_TICKS = os.sysconf("SC_CLK_TCK")

_CONTRACT = """
from oyez import Event

class Reading(Event, type="iot.reading.taken", key="meter"):
    meter: str
    number: int
    celsius: float
"""
_SETTINGS = """
[system]
name = "iot"
[gateway]
listen = "127.0.0.1:{port}"
keys = "keys.toml"
access_log = 0
[gateway.ingest.senders.bench]
principals = ["key:bench"]
events = ["contract:Reading"]
"""


async def run(here: Surroundings) -> Report:
    """Batches of 1, 16 and 256 events."""
    rows: list[Row] = []
    rounds = here.pick(3, 9)
    async with AsyncExitStack() as stack:
        own = EmbeddedBroker(here.fresh("ingest") / "events.db", here.ambient)
        await own.open()
        stack.push_async_callback(own.close)
        folder = here.fresh("ingest")
        pid, port = await stack.enter_async_context(_gateway(folder))
        behind = EmbeddedBroker(folder / ".oyez" / "events.db", here.ambient)
        await behind.open()
        stack.push_async_callback(behind.close)
        for size, count in (
            (1, here.pick(800, 8_000)),
            (16, here.pick(3_200, 32_000)),
            (256, here.pick(10_240, 102_400)),
        ):
            numbers = [range(at, min(at + size, count)) for at in range(0, count, size)]
            requests = [_request(each) for each in numbers]
            records = [[_record(here, n) for n in each] for each in numbers]
            ways = [
                Way("POST /events", partial(_post, pid, port, behind, requests, count)),
                Way("the broker alone", partial(_publish, own, records, count)),
            ]
            rows += await interleave(f"batch {size}", ways, rounds)
    return Report(
        benchmark="ingest",
        about=f"durable events a second from {CLIENTS} clients; the first way is the gateway",
        rows=rows,
        lacks={"the broker alone": "HTTP, keys, a check of the events; it is the benchmark itself"},
        notes=["CPU: of the gateway's process, and of the benchmark's where it publishes itself"],
    )


async def _post(
    pid: int, port: int, broker: EmbeddedBroker, requests: Sequence[bytes], count: int
) -> Figures:
    waiting = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 202 "), head
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    before = sum(await broker.ends(STREAM))
    cpu, start = _cpu(pid), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    took, cpu = time.perf_counter() - start, _cpu(pid) - cpu
    assert sum(await broker.ends(STREAM)) - before == count
    return {"events/s": count / took, "µs CPU an event": cpu / count * 1e6}


async def _publish(
    broker: EmbeddedBroker, batches: Sequence[Sequence[Record]], count: int
) -> Figures:
    waiting = iter(batches)

    async def publisher() -> None:
        for batch in waiting:
            await broker.publish(batch)

    before = sum(await broker.ends(STREAM))
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(CLIENTS)))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert sum(await broker.ends(STREAM)) - before == count
    return {"events/s": count / took, "µs CPU an event": cpu / count * 1e6}


def _data(number: int) -> dict[str, object]:
    return {"meter": f"meter-{number % 1000}", "number": number, "celsius": 20.5}


def _request(numbers: range) -> bytes:
    event = {"specversion": "1.0", "source": _SOURCE, "type": _TYPE}
    body = json.dumps([{**event, "id": f"r-{n}", "data": _data(n)} for n in numbers]).encode()
    head = (
        f"POST /events HTTP/1.1\r\nHost: iot.example\r\nX-Api-Key: {_KEY}\r\n"
        f"Content-Type: application/cloudevents-batch+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _record(here: Surroundings, number: int) -> Record:
    """The record that becomes of an event."""
    data = _data(number)
    key = str(data["meter"])
    headers = {
        "specversion": "1.0",
        "id": f"r-{number}",
        "source": _SOURCE,
        "type": _TYPE,
        "subject": key,
        "partitionkey": key,
        "time": format_time(here.ambient.now()),
        "datacontenttype": "application/json",
        "dataschema": f"urn:oyez:{_TYPE}:1",
        "correlationid": f"r-{number}",
        "traceparent": f"00-{here.ambient.bits(128):032x}-{here.ambient.bits(64):016x}-01",
        "authtype": "api_key",
        "authid": "key:bench",
    }
    return Record(stream=STREAM, key=key, headers=headers, data=json.dumps(data).encode())


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[tuple[int, int]]:
    """Process and port of a gateway that runs until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    digest = hashlib.sha256(_KEY.encode()).hexdigest()
    (folder / "keys.toml").write_text(f'[keys.bench]\nsha256 = "{digest}"\n')
    (folder / "keys.toml").chmod(0o600)
    (folder / "contract.py").write_text(_CONTRACT)
    (folder / "oyez.toml").write_text(_SETTINGS.format(port=port))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "oyez", "gateway", cwd=folder, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(15):
            while b"started" not in (folder / "log").read_bytes():
                if process.returncode is not None:
                    raise NotRunning(f"the gateway ended: {(folder / 'log').read_text()}")
                await asyncio.sleep(0.02)
        yield process.pid, port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
