"""PgBouncer in transaction mode, in front of the same folder's PostgreSQL."""

from __future__ import annotations

import os

from process import Command, give
from server import LOOPBACK, Server, program, version_of
from state import State

from kinds.postgresql import ACCOUNT, PostgreSQL, query

PREPARED_SINCE = (1, 21)
"""The version that learnt to keep prepared statements across server connections."""


class PgBouncer(Server):
    """Debian's pgbouncer."""

    name = "pgbouncer"
    durability = "that of postgresql, which stands behind it (pool_mode = transaction)"
    after = ("postgresql",)

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._database = PostgreSQL(state)
        self.password = self._database.password

    @property
    def url(self) -> str:
        return f"postgresql://oyez:{self.password}@{LOOPBACK}:{self.port}/oyez"

    def install(self) -> None:
        program("pgbouncer", "pgbouncer")

    def version(self) -> str:
        return version_of(program("pgbouncer", "pgbouncer"))

    def prepare(self) -> None:
        users = self.folder / "users"
        users.touch(0o600)
        users.write_text(f'"oyez" "{self.password}"\n')
        version = tuple(int(part) for part in self.version().split("."))
        (self.folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host={LOOPBACK} port={self._database.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = {LOOPBACK}\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = scram-sha-256\n"
            f"auth_file = {users}\n"
            "admin_users = oyez\n"
            "pool_mode = transaction\n"
            "default_pool_size = 20\n"
            "max_client_conn = 500\n"
            "ignore_startup_parameters = extra_float_digits\n"
            + ("max_prepared_statements = 200\n" if version >= PREPARED_SINCE else "")
        )
        give(self.folder, ACCOUNT)

    def command(self) -> Command:
        return Command((program("pgbouncer", "pgbouncer"), "pgbouncer.ini"), os.environ, ACCOUNT)

    def ask(self) -> None:
        query(self.port, "oyez", self.password, "oyez", "select 1")
