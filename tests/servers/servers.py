"""The real brokers and databases that `scripts/services` runs, for tests that use and kill them.

    postgresql = server("postgresql")   # skips the test, by name, where it does not run

    async with postgresql.proxy() as proxy:   # to be cut, stalled and delayed
        url = proxy.through(postgresql.url)

A test that kills a server starts it again, come what may: others use it after. One that measures
itself against what a server takes to return brings up one of its own:

    with server_apart("kafka", tmp_path) as kafka:   # empty, and gone afterwards
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    folder: Path = SERVICES
    """Where its set of servers lives, which is what `scripts/services` calls OYEZ_SERVICES."""

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
        _services("kill", self.name, self.folder)

    def start(self) -> None:
        """Start it again, on the same data and port; returns when it does its work. Blocks."""
        _services("start", self.name, self.folder)

    def proxy(self) -> Proxy:
        """A proxy before it, to be opened by `async with`; one at a time, for Kafka's sake."""
        if "proxy" in self.ports:
            return Proxy(self.host, self.ports["proxied"], listen=self.ports["proxy"])
        return Proxy(self.host, self.port)


def server(name: str) -> Server:
    """The running server of this name; skips the test where there is none."""
    found = _entered(name, SERVICES)
    if found is not None and found.is_up():
        return found
    pytest.skip(f"{name} is not running: make services")


@contextmanager
def server_apart(name: str, folder: Path) -> Iterator[Server]:
    """A server of this kind that the test has for itself; skips the test as `server` does.

    What the suite left in the shared one, thousands of topics, takes Kafka most of a minute to
    look through after a kill.
    """
    server(name)
    apart = folder / "services"
    try:
        _services("up", name, apart)
        found = _entered(name, apart)
        assert found is not None
        yield found
    finally:
        down(name, apart)


def down(name: str, folder: Path) -> None:
    """Take down the server of this kind that has a folder for itself."""
    _services("down", name, folder)


def _entered(name: str, folder: Path) -> Server | None:
    try:
        service = json.loads((folder / "services.json").read_text())[name]
    except (FileNotFoundError, KeyError):
        return None
    return Server(name, service["url"], service["port"], service["ports"], folder)


def _services(command: str, name: str, folder: Path) -> None:
    ran = subprocess.run(
        [ROOT / "scripts" / "services", command, name],
        env={**os.environ, "OYEZ_SERVICES": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
