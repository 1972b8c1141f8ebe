"""The gateway over real sockets: who passes, what a service and a client see, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import uvicorn

from oyez.ambient import SystemAmbient
from oyez.config import Config, Listen, load
from oyez.errors import ConfigurationError
from oyez.gateway import Records, edge, gateway, serve
from oyez.gateway.admin import Observer
from oyez.gateway.secret import read_secret
from oyez.logger import configure
from oyez.observe.metrics import Metrics

KEY = "canary-key-0123456789"


class Upstream:
    """A service: tells what it saw, and misbehaves on demand."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.closed = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append({**scope, "body": body, "map": dict(scope["headers"])})
        headers = [(b"content-type", b"text/plain"), (b"x-own", b"1"), (b"x-oyez-inner", b"no")]
        headers += [(b"connection", b"x-hop"), (b"x-hop", b"1"), (b"keep-alive", b"x")]
        headers += [(b"set-cookie", b"oyez_session=stolen"), (b"set-cookie", b"own=1")]
        if scope["path"].endswith("/placed"):
            headers.append((b"oyez-after", dict(scope["headers"])[b"x-token"]))
        if scope["path"].endswith("/away"):
            host = dict(scope["headers"])[b"host"]
            headers.append((b"location", b"http://" + host + b"/orders/"))
        if scope["path"].endswith("/live"):
            headers.append((b"x-accel-buffering", b"no"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"].endswith("/live"):
            await self._live(receive, send)
        else:
            await send({"type": "http.response.body", "body": b"hello " + body})

    async def _live(self, receive, send) -> None:
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        waiting = [asyncio.create_task(receive()), asyncio.create_task(self.go_on.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting[0].done():
            self.closed.set()
        for each in waiting:
            each.cancel()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})


class Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        options = {"log_config": None, "lifespan": "off", "access_log": False, "ws": "none"}
        # Else uvicorn shows the address in X-Forwarded-For as that of its client.
        server = Quiet(uvicorn.Config(app, proxy_headers=False, **options))
        ready = asyncio.Event()
        startup = server.startup

        async def started(sockets):
            await startup(sockets)
            ready.set()

        server.startup = started
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await ready.wait()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def broken(handle: Callable[..., Any]) -> AsyncIterator[int]:
    """A service that speaks what ``handle`` writes."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def settings(folder: Path, port: int, more: str = "") -> Config:
    (folder / "keys.toml").write_text(
        f'[keys.ci]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'
        f'[keys.other]\nsha256 = "{"0" * 64}"\n'
    )
    (folder / "keys.toml").chmod(0o600)
    (folder / "oyez.toml").write_text(
        f"""
        [system]
        name = "shop"
        [services.orders]
        app = "a:b"
        http = "127.0.0.1:{port}"
        [gateway]
        listen = "127.0.0.1:0"
        keys = "keys.toml"
        {more}
        [[gateway.routes]]
        path = "/open"
        service = "orders"
        access = "public"
        methods = ["GET", "POST"]
        [[gateway.routes]]
        path = "/open/live"
        service = "orders"
        access = "public"
        stream = true
        [[gateway.routes]]
        path = "/orders"
        service = "orders"
        methods = ["GET", "POST"]
        [[gateway.routes]]
        path = "/open/closed"
        service = "orders"
        """
    )
    return load(folder / "oyez.toml", {})


class Clock(SystemAmbient):
    """The real surroundings, with a wall clock that can be put forward."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@contextlib.asynccontextmanager
async def serving(
    config: Config,
    ambient: SystemAmbient | None = None,
    observer: Observer | None = None,
    records: Records | None = None,
) -> AsyncIterator[Client]:
    at: asyncio.Future[tuple[Listen, Listen]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            config,
            ambient or SystemAmbient(),
            ready=lambda listen, admin: at.set_result((listen, admin)),
            observer=observer,
            records=records,
        )
    )
    await asyncio.wait({task, at}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    async with Client(base_url=f"http://{at.result()[0]}", timeout=10) as client:
        client.address, client.admin = at.result()
        client.serving = task
        try:
            yield client
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Client(httpx.AsyncClient):
    address: Listen
    admin: Listen
    serving: asyncio.Task[None]

    async def raw(self, data: bytes) -> bytes:
        """What comes back for exactly these bytes, until the gateway closes."""
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def target(self, target: str, **headers: str) -> int:
        """The status for a request target that is sent byte for byte."""
        head = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        data = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n"
        return int((await self.raw(data.encode("latin-1"))).split()[1])


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def client(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Client]:
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "body_limit = 1000\ntimeout = 0.5")) as client,
    ):
        yield client


