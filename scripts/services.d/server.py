"""What every server has in common: one small face, and how its programs are found."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from errors import Missing, NotReady
from process import Command, Process
from state import State

LOOPBACK = os.environ.get("SERVICES_ADDRESS") or "127.0.0.1"
"""Where servers listen: at another address only in a network that nobody else is in."""
SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Where Debian puts daemons, which an ordinary user's PATH leaves out."""


class Server(ABC):
    """One kind of server: how it is installed, set up, started and asked whether it answers."""

    name: ClassVar[str]
    durability: ClassVar[str]
    """What an acknowledgement of this server is worth, with the setting behind it."""
    port_names: ClassVar[tuple[str, ...]] = ("client",)
    after: ClassVar[tuple[str, ...]] = ()
    """Servers that must answer before this one is started."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    patience: ClassVar[float] = 90.0
    """Seconds for a start, and for an orderly stop, on a busy machine."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.folder = state.path / self.name
        self.log = self.folder / "log"
        settings = state.settings(self.name, self.port_names)
        self.ports: Mapping[str, int] = settings.ports
        self.password = settings.password

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.ports[self.port_names[0]]

    @property
    @abstractmethod
    def url(self) -> str:
        """What Oyez is given to use it; carries the password."""

    @abstractmethod
    def install(self) -> None:
        """Bring what it needs onto this machine, or raise ServiceError."""

    @abstractmethod
    def version(self) -> str:
        """The version that is installed."""

    @abstractmethod
    def prepare(self) -> None:
        """Write its configuration, and make its data folder if there is none."""

    @abstractmethod
    def command(self) -> Command:
        """How it is started."""

    @abstractmethod
    def ask(self) -> None:
        """Have it do something that only a working server can; raises NotReady or OSError."""

    def extras(self) -> Mapping[str, object]:
        """More for services.json, beside url, pid, ports, version and durability."""
        return {}

    def companions(self) -> Sequence[Process]:
        """Other processes of it, which stay through a crash and end after an orderly stop."""
        return ()


def program(name: str, package: str) -> Path:
    """The path of an installed program; raises Missing with the package that brings it."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *SBIN)))
    if found is None:
        raise Missing(name, package)
    return Path(found)


def get(url: str, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """What an HTTP server on loopback answers, past any proxy of the environment.

    Raises NotReady for a status that is no success.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=5) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refusal:
        raise NotReady(f"{url} answers {refusal.code}") from refusal


def version_of(executable: Path, *arguments: str) -> str:
    """The first version number that a program prints about itself."""
    said = subprocess.run(
        [executable, *(arguments or ("--version",))], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found[0] if found else "unknown"
