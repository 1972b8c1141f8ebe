"""The counter of the conformance kit as a service of Oyez: its first subject.

``python -m oyez.testing.counter`` makes a project in the folder that it is told, and runs it; see
`docs/wire/conformance.md`. The broker may have files, as ``embedded:`` does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oyez import Event, Retry, Service, Transaction

_TOML = """[system]
name = "{system}"
broker = "{broker}"
partitions = {partitions}

[services.counter]
app = "oyez.testing.counter:service"
store = "{store}"
http = "{http}"
lease = 2.0
grace = 5.0
replicas = 2
"""
_TABLE = """create table counted (
  seq integer primary key autoincrement, name text not null, number integer not null
);
"""
_PATIENCE = 0.2
"""Seconds between two attempts, and between two looks at what holds the counter up."""


class Tick(Event, type="conformance.tick", key="name"):
    """What the counter counts."""

    name: str
    number: int


class Tock(Event, type="conformance.tock", key="name"):
    """What it announces for each."""

    name: str
    number: int


async def _http(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    lines = "".join(json.dumps(line) + "\n" for line in await _lines())
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": [(b"content-type", b"application/jsonl")]})
    await send({"type": "http.response.body", "body": lines.encode()})


service = Service("counter", migrations="migrations", http=_http)


@service.on(Tick, retry=Retry(attempts=600, first=_PATIENCE, factor=1.0))
async def count(event: Tick, tx: Transaction) -> Tock:
    """Write the row of a tick, and announce its tock."""
    if (event.name, event.number) == ("poison", 1) and Path(
        os.environ["CONFORMANCE_FAIL"]
    ).exists():
        raise ValueError(f"tick {event.number} is poison")
    hold = Path(os.environ["CONFORMANCE_HOLD"])
    while event.name == "slow" and hold.exists():
        Path(f"{hold}.started").touch()
        await asyncio.sleep(_PATIENCE)
    tx.execute(
        "insert into counted (name, number) values (:name, :number)",
        name=event.name,
        number=event.number,
    )
    return Tock(name=event.name, number=event.number)


async def _lines() -> list[dict[str, Any]]:
    async with service.transaction() as tx:
        rows = await tx.fetch("select name, number from counted order by seq")
        dead = await tx.fetch("select event_id, source, reason, data from oyez_dead order by id")
        positions = await tx.fetch(
            "select partition, position from oyez_cursor where stream = :stream",
            stream=os.environ["CONFORMANCE_IN"],
        )
    return [
        *({"row": row} for row in rows),
        *({"dead": dict(_letter(row))} for row in dead),
        *({"position": row} for row in positions),
    ]


def _letter(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    data = row["data"]
    yield "id", row["event_id"] or None
    yield "source", row["source"] or None
    yield "reason", row["reason"]
    yield "data", None if data is None else base64.b64encode(data).decode()


def main() -> None:
    """Make the project, unless another replica has, and become ``oyez run``."""
    told = os.environ
    root = Path(told["CONFORMANCE_DATA"])
    (root / "migrations").mkdir(exist_ok=True)
    (root / "migrations" / "001_counted.sql").write_text(_TABLE)
    toml = _TOML.format(
        system=told["CONFORMANCE_SYSTEM"],
        broker=told["CONFORMANCE_BROKER"],
        partitions=told["CONFORMANCE_PARTITIONS"],
        store="sqlite:counter.db",
        http=told["CONFORMANCE_HTTP"],
    )
    replica = root / f"oyez-{told['CONFORMANCE_REPLICA']}.toml"
    replica.write_text(toml)
    replica.replace(root / "oyez.toml")
    environment = {
        **told,
        "OYEZ_PROJECT": str(root),
        "OYEZ_SERVICES_COUNTER_HTTP": told["CONFORMANCE_HTTP"],
    }
    os.chdir(root)
    os.execve(sys.executable, [sys.executable, "-m", "oyez", "run", "counter"], environment)  # noqa: S606


if __name__ == "__main__":
    main()
