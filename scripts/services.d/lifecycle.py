"""Bringing servers up, down and to a crash, whatever their kind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from errors import Missing, NotReady, ServiceError
from process import Process
from server import Server
from state import ROOT

Say = Callable[[str], None]
"""Takes a line of progress."""

TICK = 0.05
"""Seconds between two questions to a server that does not answer yet."""
LOG_TAIL = 25
"""Lines of a server's log that a failure shows."""


def up(servers: Sequence[Server], say: Say) -> dict[str, ServiceError]:
    """Install and start servers side by side; the failures, by name."""
    packages = _Packages(say)
    say(f"bringing up {', '.join(server.name for server in servers)}")
    with ThreadPoolExecutor(len(servers)) as threads:
        started: dict[str, Future[None]] = {}
        for server in servers:  # the list is in order, so what a server needs comes before it
            needs = [started[name] for name in server.after if name in started]
            started[server.name] = threads.submit(_up, server, needs, packages, say)
    failures: dict[str, ServiceError] = {}
    for name, future in started.items():
        try:
            future.result()
        except ServiceError as failure:
            failures[name] = failure
    return failures


def start(server: Server) -> None:
    """Start an installed server on its ports and data and wait until it answers."""
    with server.state.lock(server.name):
        server.folder.mkdir(parents=True, exist_ok=True)
        process = Process.recorded(server.folder / "pid")
        if process is None:
            server.prepare()
            process = server.command().start(server.folder, server.log)
            process.record(server.folder / "pid")
        _await_answer(server, process)
        server.state.enter(server.name, _entry(server, process))


def crash(server: Server) -> None:
    """Kill a server's process, as a crash does; services.json keeps naming it."""
    with server.state.lock(server.name):
        if process := Process.recorded(server.folder / "pid"):
            process.crash(server.patience)


def down(server: Server, *, wipe: bool) -> None:
    """Stop a server in an orderly way; with `wipe` all that is kept of it goes too."""
    with server.state.lock(server.name):
        server.state.leave(server.name)
        if process := Process.recorded(server.folder / "pid"):
            process.end(server.stop_signal, server.patience)
        for companion in server.companions():
            companion.end(signal.SIGTERM, server.patience)
        (server.folder / "pid").unlink(missing_ok=True)
        if wipe:
            shutil.rmtree(server.folder, ignore_errors=True)
            server.state.forget(server.name)


def answers(server: Server) -> bool:
    """Whether a server runs and does its work, asked once."""
    if Process.recorded(server.folder / "pid") is None:
        return False
    try:
        server.ask()
    except (NotReady, OSError):
        return False
    return True


class _Packages:
    """Installs the system's packages once for all servers that miss something."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._installed = False

    def install(self) -> None:
        with self._lock:
            if not self._installed:
                self._say("installing the system's packages")
                subprocess.run([ROOT / "scripts" / "system-packages"], check=False)
            self._installed = True


def _up(server: Server, needs: Sequence[Future[None]], packages: _Packages, say: Say) -> None:
    begun = time.monotonic()
    try:
        server.install()
    except Missing:
        if os.geteuid() != 0:
            raise
        packages.install()
        server.install()
    for need in needs:
        if need.exception() is not None:
            raise ServiceError(
                f"needs {', '.join(server.after)}, which did not come up", "see its own failure"
            )
    start(server)
    say(f"{server.name} is up ({time.monotonic() - begun:.1f} s)")


def _await_answer(server: Server, process: Process) -> None:
    deadline = time.monotonic() + server.patience
    while True:
        alive = process.alive
        try:
            server.ask()
        except (NotReady, OSError) as reason:
            if not alive:
                raise _failure(server, "its process ended") from reason
            if time.monotonic() > deadline:
                raise _failure(
                    server, f"no answer in {server.patience:.0f} s ({reason})"
                ) from reason
            time.sleep(TICK)
        else:
            if alive:
                return
            raise _failure(server, f"another process answers on port {server.port}")


def _failure(server: Server, what: str) -> ServiceError:
    try:
        tail = server.log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
    except FileNotFoundError:
        tail = ["(no log)"]
    shown = "\n".join(f"  | {line}" for line in tail).replace(server.password, "***")
    return ServiceError(
        f"{what}; the end of {server.log}:\n{shown}",
        f"to start afresh: scripts/services down --wipe {server.name}",
    )


def _entry(server: Server, process: Process) -> Mapping[str, object]:
    return {
        "url": server.url,
        "pid": process.pid,
        "port": server.port,
        "ports": dict(server.ports),
        "version": server.version(),
        "durability": server.durability,
        **server.extras(),
    }
