"""The real brokers and databases that `scripts/services` runs, for tests that use and kill them.

    postgresql = server("postgresql")   # skips the test, by name, where it does not run

    async with postgresql.proxy() as proxy:   # to be cut, stalled and delayed
        url = proxy.through(postgresql.url)

A test that kills a server starts it again, come what may: others use it after.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from oyez.testing.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
SERVICES = Path(os.environ.get("OYEZ_SERVICES") or ROOT / ".services")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A server that was brought up; its data and its port outlive its process."""

    name: str
    url: str
    port: int
    ports: Mapping[str, int]

    @property
    def host(self) -> str:
        """Where it listens."""
        return LOOPBACK

    def is_up(self) -> bool:
        """Whether it accepts a connection."""
        try:
            socket.create_connection((self.host, self.port), 2).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """kill -9 its process. Blocks; `asyncio.to_thread` where the test's loop must go on."""
        self._services("kill")

    def start(self) -> None:
        """Start it again, on the same data and port; returns when it does its work. Blocks."""
        self._services("start")

    def proxy(self) -> Proxy:
        """A proxy before it, to be opened by `async with`; one at a time, for Kafka's sake."""
        if "proxy" in self.ports:
            return Proxy(self.host, self.ports["proxied"], listen=self.ports["proxy"])
        return Proxy(self.host, self.port)

    def _services(self, command: str) -> None:
        ran = subprocess.run(
            [ROOT / "scripts" / "services", command, self.name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


def server(name: str) -> Server:
    """The running server of this name; skips the test where there is none."""
    try:
        service = json.loads((SERVICES / "services.json").read_text())[name]
    except (FileNotFoundError, KeyError):
        service = None
    if service is not None:
        found = Server(name, service["url"], service["port"], service["ports"])
        if found.is_up():
            return found
    pytest.skip(f"{name} is not running: make services")
