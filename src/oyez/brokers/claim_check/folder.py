"""A folder as a storage: of this machine, or one that several machines share.

Data appears under its name at once and whole: it is written beside, flushed, and renamed. The file
``.lock`` tells a folder that is in use from an empty one that something was to be mounted on, and
keeps a file from being deleted in the moment in which it is stored again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from oyez.ambient import Ambient
from oyez.brokers.claim_check.storage import CONCURRENT, MARGIN
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import Finding

LOCK = ".lock"

_OURS = re.compile(r"[0-9a-f]{62}-[0-9]+|\.[0-9a-f]{16}")
"""What a file is called, and what it is called while it is written."""

T = TypeVar("T")


class Folder:
    """Files in 256 subfolders; the face is `oyez.brokers.claim_check.Storage`."""

    def __init__(self, path: Path, ambient: Ambient, retention: float) -> None:
        """``path`` is absolute: it is part of every address."""
        self.where = str(path)
        self.prefix = f"{path.as_uri()}/"
        self._path = path
        self._ambient = ambient
        self._retention = retention
        self._made: set[Path] = set()
        self._threads: ThreadPoolExecutor | None = None

    async def put(self, name: str, data: bytes) -> None:
        temporary = f".{self._ambient.bits(64):016x}"
        await self._run(self._write, name, temporary, data, self._ambient.now())

    async def get(self, name: str, most: int) -> bytes | None:
        return await self._run(self._read, name, most)

    async def sweep(self) -> None:
        await self._run(self._delete, self._ambient.now() - self._retention - MARGIN)

    async def inspect(self) -> Sequence[Finding]:
        return await self._run(self._look)

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = None

    async def _run(self, job: Callable[..., T], *arguments: object) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="claim-check")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(job, *arguments))
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> BrokerError:
        what = f"{error.filename or self._path}: {error.strerror}"
        if isinstance(error, PermissionError):
            return BrokerRefused(f"{what}: it must be readable and writable by user {os.getuid()}")
        return BrokerUnavailable(what)

    # -- what runs on the threads -----------------------------------------------------------------

    def _write(self, name: str, temporary: str, data: bytes, now: float) -> None:
        path = self._path / name
        folder = path.parent
        if folder not in self._made:
            _make_folder(folder)
            self._made.add(folder)
        beside = folder / temporary
        try:
            with open(beside, "xb", opener=partial(os.open, mode=0o600)) as file:
                file.write(data)
                file.flush()
                os.utime(file.fileno(), (now, now))
                os.fsync(file.fileno())
            with self._locked(fcntl.LOCK_SH):
                os.replace(beside, path)
        except BaseException:
            self._made.discard(folder)  # someone may have deleted it
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        _flush(folder)

    def _read(self, name: str, most: int) -> bytes | None:
        # A pipe would keep us waiting, and a link may lead anywhere: neither was stored here.
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with open(self._path / name, "rb", opener=partial(_open, flags)) as file:
                return file.read(most + 1) or b""
        except FileNotFoundError:
            if (self._path / LOCK).exists():
                return None
            raise BrokerUnavailable(
                f"{self._path} is empty or missing: is what it should be mounted there?"
            ) from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                return None
            raise

    def _delete(self, then: float) -> None:
        for folder in self._path.glob("[0-9a-f][0-9a-f]"):
            if folder.is_symlink():
                continue  # it leads to what is not ours
            with os.scandir(folder) as entries:
                ours = [entry.path for entry in entries if _OURS.fullmatch(entry.name)]
            for path in ours:
                if _time(path) < then:
                    with self._locked(fcntl.LOCK_EX):
                        if _time(path) < then:
                            os.unlink(path)

    def _look(self) -> list[Finding]:
        try:
            mode = os.stat(self._path).st_mode
        except FileNotFoundError:
            return []  # made by what is stored first
        found = []
        if not stat.S_ISDIR(mode) or not os.access(self._path, os.R_OK | os.W_OK | os.X_OK):
            found.append(
                Finding(
                    grave=False,
                    what=f"{self._path} is no folder that user {os.getuid()} can write: large "
                    "events stay in the outbox",
                    remedy=f"give user {os.getuid()} a folder there, or change system.claim_check",
                )
            )
        elif mode & 0o007:
            found.append(
                Finding(
                    grave=False,
                    what=f"every user of the machine can look into {self._path}",
                    remedy=f"chmod o-rwx {self._path}",
                )
            )
        return found

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        lock = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def _open(more: int, path: str, flags: int) -> int:
    return os.open(path, flags | more)


def _make_folder(path: Path) -> None:
    """Make the folder and those above it, each durable; its name too if another has made it."""
    if not path.parent.is_dir():
        _make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _flush(path.parent)


def _flush(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _time(path: str) -> float:
    """When the file was stored; infinity for one that is gone."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return float("inf")
