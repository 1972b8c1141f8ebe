"""What a gateway has begun, any other tells the end of: nothing of it is in the first one alone."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import running_shop

from oyez.testing.ticks import Ticks, ticking, until
from servers import server

GATEWAY = """
[gateway]
listen = "127.0.0.1:0"

[[gateway.routes]]
path = "/slow"
service = "counter"
methods = ["POST"]
until = ["ticks.tock"]
show = ["number"]
"""


def add_gateway(ticks: Ticks) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    toml = ticks.root / "oyez.toml"
    text = toml.read_text().replace('http = "127.0.0.1:0"', f'http = "127.0.0.1:{port}"')
    toml.write_text(text + GATEWAY)


async def begun(ticks: Ticks) -> tuple[subprocess.Popen[bytes], str]:
    """One more gateway, and where it listens."""
    process = ticks.start_replica("gateway")
    log = ticks.root / f"replica{len(ticks.replicas) - 1}.log"

    async def started() -> bool:
        return '"started"' in log.read_text()

    await until(started, why=log.read_text)
    return process, f"http://{ticks.http()}"


class Stream:
    """The messages of a flow, as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.id = ""

    async def next(self) -> tuple[str, dict[str, Any]]:
        name = ""
        async with asyncio.timeout(60):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self.id = value
                elif field == "data":
                    return name, json.loads(value)
        raise EOFError


@pytest.mark.parametrize("broker", ["embedded", "nats"])
async def test_a_flow_outlives_the_gateway_that_began_it(tmp_path: Path, broker: str) -> None:
    url = "embedded:.oyez/events.db" if broker == "embedded" else server(broker).url
    async with ticking(tmp_path / "ticks", broker=url) as ticks:
        add_gateway(ticks)
        (ticks.root / "slow").touch()
        await ticks.started()
        first, at = await begun(ticks)
        async with httpx.AsyncClient(timeout=30) as client:
            await client.post(f"{at}/session")
            answer = await client.post(f"{at}/slow/1")
            assert answer.status_code == 202, answer.text
            flow = answer.headers["location"]
            async with client.stream(
                "GET", at + flow, headers={"accept": "text/event-stream"}
            ) as response:
                stream = Stream(response)
                name, data = await stream.next()
                assert (name, data["type"]) == ("progress", "ticks.tick")
                assert (data["service"], data["data"]) == ("counter", {"number": 1})
                first.kill()
                with pytest.raises((httpx.HTTPError, EOFError)):
                    await stream.next()
            await asyncio.to_thread(first.wait)

            _, at = await begun(ticks)
            again = {"accept": "text/event-stream", "last-event-id": stream.id}
            async with client.stream("GET", at + flow, headers=again) as response:
                stream = Stream(response)
                (ticks.root / "slow").unlink()
                name, data = await stream.next()
                assert (name, data["type"]) == (
                    "progress",
                    "ticks.tock",
                )  # the tick is not told again
                name, data = await stream.next()
                assert (name, data["state"]) == ("end", "done")
                assert [each["type"] for each in data["events"]] == ["ticks.tick", "ticks.tock"]
        async with httpx.AsyncClient(base_url=at, timeout=30) as other:
            await other.post("/session")
            assert (await other.get(flow)).status_code == 404


def test_a_customer_waits_for_an_order_and_finds_it_in_the_list(tmp_path: Path) -> None:
    """The list is a view of another reader; the end brings what it has to have read."""
    order = {
        "lines": [{"sku": "bell", "quantity": 1}],
        "email": "ann@example.org",
        "card": "tok_ok",
    }
    with running_shop(tmp_path) as shop, httpx.Client(base_url=shop.url, timeout=60) as client:
        client.post("/session")
        for card, end, status in (
            ("tok_ok", "shop.shipment.ready", "shipped"),
            ("tok_declined", "shop.order.cancelled", "cancelled"),
        ):
            answer = client.post(
                "/orders", json={**order, "card": card}, headers={"prefer": "wait=30"}
            )
            assert answer.status_code == 200, answer.text
            document = answer.json()
            assert document["end"]["type"] == end
            assert answer.headers["location"] == f"/orders/{document['end']['subject']}"
            assert "ann@example.org" not in answer.text
            listed = client.get("/orders").json()
            assert listed["complete"]
            assert listed["orders"][0]["status"] == status
        assert document["end"]["data"] == {"reason": "card_declined"}
