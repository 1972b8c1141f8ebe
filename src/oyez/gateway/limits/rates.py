"""The step of rate limits: a token of each bucket for a request, or its refusal until there is one.

An answer tells what is left in ``RateLimit`` and what the limits are in ``RateLimit-Policy``, as
draft-ietf-httpapi-ratelimit-headers has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from oyez.ambient import Ambient
from oyez.config import Config, Limit, Route
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.limits.buckets import SECOND, Buckets, every
from oyez.gateway.limits.counted import Whose, whose
from oyez.gateway.limits.leases import UNKNOWN, Leases
from oyez.gateway.limits.ledger import ledger
from oyez.gateway.step import Answer
from oyez.signals import Listener, RequestLimited

_TRIPS = 3
"""How often a request asks the store, while others take what it was granted."""


class Counter(Protocol):
    """The buckets of one limit. Times are in nanoseconds."""

    def wait(self, who: str, now: int) -> int:
        """Return the time until a token is there: 0 if one is, UNKNOWN if that has to be asked."""
        ...

    def take(self, who: str, now: int) -> None:
        """Take a token, which must be there."""
        ...

    def left(self, who: str, now: int) -> int:
        """Return how many tokens are there."""
        ...


class _Held:
    """A limit as a route is held to it."""

    def __init__(self, limit: Limit, counter: Counter, whose: Whose) -> None:
        self.counter = counter
        self.whose = whose
        self.name = limit.name
        self.opening = f'"{limit.name}";r='
        self.closing = f";t={max(-(-every(limit) // SECOND), 1)}"
        """What stands before and after the number of tokens that are left; the latter says in how
        many seconds one more is there, rounded up."""
        burst = "" if limit.size == limit.rate.count else f";oyez-burst={limit.size}"
        self.policy = f'"{limit.name}";q={limit.rate.count};w={limit.rate.seconds}{burst}'


_Taking = list[tuple[_Held, str]]
"""The limits that hold for a request, and whose bucket each takes a token of."""


class Rates:
    """The rate limits of all routes, each counted in one place."""

    def __init__(self, config: Config, ambient: Ambient, tell: Listener | None = None) -> None:
        """``tell`` hears of requests that are refused.

        Raises :class:`ConfigurationError` for a store whose driver is missing, or that can't be
        read.
        """
        assert config.gateway is not None
        self._ambient = ambient
        self._tell = tell
        used = {name for route in config.gateway.routes for name in route.limits}
        self._limits = {name: config.gateway.limits[name] for name in sorted(used)}
        self._ledger = ledger(config, ambient, tell) if used else None
        self._counters = {
            name: self._counter(limit, config.system.name) for name, limit in self._limits.items()
        }

    async def open(self) -> None:
        """Open the store that replicas share, where there is one."""
        if self._ledger is not None:
            await self._ledger.open()

    async def close(self) -> None:
        """Close it. Safe to call twice."""
        if self._ledger is not None:
            await self._ledger.close()

    def before(self, route: Route, onward: Answer) -> Answer:
        """Admit what the route's limits admit; refuse the rest (429)."""
        if not route.limits:
            return onward
        held = [
            _Held(self._limits[name], self._counters[name], whose(self._limits[name], route))
            for name in route.limits
        ]
        policy = ", ".join(each.policy for each in held).encode()

        alone = held[0] if len(held) == 1 else None

        def answer(exchange: Exchange) -> Awaitable[None]:
            now = self._now()
            if alone is not None:
                who = alone.whose(exchange)
                if alone.counter.wait(who, now) == 0:
                    alone.counter.take(who, now)
                    _say(exchange, policy, _left(alone, who, now))
                    return onward(exchange)
            taking = [(each, each.whose(exchange)) for each in held]
            waits = [each.counter.wait(who, now) for each, who in taking]
            if min(waits) == UNKNOWN and max(waits) <= 0:
                return asked(exchange, taking)
            self._take(exchange, taking, waits, now, policy)
            return onward(exchange)

        async def asked(exchange: Exchange, taking: _Taking) -> None:
            now, waits = await self._asked(taking)
            self._take(exchange, taking, waits, now, policy)
            await onward(exchange)

        return answer

    async def _asked(self, taking: _Taking) -> tuple[int, list[int]]:
        """Ask the store for the tokens that are missing; return the time, and what to wait."""
        assert self._ledger is not None
        for _ in range(_TRIPS):
            now = self._now()
            waits = [each.counter.wait(who, now) for each, who in taking]
            if min(waits) != UNKNOWN or max(waits) > 0:
                break
            missing = [each for each, wait in zip(taking, waits, strict=True) if wait == UNKNOWN]
            await self._ledger.asked(
                [
                    each.counter.joining(who)
                    for each, who in missing
                    if isinstance(each.counter, Leases)
                ]
            )
        now = self._now()
        waits = [each.counter.wait(who, now) for each, who in taking]
        return now, [1 if wait == UNKNOWN else wait for wait in waits]

    def _take(
        self, exchange: Exchange, taking: _Taking, waits: Sequence[int], now: int, policy: bytes
    ) -> None:
        longest = max(waits)
        if longest <= 0:
            for each, who in taking:
                each.counter.take(who, now)
            _say(exchange, policy, ", ".join([_left(each, who, now) for each, who in taking]))
            return
        left = [
            _empty(each, wait) if wait > 0 else _left(each, who, now)
            for (each, who), wait in zip(taking, waits, strict=True)
        ]
        _say(exchange, policy, ", ".join(left))
        name = taking[waits.index(longest)][0].name
        if self._tell is not None:
            self._tell(RequestLimited(service="gateway", route=exchange.label, limit=name))
        seconds = -(-longest // SECOND)
        detail = f"more requests than the limit {name} lets through"
        raise Refusal(429, "rate_limited", detail, [(b"retry-after", b"%d" % seconds)])

    def _counter(self, limit: Limit, system: str) -> Counter:
        if self._ledger is None:
            return Buckets(limit)
        return Leases(limit, system, self._ledger, self._now)

    def _now(self) -> int:
        return int(self._ambient.monotonic() * SECOND)


def _left(held: _Held, who: str, now: int) -> str:
    return f"{held.opening}{held.counter.left(who, now)}{held.closing}"


def _empty(held: _Held, wait: int) -> str:
    return f'"{held.name}";r=0;t={-(-wait // SECOND)}'


def _say(exchange: Exchange, policy: bytes, left: str) -> None:
    """Have the answer say what the limits of its request are; a service may add its own."""
    exchange.say(b"ratelimit-policy", policy)
    exchange.say(b"ratelimit", left.encode())
