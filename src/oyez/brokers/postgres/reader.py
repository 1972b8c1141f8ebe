"""Reads one partition by position."""

from __future__ import annotations

from oyez.brokers.kit.streams import Place
from oyez.brokers.postgres.connection import Connection
from oyez.brokers.postgres.ends import Ends
from oyez.brokers.postgres.options import PostgresOptions
from oyez.brokers.postgres.wire import decode
from oyez.errors import BrokerUnavailable
from oyez.ports import BEGINNING, Batch, Position

_RECORDS = """select position, time, key, headers, data from (
  select position, time, key, headers, data, coalesce(octet_length(data), 0) as size,
    sum(coalesce(octet_length(data), 0)) over (order by position rows unbounded preceding) as total
  from (select * from {schema}.record where partition = $1 and position > $2
    order by position limit $3) next
 ) counted where total - size < $4 order by position"""
_LAST = "select last from {schema}.ends where id = $1"


class Reader:
    """A call of `Broker.read`, with its position."""

    def __init__(
        self,
        connection: Connection,
        ends: Ends,
        options: PostgresOptions,
        place: Place,
        after: Position,
    ) -> None:
        self._connection = connection
        self._ends = ends
        self._limits = (options.batch, options.batch_bytes)
        self._place = place
        self._position = after
        self._seen = BEGINNING
        """An end up to which retention has deleted all records."""
        self._id: int | None = None
        self._restarted = False

    async def next(self) -> Batch:
        """Return the next records, at least one. Raises BrokerRefused.

        Raises BrokerUnavailable once the broker is closed.
        """
        while True:
            try:
                batch = await self._fetch()
            except BrokerUnavailable:
                if not self._connection.patient:
                    raise
                continue  # the call has waited for its deadline
            if batch is not None:
                return batch
            await self._ends.wait(self._place)

    async def _fetch(self) -> Batch | None:
        """Return the records after the position and move it; None if there are none yet."""
        while (end := self._ends.get(self._place)) is not None:
            if self._id not in (None, end.id):
                self._restart()  # the partition was created again
            self._id = end.id
            if end.last < self._position:
                # The known end may be outdated; query the server.
                rows = await self._connection.fetch(_LAST, end.id)
                if not rows:
                    await self._ends.refresh()
                    continue
                if rows[0]["last"] < self._position:
                    self._restart()
                self._ends.move(end.id, rows[0]["last"])
                continue
            if end.last <= max(self._position, self._seen):
                return None
            last = end.last
            rows = await self._connection.fetch(_RECORDS, end.id, self._position, *self._limits)
            if rows:
                records = decode(rows, self._place)
                missed = records[0].position - self._position - 1
                self._position = records[-1].position
                restarted, self._restarted = self._restarted, False
                return Batch(records, missed, restarted)
            self._seen = last  # up to there, retention has deleted everything
        return None

    def _restart(self) -> None:
        self._position = self._seen = BEGINNING
        self._restarted = True
