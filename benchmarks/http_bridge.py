"""The HTTP bridge beside a service of our own: the same backlog, announcements, broker and store.

A service of Python announces one event for each; behind the bridge, a program does. The program
keeps nothing and answers from memory, so what shows is what the bridge costs. It is a process of
its own, whose CPU does not count.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.comparison import Figures, Report, Row, Way, interleave
from benchmarks.consume_job import Booked, serve
from benchmarks.embedded_append import Paid, make_records
from benchmarks.machine import Surroundings
from oyez import Service
from oyez.config import load
from oyez.http_bridge import bridged
from oyez.ports import Record, Store

_BATCH = "application/cloudevents-batch+json"
_SETTINGS = """
[system]
name = "bench"
[services.ledger]
url = "{url}"
handles = ["bench.paid"]
publishes = ["bench.booked"]
bridge.form = "{form}"
"""


async def run(here: Surroundings) -> Report:
    """One event in a POST, and as many as wait."""
    rows: list[Row] = []
    rounds = here.pick(2, 5)
    async with _program() as url:
        for case, form, count in (
            ("one event a POST", "binary", here.pick(1_000, 10_000)),
            ("batches", "batch", here.pick(2_000, 20_000)),
        ):
            records = make_records(here, count)
            ways = [
                Way("bridge", partial(_behind, here, records, url, form)),
                Way("a service of our own", partial(_own, here, records)),
            ]
            rows += await interleave(case, ways, rounds)
    return Report(
        benchmark="http_bridge",
        about="events a second through the HTTP bridge; above 1 is faster than a service of Python",
        rows=rows,
        notes=[
            "the program keeps nothing, and its CPU does not count; 32 POSTs at once, 1,000 keys"
        ],
        lacks={"a service of our own": "a program in any language"},
    )


async def _behind(here: Surroundings, records: list[Record], url: str, form: str) -> Figures:
    folder = here.fresh("bridge")
    (folder / "oyez.toml").write_text(_SETTINGS.format(url=url, form=form))
    config = load(folder, {})
    service = bridged(config, config.services["ledger"])
    return await serve(here, folder, service, records, _nothing_dead)


async def _own(here: Surroundings, records: list[Record]) -> Figures:
    service = Service("ledger")

    @service.on(Paid)
    async def book(event: Paid) -> Booked:
        return Booked(account=event.account, order=event.order)

    return await serve(here, here.fresh("own"), service, records, _nothing_dead)


async def _nothing_dead(store: Store) -> None:
    (found,) = await store.fetch("select count(*) as dead from oyez_dead", {})
    assert found["dead"] == 0


# -- the program -----------------------------------------------------------------------------------


@asynccontextmanager
async def _program() -> AsyncIterator[str]:
    """The URL of the program, which runs until the block ends."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,))
    process.start()
    try:
        port = await asyncio.to_thread(here.recv)
        yield f"http://127.0.0.1:{port}/events"
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection) -> None:
    async def forever() -> None:
        server = await asyncio.start_server(_take, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each event of a connection with what it announces."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found = json.loads(await reader.readexactly(length))
            if _BATCH.encode() in head:
                told = [_booked(each["data"], each["id"]) for each in found]
            else:
                event_id = head.partition(b"ce-id: ")[2].partition(b"\r\n")[0].decode()
                told = [_booked(found, event_id)]
            body = json.dumps(told).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (_BATCH.encode(), len(body), body)
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _booked(data: dict[str, str], cause: str) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": cause,
        "source": "/ledger",
        "type": "bench.booked",
        "subject": data["account"],
        "causationid": cause,
        "data": {"account": data["account"], "order": data["order"]},
    }