def refused(response: httpx.Response, status: int, code: str) -> httpx.Response:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == "about:blank"
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]
    return response


# What passes


async def test_a_request_and_its_answer_pass(client: Client, upstream: Upstream) -> None:
    response = await client.post(
        "/open/a%20b?q=%2F..;x",
        content=b"body",
        headers={
            "x-request-id": "client-chosen-1",
            "x-custom": "kept",
            "X-Oyez-Principal": "key:forged",
            "x_oyez_principal": "key:forged",
            "X-Forwarded-For": "6.6.6.6",
            "Forwarded": "for=6.6.6.6",
            "X-Real-IP": "6.6.6.6",
            "Connection": "x-secret-hop, x-forwarded-host",
            "x-secret-hop": "1",
            "Proxy-Authorization": "x",
            "TE": "trailers",
            "Cookie": "a=1; oyez_session=bad; b=2",
        },
    )
    assert response.text == "hello body"
    assert response.headers["x-request-id"] == "client-chosen-1"
    assert response.headers["x-own"] == "1"
    for name in ("x-oyez-inner", "x-hop", "keep-alive", "server"):
        assert name not in response.headers
    assert response.headers.get_list("set-cookie") == ["own=1"]
    assert response.headers.get_list("date") == [response.headers["date"]]
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"

    (seen,) = upstream.seen
    headers = seen["map"]
    assert seen["raw_path"] == b"/open/a%20b"
    assert seen["query_string"] == b"q=%2F..;x"
    assert headers[b"host"].decode() == f"127.0.0.1:{seen['server'][1]}"
    assert headers[b"x-forwarded-for"] == b"127.0.0.1"
    assert headers[b"x-forwarded-host"].decode() == str(client.address)
    assert headers[b"x-forwarded-proto"] == b"http"
    assert headers[b"forwarded"].startswith(b'for="127.0.0.1";host=')
    assert headers[b"x-request-id"] == b"client-chosen-1"
    assert headers[b"x-custom"] == b"kept"
    assert headers[b"cookie"] == b"a=1; b=2"
    assert headers[b"content-length"] == b"4"
    assert b"6.6.6.6" not in repr(seen["headers"]).encode()
    for name in (b"x-oyez-principal", b"x_oyez_principal", b"x-secret-hop", b"te", b"x-real-ip"):
        assert name not in headers


async def test_request_ids_and_traces(client: Client, upstream: Upstream) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    kept = {"traceparent": trace, "tracestate": "a=1", "x-request-id": "bad id"}
    response = await client.get("/open", headers=kept)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}", response.headers["x-request-id"])
    await client.get(
        "/open", headers={"traceparent": "00-" + "0" * 32 + "-1-01", "tracestate": "a"}
    )
    first, second = (seen["map"] for seen in upstream.seen)
    assert first[b"traceparent"].decode()[:36] == trace[:36]
    assert first[b"traceparent"].decode() != trace
    assert first[b"tracestate"] == b"a=1"
    assert re.fullmatch(rb"00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-01", second[b"traceparent"])
    assert b"tracestate" not in second


async def test_redirects_do_not_show_where_services_are(client: Client) -> None:
    response = await client.get("/open/away")
    assert response.headers["location"] == "/orders/"


async def test_a_client_reads_its_own_writes(client: Client, upstream: Upstream) -> None:
    """The token of an answer goes with the client's next requests, and its own token is kept."""
    await client.get("/open/1")
    assert b"oyez-after" not in upstream.seen[-1]["map"]
    first, second, third = (f"/shop/orders;id-{n};{t}" for n, t in ((1, "a"), (2, "b"), (3, "a")))
    placed = await client.get("/open/placed", headers={"x-token": f"{first}, {second}"})
    assert placed.headers["oyez-after"] == f"{first}, {second}"
    (cookie,) = (c for c in placed.headers.get_list("set-cookie") if c.startswith("oyez_after="))
    assert cookie.endswith("; Path=/; Max-Age=60; HttpOnly; SameSite=Strict")
    await client.get("/open/1")
    assert upstream.seen[-1]["map"][b"oyez-after"] == f"{first}, {second}".encode()
    assert b"oyez_after" not in upstream.seen[-1]["map"].get(b"cookie", b"")
    await client.get("/open/placed", headers={"x-token": third})
    await client.get("/open/1")
    assert upstream.seen[-1]["map"][b"oyez-after"] == f"{second}, {third}".encode()
    await client.get("/open/1", headers={"oyez-after": first})
    assert upstream.seen[-1]["map"][b"oyez-after"] == first.encode()


