"""Statements on one schema, which is made where it is missing."""

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
        """Connect to nothing yet; ``learnt`` is called with what commits survive."""
        session = SESSION.format(millis=int(options.deadline * 1000))
        self.server = PostgresServer(endpoint, ambient, options, session=session)
        self.channel = f"{options.schema}.record"
        """Where notifications are sent."""
        self.patient = False
        """Whether a statement runs again, until its deadline, while the server is out of reach."""
        self.closed = False
        """Nothing runs any more."""
        self._ambient = ambient
        self._options = options
        self._learnt = learnt
        self._installed = False

    async def fetch(
        self, sql: str, *parameters: Any, patient: bool = True, share: float = 0.5
    ) -> list[Any]:
        """Return the rows of a statement, once; or tried again, where that is ``patient``.

        One attempt may take ``share`` of the deadline, so that another fits in when the connection
        had died. Raises BrokerError.
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
                            self._installed = False  # someone dropped the schema
                        elif not isinstance(error, StoreUnavailable):
                            raise
                        if not (patient and self.patient):
                            raise
                        deadline.trouble = error
                    await pauses.wait()
        except StoreError as error:
            raise as_broker_error(error) from error

    async def close(self) -> None:
        """Let go of every connection."""
        self.closed = True
        await self.server.close()

    async def _install(self) -> None:
        """Make the schema where it is missing, and run the steps that it has not seen."""
        if self._installed:
            return
        name = self._options.schema
        async with self.server.connection() as connection, connection.transaction():
            # Two processes that make the schema at once would fail on each other.
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
