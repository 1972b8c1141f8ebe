"""A gateway is killed between the service's commit and its answer: the repeat makes no second one.

The gateway cannot know what became of the work, so the repeat reaches the service, at another
replica of the gateway; the service keeps the key in the transaction of its own effects.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import free_ports
from test_gateway import listening

SECONDS = 60.0


class Orders:
    """A service that keeps each key with its order, and can wait after its commit."""

    def __init__(self, folder: Path) -> None:
        self.database = sqlite3.connect(folder / "orders.db")
        self.database.execute("create table orders (id integer primary key)")
        self.database.execute(
            "create table placement (principal, key, id, primary key (principal, key))"
        )
        self.database.commit()
        self.reached = 0
        self.committed = asyncio.Event()
        self.gate = asyncio.Event()

    @property
    def orders(self) -> int:
        count: int = self.database.execute("select count(*) from orders").fetchone()[0]
        return count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.reached += 1
        headers = dict(scope["headers"])
        key = headers[b"x-oyez-principal"].decode(), headers[b"idempotency-key"].decode()
        sql = "select id from placement where principal = ? and key = ?"
        known = self.database.execute(sql, key).fetchone()
        if known is None:
            with self.database:
                number = self.database.execute("insert into orders default values").lastrowid
                self.database.execute("insert into placement values (?, ?, ?)", (*key, number))
            self.committed.set()
            await self.gate.wait()
        else:
            number = known[0]
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b"order %d" % number})


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """A replica of the gateway in a process of its own, once it accepts requests."""
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {**os.environ, "OYEZ_GATEWAY_LISTEN": listen, "OYEZ_PROJECT": str(folder)}
    command = [sys.executable, "-m", "oyez", "gateway"]
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        headers = {"x-api-key": "ci"}
        async with httpx.AsyncClient(base_url=f"http://{listen}", headers=headers) as client:
            async with asyncio.timeout(SECONDS):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get("/readyz")).status_code == 200:
                            break
                    assert process.poll() is None
                    await asyncio.sleep(0.05)
            yield client, process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def test_a_kill_between_the_commit_and_the_answer_makes_one_order(tmp_path: Path) -> None:
    service = Orders(tmp_path)
    (tmp_path / "keys.toml").write_text(
        f'[keys.ci]\nsha256 = "{hashlib.sha256(b"ci").hexdigest()}"\n'
    )
    (tmp_path / "keys.toml").chmod(0o600)
    async with listening(service) as port:
        (tmp_path / "oyez.toml").write_text(
            f"""
            [system]
            name = "shop"
            [services.orders]
            app = "a:b"
            http = "127.0.0.1:{port}"
            [gateway]
            keys = "keys.toml"
            [gateway.idempotency]
            lease = 4
            [[gateway.routes]]
            path = "/orders"
            service = "orders"
            methods = ["POST"]
            idempotency = "required"
            """
        )
        try:
            async with gateway(tmp_path) as (one, process), gateway(tmp_path) as (two, _):
                order = {"headers": {"idempotency-key": "k"}, "content": b"a lantern"}
                first = asyncio.create_task(one.post("/orders", timeout=None, **order))
                async with asyncio.timeout(SECONDS):
                    await service.committed.wait()
                process.send_signal(signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    await first

                repeats: list[httpx.Response] = []
                async with asyncio.timeout(SECONDS):
                    while not repeats or repeats[-1].status_code == 409:
                        repeats.append(await two.post("/orders", **order))
                        await asyncio.sleep(0.05)
                assert repeats[0].status_code == 409  # as nobody knows what became of the first
                answer = repeats[-1]
                assert (answer.status_code, answer.text) == (202, "order 1")
                assert "idempotency-replayed" not in answer.headers
                again = await two.post("/orders", **order)
                assert (again.status_code, again.text) == (202, "order 1")
                assert again.headers["idempotency-replayed"] == "true"
                assert (service.orders, service.reached) == (1, 2)
        finally:
            service.gate.set()
            service.database.close()
