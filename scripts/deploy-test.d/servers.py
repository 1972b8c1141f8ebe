"""The broker and the stores of what is deployed: the servers of scripts/services, on the node."""

from __future__ import annotations

import os
from pathlib import Path

import lifecycle
from kinds.nats import Nats
from kinds.postgresql import PostgreSQL
from state import State
from world import NODE, Failed


class _PostgreSQL(PostgreSQL):
    """PostgreSQL that pods may connect to."""

    def prepare(self) -> None:
        super().prepare()
        rules = self.folder / "data" / "pg_hba.conf"
        allowed = "host all all 10.88.0.0/16 scram-sha-256\n"
        if allowed not in rules.read_text():
            rules.write_text(rules.read_text() + allowed)


class Servers:
    """NATS and PostgreSQL at the node's address."""

    def __init__(self, work: Path, cache: Path) -> None:
        assert os.environ.get("SERVICES_ADDRESS") == NODE
        work.mkdir(parents=True)
        state = State(work, cache)
        self._nats, self._postgresql = Nats(state), _PostgreSQL(state)

    def start(self) -> None:
        """Start them, and wait until they answer. They end with the world."""
        failures = lifecycle.up([self._nats, self._postgresql], lambda line: None)
        for name, failure in failures.items():
            raise Failed(f"{name}: {failure}")

    @property
    def broker(self) -> str:
        """The broker's URL."""
        return self._nats.url

    def store(self, schema: str) -> str:
        """Return the URL of a store, which is a schema of the database."""
        return f"{self._postgresql.url}?schema={schema.replace('-', '_')}"
