"""A Redis server of a benchmark's own: loopback, every write flushed before it is answered."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PROGRAM = "redis-server"


def installed() -> bool:
    """Whether there is a server to start (Debian: ``apt-get install redis-server``)."""
    return shutil.which(PROGRAM) is not None


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[str]:
    """Its URL, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await _answers(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _answers(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
