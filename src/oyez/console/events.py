"""The services' side of the events: what a process tells of the streams of its broker.

It reads with the connection that the process has open, beside the readers of its lanes, and no more
at once than `TURNS`: whoever looks waits, the service does not.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from oyez.console.answers import Explore, Place, Problem, Streams
from oyez.errors import OyezError
from oyez.inspection import explore, history
from oyez.inspection.explore import Arrivals, Page, Shown
from oyez.runtime.process import ServiceProcess

T = TypeVar("T")

TURNS = 2
"""Questions about events that a process answers at once."""
STREAMS = 2_000
"""The most streams that are listed."""


class Events:
    """Answers about the events of one process's broker, and about the contracts in its code."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._turns = asyncio.Semaphore(TURNS)

    async def streams(self, _: Request) -> Streams:
        """Answer with the streams of the broker."""
        broker = self._process.broker
        if not broker.capabilities.history:
            return Streams(history=False, partitions={})
        async with self._turns:
            found = sorted((await history.streams(broker)).items())[:STREAMS]
        return Streams(history=True, partitions=dict(found))

    async def page(self, request: Request) -> Page:
        """Answer with a page of a stream's events."""
        asked = _asked(request, Explore)
        async with self._turns:
            return await explore.explore(
                self._process.broker,
                asked.stream,
                asked,
                newest=not asked.oldest,
                partition=asked.partition,
                at=explore.at_of(asked.at),
                limit=asked.limit,
            )

    async def arrivals(self, request: Request) -> Arrivals:
        """Answer with what has arrived in a stream."""
        asked = _asked(request, Explore)
        async with self._turns:
            return await explore.arrivals(
                self._process.broker,
                asked.stream,
                asked,
                partition=asked.partition,
                at=explore.at_of(asked.at),
            )

    async def one(self, request: Request) -> Shown:
        """Answer with one event."""
        place = _asked(request, Place)
        async with self._turns:
            return await explore.show(
                self._process.broker, place.stream, place.partition, place.position
            )

    async def data(self, request: Request) -> Response:
        """Answer with the whole payload of an event."""
        try:
            place = _asked(request, Place)
            async with self._turns:
                found = await explore.payload(
                    self._process.broker, place.stream, place.partition, place.position
                )
        except (msgspec.DecodeError, OyezError) as error:
            problem = Problem(title="It could not be done", status=404, detail=str(error))
            content = msgspec.json.encode(problem)
            return Response(content, 404, media_type="application/problem+json")
        return Response(found or b"", media_type="application/octet-stream")

    async def contracts(self, _: Request) -> object:
        """Answer with the contracts of the service."""
        # The rules of the lint are many modules, for one who looks at contracts alone.
        from oyez.inspection.lint.contracts import contracts_of

        return contracts_of(self._process.service)


def _asked(request: Request, kind: type[T]) -> T:
    """Return what the query asks for. Raises msgspec.ValidationError, naming the field."""
    return msgspec.convert(dict(request.query_params), kind, strict=False)
