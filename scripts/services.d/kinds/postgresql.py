"""PostgreSQL with a cluster of its own, beside the one that Debian may run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

from errors import Missing, NotReady, ServiceError
from process import Command, Process, give
from server import LOOPBACK, Server, version_of

ACCOUNT = "postgres"
"""Who runs it when we are root; PostgreSQL itself refuses root."""
DEBIAN = Path("/usr/lib/postgresql")


class PostgreSQL(Server):
    """Debian's newest PostgreSQL."""

    name = "postgresql"
    durability = "a commit is on disk before its reply (synchronous_commit = on, fsync = on)"
    stop_signal = signal.SIGINT  # "fast": ends sessions instead of waiting for them

    @property
    def url(self) -> str:
        return f"postgresql://oyez:{self.password}@{LOOPBACK}:{self.port}/oyez"

    def install(self) -> None:
        for name in ("initdb", "postgres", "psql"):
            executable(name)

    def version(self) -> str:
        return version_of(executable("postgres"))

    def prepare(self) -> None:
        data = self.folder / "data"
        if not (data / "PG_VERSION").exists():
            self._initialise(data)
        _forget_the_dead(data / "postmaster.pid")
        (data / "postgresql.auto.conf").write_text(
            f"listen_addresses = '{LOOPBACK}'\n"
            f"port = {self.port}\n"
            "unix_socket_directories = ''\n"
            "max_connections = 400\n"
            "fsync = on\n"
            "full_page_writes = on\n"
            "synchronous_commit = on\n"
            "password_encryption = 'scram-sha-256'\n"
        )
        give(data, ACCOUNT)

    def command(self) -> Command:
        return Command((executable("postgres"), "-D", self.folder / "data"), os.environ, ACCOUNT)

    def ask(self) -> None:
        made = query(
            self.port, "oyez", self.password, "postgres",
            "select 1 from pg_database where datname = 'oyez'",
        )  # fmt: skip
        if made != "1":
            query(self.port, "oyez", self.password, "postgres", "create database oyez")
        query(self.port, "oyez", self.password, "oyez", "select 1")

    def _initialise(self, data: Path) -> None:
        if data.exists():
            raise ServiceError(
                f"{data} is no cluster of PostgreSQL: its first start was interrupted",
                "run scripts/services down --wipe postgresql",
            )
        data.mkdir(mode=0o700)
        secret = self.folder / "password"
        secret.touch(0o600)
        secret.write_text(self.password)
        give(self.folder, ACCOUNT)
        made = Command(
            (
                *(executable("initdb"), "--pgdata", data, "--username", "oyez", "--encoding=UTF8"),
                *("--locale=C.UTF-8", "--auth=scram-sha-256", "--pwfile", secret),
            ),
            os.environ,
            ACCOUNT,
        ).run(self.folder, self.log)
        secret.unlink()
        if made != 0:
            raise ServiceError("initdb failed", "its log says why")


def executable(name: str) -> Path:
    """A program of the newest PostgreSQL on this machine; raises Missing."""
    found = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: _major(path.parts[-3]))
    if not found:
        raise Missing(name, "postgresql")
    return found[-1]


def query(port: int, user: str, password: str, database: str, statement: str) -> str:
    """Run one statement and return what it prints; raises NotReady."""
    address = f"host={LOOPBACK} port={port} user={user} dbname={database} connect_timeout=2"
    ran = subprocess.run(
        [executable("psql"), "--no-psqlrc", "--tuples-only", "--no-align", address],
        input=statement,
        capture_output=True,
        text=True,
        env=os.environ | {"PGPASSWORD": password},
        check=False,
    )
    if ran.returncode != 0 or ran.stderr:
        raise NotReady(ran.stderr.strip())
    return ran.stdout.strip()


def _forget_the_dead(lock: Path) -> None:
    """Remove the lock of a postmaster that was killed.

    PostgreSQL does that itself, but takes a process whose parent has not yet fetched its exit
    code for a living one, and refuses to start.
    """
    try:
        pid = int(lock.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    if Process.of(pid) is None:
        lock.unlink()


def _major(version: str) -> int:
    digits = re.match(r"\d+", version)
    return int(digits[0]) if digits else 0