@pytest.mark.parametrize("broken", ["%", "e30", "A" * 4_000, "L3M7aWQ7dA,", "L3M7aWQ7dAdA"])
async def test_a_token_that_was_not_made_here_is_left_out(
    client: Client, upstream: Upstream, broken: str
) -> None:
    client.cookies.set("oyez_after", broken)
    assert (await client.get("/open/1")).status_code == 200
    assert b"oyez-after" not in upstream.seen[-1]["map"]
    longest = ", ".join(f"/shop/{'s' * 480};{'i' * 190}{n};t{n}" for n in range(10))
    placed = await client.get("/open/placed", headers={"x-token": longest})
    assert (placed.status_code, "oyez_after" in placed.cookies) == (200, True)
    client.cookies.delete("oyez_after", domain="")
    assert (await client.get("/open/1")).status_code == 200
    kept = upstream.seen[-1]["map"][b"oyez-after"].decode().split(", ")
    assert kept == longest.split(", ")[-len(kept) :]
    assert 0 < len(kept) < 10


async def test_connections_to_a_service_are_kept(client: Client, upstream: Upstream) -> None:
    for _ in range(5):
        await client.get("/open")
    assert len({seen["client"] for seen in upstream.seen}) == 1


# Routes


async def test_what_no_route_names_is_refused(client: Client, upstream: Upstream) -> None:
    refused(await client.get("/nothing"), 404, "not_found")
    refused(await client.get("/openx"), 404, "not_found")
    refused(await client.get("/"), 404, "not_found")
    response = refused(await client.delete("/open"), 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, POST"
    refused(await client.get("/session"), 405, "method_not_allowed")
    refused(await client.post("/open/live"), 405, "method_not_allowed")
    assert not upstream.seen
    assert (await client.head("/open/x")).status_code == 200


AMBIGUOUS = [
    "/open/%2e%2e/orders",
    "/open/%2E./orders",
    "/open/%252e%252e/orders",
    "/open%2forders",
    "/open%5corders",
    "/open\\orders",
    "/open/%00",
    "//open",
    "/open//x",
    "/open;x",
    "/open%3bx",
    "/open/../orders",
    "/open/./x",
    "/open/%zz",
    "/open/%ff",
    "/open/closed#x",
    "/open?a#b",
    "/open/%0d%0ax",
    "http://evil/open",
    "*",
    "open",
]


async def test_ambiguous_paths_are_refused(client: Client, upstream: Upstream) -> None:
    for path in AMBIGUOUS:
        assert await client.target(path) == 400, path
    assert not upstream.seen


async def test_an_encoded_letter_does_not_change_the_route(client: Client) -> None:
    assert await client.target("/open/closed/x") == 401
    assert await client.target("/open/%63losed/x") == 401


async def test_its_own_state(client: Client) -> None:
    assert (await client.get("/livez")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200


# Access


async def test_api_keys(client: Client, upstream: Upstream) -> None:
    response = refused(await client.get("/orders"), 401, "credentials_missing")
    assert response.headers["www-authenticate"].startswith("Bearer")
    for headers in (
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": ""},
        {"x-api-key": KEY, "authorization": f"Bearer {KEY}"},
    ):
        refused(await client.get("/orders", headers=headers), 401, "key_invalid")
    assert not upstream.seen
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert (await client.post("/orders", headers=headers)).status_code == 200
    for seen in upstream.seen:
        assert seen["map"][b"x-oyez-principal"] == b"key:ci"
        assert KEY not in repr(seen["headers"])


async def test_sessions(tmp_path: Path, upstream: Upstream) -> None:
    clock = Clock()
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "session_lifetime = 60"), clock) as client,
    ):
        response = await client.post("/session")
        assert response.status_code == 204
        cookie = response.headers["set-cookie"]
        for flag in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=60"):
            assert flag in cookie
        assert "Secure" not in cookie
        assert (await client.get("/orders")).status_code == 200
        principal = upstream.seen[0]["map"][b"x-oyez-principal"].decode()
        assert re.fullmatch(r"session:[0-9a-f-]{36}", principal)
        assert b"cookie" not in upstream.seen[0]["map"]

        clock.ahead = 59
        await client.post("/session")
        clock.ahead = 61
        assert (await client.get("/orders")).status_code == 200
        assert upstream.seen[1]["map"][b"x-oyez-principal"].decode() == principal

        token = client.cookies["oyez_session"]
        clock.ahead = 200
        refused(await client.get("/orders"), 401, "session_expired")
        clock.ahead = 0
        client.cookies.clear()
        name, expiry, mac = token.split(".")
        for forged in (
            f"{name}.{int(expiry) + 1}.{mac}",
            f"{name}.{expiry}.{'0' * 64}",
            "x",
            f"{token}; oyez_session={token}",
        ):
            cookie = f"oyez_session={forged}"
            response = await client.get("/orders", headers={"cookie": cookie})
            refused(response, 401, "session_invalid")


