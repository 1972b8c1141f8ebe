"""Processes that outlive this command: started apart from it, known by number and birth."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK = 0.02
"""Seconds between two looks at a process that is to end."""


@dataclass(frozen=True)
class Process:
    """A process of this machine; its birth tells it from a later one that has the same number."""

    pid: int
    born: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The living process with this number."""
        stat = _stat(pid)
        return None if stat is None else cls(pid, stat.born)

    @classmethod
    def recorded(cls, path: Path) -> Process | None:
        """The living process that `record` wrote to this file."""
        try:
            pid, born = path.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        process = cls(int(pid), born)
        return process if process.alive else None

    def record(self, path: Path) -> None:
        """Keep it in a file, for later commands."""
        path.write_text(f"{self.pid} {self.born}\n")

    @property
    def alive(self) -> bool:
        """Whether any thread of it runs; a zombie whose last thread is gone doesn't."""
        return self == Process.of(self.pid)

    def descendants(self) -> list[Process]:
        """Its children and theirs."""
        parents = {
            pid: stat.parent
            for pid in (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
            if (stat := _stat(pid)) is not None
        }
        found: list[int] = [self.pid]
        for ancestor in found:
            found += [pid for pid, parent in parents.items() if parent == ancestor]
        return [process for pid in found[1:] if (process := Process.of(pid)) is not None]

    def send(self, number: signal.Signals) -> None:
        """Signal it, unless it is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def wait(self, seconds: float) -> bool:
        """Wait for its end; false when it still runs after that many seconds."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(TICK)
        return True

    def end(self, number: signal.Signals, patience: float) -> None:
        """Ask it to end; after so many seconds end it and its children by force."""
        family = [self, *self.descendants()]
        self.send(number)
        if not self.wait(patience):
            for process in family:
                process.send(signal.SIGKILL)
            self.wait(patience)

    def crash(self, patience: float) -> None:
        """Kill it alone and at once; children that don't follow in so many seconds go too."""
        family = self.descendants()
        self.send(signal.SIGKILL)
        self.wait(patience)
        deadline = time.monotonic() + patience
        for process in family:
            if not process.wait(max(0.0, deadline - time.monotonic())):
                process.send(signal.SIGKILL)
                process.wait(patience)


@dataclass(frozen=True)
class Command:
    """How a server is started."""

    arguments: Sequence[str | Path]
    environment: Mapping[str, str]
    user: str | None = None
    """The account it runs as when we are root; None is the caller's own."""

    def start(self, folder: Path, log: Path) -> Process:
        """Start it in a session of its own; its output goes to the end of the log."""
        with log.open("ab") as output:
            started = subprocess.Popen(
                self._argv(),
                cwd=folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children.append(started)
        return Process.of(started.pid) or Process(started.pid, "ended")

    def run(self, folder: Path, log: Path) -> int:
        """Run it to its end, with its output in the log; the exit code."""
        with log.open("ab") as output:
            return subprocess.run(
                self._argv(),
                cwd=folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode

    def _argv(self) -> list[str]:
        command = [str(argument) for argument in self.arguments]
        if self.user is None or os.geteuid() != 0:
            return command
        # The capability lets it reach its folder below one that only root may enter.
        return [
            *("setpriv", "--reuid", self.user, "--regid", str(pwd.getpwnam(self.user).pw_gid)),
            *("--init-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
            *command,
        ]


def give(path: Path, user: str) -> None:
    """Make an account the owner of a folder and all in it, when we are root."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        for entry in (path, *path.rglob("*")):
            os.chown(entry, account.pw_uid, account.pw_gid, follow_symlinks=False)


_children: list[subprocess.Popen[bytes]] = []
"""Keeps Python from complaining about children that are meant to outlive it."""


@dataclass(frozen=True)
class _Stat:
    parent: int
    born: str


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, *rest = text.rpartition(")")[2].split()
    # The first thread of a killed process can be a zombie while others still hold its files.
    threads, born = int(rest[15]), rest[17]
    return None if state in "ZX" and threads <= 1 else _Stat(int(parent), born)
