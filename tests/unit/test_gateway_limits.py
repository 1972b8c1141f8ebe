"""The limits of one gateway: who is counted with whom, what is refused and what an answer tells."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway import KEY, Upstream, broken, listening, refused, serving, settings

from oyez.ambient import SystemAmbient
from oyez.config import Config, GatewaySettings, Limit, Rate, Route, load
from oyez.gateway.exchange import Budget, Connection, Exchange, Refusal
from oyez.gateway.http1 import request_head
from oyez.gateway.limits import concurrency
from oyez.gateway.limits.buckets import SECOND, Buckets, every
from oyez.gateway.limits.concurrency import Room
from oyez.gateway.limits.counted import whose
from oyez.gateway.limits.leases import UNKNOWN, Leases
from oyez.gateway.limits.ledger import Ledger
from oyez.gateway.limits.shedding import Shedding
from oyez.gateway.limits.store import Ask, Grant
from oyez.observe.metrics import Metrics
from oyez.principal import Principal

BY_KEY = {"x-api-key": KEY}


def limited(folder: Path, port: int, route: str, tables: str, more: str = "") -> Config:
    """The settings of `test_gateway` with limits, on the routes ``/open`` and ``/orders``."""
    path = settings(folder, port, more).path
    text = path.read_text()
    methods = 'methods = ["GET", "POST"]'
    text = text.replace(methods, f"{methods}\n{route}")
    path.write_text(f"{text}\n{tables}")
    return load(path, {})


def sent_by(principal: Principal | None) -> Exchange:
    """A request, once its sender is known."""
    connection = Connection()
    connection.client = "192.0.2.7"
    head = request_head(b"GET /orders HTTP/1.1\r\nhost: x\r\n\r\n")
    exchange = Exchange(head, connection, GatewaySettings(), SystemAmbient(), Budget(0))
    exchange.principal = principal
    return exchange


class Stopped(SystemAmbient):
    """The real surroundings, with a clock that stands still unless it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


# Buckets

LIMITS = st.builds(
    Limit,
    name=st.just("x"),
    rate=st.builds(Rate, st.integers(1, 999_999), st.sampled_from((1, 60, 3600))),
    burst=st.integers(1, 40),
)
STEPS = st.lists(
    st.one_of(st.just((0, 1)), st.tuples(st.integers(0, 100), st.integers(1, 60))), max_size=120
)
"""How long after the last request one comes, as a share of the time of one token."""


class Reference:
    """A bucket as one would describe it, in whole numbers: shares of a token, and a last look."""

    def __init__(self, size: int, every: int) -> None:
        self.every = every
        self.shares = self.most = size * every
        self.looked = 0

    def admits(self, now: int) -> bool:
        self.shares = min(self.shares + now - self.looked, self.most)
        self.looked = now
        if self.shares < self.every:
            return False
        self.shares -= self.every
        return True


@given(LIMITS, STEPS)
def test_a_bucket_admits_what_it_should_and_no_more(
    limit: Limit, steps: Sequence[tuple[int, int]]
) -> None:
    bucket, token = Buckets(limit), every(limit)
    reference = Reference(limit.size, token)
    now, admitted, times = 10**15, 0, []
    reference.looked = began = now
    for numerator, denominator in steps:
        now += token * numerator // denominator
        wait = bucket.wait("a", now)
        left = bucket.left("a", now)
        assert (left > 0) == (wait == 0)
        assert reference.admits(now) == (wait == 0)
        if wait:
            assert reference.every - reference.shares == wait
            continue
        assert left == reference.shares // token + 1
        bucket.take("a", now)
        admitted += 1
        times.append(now)
        # In the words of the configuration: never more than the burst, and the rate besides.
        assert (admitted - limit.size) * limit.rate.seconds * SECOND <= limit.rate.count * (
            now - began
        )
    for first, at in enumerate(times):
        for last in range(first, len(times)):
            spent = (last - first + 1 - limit.size) * limit.rate.seconds * SECOND
            assert spent <= limit.rate.count * (times[last] - at)


