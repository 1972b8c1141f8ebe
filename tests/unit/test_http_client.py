"""Connections that a server resets as soon as they are there, as one does that dies."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from threading import Thread

import httpx
import pytest

from oyez.http_client import Client
from oyez.reset import was_reset
from oyez.webhooks.client import Client as Webhooks
from oyez.webhooks.reach import Reach

AT_ONCE = 100
"""Some of so many are reset before the loop comes to them."""


@pytest.fixture
async def resets() -> AsyncIterator[str]:
    """The URL of a server that resets every connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    thread = Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


async def test_a_client_raises_errors_of_the_network_alone(resets: str) -> None:
    async with Client(base_url=resets, trust_env=False) as client:

        async def fails() -> bool:
            with pytest.raises(httpx.TransportError) as caught:
                await client.get("/")
            return isinstance(caught.value.__cause__, AttributeError)

        async with asyncio.timeout(60):
            while not any(await asyncio.gather(*(fails() for _ in range(AT_ONCE)))):
                pass


async def test_a_webhook_is_told_of_as_failed(resets: str) -> None:
    reach = Reach(["127.0.0.0/8"], [int(resets.rpartition(":")[2])], http=True)
    async with Webhooks(reach) as client:
        posts = [client.post(f"{resets}/", {}, b"{}") for _ in range(AT_ONCE)]
        errors = {answer.error for answer in await asyncio.gather(*posts)}
    assert errors <= {"no connection", "the connection broke"}


def test_another_error_of_the_code_is_none_of_the_network() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = asyncio.getpeername  # type: ignore[attr-defined]
    assert not was_reset(caught.value)
