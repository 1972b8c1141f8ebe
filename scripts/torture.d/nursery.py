"""Starts `oyez` processes from one that has imported already: most of a start is importing.

A process that a campaign kills lives for seconds, and a start of Python and of all that a service
imports is half a second of CPU: more than all that it then does. `Nursery` forks what it is asked
for instead; each is a process like any other, with a number, a session and pipes of its own, and
none of what it works with is made before the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence

IMPORTED = (
    *("oyez.cli.run", "oyez.cli.gateway", "oyez.gateway.server", "oyez.runtime.process"),
    *("oyez.stores.sqlite", "oyez.stores.postgres.store", "oyez.brokers.embedded.broker"),
    *("oyez.observe.traced", "oyez.observe.exposition", "oyez.inspection.records"),
    *("uvloop", "uvicorn", "starlette.applications", "starlette.routing", "httptools", "h11"),
    *("httpx", "aiosmtplib", "email.message", "sqlite3", "asyncpg"),
)
"""What the shop's processes import sooner or later; what is missing here, they import alone."""
_LARGEST = 1 << 20


class Process:
    """A process of the nursery, as far as a supervisor uses one of asyncio's."""

    def __init__(self, pid: int, output: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = output
        self._ended = asyncio.Event()

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, returncode: int) -> None:
        """Tell that it has ended."""
        self.returncode = returncode
        self._ended.set()


class Nursery:
    """The side of the supervisor: asks for processes, and hears of their ends."""

    def __init__(self, *modules: str) -> None:
        """``modules`` are imported as well."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            _Forker(theirs).run(modules)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._running: dict[int, Process] = {}
        self._early: dict[int, int] = {}
        self._spawned: asyncio.Queue[int] = asyncio.Queue()
        self._turn = asyncio.Lock()

    async def start(
        self, command: Sequence[str], folder: str, environment: Mapping[str, str], limit: int
    ) -> Process:
        """Start ``python -m oyez``, whose arguments ``command`` has after these three words."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            loop.add_reader(self._socket, self._hear)
            read, write = os.pipe()
            order = json.dumps((command[3:], folder, dict(environment))).encode()
            socket.send_fds(self._socket, [order], [write])
            os.close(write)
            pid = await self._spawned.get()
        output = asyncio.StreamReader(limit)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read, "rb", 0)
        )
        process = Process(pid, output)
        if pid in self._early:
            process.end(self._early.pop(pid))
        else:
            self._running[pid] = process
        return process

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while text := self._socket.recv(_LARGEST):
                said = json.loads(text)
                if "spawned" in said:
                    self._spawned.put_nowait(said["spawned"])
                elif said["ended"] in self._running:
                    self._running.pop(said["ended"]).end(said["code"])
                else:
                    self._early[said["ended"]] = said["code"]


class _Forker:
    """The other side: a process of one thread, without an event loop, that forks."""

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked

    def run(self, modules: Sequence[str]) -> None:
        """Fork what is asked for, until nobody asks any more."""
        _die_with_parent(signal.SIGKILL)
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in (*IMPORTED, *modules):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._asked, woken], [], [])
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                self._reap()
            if self._asked in ready:
                order, files, _, _ = socket.recv_fds(self._asked, _LARGEST, 1)
                if not order:
                    os._exit(0)
                arguments, folder, environment = json.loads(order)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for number in (woken, wake):
                        os.close(number)
                    self._asked.close()
                    _be(arguments, folder, environment, files[0])
                os.close(files[0])
                self._tell(spawned=pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._tell(ended=pid, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **what: int) -> None:
        with contextlib.suppress(OSError):
            self._asked.send(json.dumps(what).encode())


def _be(arguments: list[str], folder: str, environment: dict[str, str], output: int) -> None:
    """Become ``python -m oyez`` with these arguments, and end with it."""
    code = 1
    try:
        os.setsid()
        _die_with_parent(signal.SIGTERM)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for given, usual in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(given, usual)
        os.close(nothing)
        os.close(output)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[0] = folder
        sys.argv = ["oyez", *arguments]
        from oyez.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the last word of a process
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _die_with_parent(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