def test_the_time_of_a_token_is_rounded_by_less_than_a_nanosecond() -> None:
    for count in (1, 3, 7, 999_983):
        limit = Limit(name="x", rate=Rate(count, 60))
        assert 60 * SECOND <= every(limit) * count < 60 * SECOND + count


def test_buckets_are_bounded_and_full_ones_are_dropped_first() -> None:
    buckets = Buckets(Limit(name="x", rate=Rate(1, 1), burst=2), most=10)
    for number in range(30):
        buckets.take(f"{number}", 0)
    assert len(buckets) == 10
    buckets.take("29", 0)
    assert buckets.wait("29", 0) == SECOND
    for number in range(100, 120):
        buckets.take(f"{number}", 3 * SECOND)
    assert len(buckets) == 10
    assert buckets.left("29", 3 * SECOND) == 2


# Whose


def test_who_is_counted_with_whom() -> None:
    route = Route(path="/orders", service="orders")

    def counted(by: Any, principal: Principal | None) -> str:
        limit = Limit(name="x", rate=Rate(1, 1), by=by)
        return whose(limit, route)(sent_by(principal))

    key = Principal(kind="api_key", subject="ci", issuer="key")
    user = Principal(kind="user", subject="ann", issuer="shop")
    session = Principal(kind="session", subject="s", issuer="session")
    here = "@192.0.2.7"
    everybody = (key, user, session, None)
    assert [counted("principal", each) for each in everybody] == ["key:ci", "shop:ann", here, here]
    assert [counted("key", each) for each in everybody] == ["key:ci", here, here, here]
    assert {counted("address", each) for each in everybody} == {here}
    assert {counted("route", each) for each in everybody} == {"GET HEAD /orders"}


# The step

ITEM = re.compile(r'"([a-z0-9-]+)"((?:;[a-z-]+=[0-9]+)+)')


def parsed(header: str) -> dict[str, dict[str, int]]:
    """The items of a list of strings with whole numbers as parameters (RFC 9651)."""
    found = {}
    for item in header.split(", "):
        match = ITEM.fullmatch(item)
        assert match, header
        pairs = (each.split("=") for each in match[2][1:].split(";"))
        found[match[1]] = {name: int(value) for name, value in pairs}
    return found


async def test_answers_tell_what_is_left(tmp_path: Path, upstream: Upstream) -> None:
    tables = (
        '[gateway.limits.orders]\nrate = "6/min"\nburst = 3\n'
        '[gateway.limits.all]\nrate = "100/h"\nby = "route"'
    )
    clock = Stopped()
    async with listening(upstream) as port:
        config = limited(tmp_path, port, 'limits = ["orders", "all"]', tables)
        async with serving(config, clock) as client:
            for left in (2, 1, 0):
                answer = await client.get("/open")
                assert answer.status_code == 200
                assert parsed(answer.headers["ratelimit-policy"]) == {
                    "orders": {"q": 6, "w": 60, "oyez-burst": 3},
                    "all": {"q": 100, "w": 3600},
                }
                assert parsed(answer.headers["ratelimit"]) == {
                    "orders": {"r": left, "t": 10},
                    "all": {"r": 97 + left, "t": 36},
                }
            clock.seconds += 0.5
            answer = refused(await client.get("/open"), 429, "rate_limited")
            assert answer.headers["retry-after"] == "10"
            assert parsed(answer.headers["ratelimit"])["orders"] == {"r": 0, "t": 10}
            # What is refused by one limit takes nothing of another.
            assert parsed(answer.headers["ratelimit"])["all"]["r"] == 97
            assert len(upstream.seen) == 3
            assert (await client.get("/open/closed", headers=BY_KEY)).status_code == 200
            clock.seconds += 9.5
            assert (await client.get("/open")).status_code == 200
            refused(await client.get("/open"), 429, "rate_limited")


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


