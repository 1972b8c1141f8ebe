"""WebSockets through the gateway: bytes of a real client and a real service, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from test_gateway import Client, Upstream, broken, listening, refused, serving, settings
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from oyez.config import Config, load
from oyez.errors import ConfigurationError
from oyez.listening import HttpServer, bind, websocket
from oyez.runtime.http import with_origin

ROUTE = """
[[gateway.routes]]
path = "/talk"
service = "orders"
websocket = true
[[gateway.routes]]
path = "/talk/open"
service = "orders"
access = "public"
websocket = true
"""
HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Service:
    """What speaks WebSocket behind the gateway."""

    def __init__(self) -> None:
        self.seen: list[ServerConnection] = []
        self.left = asyncio.Event()
        self.sent = 0

    async def __call__(self, connection: ServerConnection) -> None:
        self.seen.append(connection)
        try:
            async for message in connection:
                if message == "leave":
                    await connection.close(4001, "as asked")
                elif message == "pour":
                    await self._pour(connection)
                else:
                    await connection.send(message)
        finally:
            self.left.set()

    async def _pour(self, connection: ServerConnection) -> None:
        while True:
            await connection.send(b"x" * 65_536)
            self.sent += 1


def config(folder: Path, port: int, more: str = "") -> Config:
    settings(folder, port, more)
    toml = folder / "oyez.toml"
    toml.write_text(toml.read_text() + ROUTE)
    return load(toml, {})


@contextlib.asynccontextmanager
async def talking(folder: Path, more: str = "") -> AsyncIterator[tuple[Service, Client]]:
    service = Service()
    options: dict[str, Any] = {"subprotocols": ["chat"], "max_size": None}
    async with serve(service, "127.0.0.1", 0, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with serving(config(folder, port, more)) as client:
            await client.post("/session")
            yield service, client


def through(client: Client, path: str = "/talk/a?b=%20c", **options: Any) -> connect:
    cookie = f"oyez_session={client.cookies['oyez_session']}; own=1"
    headers = {"cookie": cookie, **options.pop("headers", {})}
    url = f"ws://{client.address}{path}"
    options = {"proxy": None, "max_size": None, "subprotocols": ["chat"], **options}
    return connect(url, additional_headers=headers, **options)


async def refusal(opened: Awaitable[Any]) -> int:
    with pytest.raises(InvalidStatus) as wrong:
        await opened
    return wrong.value.response.status_code


async def test_messages_pass_both_ways(tmp_path: Path) -> None:
    async with talking(tmp_path) as (service, client), asyncio.timeout(30):
        async with through(client) as connection:
            assert connection.subprotocol == "chat"
            for message in ("text", b"bytes", "", b"y" * 3_000_000, "ü" * 100_000):
                await connection.send(message)
                assert await connection.recv() == message
            await (await connection.ping(b"there?"))
        await service.left.wait()
        (seen,) = service.seen
        assert (seen.close_code, connection.close_code) == (1000, 1000)
        assert seen.request is not None
        headers = seen.request.headers
        assert seen.request.path == "/talk/a?b=%20c"
        assert re.fullmatch(r"session:[0-9a-f-]{36}", headers["x-oyez-principal"])
        assert headers["cookie"] == "own=1"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert connection.response is not None
        assert connection.response.headers["x-request-id"] == headers["x-request-id"]
        assert "server" not in connection.response.headers


async def test_a_service_of_ours_serves_websockets(tmp_path: Path) -> None:
    """Its HTTP side as `oyez run` serves it: any ASGI app."""

    async def greet(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(f"hello {await socket.receive_text()}")
        await socket.close(4000)

    app = with_origin(Starlette(routes=[WebSocketRoute("/talk/open", greet)]))
    listener = bind("127.0.0.1", 0, lambda expected, found: ConfigurationError(found))
    server = HttpServer(app, listener, grace=1, ws=websocket)
    await server.start()
    try:
        settled = config(tmp_path, listener.getsockname()[1])
        async with serving(settled) as client, asyncio.timeout(30):
            url = f"ws://{client.address}/talk/open"
            async with connect(url, proxy=None) as connection:
                await connection.send("you")
                assert await connection.recv() == "hello you"
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
                assert connection.close_code == 4000
            assert await refusal(connect(f"{url}/other", proxy=None)) == 403
    finally:
        await server.stop()


async def test_the_services_close_reaches_the_client(tmp_path: Path) -> None:
    async with (
        talking(tmp_path) as (_, client),
        asyncio.timeout(30),
        through(client) as connection,
    ):
        await connection.send("leave")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert (connection.close_code, connection.close_reason) == (4001, "as asked")


async def test_a_client_that_is_gone_is_gone_for_the_service(tmp_path: Path) -> None:
    async with (
        talking(tmp_path) as (service, client),
        asyncio.timeout(30),
        through(client) as connection,
    ):
        await connection.send("x")
        await connection.recv()
        connection.transport.abort()
        await service.left.wait()


async def test_who_may_not_pass_is_refused(tmp_path: Path) -> None:
    async with talking(tmp_path) as (service, client), asyncio.timeout(30):
        own = f"http://{client.address}"
        async with through(client, origin=own):
            pass
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            for path in ("/talk", "/talk/open"):
                assert await refusal(through(client, path, headers=headers)) == 403
        assert await refusal(through(client, "/nothing")) == 404
        cookie = {"cookie": "a=b"}
        url = f"ws://{client.address}/talk"
        assert await refusal(connect(url, additional_headers=cookie, proxy=None)) == 401
        body = await client.request("GET", "/talk", headers=HANDSHAKE, content=b"x")
        refused(body, 400, "unexpected_body")
        assert len(service.seen) == 1


async def test_pages_of_origins_with_credentials_pass(tmp_path: Path) -> None:
    more = """
        [gateway.cors]
        origins = ["https://pages.example"]
        credentials = true
    """
    async with talking(tmp_path, more) as (_, client), asyncio.timeout(30):
        async with through(client, origin="https://pages.example"):
            pass
        assert await refusal(through(client, origin="https://evil.example")) == 403


async def test_what_a_service_answers_else_passes(tmp_path: Path) -> None:
    """Also where the route does not let WebSockets pass, or the client asks for none."""
    upstream = Upstream()
    async with listening(upstream) as port, serving(config(tmp_path, port)) as client:
        for path in ("/talk/open", "/open"):
            response = await client.get(path, headers=HANDSHAKE)
            assert (response.status_code, response.text) == (200, "hello ")
        first, second = (seen["map"] for seen in upstream.seen)
        assert first[b"upgrade"] == b"websocket"
        assert b"upgrade" not in second
        assert b"connection" not in second
        other = {**HANDSHAKE, "upgrade": "h2c"}
        assert (await client.get("/talk/open", headers=other)).status_code == 200
        assert b"upgrade" not in upstream.seen[2]["map"]


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101",
    ],
)
async def test_a_service_that_changes_to_something_else_is_broken(
    tmp_path: Path, says: bytes
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        writer.close()

    async with broken(handle) as port, serving(config(tmp_path, port)) as client:
        refused(await client.get("/talk/open", headers=HANDSHAKE), 502, "service_broken")


async def test_what_was_sent_early_is_not_lost(tmp_path: Path) -> None:
    """Neither behind the client's request nor behind the service's answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"
        writer.write(head + b"early")
        writer.write(await reader.readexactly(5))
        writer.close()

    async with broken(handle) as port, serving(config(tmp_path, port)) as client:
        lines = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
        head = f"GET /talk/open HTTP/1.1\r\nhost: x\r\n{lines}\r\n"
        answer = await client.raw(head.encode() + b"asked")
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\nearlyasked")