async def test_other_sites_cannot_use_a_session(client: Client) -> None:
    await client.post("/session")
    own = f"http://{client.address}"
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": own},
    ):
        refused(await client.post("/orders", headers=headers), 403, "cross_origin")
        refused(await client.post("/session", headers=headers), 403, "cross_origin")
        assert (await client.get("/orders", headers=headers)).status_code == 200
    same = {"origin": own, "sec-fetch-site": "same-origin"}
    assert (await client.post("/orders", headers=same)).status_code == 200


async def test_cookies_are_secure_behind_tls(tmp_path: Path, upstream: Upstream) -> None:
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "tls = true")) as client,
    ):
        assert "; Secure" in (await client.post("/session")).headers["set-cookie"]
        await client.get("/open")
        assert upstream.seen[0]["map"][b"x-forwarded-proto"] == b"https"


def test_the_secret_is_made_once_and_kept_closed(tmp_path: Path) -> None:
    config = settings(tmp_path, 1)
    secret = read_secret(config)
    path = tmp_path / ".oyez" / "gateway.secret"
    assert (len(secret), path.stat().st_mode & 0o777) == (32, 0o600)
    assert read_secret(config) == secret
    assert os.listdir(path.parent) == ["gateway.secret"]
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="run chmod 600"):
        read_secret(config)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="found 5 bytes"):
        read_secret(config)


def test_wrong_files_are_refused_at_the_start(tmp_path: Path) -> None:
    config = settings(tmp_path, 1, 'static = "none"')
    with pytest.raises(ConfigurationError, match=r"gateway\.static: expected a folder"):
        gateway(config, SystemAmbient(), secret=b"x" * 32)
    config = settings(tmp_path, 1)
    keys = tmp_path / "keys.toml"
    keys.chmod(0o604)
    with pytest.raises(ConfigurationError, match=r"gateway\.keys: expected keys\.toml closed"):
        gateway(config, SystemAmbient(), secret=b"x" * 32)
    keys.chmod(0o600)
    keys.write_text('[keys.ci]\nsha256 = "canary"')
    with pytest.raises(ConfigurationError, match=r"keys\.toml:2: keys\.ci\.sha256") as caught:
        gateway(config, SystemAmbient(), secret=b"x" * 32)
    assert "canary" not in str(caught.value)
    keys.unlink()
    with pytest.raises(ConfigurationError, match="expected a file of API keys, found none"):
        gateway(config, SystemAmbient(), secret=b"x" * 32)


# Limits


async def test_bodies_over_the_limit(client: Client, upstream: Upstream) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    assert (await client.post("/open", content=b"x" * 1000)).status_code == 200
    for content in (b"x" * 1001, chunks(), b"x" * 3_000_000):
        response = refused(await client.post("/open", content=content), 413, "body_too_large")
        assert response.headers["connection"] == "close"
    assert len(upstream.seen) == 1


async def test_all_bodies_together_are_bounded(tmp_path: Path, upstream: Upstream) -> None:
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "buffer_limit = 1000")) as client,
    ):
        refused(await client.post("/open", content=b"x" * 1001), 503, "busy")
        for _ in range(3):
            assert (await client.post("/open", content=b"x" * 900)).status_code == 200


async def test_slow_bodies_and_slow_heads(client: Client, upstream: Upstream) -> None:
    head = b"POST /open HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body, started, idle = await asyncio.gather(
        client.raw(head + b"1\r\nx\r\n"),
        client.raw(b"GET /open HTTP/1.1\r\nHost: x\r\n"),
        client.raw(b""),
    )
    assert body.startswith(b"HTTP/1.1 408")
    assert b"slow_body" in body
    assert started.startswith(b"HTTP/1.1 408")
    assert b"slow_head" in started
    assert idle == b""
    assert not upstream.seen


