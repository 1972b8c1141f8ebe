"""Thousands of connections on which nothing is sent keep nobody out.

Ten thousand where the limit of open files admits as many, else as many as fit: each test process
and each gateway holds one end.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from test_gateway import Upstream, listening
from test_gateway_kills import gateway

WANTED = 10_000
REQUEST = b"GET /open HTTP/1.1\r\nHost: x\r\n"
OTHER_FILES = 500
"""Files that a process has open besides."""


def as_many_as_fit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED + OTHER_FILES
    allowed = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed - OTHER_FILES


@contextlib.asynccontextmanager
async def idle(url: httpx.URL, count: int, says: bytes) -> AsyncIterator[list[socket.socket]]:
    """Connections on which this alone is sent."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            await loop.sock_connect(each, (url.host, url.port))
            if says:
                await loop.sock_sendall(each, says)
            opened.append(each)
        yield opened


@pytest.mark.parametrize("held", [True, False], ids=["all held", "the oldest let go"])
@pytest.mark.parametrize("says", [b"", REQUEST], ids=["silent", "half"])
async def test_idle_connections_keep_nobody_out(tmp_path: Path, says: bytes, held: bool) -> None:
    count = as_many_as_fit()
    print(f"{count} idle connections")
    limits = f"connections = {count + 10}\ntimeout = 120" if held else ""
    async with listening(Upstream()) as port:
        (tmp_path / "oyez.toml").write_text(
            f"""
            [system]
            name = "shop"
            [services.orders]
            app = "a:b"
            http = "127.0.0.1:{port}"
            [gateway]
            access_log = 0
            {limits}
            [[gateway.routes]]
            path = "/open"
            service = "orders"
            access = "public"
            """
        )
        async with gateway(tmp_path) as (client, process):
            address = client.base_url
            async with idle(address, count, says) as connections:
                for _ in range(20):  # each a client that was not there before
                    async with httpx.AsyncClient(base_url=address, timeout=30) as new:
                        assert (await new.get("/open")).status_code == 200
                loop = asyncio.get_running_loop()
                if held:  # and are answered, once they say the rest
                    rest = (REQUEST + b"\r\n")[len(says) :]
                    for each in connections[:: count // 20]:
                        await loop.sock_sendall(each, rest)
                        answer = await asyncio.wait_for(loop.sock_recv(each, 15), 30)
                        assert answer == b"HTTP/1.1 200 OK"
                else:
                    assert await asyncio.wait_for(loop.sock_recv(connections[0], 1), 30) == b""
            assert process.poll() is None
