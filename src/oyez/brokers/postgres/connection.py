"""Statements on one schema, which is created if missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.postgres.options import PostgresOptions
from oyez.brokers.postgres.schema import SESSION, STEPS
from oyez.endpoint import Endpoint
from oyez.errors import (
    BrokerRefused,
    BrokerUnavailable,
    SchemaMissing,
    StoreError,
    StoreUnavailable,
)
from oyez.postgresql import PostgresServer, as_broker_error


class Connection:
    """The connections of one broker to its server."""

    def __init__(
        self,
        endpoint: Endpoint,
        ambient: Ambient,
        options: PostgresOptions,
        learnt: Callable[[str], None],
    ) -> None:
        """Connect to nothing yet; ``learnt`` is called with the durability of commits."""
        session = SESSION.format(millis=int(options.deadline * 1000))
        self.server = PostgresServer(endpoint, ambient, options, session=session)
        self.channel = f"{options.schema}.record"
        """The channel of notifications."""
        self.patient = False
        """Whether statements are retried until their deadline while the server is out of reach."""
        self.closed = False
        """Whether it is closed, so that statements fail."""
        self._ambient = ambient
        self._options = options
        self._learnt = learnt
        self._installed = False

    async def fetch(
        self, sql: str, *parameters: Any, patient: bool = True, share: float = 0.5
    ) -> list[Any]:
        """Run a statement, retried if ``patient``, and return its rows.

        One attempt may take ``share`` of the deadline, so that there is time for another if the
        connection was dead. Raises BrokerError.
        """
        statement = sql.format(schema=f'"{self._options.schema}"')
        if self.closed:
            raise BrokerUnavailable(f"{self.server.name}: the broker is closed")
        pauses = Pauses(self._ambient)
        seconds = self._options.deadline
        try:
            async with Deadline(seconds, self.server.name) as deadline:
                while True:
                    try:
                        await self._install()
                        async with self.server.connection(seconds * share) as connection:
                            return await connection.fetch(statement, *parameters)
                    except StoreError as error:
                        if isinstance(error, SchemaMissing):
                            self._installed = False  # the schema was dropped
                        elif not isinstance(error, StoreUnavailable):
                            raise
                        if not (patient and self.patient):
                            raise
                        deadline.trouble = error
                    await pauses.wait()
        except StoreError as error:
            raise as_broker_error(error) from error

    async def close(self) -> None:
        """Close every connection."""
        self.closed = True
        await self.server.close()

    async def _install(self) -> None:
        """Create the schema if missing, and run the missing steps."""
        if self._installed:
            return
        name = self._options.schema
        async with self.server.connection() as connection, connection.transaction():
            # Without the lock, two processes that create the schema at once would conflict.
            await connection.execute("select pg_advisory_xact_lock(hashtext($1))", self.channel)
            exists = "select true from pg_namespace where nspname = $1"
            if not await connection.fetchval(exists, name):
                await connection.execute(f'create schema "{name}"')
            version = 0
            if await connection.fetchval("select to_regclass($1)", f'"{name}".setup') is not None:
                version = await connection.fetchval(f'select version from "{name}".setup')
            if version > len(STEPS):
                raise BrokerRefused(
                    f"{self.server.name}: schema {name} was made by a newer Oyez (version "
                    f"{version}, this one knows {len(STEPS)}): upgrade Oyez"
                )
            for step in STEPS[version:]:
                script = step.format(
                    schema=f'"{name}"',
                    channel=self.channel,
                    start=1 + (self._ambient.bits(40) << 20),
                )
                await connection.execute(script)
            if version < len(STEPS):
                await connection.execute(f'update "{name}".setup set version = {len(STEPS)}')
        self._learnt(await self.server.durability())
        self._installed = True