async def test_encoded_bodies_are_refused(client: Client) -> None:
    response = await client.post("/open", content=b"x", headers={"content-encoding": "gzip"})
    refused(response, 415, "encoded_body")
    response = await client.post("/open", content=b"x", headers={"content-encoding": "identity"})
    assert response.status_code == 200


async def test_large_heads_are_refused(client: Client) -> None:
    for size in (17_000, 40_000, 300_000):
        head = (
            b"GET /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-big: "
            + b"x" * size
            + b"\r\n\r\n"
        )
        assert (await client.raw(head)).startswith(b"HTTP/1.1 431")
    many = "".join(f"x-{n}: 1\r\n" for n in range(101))
    head = f"GET /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{many}\r\n".encode()
    assert (await client.raw(head)).startswith(b"HTTP/1.1 431")


POST = b"POST /open HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /orders HTTP/1.1\r\nHost: x\r\n\r\n"


LOOSE = [
    CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n" + SMUGGLED,
    POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx" + SMUGGLED,
    POST + b"Content-Length: 1, 1\r\n\r\nx" + SMUGGLED + b"\r\n",
    POST + b"Content-Length: +1\r\n\r\nx" + SMUGGLED,
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"POST /open HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /open HTTP/1.1\r\nHost: x\r\nx-a: 1\r\n folded\r\n\r\n",
    b"GET /open HTTP/1.1\r\nHost: x\r\nx-a: 1\rx-b: 2\r\n\r\n",
    b"GET /open HTTP/1.1\nHost: x\n\n",
    b"GET /open HTTP/1.1\r\nHost: x\r\nx-a: 1\nx-b: 2\r\n\r\n",
    b"GET /open HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /open HTTP/1.1\r\n\r\n",
    b"GET /open HTTP/1.1\r\nHost: x\r\nx-a: \x00\r\n\r\n",
    b"GET /open HTTP/1.1\r\nHost: x/y@z\r\nConnection: close\r\n\r\n",
    b"NONSENSE\r\n\r\n",
    CHUNKED + b"\r\n1\r\nxXX0\r\n\r\n",
    CHUNKED + b"\r\n1;\n\r\nx\r\n0\r\n\r\n",
    CHUNKED + b"\r\n-1\r\nx\r\n0\r\n\r\n",
]


async def test_loose_framing_is_refused(client: Client, upstream: Upstream) -> None:
    for data in LOOSE:
        answer = await client.raw(data)
        assert answer.startswith(b"HTTP/1.1 400"), data
        assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1, data
        assert b"application/problem+json" in answer
        assert b"connection: close" in answer.lower()
    assert not upstream.seen


async def test_a_refused_body_is_not_read_as_a_request(client: Client, upstream: Upstream) -> None:
    head = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    answer = await client.raw(head + SMUGGLED + b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401")
    assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1
    assert not upstream.seen


async def test_pipelined_requests_are_all_checked(client: Client, upstream: Upstream) -> None:
    fine = b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await client.raw(fine + fine + b"GET /open HTTP/1.1\r\nHost: x\r\na: b\r\n c\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"400"]
    assert len(upstream.seen) == 2


async def test_idle_clients_keep_nobody_out(tmp_path: Path, upstream: Upstream) -> None:
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "connections = 10")) as client,
    ):
        host, at = client.address.host, client.address.port
        idle = [await asyncio.open_connection(host, at) for _ in range(30)]
        assert (await client.get("/open")).status_code == 200
        assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
        for _, writer in idle:
            writer.close()


# Failing services


async def test_a_service_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        config = settings(tmp_path, unused.getsockname()[1])
        async with serving(config) as client:
            response = refused(await client.get("/open"), 503, "service_unavailable")
            assert response.headers["retry-after"] == "1"
            assert (await client.get("/readyz")).status_code == 200


async def test_a_service_that_restarts_is_awaited(tmp_path: Path, upstream: Upstream) -> None:
    class Restarting(SystemAmbient):
        async def sleep(self, seconds: float) -> None:
            refusals.append(seconds)
            if len(refusals) == 2:
                listener.listen()
                running.set()
            await super().sleep(seconds)

    refusals: list[float] = []
    running = asyncio.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = settings(tmp_path, listener.getsockname()[1])
        async with serving(config, Restarting()) as client:
            answer = asyncio.create_task(client.post("/open", content=b"once"))
            await running.wait()
            server = Quiet(uvicorn.Config(upstream, log_config=None, lifespan="off"))
            serving_it = asyncio.create_task(server.serve(sockets=[listener]))
            assert (await answer).text == "hello once"
            server.should_exit = True
            await serving_it
    assert len(upstream.seen) == 1
    assert len(refusals) == 2


