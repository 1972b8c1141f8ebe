"""A handler that blocks the event loop for ever is isolated as one that ends its process is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oyez.config import load
from oyez.ports import Record
from oyez.project import Project
from oyez.runtime.watchdog import STATUS
from oyez.testing.ticks import until

TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "desk:service"
http = "127.0.0.1:0"
lease = 1.0
grace = 1.0
"""
DESK = """
import time

from oyez import Event, Service, Transaction

service = Service("desk", migrations="migrations")


class Sold(Event, type="till.sold", key="item"):
    item: str


@service.on(Sold, timeout=1.0)
async def record(event: Sold, tx: Transaction) -> None:
    while event.item == "stuck":
        time.sleep(0.1)
    tx.execute("insert into sold (item) values (:item)", item=event.item)
"""


@pytest.mark.timeout(240)
async def test_the_process_ends_and_the_event_is_a_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(TOML)
    (tmp_path / "desk.py").write_text(DESK)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_sold.sql").write_text("create table sold (item text);")
    project = Project(load(tmp_path, {}))
    async with project.opened_broker(create=True) as broker:
        await broker.create("till.shop", 1)
        await broker.publish([_sold(item) for item in ("first", "stuck", "last")])
    store = project.store("desk")
    ended: list[int] = []
    log = (tmp_path / "desk.log").open("wb")
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "oyez", "run", "desk"],
                cwd=tmp_path,
                env={**os.environ, "OYEZ_LOG": "json"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )

    async def dead() -> list[dict[str, Any]]:
        if running[-1].poll() is not None:
            ended.append(running[-1].returncode)
            start()
        try:
            return await store.fetch("select reason, event_id from oyez_dead", {})
        except Exception:  # noqa: BLE001 - the service has not made its store yet
            await store.close()
            if (tmp_path / ".oyez" / "desk.db").exists():
                await store.open()
            return []

    start()
    try:
        await until(dead, 200.0)
        (letter,) = await dead()
        assert letter["event_id"] == "stuck"
        assert "the process died" in letter["reason"]
        assert ended
        assert set(ended) == {STATUS}

        async def sold() -> bool:
            return len(await store.fetch("select item from sold", {})) == 2

        await until(sold)
    finally:
        running[-1].kill()
        await asyncio.to_thread(running[-1].wait)
        log.close()
        await store.close()
    lines = [json.loads(line) for line in (tmp_path / "desk.log").read_text().splitlines()]
    said = [line["error"] for line in lines if line.get("part") == "watchdog"]
    assert any("desk.record" in text and "time.sleep(0.1)" in text for text in said)


def _sold(item: str) -> Record:
    headers = {
        "specversion": "1.0",
        "id": item,
        "source": "/till/shop",
        "type": "till.sold",
        "subject": item,
    }
    return Record(
        stream="till.shop", key=item, headers=headers, data=json.dumps({"item": item}).encode()
    )
