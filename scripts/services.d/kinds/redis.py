"""Redis that writes every command to disk before it answers."""

from __future__ import annotations

import os
import socket

from errors import NotReady
from process import Command
from server import LOOPBACK, Server, program, version_of


class Redis(Server):
    """Debian's redis-server with an append-only file."""

    name = "redis"
    durability = "every write is on disk before its reply (appendfsync always)"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def install(self) -> None:
        program("redis-server", "redis-server")

    def version(self) -> str:
        return version_of(program("redis-server", "redis-server"))

    def prepare(self) -> None:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        settings = self.folder / "redis.conf"
        settings.touch(0o600)
        settings.write_text(
            f"bind {LOOPBACK}\n"
            f"port {self.port}\n"
            f"requirepass {self.password}\n"
            f'dir "{data}"\n'
            "appendonly yes\n"
            "appendfsync always\n"
            "no-appendfsync-on-rewrite no\n"
            "maxmemory-policy noeviction\n"
            'save ""\n'
        )

    def command(self) -> Command:
        return Command((program("redis-server", "redis-server"), "redis.conf"), os.environ)

    def ask(self) -> None:
        with socket.create_connection((LOOPBACK, self.port), 2) as connection:
            connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as answers:
                for expected in (b"+OK\r\n", b"+PONG\r\n"):
                    if (answer := answers.readline()) != expected:
                        raise NotReady(answer.decode(errors="replace").strip())