@pytest.mark.parametrize(
    ("says", "status", "asked"),
    [
        (b"", 502, 2),
        (b"nonsense\r\n\r\n", 502, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 502, 1),
        (None, 504, 1),
    ],
)
async def test_services_that_break_the_protocol(
    tmp_path: Path, says: bytes | None, status: int, asked: int
) -> None:
    served = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.readuntil(b"\r\n\r\n"))
        if says is None:
            await reader.read()
        else:
            writer.write(says)
        writer.close()

    async with (
        broken(handle) as port,
        serving(settings(tmp_path, port, "timeout = 0.3")) as client,
    ):
        response = await client.get("/open")
        refused(response, status, "service_timeout" if status == 504 else "service_broken")
        assert len(served) == asked


async def test_an_answer_that_breaks_off_is_seen_to(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        writer.close()

    async with broken(handle) as port, serving(settings(tmp_path, port)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/open")


@pytest.mark.parametrize(
    ("says", "body", "chunked"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", b"whole", False),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nwh\r\n3;x\r\nole\r\n0\r\nt: 1\r\n\r\n",
            b"whole",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nwhole", b"whole", True),
        (b"HTTP/1.0 200 OK\r\n\r\nwhole", b"whole", True),
        (
            b"HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n"
            b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nwhole",
            b"whole",
            False,
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", False),
    ],
)
async def test_answers_in_every_framing(
    tmp_path: Path, says: bytes, body: bytes, chunked: bool
) -> None:
    """However their bytes are cut."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(len(says)):
            writer.write(says[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with broken(handle) as port, serving(settings(tmp_path, port)) as client:
        answer = await client.get("/open")
        assert answer.content == body
        assert ("transfer-encoding" in answer.headers) == chunked
        old = await client.raw(b"GET /open HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\n" + body)
        assert b"chunked" not in old


async def test_answers_to_head_have_no_body(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    async with broken(handle) as port, serving(settings(tmp_path, port)) as client:
        for _ in range(2):
            answer = await client.head("/open")
            assert (answer.headers["content-length"], answer.content) == ("5", b"")


async def test_a_connection_that_the_service_closed_is_not_used(tmp_path: Path) -> None:
    """Nor one on which it sent more than was asked for: no request is lost, none is sent twice."""
    served: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if len(served) % 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        writer.close()

    async with broken(handle) as port, serving(settings(tmp_path, port)) as client:
        for number in range(1, 7):
            assert (await client.post("/open", content=b"")).text == "ok"
            assert len(served) == number


async def test_a_large_answer_passes_whole_and_waits_for_its_client(tmp_path: Path) -> None:
    part = bytes(range(256)) * 4096
    sent = 0
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        parts = 64 if b"/large" in await reader.readuntil(b"\r\n\r\n") else 4
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (parts * len(part)))
        with contextlib.suppress(ConnectionError):
            for _ in range(parts):
                writer.write(part)
                await writer.drain()
                sent += 1
        writer.close()
        ended.set()

    async with (
        broken(handle) as port,
        serving(settings(tmp_path, port, "timeout = 2.0")) as client,
    ):
        assert (await client.get("/open")).content == part * 4
        ended.clear()
        sent = 0
        _, writer = await asyncio.open_connection(
            client.address.host, client.address.port, limit=1024
        )
        writer.write(b"GET /open/large HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 10)
        writer.close()
    assert sent < 32  # of 64 MiB; what the sockets' buffers hold


async def test_a_client_that_asks_is_told_to_go_on(client: Client, upstream: Upstream) -> None:
    reader, writer = await asyncio.open_connection(client.address.host, client.address.port)
    writer.write(b"POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n")
    writer.write(b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    assert (await reader.read()).endswith(b"a\r\nhello body\r\n0\r\n\r\n")
    writer.close()
    assert b"expect" not in upstream.seen[0]["map"]


# Streams


async def test_events_are_streamed_without_a_total_timeout(
    client: Client, upstream: Upstream
) -> None:
    async with client.stream("GET", "/open/live") as response:
        assert response.headers["x-accel-buffering"] == "no"
        parts = response.aiter_raw()
        assert await anext(parts) == b"data: 1\n\n"
        with contextlib.suppress(TimeoutError):  # longer than the timeout of other answers
            await asyncio.wait_for(asyncio.Event().wait(), 0.7)
        upstream.go_on.set()
        assert await anext(parts) == b"data: 2\n\n"


async def test_a_client_that_hangs_up_ends_the_stream(client: Client, upstream: Upstream) -> None:
    async with client.stream("GET", "/open/live") as response:
        await anext(response.aiter_raw())
    await asyncio.wait_for(upstream.closed.wait(), 5)


async def test_sigterm_drains(tmp_path: Path, upstream: Upstream) -> None:
    held = asyncio.Event()
    free = asyncio.Event()

    async def app(scope, receive, send) -> None:
        if scope["path"] == "/open":
            held.set()
            await free.wait()
        await upstream(scope, receive, send)

    async with listening(app) as port, serving(settings(tmp_path, port)) as client:
        slow = asyncio.create_task(client.get("/open"))
        async with client.stream("GET", "/open/live") as response:
            parts = response.aiter_raw()
            await anext(parts)
            await held.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            assert [part async for part in parts] == []
        free.set()
        assert (await slow).status_code == 200
        await asyncio.wait_for(client.serving, 5)
        with pytest.raises(httpx.ConnectError):
            await client.get("/livez")


async def test_who_keeps_a_connection_open_does_not_hold_up_the_end(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that had begun could not say that its connection ends with it."""
    monkeypatch.setattr(edge, "_IDLE_SECONDS", 600.0)
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "grace = 300")) as client,
    ):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET /open/live HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(client.serving, 30)
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


