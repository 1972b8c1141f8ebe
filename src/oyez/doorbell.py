"""The doorbell: datagrams that wake the processes that watch a file."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from oyez.errors import StoreRefused

_TICK = 1_000_000_000
"""Nanoseconds; longer than the coarsest clock that a kernel stamps files with."""


class Doorbell:
    """A socket that wakes the other processes that watch a file, by a datagram to each.

    The sockets are in a folder beside the file, with access for this user alone, so that containers
    which share no more than the file's folder hear each other, under whatever path each knows it.
    Where it takes no sockets, or its path is too long for one, they are in a folder below the
    machine's temporary one. A process that can't be reached that way polls, slowly.
    """

    def __init__(self, path: Path) -> None:
        target = path.resolve()
        digest = hashlib.sha256(os.fsencode(target)).hexdigest()[:24]
        self._beside = Path(f"{target}.bell")
        self._apart = Path(tempfile.gettempdir()) / f"oyez-{os.getuid()}-{digest}"
        self._folder = self._beside
        self._socket: socket.socket | None = None
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._others: list[str] = []
        self._seen = -1
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the running loop for each ring (several may become one call).

        Raises StoreRefused when the folder in the temporary one belongs to another user.
        """
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        try:
            if not (self._joined(bell, self._beside) or self._joined(bell, self._apart)):
                bell.close()
                return
        except StoreRefused:
            bell.close()
            raise
        self._socket = bell
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bell.fileno(), self._drain, callback)

    def ring(self) -> None:
        """Wake the other processes. Never blocks; safe from any thread."""
        if self._socket is None:
            return
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._seen:
                self._others = [name for name in os.listdir(self._folder) if name != self._name]
                # Two changes within one tick of the kernel's clock have one time: look once more.
                self._seen = changed if time.time_ns() - changed > _TICK else -1
        except OSError:
            return  # the folder was removed: the other processes poll
        for name in self._others:
            address = f"{self._folder}/{name}"
            try:
                self._socket.sendto(b"!", address)
            except (BlockingIOError, InterruptedError):
                continue  # its queue is full of rings: it will wake
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    os.unlink(address)  # left by a process that died
            except OSError:
                continue

    def close(self) -> None:
        """Stop listening."""
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        with contextlib.suppress(OSError):
            os.unlink(self._folder / self._name)
            self._folder.rmdir()  # unless another process listens
        self._socket.close()
        self._socket = None

    def _joined(self, bell: socket.socket, folder: Path) -> bool:
        """Bind the socket in the folder, which is made if need be; False where that can't be."""
        self._folder = folder
        try:
            try:
                self._bind(bell)
            except FileNotFoundError:  # the last listener has just removed the folder
                self._bind(bell)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return False
        return True

    def _bind(self, bell: socket.socket) -> None:
        folder = self._folder
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if folder == self._beside:
            if not mine:
                raise PermissionError(f"{folder} belongs to another user")
            folder.chmod(0o700)  # who mounts a volume may have opened all of it to a group
        elif not mine or found.st_mode & 0o077:
            raise StoreRefused(f"{folder} belongs to another user: remove it")
        bell.bind(str(folder / self._name))

    def _drain(self, callback: Callable[[], None]) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(16)
        callback()
