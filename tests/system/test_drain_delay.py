"""A process that is told to stop is not ready any more, and takes requests for its drain delay."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from oyez.http_client import Client
from oyez.testing.ticks import until

DELAY = 4
BOUND = 40.0
SETTINGS = """\
[system]
name = "till"

[services.desk]
app = "till_desk:service"
http = "127.0.0.1:{http}"
admin = "127.0.0.1:{admin}"
drain_delay = {delay}

[gateway]
listen = "127.0.0.1:{http}"
admin = "127.0.0.1:{admin}"
drain_delay = {delay}

[[gateway.routes]]
path = "/sales"
service = "desk"
"""
CODE = """\
from oyez import Service


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})


service = Service("desk", http=app)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def status(port: int, path: str) -> int:
    """Return the status of a request on a new connection; 0 where there is nobody."""
    try:
        async with Client(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.parametrize("command", [("run", "desk"), ("gateway",)], ids=["service", "gateway"])
async def test_requests_are_taken_while_it_is_not_ready_any_more(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    http, admin = free_port(), free_port()
    (tmp_path / "oyez.toml").write_text(SETTINGS.format(http=http, admin=admin, delay=DELAY))
    (tmp_path / "till_desk.py").write_text(CODE)
    process = subprocess.Popen(
        [sys.executable, "-m", "oyez", *command],
        env={**os.environ, "OYEZ_PROJECT": str(tmp_path), "OYEZ_LOG": "json"},
        stderr=subprocess.PIPE,
    )
    path = "/" if command[0] == "run" else "/livez"

    async def ready() -> bool:
        return await status(admin, "/readyz") == 200

    async def draining() -> bool:
        return await status(admin, "/readyz") == 503

    async def ended() -> bool:
        return process.poll() is not None

    try:
        await until(ready, BOUND)
        process.send_signal(signal.SIGTERM)
        await until(draining, BOUND)
        assert await status(http, path) == 200
        assert process.poll() is None
        await until(ended, BOUND)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert await status(http, path) == 0