async def test_a_port_in_use_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings(tmp_path, 1)
        config = load(tmp_path, {"OYEZ_GATEWAY_LISTEN": address})
        with pytest.raises(ConfigurationError) as caught:
            await serve(config, SystemAmbient())
    assert str(caught.value) == (
        "environment: OYEZ_GATEWAY_LISTEN: gateway.listen: expected a free port that may be used, "
        f"found {address} in use"
    )


# The admin port


async def test_the_admin_port_shows_what_the_gateway_did(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Apart from the address of clients, which knows of no metrics."""
    metrics = Metrics("gateway", service="gateway")
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, "body_limit = 10"), observer=metrics) as client,
    ):
        admin = f"http://{client.admin}"
        note = tmp_path / ".oyez" / "gateway.admin"
        assert note.read_text().strip() == str(client.admin)
        traced = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        assert (await client.get("/open/4711", headers=traced)).status_code == 200
        refused(await client.post("/open", content=b"x" * 11), 413, "body_too_large")
        refused(await client.get("/orders/1"), 401, "credentials_missing")
        refused(await client.get("/none"), 404, "not_found")
        assert (await client.raw(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        refused(await client.get("/metrics"), 404, "not_found")
        assert (await client.get(f"{admin}/readyz")).json() == {"status": "ok"}
        assert (await client.get(f"{admin}/livez")).status_code == 200
        refused(await client.get(f"{admin}/open"), 404, "not_found")
        refused(await client.post(f"{admin}/metrics"), 405, "method_not_allowed")
        accept = {"accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
        response = await client.get(f"{admin}/metrics", headers=accept)
    assert not note.exists()
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    lines = response.text.splitlines()
    total = "oyez_gateway_requests_total"
    assert f'{total}{{method="GET",route="/open",service="gateway",status="2xx"}} 1.0' in lines
    assert f'{total}{{method="POST",route="-",service="gateway",status="4xx"}} 1.0' in lines
    assert f'{total}{{method="GET",route="/orders",service="gateway",status="4xx"}} 1.0' in lines
    assert f'{total}{{method="GET",route="-",service="gateway",status="4xx"}} 2.0' in lines
    assert f'{total}{{method="other",route="-",service="gateway",status="4xx"}} 1.0' in lines
    assert 'oyez_gateway_refused_total{code="body_too_large",service="gateway"} 1.0' in lines
    assert 'oyez_gateway_refused_total{code="malformed",service="gateway"} 1.0' in lines
    assert 'oyez_gateway_in_flight_requests{service="gateway"} 0.0' in lines
    assert 'oyez_ready{service="gateway"} 1.0' in lines
    (connections,) = (line for line in lines if line.startswith("oyez_gateway_connections{"))
    assert float(connections.split()[1]) >= 1
    assert any(f'# {{trace_id="{"a" * 32}"}}' in line for line in lines)
    assert KEY not in response.text


async def test_the_admin_port_has_a_setting_of_its_own(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = settings(tmp_path, 1, f'admin = "127.0.0.1:{taken.getsockname()[1]}"')
        with pytest.raises(ConfigurationError, match=r"gateway\.admin: expected a free port"):
            await serve(config, SystemAmbient(), observer=Metrics("gateway"))


# The storefront


async def test_the_storefront(tmp_path: Path, upstream: Upstream) -> None:
    web = tmp_path / "web"
    (web / "open").mkdir(parents=True)
    (web / "sub").mkdir()
    (web / "index.html").write_text("<h1>shop</h1>")
    (web / "app.js").write_text("1")
    (web / "style.css").write_text("a{}")
    (web / ".env").write_text("secret")
    (web / "open" / "index.html").write_text("hidden by the route")
    (web / "out").symlink_to(tmp_path / "keys.toml")
    async with (
        listening(upstream) as port,
        serving(settings(tmp_path, port, 'static = "web"')) as client,
    ):
        index = await client.get("/")
        assert (index.text, index.headers["content-type"]) == (
            "<h1>shop</h1>",
            "text/html; charset=utf-8",
        )
        assert "default-src 'self'" in index.headers["content-security-policy"]
        assert index.headers["last-modified"]
        again = await client.get("/", headers={"if-none-match": index.headers["etag"]})
        assert again.status_code == 304
        assert (await client.get("/app.js")).headers["content-type"].startswith("text/javascript")
        assert (await client.get("/style.css")).headers["content-type"].startswith("text/css")
        head = await client.head("/app.js")
        assert (head.headers["content-length"], head.content) == ("1", b"")
        assert (await client.get("/open/")).text == "hello "
        for path in ("/.env", "/out", "/sub", "/sub/", "/none", "/app.js/x", "/" + "x" * 300):
            refused(await client.get(path), 404, "not_found")
        refused(await client.post("/index.html"), 404, "not_found")
        assert await client.target("/%2e%2e/keys.toml") == 400
        assert await client.target("/../keys.toml") == 400


# The log


@contextlib.contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """The lines that are logged in the block, when it has ended."""
    lines: list[dict[str, Any]] = []
    with contextlib.redirect_stderr(StringIO()) as errors:
        configure("json")
        try:
            yield lines
        finally:
            configure("console")
    lines += map(json.loads, errors.getvalue().splitlines())


async def test_one_line_a_request_without_secrets(client: Client) -> None:
    with logged() as lines:
        await client.post("/session")
        await client.get("/orders/1?token=canary-query", headers={"x-api-key": KEY})
        await client.get("/canary-path", headers={"authorization": f"Bearer {KEY}x"})
    assert [line["event"] for line in lines] == ["request"] * 3
    assert [line["route"] for line in lines] == ["/session", "/orders", "-"]
    assert [line["status"] for line in lines] == [204, 200, 404]
    assert {"method", "ms", "request_id", "trace_id"} <= set(lines[0])
    assert [line.get("sender") for line in lines] == [None, "api_key", None]
    assert "canary" not in repr(lines)
    assert client.cookies["oyez_session"] not in repr(lines)


async def test_a_bug_of_ours_shows_no_stack(tmp_path: Path) -> None:
    class Failing(SystemAmbient):
        async def sleep(self, seconds: float) -> None:
            raise RuntimeError("canary")

    with logged() as lines:
        async with serving(settings(tmp_path, 1), Failing()) as client:
            response = refused(await client.get("/open/live"), 500, "internal")
    assert "canary" not in response.text
    assert [line["event"] for line in lines] == ["gateway failed", "request"]


async def test_a_share_of_requests_is_logged_and_every_failure(
    tmp_path: Path, upstream: Upstream
) -> None:
    class Lot(SystemAmbient):
        lots: ClassVar[list[float]] = [0.9, 0.1]

        def chance(self) -> float:
            return self.lots.pop(0) if self.lots else 0.0

    async with listening(upstream) as port:
        with logged() as lines:
            async with serving(settings(tmp_path, port, "access_log = 0.5"), Lot()) as client:
                await client.get("/open/left-out", headers={"x-request-id": "left-out"})
                await client.get("/open/logged", headers={"x-request-id": "the-logged-one"})
    assert [line["request_id"] for line in lines] == ["the-logged-one"]
    with logged() as lines:
        async with serving(settings(tmp_path, 1, "access_log = 0")) as client:
            assert (await client.get("/nothing")).status_code == 404
            assert (await client.get("/open")).status_code == 503
    assert [line["status"] for line in lines] == [503]
