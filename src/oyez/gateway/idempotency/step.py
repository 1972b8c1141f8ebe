"""The step: a request with a key is answered once, and its repeats with the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property

from oyez.ambient import Ambient
from oyez.background import lasting
from oyez.config import Config, Route
from oyez.errors import OyezError
from oyez.gateway import after
from oyez.gateway.apart import Apart
from oyez.gateway.exchange import SLOW_BODY, ClientGone, Exchange, Refusal
from oyez.gateway.idempotency.entry import (
    Answered,
    Entries,
    Entry,
    Owned,
    State,
    encoded,
    entry_of,
)
from oyez.gateway.idempotency.key import key_in
from oyez.gateway.reply import Reply
from oyez.gateway.step import Answer
from oyez.logger import Logger

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_UNDONE = (408, 429, 503, 504)
"""Statuses of a service that may not have done the work: its next repeat goes to it again."""
_REPLAYED = (b"idempotency-replayed", b"true")
_SOON = [(b"retry-after", b"1")]
_SPECIFICATION = "https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/"

_MISSING = Refusal(
    400,
    "idempotency_key_missing",
    "send an Idempotency-Key, a new one for each request that is not a repeat",
    [(b"link", f'<{_SPECIFICATION}>; rel="describedby"; type="text/html"'.encode())],
)
_REUSED = Refusal(
    422, "idempotency_key_reused", "this Idempotency-Key was used for another request"
)
_RUNNING = Refusal(
    409, "idempotency_key_in_progress", "a request with this Idempotency-Key is in progress", _SOON
)
_UNAVAILABLE = Refusal(
    503, "idempotency_unavailable", "what keeps the Idempotency-Keys can't be reached", _SOON
)


class Idempotency:
    """The step of routes with ``idempotency``; other routes are answered as if it were not there.

    A request is answered apart from its client: who disconnects and repeats is given the answer
    of the work that went on meanwhile.
    """

    def __init__(self, config: Config, ambient: Ambient, kept: Callable[[], Entries]) -> None:
        """``kept`` returns the entries, not opened yet; it is called if a route uses them."""
        if config.gateway is None:
            raise ValueError(config)
        self._config = config
        self._settings = config.gateway.idempotency
        self._grace = config.gateway.grace
        self._ambient = ambient
        self._kept = kept
        self._used = False
        self._opened = False
        self._opening = asyncio.Lock()
        self._running: dict[Owned, None] = {}
        self._working: set[asyncio.Task[Reply | Answered | None]] = set()
        self._caring: asyncio.Task[None] | None = None
        self._log = Logger()

    async def open(self) -> None:
        """Open the store, if a route uses it; one out of reach is tried again when it is needed.

        Raises ConfigurationError for one that can't be used.
        """
        if not self._used:
            return
        try:
            await self._open()
        except OyezError as error:
            if not error.transient:
                expected = "a store that the gateway can use"
                raise self._config.error("gateway.store", expected, f"{error}") from error
        caring = lasting("the store of answers", self._care, self._ambient)
        self._caring = asyncio.get_running_loop().create_task(caring)

    async def close(self) -> None:
        """Finish what is in progress, and let go of the store. Safe to call twice."""
        if self._working:
            _, late = await asyncio.wait(self._working, timeout=self._grace)
            for work in late:
                work.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._caring is not None:
            self._caring.cancel()
            await asyncio.gather(self._caring, return_exceptions=True)
            self._caring = None
        if self._used:
            await self._entries.close()
            self._opened = False

    def before(self, route: Route, onward: Answer) -> Answer:
        """Answer a request with a key once; raises :class:`Refusal` (400, 409, 422, 503)."""
        if route.idempotency == "off":
            return onward
        self._used = True

        async def once(exchange: Exchange) -> None:
            if exchange.method in _SAFE_METHODS:
                await onward(exchange)
                return
            key = key_in(exchange)
            if key is None:
                if route.idempotency == "required":
                    raise _MISSING
                await onward(exchange)
                return
            if exchange.principal is None:
                raise ValueError(route)
            body = await exchange.body()
            entry = entry_of(
                exchange, self._config.system.name, exchange.principal, route.path, key, body
            )
            exchange.within(None, SLOW_BODY)
            found = await self._aside(exchange, entry, onward)
            if isinstance(found, Answered):
                await found.reply.send(exchange, _REPLAYED, *_own_writes(exchange, found.reply))
            elif found is not None:
                await found.send(exchange)

        return once

    @cached_property
    def _entries(self) -> Entries:
        return self._kept()

    async def _aside(
        self, exchange: Exchange, entry: Entry, onward: Answer
    ) -> Reply | Answered | None:
        """Do the work in a task that goes on when the client leaves; None if its answer passed."""
        apart = Apart(exchange, self._settings.answer_limit)
        work = asyncio.get_running_loop().create_task(self._work(apart, entry, onward))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if apart.passing or not isinstance(exchange.interruption, ClientGone):
                work.cancel()
            work.add_done_callback(self._ended_unheard)
            raise

    def _ended_unheard(self, work: asyncio.Task[Reply | Answered | None]) -> None:
        """See to what became of work whose client has left."""
        error = None if work.cancelled() else work.exception()
        if isinstance(error, Refusal):
            error.__traceback__ = None  # it may be a shared one
        elif error is not None and not isinstance(error, ClientGone):
            self._log.error("gateway failed", error=repr(error))

    async def _work(self, apart: Apart, entry: Entry, onward: Answer) -> Reply | Answered | None:
        try:
            owned = Owned(entry, self._ambient.bits(128).to_bytes(16))
            match await self._begin(owned):
                case State.BEGUN:
                    return await self._first(apart, owned, onward)
                case Answered() as answered:
                    return answered
                case State.REUSED:
                    raise _REUSED
                case State.RUNNING:
                    raise _RUNNING
        finally:
            apart.release()

    async def _first(self, apart: Apart, owned: Owned, onward: Answer) -> Reply | None:
        """Have the request answered, and store the answer or release the entry."""
        stored = None
        self._running[owned] = None
        try:
            reply = await apart.reply(onward)
            if reply is not None and reply.status not in _UNDONE:
                headers = [each for each in reply.headers if each[0] != b"set-cookie"]
                stored = encoded(Reply(reply.status, headers, reply.body))
            return reply
        finally:
            del self._running[owned]
            try:
                await self._entries.end(owned, stored)
            except OyezError as error:
                # The work is done, so its client is answered; a repeat is the service's to judge.
                self._log.warning("idempotent answer not stored", error=f"{error}")

    async def _begin(self, owned: Owned) -> State | Answered:
        try:
            await self._open()
            return await self._entries.begin(owned.entry, owned.mark)
        except OyezError:
            raise _UNAVAILABLE from None

    async def _open(self) -> None:
        if self._opened:
            return
        async with self._opening:
            if not self._opened:
                await self._entries.open()
                self._opened = True

    async def _care(self) -> None:
        """Renew the leases of what lasts long, and delete what has expired."""
        before: set[Owned] = set()
        while True:
            await self._ambient.sleep(self._settings.lease / 3)
            lasting = [owned for owned in self._running if owned in before]
            before = set(self._running)
            try:
                await self._open()
                if lasting:
                    await self._entries.renew(lasting)
                while await self._entries.sweep():
                    pass
            except OyezError as error:  # it is tried again at the next round
                self._log.warning("gateway store unavailable", error=f"{error}")


def _own_writes(exchange: Exchange, reply: Reply) -> list[tuple[bytes, bytes]]:
    """Return the cookie that the first answer had, if it named events: see `after`."""
    told = [value for name, value in reply.headers if name == after.HEADER]
    return after.cookie_for(exchange, told) if told else []
