"""``python -m benchmarks.http_peers service|relay LISTEN [TARGET]``: the other ends of `gateway`.

``service`` answers every request with the same bytes and costs little, so that what stands before
it is measured. ``relay`` passes bytes on between a client and a service and reads none of them:
what a proxy on asyncio's protocols costs before it does anything.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from oyez.cli.invocation import run_async

POSTED = b'{"order":"' + b"x" * 1012 + b'"}'
ANSWERED = b'{"state":"' + b"y" * 1012 + b'"}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWERED),
    ANSWERED,
)
_WRONG = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"


class Service(asyncio.Protocol):
    """It refuses a POST with another body than `POSTED`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to answer."""
        self._transport = cast(asyncio.Transport, transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        received = self._received + data
        head, end, body = received.partition(b"\r\n\r\n")
        posts = head.startswith(b"POST ")
        if not end or (posts and len(body) < len(POSTED)):
            self._received = received
            return
        self._received = b""
        self._transport.write(ANSWER if body == (POSTED if posts else b"") else _WRONG)


class Relay(asyncio.Protocol):
    """A client's connection: its bytes go to an idle connection to the service, or a new one."""

    idle: list[_Onward]
    target: tuple[str, int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to answer."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self.idle:
            self.idle.pop().carry(data, self)
        else:
            self._task = asyncio.create_task(self._connect(data))

    async def _connect(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, onward = await loop.create_connection(_Onward, *self.target)
        onward.carry(data, self)


class _Onward(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def carry(self, data: bytes, client: Relay) -> None:
        self._client = client
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)
        self._client.idle.append(self)


async def main(kind: str, listen: str, target: str = "") -> None:
    """Serve until killed."""
    if kind == "relay":
        Relay.idle, Relay.target = [], ("127.0.0.1", int(target))
    protocol = Relay if kind == "relay" else Service
    loop = asyncio.get_running_loop()
    # All that stand before it may connect at once.
    server = await loop.create_server(protocol, "127.0.0.1", int(listen), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    run_async(main(*sys.argv[1:]))