async def test_principals_have_buckets_of_their_own(tmp_path: Path, upstream: Upstream) -> None:
    """One bucket for all routes of a limit; a new session is no new visitor."""
    tables = '[gateway.limits.each]\nrate = "1/h"'
    metrics = Metrics("gateway", service="gateway")
    async with listening(upstream) as port:
        config = limited(tmp_path, port, 'limits = ["each"]', tables)
        async with serving(config, observer=metrics) as client:
            assert (await client.get("/open", headers=BY_KEY)).status_code == 200
            refused(await client.get("/orders", headers=BY_KEY), 429, "rate_limited")
            assert (await client.get("/open")).status_code == 200
            for _ in range(2):
                await client.post("/session")
                refused(await client.get("/orders"), 429, "rate_limited")
                client.cookies.clear()
            refused(await client.get("/orders"), 401, "credentials_missing")
            scraped = (await metrics.render())[0].decode()
    assert (
        'oyez_gateway_limited_total{limit="each",route="/orders",service="gateway"} 3.0' in scraped
    )
    assert 'oyez_gateway_refused_total{code="rate_limited",service="gateway"} 3.0' in scraped


async def test_what_an_address_claims_counts_for_nothing(
    tmp_path: Path, upstream: Upstream
) -> None:
    tables = '[gateway.limits.each]\nrate = "1/h"\nby = "address"'
    async with listening(upstream) as port:
        config = limited(tmp_path, port, 'limits = ["each"]', tables)
        async with serving(config) as client:
            assert (await client.get("/open", headers=BY_KEY)).status_code == 200
            forged = {"x-forwarded-for": "192.0.2.7", "forwarded": "for=192.0.2.7"}
            refused(await client.get("/open", headers=forged), 429, "rate_limited")


async def test_who_is_behind_a_trusted_proxy_is_counted_alone(
    tmp_path: Path, upstream: Upstream
) -> None:
    tables = '[gateway.limits.each]\nrate = "1/h"\nby = "address"'
    more = 'trusted_proxies = ["127.0.0.0/8"]'
    async with (
        listening(upstream) as port,
        serving(limited(tmp_path, port, 'limits = ["each"]', tables, more)) as client,
    ):
        asked = (("192.0.2.7", 200), ("6.6.6.6, 192.0.2.7", 429), ("192.0.2.8", 200))
        for claimed, status in asked:
            answer = await client.get("/open", headers={"x-forwarded-for": claimed})
            assert answer.status_code == status


async def test_routes_without_limits_say_nothing_of_them(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with listening(upstream) as port:
        config = limited(tmp_path, port, 'limits = ["a"]', '[gateway.limits.a]\nrate = "1/h"')
        async with serving(config) as client:
            answer = await client.get("/open/closed", headers=BY_KEY)
            assert answer.status_code == 200
            assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)


# Leases


