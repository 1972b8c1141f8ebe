"""The whole shop for a test: a copy in a folder of its own, on free ports, in real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "shop"
SERVICES = ("orders", "inventory", "payments", "shipping", "notifications")


class Shop:
    """A running shop, with the supervisor's log read as it comes."""

    def __init__(
        self, root: Path, ports: dict[str, int], environment: dict[str, str], log: Path
    ) -> None:
        self.root = root
        self.ports = ports
        self.pids: dict[str, int] = {}
        self.ready: set[str] = set()
        """The processes that have said that they have started."""
        self.spawned = 0
        self.command = [sys.executable, "-m", "oyez"]
        """What is asked to supervise."""
        self.lines: list[dict[str, object]] = []
        self._log = log
        self._read = 0
        self.environment = {
            **os.environ,
            "SHOP_PROVIDER": f"http://127.0.0.1:{ports['8090']}",
            "SHOP_SMS": f"http://127.0.0.1:{ports['8091']}",
            "SHOP_SMTP": f"127.0.0.1:{ports['8025']}",
            "SHOP_GUESTS": str(SOURCE.parent / "shop-guests"),
            "OYEZ_PROJECT": str(root),
            **environment,
        }

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://127.0.0.1:{self.ports['8080']}"

    def start(self) -> None:
        """Start it, or start it again, and wait until it is up."""
        output = self._log.open("w")
        self.lines, self._read = [], 0
        self._process = subprocess.Popen(
            [*self.command, "dev", "--no-reload", "--json"],
            cwd=self.root,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()
        self.wait_for(lambda: any(" is up: " in str(line.get("event")) for line in self.lines))

    def stop(self) -> int:
        """Stop it in order; the supervisor's exit code."""
        self._process.terminate()
        return self._process.wait(60)

    def crash(self) -> None:
        """``kill -9`` all of it, as when the machine goes, and wait until nothing of it is left."""
        self.refresh()
        pids = [self._process.pid, *self.pids.values()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait(60)
        end = time.monotonic() + 60
        while any(_lives(pid) for pid in pids):
            assert time.monotonic() < end, "killed processes are still there"
            _pause()

    def kill(self, service: str) -> None:
        """``kill -9`` a process of the shop, and wait until the supervisor has started another."""
        self.refresh()
        pid = self.pids[service]
        os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: self.pids[service] != pid)

    def admins(self) -> dict[str, str]:
        """Where the admin port of each service listens, by its log."""
        self.refresh()
        started = [line for line in self.lines if line.get("event") == "started"]
        return {str(line["service"]): str(line["admin"]) for line in started if "admin" in line}

    def refresh(self) -> None:
        """Read what the supervisor has logged since."""
        with self._log.open() as file:
            file.seek(self._read)
            for raw in file:
                if not raw.endswith("\n"):
                    break
                self._read += len(raw.encode())
                line = json.loads(raw)
                self.lines.append(line)
                if line.get("event") == "spawned":
                    self.pids[line["process"]] = line["pid"]
                    self.ready.discard(line["process"])
                    self.spawned += 1
                elif line.get("event") == "started":
                    self.ready.add(line["process"])

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when the condition holds on the log so far; fails after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            self.refresh()
            if condition():
                return
            assert time.monotonic() < end, f"not within {seconds} s; the log ends {self.lines[-5:]}"
            assert self._process.poll() is None, f"the shop has ended: {self.lines[-5:]}"
            _pause()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an ``oyez`` command in the shop's folder."""
        return subprocess.run(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def running_shop(
    folder: Path,
    *,
    replicas: dict[str, int] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Shop]:
    """A shop of its own in ``folder``; ``replicas`` by service where more than one is wanted.

    ``environment`` is set for its processes, such as the broker.
    """
    shop = copy_shop(folder, replicas=replicas, environment=environment)
    shop.start()
    try:
        yield shop
    finally:
        shop.stop()


def copy_shop(
    folder: Path,
    *,
    replicas: dict[str, int] | None = None,
    environment: dict[str, str] | None = None,
    log: Path | None = None,
) -> Shop:
    """The shop's files in ``folder``, on free ports, not started; ``log`` is by default there."""
    root = folder / "shop"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns(".oyez", "__pycache__", "tests"))
    known = ("8080", "8101", "8090", "8025", "8026", "8091", "8081", "8092")
    ports = dict(zip(known, free_ports(len(known)), strict=True))
    toml = (root / "oyez.toml").read_text()
    for usual, free in ports.items():
        toml = toml.replace(f":{usual}", f":{free}")
    for service, count in (replicas or {}).items():
        toml = toml.replace(f"[services.{service}]", f"[services.{service}]\nreplicas = {count}")
    (root / "oyez.toml").write_text(toml)
    return Shop(root, ports, environment or {}, log or root / "dev.log")


def free_ports(count: int) -> list[int]:
    """Ports that are free at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _pause() -> None:
    # Between two looks at a condition with a deadline, never instead of one.
    time.sleep(0.02)
