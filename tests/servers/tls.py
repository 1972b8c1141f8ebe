"""TLS before a real server, for tests of what a client trusts: a proxy that ends the encryption.

certificate = self_signed(tmp_path)
async with TlsProxy(host, port, certificate) as proxy:
    url = f"rediss://{proxy.host}:{proxy.port}?cafile={certificate.cafile}"
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from servers import LOOPBACK

CHUNK = 64 * 1024
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""What a client of PostgreSQL asks before it encrypts (Frontend/Backend Protocol, SSLRequest)."""


@dataclass(frozen=True)
class Certificate:
    """Files in PEM format: a certificate that vouches for itself, and its key."""

    cafile: Path
    keyfile: Path


def self_signed(folder: Path, name: str = LOOPBACK) -> Certificate:
    """A certificate for an address, made by openssl."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{name}",
         "-keyout", made.keyfile, "-out", made.cafile],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


class TlsProxy:
    """Takes TLS and forwards what it carries; open by ``async with``."""

    host = LOOPBACK

    def __init__(
        self, host: str, port: int, certificate: Certificate, *, listen: int = 0, asked: bytes = b""
    ) -> None:
        """Before ``host:port``; with ``asked`` it begins in the clear, until a client says that."""
        self.port = listen
        self._target = (host, port)
        self._asked = asked
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate.cafile, certificate.keyfile)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> TlsProxy:
        context = None if self._asked else self._context
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there: asyncio.StreamWriter | None = None
        try:
            if self._asked:
                assert await reader.readexactly(len(self._asked)) == self._asked
                writer.write(b"S")
                await writer.start_tls(self._context)
            back, there = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, there))
                both.create_task(_pump(back, writer))
        except* (OSError, EOFError, AssertionError):
            pass  # the client went away, or did not trust us
        finally:
            writer.close()
            if there is not None:
                there.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    with suppress(OSError, NotImplementedError):
        sink.close()
