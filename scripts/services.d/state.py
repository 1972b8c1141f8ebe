"""The folder in which one set of servers lives: ports and passwords, data, logs, services.json."""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(20_000, 30_000)
"""Below every system's own choices, so that no client's outgoing connection sits on a port while
its server is down (a client that reconnects could even meet itself there)."""


@dataclass(frozen=True)
class Settings:
    """What a server keeps for the life of the folder."""

    ports: Mapping[str, int]
    password: str


class State:
    """One folder of servers; several live side by side and share the cache."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.cache = cache

    @classmethod
    def here(cls) -> State:
        """The folder and the cache that OYEZ_SERVICES and SERVICES_CACHE name."""
        state = cls(
            Path(os.environ.get("OYEZ_SERVICES") or ROOT / ".services").absolute(),
            Path(os.environ.get("SERVICES_CACHE") or ROOT / ".services-cache").absolute(),
        )
        state.path.mkdir(parents=True, exist_ok=True)
        state.cache.mkdir(parents=True, exist_ok=True)
        return state

    def settings(self, name: str, ports: Sequence[str]) -> Settings:
        """A server's ports and password; chosen now if it has none yet."""
        with self.lock("settings"):
            everything = _read(self.path / "settings.json")
            mine = everything.setdefault(name, {"ports": {}, "password": secrets.token_hex(16)})
            taken = {port for other in everything.values() for port in other["ports"].values()}
            for port in ports:
                if port not in mine["ports"]:
                    mine["ports"][port] = _free_port(taken)
                    taken.add(mine["ports"][port])
            _write(self.path / "settings.json", everything)
        return Settings(mine["ports"], mine["password"])

    def forget(self, name: str) -> None:
        """Let go of a server's ports and password: the next `settings` chooses anew."""
        with self.lock("settings"):
            everything = _read(self.path / "settings.json")
            everything.pop(name, None)
            _write(self.path / "settings.json", everything)

    def services(self) -> dict[str, dict[str, Any]]:
        """What services.json says: the servers that were brought up, by name."""
        return _read(self.path / "services.json")

    def enter(self, name: str, service: Mapping[str, Any]) -> None:
        """Put a server into services.json."""
        with self.lock("services"):
            _write(self.path / "services.json", self.services() | {name: dict(service)})

    def leave(self, name: str) -> None:
        """Take a server out of services.json."""
        with self.lock("services"):
            others = {key: value for key, value in self.services().items() if key != name}
            _write(self.path / "services.json", others)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold one of the folder's locks, against threads and other commands."""
        with _locked(self.path / "locks" / name):
            yield

    @contextmanager
    def cached(self, name: str) -> Iterator[Path]:
        """Hold the lock of something in the cache; it is filled by who finds it missing."""
        with _locked(self.cache / "locks" / name):
            yield self.cache / name


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new folder that takes the name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        filled = Path(scratch) / path.name
        filled.mkdir()
        yield filled
        filled.rename(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file at once, readable by its owner alone: passwords stand in it."""
    fd, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(fd, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    Path(scratch).rename(path)


def _free_port(taken: set[int]) -> int:
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")
