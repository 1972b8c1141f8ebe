"""Where a run takes place: servers, links and a file system of its own, all of which may be harmed.

The servers are those of scripts/services, in a folder and on ports of their own.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import lifecycle
from errors import ServiceError
from kinds import KINDS
from server import Server
from shop import Shop
from state import State

from oyez.testing.proxy import Proxy

HERE = Path(__file__).resolve().parent
LETS_GO = 10.0
"""Seconds that the last of a killed server's processes has, to be gone."""
BROKERS = ("embedded", "nats", "kafka", "redis", "rabbitmq", "postgresql", "sns_sqs")
STORES = ("sqlite", "postgresql")

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN
_NOTHING_FLUSHED = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH


class Servers:
    """The servers of one run, by the names of scripts/services."""

    def __init__(self, names: Sequence[str], folder: Path, cache: Path) -> None:
        self.names = tuple(names)
        folder.mkdir(parents=True, exist_ok=True)
        state = State(folder, cache)
        wanted = {need for name in names for need in (name, *KINDS[name].after)}
        self._servers: dict[str, Server] = {
            name: kind(state) for name, kind in KINDS.items() if name in wanted
        }

    def install(self) -> None:
        """Bring onto this machine what they need. Raises ServiceError."""
        for server in self._servers.values():
            server.install()

    def up(self) -> None:
        """Bring them all up. Raises ServiceError."""
        if self._servers:
            for failure in lifecycle.up(list(self._servers.values()), lambda line: None).values():
                raise failure

    def down(self) -> None:
        """Stop them, in order."""
        for server in reversed(self._servers.values()):
            lifecycle.down(server, wipe=False)

    def kill(self, name: str) -> None:
        """``kill -9`` a server's process."""
        lifecycle.crash(self._servers[name])

    def start(self, name: str) -> None:
        """Start it again on its data and ports; returns when it does its work."""
        lifecycle.start(self._servers[name])

    def url(self, name: str) -> str:
        """Return what Oyez connects to."""
        return self._servers[name].url

    def proxy(self, name: str) -> Proxy:
        """Return a proxy before a server, not open."""
        ports = self._servers[name].ports
        if "proxy" in ports:  # Kafka tells its clients where to go on
            return Proxy("127.0.0.1", ports["proxied"], listen=ports["proxy"])
        return Proxy("127.0.0.1", self._servers[name].port)


class Disk:
    """An ext4 file system in a file, mounted over a loop device."""

    def __init__(self, image: Path, place: Path, megabytes: int = 1024) -> None:
        self.place = place
        self._image = image
        place.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(megabytes * 2**20)
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        self._mount()

    def flush(self) -> None:
        """Have all that was written on it, as on a machine that has run for a while."""
        _run("sync", "--file-system", str(self.place))

    def lose_power(self) -> None:
        """Fail all that follows, and forget what was not flushed."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, _NOTHING_FLUSHED)
        finally:
            os.close(folder)

    def remount(self) -> None:
        """Have it again as it was flushed; who was killed has to have let go of it by then."""
        end = time.monotonic() + LETS_GO
        while True:
            try:
                _run("umount", str(self.place))
                break
            except ServiceError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self._mount()

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Leave no byte of it while the block runs."""
        ballast = self.place / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(2**20))
                    file.flush()
            except OSError:
                pass
            try:
                while True:
                    os.write(file.fileno(), b"\0")
            except OSError:
                pass
        try:
            yield
        finally:
            ballast.unlink()

    def close(self) -> None:
        """Unmount it; what holds it still is let go of when it ends."""
        _run("umount", "--lazy", str(self.place))

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.place))


class Clock:
    """The wall clock of the shop's processes: `clock.c`, preloaded, and the file that it reads."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock"
        _run("cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "clock.c"), "-ldl")
        self.move(0)
        self.environment = {"LD_PRELOAD": str(library), "OYEZ_TORTURE_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """Move it so far from the real time."""
        # In place: the processes have this very file in their memory.
        with open(os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.write(struct.pack("q", seconds))


class Ground:
    """Servers, links, a disk and a clock for one run, as far as it needs them.

    ``folder`` has the journal and is never harmed; ``place`` has the shop. A ``disk`` is that of
    the servers where there are any, else that of the shop.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        broker: str = "embedded",
        store: str = "sqlite",
        needs: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.broker, self.store = broker, store
        self.links: dict[str, Proxy] = {}
        self.disk: Disk | None = None
        self.clock: Clock | None = None
        self.environment: dict[str, str] = {}
        """Settings of the project, for whoever looks on."""
        self.through: dict[str, str] = {}
        """More of them, for the shop."""
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted({broker, store} - {"embedded", "sqlite"})
        harmed = folder
        if "disk" in needs:
            harmed = folder / "disk"
            self.disk = Disk(folder / "disk.img", harmed)
        self.place = folder if names else harmed
        self.servers = Servers(names, harmed / "servers" if names else folder, cache)
        self._needs = needs
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Ground:
        self.servers.up()
        name = f"shop-{uuid4().hex[:8]}"
        if self.servers.names:
            self.environment["OYEZ_NAME"] = name
        if self.broker != "embedded":
            self.environment["OYEZ_BROKER"] = self.servers.url(self.broker)
        if self.broker == "sns_sqs":
            self.environment["OYEZ_PARTITIONS"] = "2"
        if self.store != "sqlite":
            schema = f"?schema={name.replace('-', '_')}_{{service}}"
            self.environment["OYEZ_STORE"] = self.servers.url(self.store) + schema
        if "links" in self._needs:
            await self._link()
        if "clock" in self._needs:
            self.clock = Clock(self.folder)
            self.through |= self.clock.environment
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        self.servers.down()
        if self.disk is not None:
            self.disk.close()

    async def link_to_provider(self, shop: Shop) -> None:
        """Put a proxy on the way to the payment provider, where links are wanted."""
        if "links" in self._needs:
            proxy = Proxy("127.0.0.1", shop.ports["8090"])
            self.links["provider"] = await self._stack.enter_async_context(proxy)
            shop.environment["SHOP_PROVIDER"] = f"http://{proxy.address}"

    async def _link(self) -> None:
        """Put proxies on the ways to the broker and the stores."""
        for what, name, setting in (
            ("broker", self.broker, "OYEZ_BROKER"),
            ("store", self.store, "OYEZ_STORE"),
        ):
            if name in self.servers.names:
                proxy = await self._stack.enter_async_context(self.servers.proxy(name))
                self.links[what] = proxy
                self.through[setting] = proxy.through(self.environment[setting])


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise ServiceError(f"{command[0]}: {ran.stderr.strip()}", "see whether it runs as root")
