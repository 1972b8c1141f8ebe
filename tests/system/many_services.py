"""Serves the admin ports of many services with made stores; run by `test_console_size`.

Arguments: a folder, then for each service its name and the URL of its store. Each address is
printed as a line ``NAME ADDRESS``, and the process lives until its standard input ends. The
services are not started, so that nothing but the console's questions makes work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from oyez import Event, Service
from oyez.ambient import SystemAmbient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.console.api import api
from oyez.listening import HttpServer, bind
from oyez.ports import Changes, DeadLetter, Store
from oyez.runtime.admin import admin
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.signals import Signals
from oyez.stores import connect

LETTERS = {"big": 51_000}
"""The dead letters of a service; others have `REST`."""
REST = 1_000
SERVICES = 50
PARTITIONS = 20
"""The partitions of each service's stream."""
_CAUSES = 40
_BATCH = 5_000


class Placed(Event, type="many.placed", key="order"):
    order: str


def service(name: str) -> Service:
    """A service that reads its own stream; the big one reads those of all."""
    made = Service(name)

    @made.on(Placed, stream=None if name == "big" else stream(name))
    async def take(event: Placed) -> None:
        pass

    return made


def stream(name: str) -> str:
    return f"many.{name}"


def names() -> list[str]:
    return ["big", *(f"service{number:02}" for number in range(1, SERVICES))]


def letters(name: str, now: float) -> Iterable[DeadLetter]:
    for number in range(LETTERS.get(name, REST)):
        word = f"cause{chr(97 + number % _CAUSES % 26) * (1 + number % _CAUSES // 26)}"
        yield DeadLetter(
            event_id=f"e-{number}",
            source=f"/many/{name}",
            type="many.placed",
            handler="take",
            stream=stream(name),
            partition=number % PARTITIONS,
            position=number + 1,
            key=f"order-{number % 700}",
            reason=f"failed 3 of 3 attempts: ValueError: {word} of order {number}",
            traceback='  File "shop.py", line 7, in take\n' * 12,
            attempts=3,
            history=[{"attempt": 1, "at": now, "error": "ValueError"}],
            headers={
                "specversion": "1.0",
                "id": f"e-{number}",
                "source": f"/many/{name}",
                "type": "many.placed",
                "datacontenttype": "application/json",
            },
            data=b'{"order": "order-%d"}' % number,
            time=now - number,
        )


async def fill(store: Store, name: str, now: float) -> None:
    batch: list[DeadLetter] = []
    for letter in letters(name, now):
        batch.append(letter)
        if len(batch) == _BATCH:
            await store.begin().commit(Changes(dead=batch, time=now))
            batch = []
    sql = "insert into oyez_cursor (stream, partition, position) values (:s, :p, 0)"
    read = names() if name == "big" else [name]
    rows = [{"s": stream(each), "p": part} for each in read for part in range(PARTITIONS)]
    await store.begin().commit(Changes(dead=batch, writes=[(sql, rows)], time=now))


async def main(folder: Path, stores: dict[str, str]) -> None:
    ambient = SystemAmbient()
    broker = MemoryBroker(ambient)
    for each in names():
        await broker.create(stream(each), PARTITIONS)
    servers = []
    for name, url in stores.items():
        store = connect(url, ambient, root=folder)
        await store.open()
        await fill(store, name, ambient.now())
        process = ServiceProcess(
            service(name), ProcessSettings(system="many"), broker=broker, store=store,
            ambient=ambient, signals=Signals(),
        )  # fmt: skip
        app = admin(process, token="t", metrics=str, details=lambda process=process: api(process))
        listener = bind("127.0.0.1", 0, AssertionError)
        server = HttpServer(app, listener, grace=1.0, lifespan="off")
        await server.start()
        servers.append(server)
        sys.stdout.write(f"{name} {server.address}\n")
        sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        await server.stop()


if __name__ == "__main__":
    given = sys.argv[2:]
    asyncio.run(main(Path(sys.argv[1]), dict(zip(given[::2], given[1::2], strict=True))))