class Kept:
    """A store in this process, on a clock of its own that is moved."""

    def __init__(self) -> None:
        self.now = 0
        self.trips: list[list[Ask]] = []
        self.full: dict[str, int] = {}
        self.waits: asyncio.Event | None = None

    async def open(self) -> None: ...

    async def take(self, asks: Sequence[Ask]) -> list[Grant]:
        self.trips.append(list(asks))
        if self.waits is not None:
            await self.waits.wait()
        grants = []
        for ask in asks:
            full = max(self.full.get(ask.bucket, 0), self.now)
            free = ask.size - -(-(full - self.now) // ask.every)
            count = max(min(ask.want, free), 0)
            self.full[ask.bucket] = full + count * ask.every
            grants.append(Grant(count, self.full[ask.bucket] - self.now))
        return grants

    async def sweep(self) -> None: ...

    async def close(self) -> None: ...


async def shared(store: Kept, limit: Limit, ambient: Stopped) -> tuple[Ledger, Leases]:
    ledger = Ledger(store, "redis://kept", ambient, None)
    await ledger.open()
    return ledger, Leases(limit, "shop", ledger, lambda: int(ambient.seconds * SECOND))


async def taken(ledger: Ledger, leases: Leases, who: str, ambient: Stopped) -> bool:
    """Take a token as the step does; return whether there was one."""
    now = int(ambient.seconds * SECOND)
    wait = leases.wait(who, now)
    if wait == UNKNOWN:
        await ledger.asked([leases.joining(who)])
        wait = leases.wait(who, now)
    if wait:
        return False
    leases.take(who, now)
    return True


async def test_tokens_are_taken_in_advance_when_they_are_used(tmp_path: Path) -> None:
    store, ambient = Kept(), Stopped()
    ledger, leases = await shared(store, Limit(name="x", rate=Rate(100, 1)), ambient)
    assert all([await taken(ledger, leases, "a", ambient) for _ in range(20)])
    assert [trip[0].want for trip in store.trips] == [1, 2, 4, 5, 5, 5]
    ambient.seconds += 1  # what was not used in time is lost
    assert await taken(ledger, leases, "a", ambient)
    assert store.trips[-1][0].want == 1
    await ledger.close()


async def test_an_empty_bucket_is_not_asked_for_again_and_again() -> None:
    store, ambient = Kept(), Stopped()
    ledger, leases = await shared(store, Limit(name="x", rate=Rate(10, 1), burst=2), ambient)
    assert [await taken(ledger, leases, "a", ambient) for _ in range(9)] == [True] * 2 + [False] * 7
    assert len(store.trips) == 3
    assert leases.wait("a", int(ambient.seconds * SECOND)) == SECOND // 10
    ambient.seconds += 0.1
    store.now += SECOND // 10
    assert [await taken(ledger, leases, "a", ambient) for _ in range(9)] == [True] + [False] * 8
    await ledger.close()


async def test_requests_that_wait_for_the_store_travel_together() -> None:
    store, ambient = Kept(), Stopped()
    store.waits = asyncio.Event()
    ledger, leases = await shared(store, Limit(name="x", rate=Rate(100, 1)), ambient)
    first = asyncio.create_task(taken(ledger, leases, "a", ambient))
    while not store.trips:
        await asyncio.sleep(0)
    others = [
        asyncio.create_task(taken(ledger, leases, "ab"[number % 2], ambient))
        for number in range(60)
    ]
    gone = asyncio.create_task(taken(ledger, leases, "c", ambient))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    store.waits.set()
    assert all(await asyncio.gather(first, *others))
    assert len(store.trips) == 2
    assert sorted(ask.want for ask in store.trips[1]) == [1, 30, 30]
    names = {ask.bucket for trip in store.trips for ask in trip}
    assert all(re.fullmatch(r"shop:x:[0-9a-f]{32}", name) for name in names)
    assert len(names) == 3
    await ledger.close()


# Concurrency


class Held:
    """A service that answers when it is let."""

    def __init__(self) -> None:
        self.arrived = 0
        self.most = 0
        self.at_work = 0
        self.go_on = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            self.arrived += 1
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            await self.go_on.wait()
            self.at_work -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests wait for a place for as long as a test needs."""
    monkeypatch.setattr(concurrency, "_PATIENCE", 60)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("route", "more"), [("concurrency = 2", ""), ("", "concurrency = 2")])
async def test_so_many_are_at_work_and_as_many_wait(
    tmp_path: Path, route: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service, more = Held(), f"access_log = 0\n{more}"
    async with (
        broken(service) as port,
        serving(limited(tmp_path, port, route, "", more)) as client,
    ):
        asked = [asyncio.create_task(client.get("/open")) for _ in range(7)]
        await until(lambda: sum(each.done() for each in asked) == 3 and service.arrived == 2)
        for each in asked:
            if each.done():
                answer = refused(each.result(), 503, "overloaded")
                assert answer.headers["retry-after"] == "1"
        assert (await client.get("/livez")).status_code == 200
        service.go_on.set()
        answers = await asyncio.gather(*asked)
        assert sorted(each.status_code for each in answers) == [200] * 4 + [503] * 3
        assert service.most == 2
        assert (await client.get("/open")).status_code == 200
    assert "status=503" not in capsys.readouterr().err


async def test_who_waits_for_a_place_is_refused_in_the_end(tmp_path: Path) -> None:
    service = Held()
    async with (
        broken(service) as port,
        serving(limited(tmp_path, port, "concurrency = 1", "")) as client,
    ):
        first = asyncio.create_task(client.get("/open"))
        await until(lambda: service.arrived == 1)
        refused(await client.get("/open"), 503, "overloaded")
        service.go_on.set()
        assert (await first).status_code == 200
        assert (await client.get("/open")).status_code == 200


@pytest.mark.usefixtures("patient")
async def test_who_leaves_the_queue_and_who_sends_slowly_hold_no_place(tmp_path: Path) -> None:
    service, metrics = Held(), Metrics("gateway", service="gateway")

    async def in_flight(number: int) -> None:
        shown = f'oyez_gateway_in_flight_requests{{service="gateway"}} {number}.0\n'.encode()
        async with asyncio.timeout(20):
            while shown not in (await metrics.render())[0]:
                await asyncio.sleep(0.01)

    async with (
        broken(service) as port,
        serving(limited(tmp_path, port, "concurrency = 1", ""), observer=metrics) as client,
    ):
        host, at = client.address.host, client.address.port
        _, slow = await asyncio.open_connection(host, at)
        slow.write(b"POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        await in_flight(1)
        first = asyncio.create_task(client.get("/open"))
        await until(lambda: service.arrived == 1)
        _, leaving = await asyncio.open_connection(host, at)
        leaving.write(b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
        await in_flight(3)
        leaving.close()
        await in_flight(2)
        service.go_on.set()
        assert (await first).status_code == 200
        assert (await client.get("/open")).status_code == 200
        slow.close()
    assert service.arrived == 2


async def test_a_place_that_is_given_to_one_who_leaves_goes_on() -> None:
    room = Room(1)
    await room.enter()
    leaves = asyncio.create_task(room.enter())
    await asyncio.sleep(0)
    with pytest.raises(Refusal):
        await room.enter()
    room.leave()
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    assert not room.full
    await room.enter()
    assert room.full


# Load that is shed


def test_a_lag_that_stands_is_told_from_a_burst() -> None:
    shedding = Shedding(0.5)

    def after(*turns: tuple[float, float]) -> tuple[bool, bool]:
        """Who is refused after timers that were due, and how late they fired."""
        for due, late in turns:
            shedding.turned(late, due + late)
        return shedding.strangers, shedding.everybody

    assert after((1, 9)) == (False, False)
    assert after((11, 0.5), (12, 0.6), (12.7, 0.6)) == (False, False)
    assert after((13.4, 0.6)) == (True, False)
    assert after((14, 1.1)) == (True, True)
    assert after((16, 0.6)) == (True, False)
    assert after((17, 0.5)) == (False, False)
    assert after((18, 0.6)) == (False, False)


async def test_strangers_are_refused_first() -> None:
    shedding, passed = Shedding(0.5), []

    async def onward(exchange: Any) -> None:
        passed.append(exchange.principal)

    answer = shedding.before(Route(path="/orders", service="orders"), onward)
    key = Principal(kind="api_key", subject="ci", issuer="key")
    user = Principal(kind="user", subject="ann", issuer="shop")
    session = Principal(kind="session", subject="s", issuer="session")

    async def admitted() -> list[Principal | None]:
        passed.clear()
        for principal in (key, user, session, None):
            with contextlib.suppress(Refusal):
                await answer(sent_by(principal))
        return passed

    assert await admitted() == [key, user, session, None]
    for due in (1, 2, 3):
        shedding.turned(0.6, due)
    assert await admitted() == [key, user]
    shedding.turned(1.1, 4)
    assert await admitted() == []


async def test_requests_are_refused_while_the_loop_lags(tmp_path: Path, upstream: Upstream) -> None:
    async def hog() -> None:
        while True:
            time.sleep(0.1)
            await asyncio.sleep(0)

    async with (
        listening(upstream) as port,
        serving(limited(tmp_path, port, "", "", "lag_limit = 0.001")) as client,
    ):
        await client.post("/session")
        hogging = asyncio.create_task(hog())
        try:
            async with asyncio.timeout(30):
                while (await client.get("/open")).status_code == 200:
                    pass
            refused(await client.get("/open"), 503, "overloaded")
            refused(await client.get("/orders"), 503, "overloaded")
            for path in ("/livez", "/readyz"):
                assert (await client.get(path)).status_code == 200
        finally:
            hogging.cancel()
        async with asyncio.timeout(30):
            while (await client.get("/open")).status_code != 200:
                pass
