"""The program under test: its processes, and what it shows."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

MOST = 64 * 1024 * 1024
"""Bytes of lines that are read, at most."""
STARTS = 30.0
"""Seconds in which a process begins to show what it has."""
_LAST = 1_500
"""Characters of its output that are told when it ends by itself."""


class SubjectFailed(Exception):
    """The subject ended by itself, never started, or shows what is none of the agreed lines."""


class Row(msgspec.Struct, frozen=True):
    """What the counter wrote for a tick."""

    name: str
    number: int


class Dead(msgspec.Struct, frozen=True):
    """An event that the subject refused."""

    reason: str
    id: str | None = None
    source: str | None = None
    data: str | None = None

    def bytes(self) -> bytes | None:
        """The data as it came. Raises SubjectFailed for what is not base64."""
        if self.data is None:
            return None
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SubjectFailed(f"dead.data is not base64: {self.data[:60]!r}") from error


class Position(msgspec.Struct, frozen=True):
    """How far the subject has come in a partition, by its own store."""

    partition: int
    position: int


class _Line(msgspec.Struct, frozen=True):
    row: Row | None = None
    dead: Dead | None = None
    position: Position | None = None


class Shown(msgspec.Struct, frozen=True):
    """All that the subject shows at a time."""

    rows: list[Row]
    dead: list[Dead]
    positions: dict[int, int]


_decode = msgspec.json.Decoder(_Line).decode


def read(text: bytes) -> Shown:
    """Return what the lines say; an unfinished last one is left out. Raises SubjectFailed."""
    shown = Shown([], [], {})
    for number, raw in enumerate(text.split(b"\n")[:-1], 1):
        if not raw.strip():
            continue
        try:
            line = _decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SubjectFailed(f"line {number}, {raw[:80]!r}: {error}") from error
        if line.row is not None:
            shown.rows.append(line.row)
        if line.dead is not None:
            shown.dead.append(line.dead)
        if line.position is not None:
            shown.positions[line.position.partition] = line.position.position
    return shown


class Subject:
    """The processes of the program, by the number of their replica; each a process group."""

    def __init__(
        self,
        command: Sequence[str],
        told: Mapping[str, str],
        folder: Path,
        *,
        check: Sequence[str] = (),
        by_output: bool = False,
    ) -> None:
        """``told`` is added to the environment; logs lie in ``folder``.

        It is read by the command ``check`` if there is one, else from its output, or by HTTP.
        """
        self._command = list(command)
        self._check = list(check)
        self._by_output = by_output
        self._told = dict(told)
        self._folder = folder
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: dict[int, int] = {}
        self._logs: list[Path] = []

    async def start(self, replica: int = 1) -> None:
        """Start a replica; return once it shows what it has. Raises SubjectFailed."""
        self.launch(replica)
        if self._check or self._by_output:
            return
        end = asyncio.get_running_loop().time() + STARTS
        while await self._ask(replica) is None:
            self.alive()
            if asyncio.get_running_loop().time() > end:
                raise SubjectFailed(f"GET /rows has no answer after {STARTS:.0f} s{self._words()}")
            await asyncio.sleep(0.02)

    def launch(self, replica: int = 1, *, stdin: int = subprocess.DEVNULL) -> None:
        """Start the process of a replica, and wait for nothing."""
        if replica not in self._ports:
            self._ports[replica] = _free_port()
        log = self._folder / f"output-{len(self._logs)}.log"
        self._logs.append(log)
        with log.open("wb") as output, log.with_suffix(".err").open("wb") as errors:
            self._running[replica] = subprocess.Popen(  # noqa: S603 - what the user asks for
                self._command,
                env=self._environment(replica),
                stdin=stdin,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def process(self, replica: int = 1) -> subprocess.Popen[bytes]:
        """The process of a replica."""
        return self._running[replica]

    def kill(self, replica: int = 1) -> None:
        """``kill -9`` for it and its children."""
        process = self._running.pop(replica, None)
        if process is not None:
            _signal(process, signal.SIGKILL)
            process.wait()

    def send(self, what: signal.Signals, replica: int = 1) -> None:
        """A signal to its process group."""
        _signal(self._running[replica], what)

    async def stopped(self, seconds: float, replica: int = 1) -> int | None:
        """The exit code of a replica that was told to stop; None if it goes on."""
        process = self._running[replica]
        try:
            code = await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            return None
        self.kill(replica)  # its children, if it left any
        return code

    def close(self) -> None:
        """Kill what runs."""
        for replica in list(self._running):
            self.kill(replica)

    def alive(self) -> None:
        """Raise SubjectFailed when a process has ended that nobody killed."""
        for replica, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                self.kill(replica)
                raise SubjectFailed(f"it ended by itself with exit code {code}{self._words()}")

    @property
    def runs(self) -> bool:
        """Whether any replica does."""
        return bool(self._running)

    async def shown(self, replica: int = 1) -> Shown | None:
        """What it shows now; None while it can't be read. Raises SubjectFailed."""
        text: bytes | None
        if self._check:
            text = await asyncio.to_thread(self._checked, replica)
        elif self._by_output:
            text = b"".join(log.read_bytes() for log in self._logs)
        else:
            text = await self._ask(replica)
        return None if text is None else read(text)

    def _checked(self, replica: int) -> bytes:
        done = subprocess.run(  # noqa: S603 - what the user asks for
            self._check,
            env=self._environment(replica),
            capture_output=True,
            check=False,
            timeout=STARTS,
        )
        if done.returncode != 0:
            error = done.stderr.decode(errors="replace")[-_LAST:]
            raise SubjectFailed(f"--store-check exits with {done.returncode}: {error}")
        return done.stdout

    async def _ask(self, replica: int) -> bytes | None:
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self._ports[replica]}/rows")

    def _environment(self, replica: int) -> dict[str, str]:
        return {
            **os.environ,
            **self._told,
            "CONFORMANCE_REPLICA": str(replica),
            "CONFORMANCE_HTTP": f"127.0.0.1:{self._ports[replica]}",
        }

    def _words(self) -> str:
        errors = self._logs[-1].with_suffix(".err").read_text(errors="replace")[-_LAST:].strip()
        output = "" if self._by_output else self._logs[-1].read_text(errors="replace")[-_LAST:]
        words = "\n".join(filter(None, (output.strip(), errors)))
        return f"; its last words: {words}" if words else ""


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Straight to this machine, whatever proxies the environment names."""


def _get(url: str) -> bytes | None:
    try:
        with _opener.open(url, timeout=5.0) as answer:
            found: bytes = answer.read(MOST)
            return found if answer.status == 200 else None
    except (OSError, urllib.error.URLError, ValueError):
        return None


def _signal(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
    try:
        os.killpg(process.pid, what)
    except ProcessLookupError:
        pass


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
