"""What a service shows of itself over HTTP, without an app of its own: JSON, once or live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from oyez import Event, Service, View, applies
from oyez.errors import DeclarationError
from oyez.reads import Reads
from oyez.testing import System, running


class Counted(Event, type="test.counted", key="name"):
    name: str
    count: int


class Counts(View, table="counts", key="name"):
    name: str
    count: int = 0
    seen: list[int] = msgspec.field(default_factory=list)

    @applies
    def counted(self, event: Counted) -> None:
        self.take(event)
        self.seen = [*self.seen, event.count]


def made() -> Service:
    service = Service("desk", publishes=(Counted,))
    service.view(Counts)

    @service.get("/counts/{name}")
    async def count(name: str) -> Counts | None:
        return await service.read(Counts, name)

    @service.live("/high", pause=0.0)
    async def high() -> list[Any]:
        return await service.fetch("select name from counts where count > 5 order by name")

    return service


async def tell(system: System, name: str, count: int) -> None:
    await system.publish(Counted(name=name, count=count))
    await system.settled()


async def test_a_read_is_json_and_what_is_not_there_is_404() -> None:
    async with running(made()) as system, system.http("desk") as client:
        await tell(system, "a", 3)
        found = await client.get("/counts/a")
        assert found.json() == {"name": "a", "count": 3, "seen": [3]}
        assert found.headers["content-type"] == "application/json"
        assert found.headers["cache-control"] == "no-store"
        lacking = await client.get("/counts/b")
        assert lacking.status_code == lacking.json()["status"] == 404
        assert lacking.headers["content-type"] == "application/problem+json"
        assert (await client.post("/counts/a")).status_code == 405
        assert (await client.get("/counts")).status_code == 404


async def test_a_live_page_is_sent_what_has_changed() -> None:
    service = made()
    async with running(service) as system:
        await system.settled()
        sent: list[bytes] = []
        assert isinstance(service.http, Reads)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        steps = [("low", 1), ("b", 9), ("low", 2), ("a", 6)]

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                assert headers[b"content-type"].startswith(b"text/event-stream")
                assert headers[b"cache-control"] == b"no-store"
                return
            sent.append(message["body"])
            if b'"a"' in sent[-1]:
                raise EOFError
            if not steps:
                return
            await tell(system, *steps.pop(0))
            await system.advance(0.2)

        scope = {"type": "http", "method": "GET", "path": "/high", "headers": []}
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}  # how a client leaves is an error
        with pytest.raises(EOFError):
            await service.http(scope, receive, send)
        told = [each for each in sent if each.startswith(b"data")]
        assert told == [
            b"data: []\n\n",
            b'data: [{"name":"b"}]\n\n',
            b'data: [{"name":"a"},{"name":"b"}]\n\n',
        ]
        assert {*sent} - {*told} <= {b": still here\n\n"}
        assert len(sent) > len(told)


async def one(name: str) -> None: ...
async def none() -> None: ...
def plain() -> None: ...


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda desk: desk.get("/x/{other}")(one), r"names \(other\), the function takes \(name\)"),
        (lambda desk: desk.live("/x")(one), r"names \(\), the function takes \(name\)"),
        (lambda desk: desk.get("/x")(plain), "read by an async def"),
        (lambda desk: desk.get("x")(none), "begins with /"),
        (lambda desk: desk.get("/x/{name:what}")(one), "/x/{name:what}"),
        (lambda desk: desk.get("/high")(none), "shows two things at /high"),
    ],
)
def test_a_wrong_declaration_is_refused(declare: Callable[[Service], object], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        declare(made())


def test_a_service_with_an_app_of_its_own_adds_routes_there() -> None:
    service = Service("desk", http=Starlette())
    with pytest.raises(DeclarationError, match="add a route there"):
        service.get("/x")(none)