async def test_websockets_are_counted(tmp_path: Path) -> None:
    async with (
        talking(tmp_path, "tunnels = 1") as (_, client),
        asyncio.timeout(30),
    ):
        async with through(client):
            assert await refusal(through(client)) == 503
        while True:  # until the gateway has seen that it was closed
            try:
                async with through(client):
                    return
            except InvalidStatus:
                await asyncio.sleep(0.01)


async def test_silence_ends_a_websocket(tmp_path: Path) -> None:
    async with (
        talking(tmp_path, "tunnel_timeout = 0.2") as (service, client),
        asyncio.timeout(30),
        through(client, ping_interval=None) as connection,
    ):
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        await service.left.wait()


async def test_the_end_of_a_gateway_ends_websockets(tmp_path: Path) -> None:
    async with (
        talking(tmp_path, "grace = 300") as (service, client),
        asyncio.timeout(30),
        through(client) as connection,
    ):
        await connection.send("x")
        await connection.recv()
        client.serving.cancel()
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        await service.left.wait()
        await asyncio.wait({client.serving})


async def test_no_more_is_read_than_the_client_accepts(
    tmp_path: Path, until_still: Callable[[Callable[[], int]], Awaitable[int]]
) -> None:
    async with (
        talking(tmp_path) as (service, client),
        asyncio.timeout(60),
        through(client, max_queue=1, compression=None) as connection,
    ):
        await connection.send("pour")
        sent = await until_still(lambda: service.sent)
        assert 0 < sent < 512  # of endlessly many: what the sockets' buffers hold
        for _ in range(sent + 64):
            await connection.recv()
        assert service.sent > sent
        connection.transport.abort()


@pytest.fixture
def until_still() -> Callable[[Callable[[], int]], Awaitable[int]]:
    """It waits until a count has stood still for many turns of the loop, and more than none."""

    async def wait(count: Callable[[], int]) -> int:
        last, turns = -1, 0
        while turns < 50:
            await asyncio.sleep(0.01)
            turns = turns + 1 if count() == last and last > 0 else 0
            last = count()
        return last

    return wait
