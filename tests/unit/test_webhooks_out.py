"""Webhooks to others: who gets what, how often, in which order, signed how, and what is never sent.

Endpoints are real servers on loopback, which the service is allowed to reach here; only the clock
of the service is the test's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway import listening

from oyez import Event, Principal, Retry
from oyez.errors import ConfigurationError, DeclarationError, InvalidEvent, RetryLater
from oyez.testing import System, running
from oyez.webhooks import WebhookDisabled, webhooks
from oyez.webhooks.client import MAX_ANSWER, Client
from oyez.webhooks.deliveries import ATTEMPTS, FAILURES
from oyez.webhooks.master import VARIABLE, read_master
from oyez.webhooks.offer import DAY, RETRY
from oyez.webhooks.reach import Reach
from oyez.webhooks.signing import sign
from oyez.webhooks.subscriptions import chain, check_types, matches
from oyez.webhooks.turns import LONGEST, Turns

KEY = "5a" * 32
QUICK = Retry(attempts=4, first=1.0, factor=1.0, jitter=0.0, longest=500.0)


class Placed(Event, type="shop.order.placed", key="order"):
    order: str
    cents: int = 0


class Shipped(Event, type="shop.order.shipped", key="order"):
    order: str


class Inside(Event, type="shop.order.placed", key="order"):
    """The event as the shop knows it."""

    order: str
    cents: int = 0
    margin: int = 7


class Got(NamedTuple):
    headers: Mapping[str, str]
    body: bytes
    path: str

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Endpoint:
    """Somebody's server: it keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answer: Callable[[Got], Awaitable[tuple[int, dict[str, str]]]] = _well
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        got = Got(headers, body + message.get("body", b""), scope["path"])
        self.got.append(got)
        status, extra = await self.answer(got)
        pairs = [(name.encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": b"whatever"})

    def says(self, status: int, **headers: str) -> None:
        """Answer so from now on."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        async def answer(got: Got) -> tuple[int, dict[str, str]]:
            return status, named

        self.answer = answer

    @property
    def orders(self) -> list[str]:
        """The orders of what it got, in this order."""
        return [got.event["data"]["order"] for got in self.got]

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


async def _well(got: Got) -> tuple[int, dict[str, str]]:
    return 204, {}


class Desk:
    """The service, an endpoint, and who asks."""

    def __init__(self, system: System, endpoint: Endpoint) -> None:
        self.system = system
        self.endpoint = endpoint

    def client(self, by: str = "key:ada") -> httpx.AsyncClient:
        """A client of the HTTP side whose requests are those of a principal."""
        issuer, _, subject = by.partition(":")
        known = Principal(kind="api_key", issuer=issuer, subject=subject) if by else None
        return self.system.http("hooks", known)

    async def ask(
        self, method: str, path: str = "", *, by: str = "key:ada", expect: int = 200, **body: Any
    ) -> Any:
        given = {"json": body} if method in ("POST", "PATCH") else {}
        async with self.client(by) as client:
            answer = await client.request(method, f"/webhooks{path}", **given)
        assert answer.status_code == expect, answer.text
        return answer.json() if answer.content else None

    async def subscribe(self, *, url: str = "", **fields: Any) -> dict[str, Any]:
        fields.setdefault("types", ["*"])
        made = await self.ask("POST", expect=201, url=url or self.endpoint.url(), **fields)
        assert isinstance(made, dict)
        return made

    async def place(self, *orders: str, cents: int = 5) -> None:
        for order in orders:
            await self.system.publish(Inside(order=order, cents=cents))

    async def until(self, condition: Callable[[], bool], *, step: float = 1.0) -> None:
        """Let time pass until this is so."""
        for _ in range(400):
            if condition():
                return
            await self.system.advance(step)
        raise AssertionError("it never was so")

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        return await self.system.fetch("hooks", sql)

    async def state(self) -> str:
        (row,) = await self.rows("select state from webhook")
        return str(row["state"])

    async def attempts(self, made: dict[str, Any]) -> list[dict[str, Any]]:
        found = (await self.ask("GET", f"/{made['id']}/deliveries"))["deliveries"]
        assert isinstance(found, list)
        return found


@asynccontextmanager
async def desk(*more: Endpoint, **options: Any) -> AsyncIterator[Desk]:
    endpoints = [Endpoint(), *more]
    async with (
        _all_listening(endpoints),
        _serving(endpoints, options) as system,
    ):
        yield Desk(system, endpoints[0])


@asynccontextmanager
async def _all_listening(endpoints: list[Endpoint]) -> AsyncIterator[None]:
    if not endpoints:
        yield
        return
    async with listening(endpoints[0]) as endpoints[0].port, _all_listening(endpoints[1:]):
        yield


@asynccontextmanager
async def _serving(endpoints: list[Endpoint], options: dict[str, Any]) -> AsyncIterator[System]:
    service = webhooks(
        "hooks",
        **{
            "events": [Placed, Shipped],
            "allow": ["127.0.0.0/8"],
            "ports": [each.port for each in endpoints],
            "plain_http": True,
            "retry": QUICK,
            **options,
        },
    )
    async with running(service, system="shop") as system:
        yield system


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def verified(secret: str, got: Got) -> bool:
    """Whether one of the signatures is that of this secret, by the text of the specification."""
    text = b".".join(
        (got.headers["webhook-id"].encode(), got.headers["webhook-timestamp"].encode(), got.body)
    )
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret[6:], validate=True)
    assert 24 <= len(key) <= 64
    expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    given = [each.split(",", 1) for each in got.headers["webhook-signature"].split(" ")]
    return ["v1", expected] in given


# -- what is sent ----------------------------------------------------------------------------------


def test_it_signs_as_the_reference_implementation_of_standard_webhooks() -> None:
    secret, message = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    body = b'{"test": 2432232314}'
    assert sign([secret], message, 1614265330, body) == signature
    assert sign([secret, secret], message, 1614265330, body) == f"{signature} {signature}"


async def test_an_endpoint_gets_a_signed_cloud_event_of_the_declared_fields() -> None:
    async with desk() as at:
        made = await at.subscribe(types=["shop.order.placed"], description="books")
        await at.place("1")
        await at.system.publish(Shipped(order="1"))
        await at.system.settled()
        (got,) = at.endpoint.got
        event = got.event
        assert event.pop("id")
        assert event.pop("time")
        assert event == {
            "specversion": "1.0",
            "source": "/shop/outside",
            "type": "shop.order.placed",
            "subject": "1",
            "datacontenttype": "application/json",
            "dataschema": "urn:oyez:shop.order.placed:1",
            "data": {"order": "1", "cents": 5},
        }
        assert got.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        assert got.headers["host"] == f"127.0.0.1:{at.endpoint.port}"
        assert int(got.headers["webhook-timestamp"]) == int(at.system.ambient.now())
        assert verified(made["secret"], got)
        assert not verified(made["secret"], got._replace(body=got.body + b" "))
        (attempt,) = await at.attempts(made)
        assert attempt["status"] == 204
        assert attempt["delivered"]
        assert (attempt["attempt"], attempt["error"]) == (1, "")


async def test_what_a_replay_announces_is_not_sent() -> None:
    async with desk() as at:
        await at.subscribe()
        await at.place("1")
        await at.system.settled()
        (sent, *_) = at.system.history()
        again = {**sent.headers(), "id": "again", "replayed": "r1"}
        await at.system.publish_raw(again, sent.data, key="1")
        await at.system.settled()
        assert len(at.system.history()) == 3  # the event, the command to deliver it, the replayed
        assert at.endpoint.orders == ["1"]


async def test_each_subscription_has_an_id_of_its_own_for_a_message() -> None:
    async with desk() as at:
        for _ in range(2):
            await at.subscribe()
        await at.place("1")
        await at.system.settled()
        one, other = at.endpoint.got
        assert one.body == other.body
        assert one.id != other.id


async def test_a_message_has_one_id_until_it_is_taken() -> None:
    async with desk() as at:
        made = await at.subscribe()
        at.endpoint.says(503)
        await at.place("1")
        await at.system.settled()
        await at.system.advance(1.0)
        assert len(at.endpoint.got) == 2
        at.endpoint.says(200)
        await at.system.advance(1.0)
        await at.system.advance(100.0)
        assert len(at.endpoint.got) == 3
        assert len({got.id for got in at.endpoint.got}) == 1
        assert len({got.headers["webhook-timestamp"] for got in at.endpoint.got}) == 3
        found = await at.attempts(made)
        assert [each["status"] for each in found] == [200, 503, 503]
        assert [each["attempt"] for each in found] == [3, 2, 1]
        assert [each["error"] for each in found] == ["", "answered 503", "answered 503"]


async def test_an_endpoint_may_say_when_to_come_back() -> None:
    async with desk() as at:
        await at.subscribe()
        at.endpoint.says(429, retry_after="100")
        await at.place("1")
        await at.system.settled()
        await at.system.advance(99.0)
        assert len(at.endpoint.got) == 1
        at.endpoint.says(503, retry_after="86400")
        await at.system.advance(1.0)
        assert len(at.endpoint.got) == 2
        await at.system.advance(QUICK.longest)  # and no later than the policy's longest
        assert len(at.endpoint.got) == 3


async def test_a_test_event_is_tried_once() -> None:
    async with desk() as at:
        made = await at.subscribe(types=["shop.order.shipped"])
        at.endpoint.says(500)
        sent = await at.ask("POST", f"/{made['id']}/test", expect=202)
        await at.system.advance(100.0)
        (got,) = at.endpoint.got
        assert got.event["type"] == "webhook.test"
        assert verified(made["secret"], got)
        (attempt,) = await at.attempts(made)
        assert (attempt["message"], attempt["status"]) == (sent["message"], 500)
        assert await at.system.dead("hooks") == []
        (shown,) = (await at.ask("GET"))["webhooks"]
        assert shown["failing"] is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    inner = Endpoint()
    async with desk(inner) as at:
        made = await at.subscribe()
        at.endpoint.says(status, location=inner.url())
        await at.place("1")
        await at.system.settled()
        assert len(at.endpoint.got) == 1
        assert inner.got == []
        (attempt,) = await at.attempts(made)
        assert attempt["error"] == "redirects are not followed"


# -- order, and who waits for whom -----------------------------------------------------------------


async def test_a_failure_holds_up_its_key_alone() -> None:
    async with desk() as at:
        await at.subscribe()
        refused = {"a"}

        async def answer(got: Got) -> tuple[int, dict[str, str]]:
            return 500 if got.event["data"]["order"] in refused else 200, {}

        at.endpoint.answer = answer
        await at.place("a", cents=1)
        await at.place("a", cents=2)
        await at.place("b", "c")
        await at.until(lambda: {"b", "c"} <= {*at.endpoint.orders}, step=0.1)
        assert [got.event["data"]["cents"] for got in at.endpoint.got if _order(got) == "a"] == [1]
        refused.clear()
        await at.system.advance(2.0)
        found = [got.event["data"]["cents"] for got in at.endpoint.got if _order(got) == "a"]
        assert found == [1, 1, 2]


async def test_without_order_the_later_ones_of_a_key_overtake() -> None:
    async with desk() as at:
        await at.subscribe(ordering="none")

        async def answer(got: Got) -> tuple[int, dict[str, str]]:
            return 500 if got.event["data"]["cents"] == 1 else 200, {}

        at.endpoint.answer = answer
        await at.place("a", cents=1)
        await at.place("a", cents=2)
        await at.until(lambda: len(at.endpoint.got) >= 2, step=0.1)
        assert {got.event["data"]["cents"] for got in at.endpoint.got[:2]} == {1, 2}


async def test_an_endpoint_that_hangs_does_not_hold_up_another() -> None:
    hanging, freed = Endpoint(), asyncio.Event()

    async def hang(got: Got) -> tuple[int, dict[str, str]]:
        await freed.wait()
        return 200, {}

    hanging.answer = hang
    async with desk(hanging) as at:
        await at.subscribe(url=hanging.url(), concurrency=16)
        await at.subscribe()
        await at.place(*map(str, range(40)))
        try:
            async with asyncio.timeout(9):  # before the first request to the other has timed out
                while len(at.endpoint.got) < 40 or not hanging.got:
                    await at.system.ambient.advance(0.1)
                    await asyncio.sleep(0.01)  # between two looks at a condition with a deadline
        finally:
            freed.set()
        assert len(hanging.got) <= 16
        await at.until(lambda: len(hanging.got) == 40)


@pytest.mark.parametrize("most", [1, 3])
async def test_an_endpoint_gets_no_more_at_once_than_it_asked_for(most: int) -> None:
    async with desk() as at:
        await at.subscribe(concurrency=most, ordering="none")
        running, peak = 0, 0

        async def answer(got: Got) -> tuple[int, dict[str, str]]:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.02)  # the endpoint's work
            running -= 1
            return 200, {}

        at.endpoint.answer = answer
        await at.place(*map(str, range(20)))
        await at.until(lambda: len(at.endpoint.got) >= 20, step=0.5)
        await at.system.settled()
        assert peak == most
        assert sorted(at.endpoint.orders, key=int) == [*map(str, range(20))]


def test_turns_are_spread_as_the_endpoint_answers_and_within_limits() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    with turns.turn("a", 1):
        now = 2.0
    with turns.turn("a", 1):
        waits = []
        for _ in range(40):
            with pytest.raises(RetryLater) as caught, turns.turn("a", 1):
                pass
            assert not caught.value.counts
            waits.append(caught.value.seconds)
        assert waits[:3] == [2.0, 4.0, 6.0]
        assert waits[-1] == turns.backlog("a") == LONGEST
        with turns.turn("b", 1):
            assert turns.backlog("b") == 0.0
    now = 100.0
    assert turns.backlog("a") == 0.0
    with turns.turn("a", 1):
        pass


# -- when it fails for long ------------------------------------------------------------------------


async def test_410_disables_at_once() -> None:
    async with desk() as at:
        made = await at.subscribe(description="books")
        at.endpoint.says(410)
        await at.place("1")
        await at.system.settled()
        (event,) = at.system.announced(WebhookDisabled)
        assert (event.subscription, event.principal) == (made["id"], "key:ada")
        assert (event.description, event.reason) == ("books", "its endpoint answered 410")
        at.endpoint.says(200)
        await at.place("2")
        await at.system.advance(1000.0)
        assert at.endpoint.orders == ["1"]
        (letter,) = await at.system.dead("hooks")
        assert letter["reason"].startswith("permanent: Undeliverable: answered 410")
        shown = await at.ask("GET", f"/{made['id']}")
        assert (shown["state"], shown["dead"]) == ("disabled", 1)
        await at.ask("POST", f"/{made['id']}/test", expect=409)
        await at.ask("POST", f"/{made['id']}/redrive", expect=409)
        await at.ask("PATCH", f"/{made['id']}", state="paused", expect=409)


async def test_dead_deliveries_in_a_row_disable_and_can_be_redriven() -> None:
    async with desk(dead=3) as at:
        made = await at.subscribe()
        at.endpoint.says(500)
        for number, order in enumerate("abc", 1):
            await at.place(order)
            wanted = QUICK.attempts * number
            await at.until(lambda most=wanted: len(at.endpoint.got) >= most, step=5.0)
        assert await at.state() == "disabled"
        assert [each.reason[:12] for each in at.system.announced(WebhookDisabled)] == [
            "3 deliveries"
        ]
        letters = await at.system.dead("hooks")
        assert len(letters) == 3
        at.endpoint.says(200)
        before = len(at.endpoint.got)
        shown = await at.ask("PATCH", f"/{made['id']}", state="active")
        assert (shown["state"], shown["dead"], shown["failing"]) == ("active", 0, None)
        done = await at.ask("POST", f"/{made['id']}/redrive", expect=202)
        assert done == {"redriven": 3, "refused": 0, "more": False}
        await at.until(lambda: len(at.endpoint.got) == before + 3)
        assert sorted(at.endpoint.orders[before:]) == ["a", "b", "c"]
        ids = defaultdict(set)
        for got in at.endpoint.got:
            ids[_order(got)].add(got.id)
        assert {len(found) for found in ids.values()} == {1}
        assert await at.system.dead("hooks") == []
        acts = await at.rows("select who, via, act from oyez_audit")
        assert acts == [{"who": "key:ada", "via": "service", "act": "dead.redrive"}] * 3
        assert (await at.ask("POST", f"/{made['id']}/redrive", expect=202))["redriven"] == 0


async def test_a_success_between_them_counts_anew() -> None:
    async with desk(dead=2) as at:
        await at.subscribe()
        for order, status in (("a", 500), ("b", 200), ("c", 500)):
            at.endpoint.says(status)
            await at.place(order)
            await at.system.settled()
            for _ in range(QUICK.attempts):
                await at.system.advance(1.0)
        assert len(await at.system.dead("hooks")) == 2
        assert at.system.announced(WebhookDisabled) == []


async def test_failing_for_days_disables() -> None:
    patient = Retry(attempts=50, first=864.0, factor=1.0, longest=3600.0, jitter=0.0)
    async with desk(retry=patient, failing=DAY / 10) as at:
        await at.subscribe()
        at.endpoint.says(500)
        await at.place("a")
        await at.system.settled()
        await at.until(lambda: bool(at.system.announced(WebhookDisabled)), step=864.0)
        assert len(at.endpoint.got) == 11
        (event,) = at.system.announced(WebhookDisabled)
        assert event.reason == "it failed for 0.1 days"


async def test_what_is_under_way_to_an_endpoint_that_fails_is_bounded() -> None:
    patient = Retry(attempts=50, first=10.0, factor=1.0, jitter=0.0)
    async with desk(retry=patient) as at:
        await at.subscribe()
        at.endpoint.says(503)
        await at.place(*(f"early {n}" for n in range(FAILURES)))
        await at.system.settled()
        await at.until(lambda: len(at.endpoint.got) >= FAILURES, step=0.1)
        assert await at.state() == "behind"
        for cents in range(3):
            await at.place(*(f"late {n}" for n in range(30)), cents=cents)
        await at.system.settled()
        (held,) = await at.rows("select count(*) as count from webhook_held")
        assert held["count"] == 90
        (shown,) = (await at.ask("GET"))["webhooks"]
        assert shown["state"] == "active"
        assert shown["failures"] >= FAILURES
        at.endpoint.says(200)
        before = len(at.endpoint.got)
        await at.until(lambda: len(at.endpoint.got) >= before + FAILURES + 90, step=2.0)
        await at.system.advance(60.0)
        assert await at.rows("select * from webhook_held") == []
        assert await at.state() == "active"
        later = defaultdict(list)
        for got in at.endpoint.got[before:]:
            later[_order(got)].append(got.event["data"]["cents"])
        assert len(later) == FAILURES + 30
        assert all(later[f"late {n}"] == [0, 1, 2] for n in range(30))


async def test_an_endpoint_is_probed_though_nothing_is_under_way() -> None:
    once = Retry(attempts=1)
    async with desk(retry=once, dead=100) as at:
        await at.subscribe()
        at.endpoint.says(503)
        await at.place(*map(str, range(FAILURES)))
        await at.until(lambda: len(at.endpoint.got) >= FAILURES, step=0.1)
        assert len(await at.system.dead("hooks")) == FAILURES
        await at.place("held")
        await at.system.settled()
        assert "held" not in at.endpoint.orders
        at.endpoint.says(200)
        await at.system.advance(61.0)
        assert at.endpoint.orders[-1] == "held"
        await at.place("next")
        await at.until(lambda: at.endpoint.orders[-1] == "next")


async def test_what_is_under_way_to_an_endpoint_that_is_slow_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    systems: list[System] = []
    turns = Turns(lambda: systems[0].ambient.monotonic())
    monkeypatch.setattr("oyez.webhooks.deliveries.Turns", lambda: turns)
    monkeypatch.setattr("oyez.webhooks.deliveries.BEHIND", 1.0)
    freed = asyncio.Event()
    async with desk() as at:
        systems.append(at.system)
        await at.subscribe(concurrency=1)

        async def slow(got: Got) -> tuple[int, dict[str, str]]:
            await freed.wait()
            return 200, {}

        at.endpoint.answer = slow
        await at.place(*(f"early {n}" for n in range(40)))
        async with asyncio.timeout(9):  # before the first request has timed out
            while await at.state() != "behind":
                await at.system.ambient.advance(0.1)
                await asyncio.sleep(0.01)  # between two looks at a condition with a deadline
        await at.place(*(f"late {n}" for n in range(40)))
        freed.set()
        await at.until(lambda: len({*at.endpoint.orders}) == 80)
        assert len(at.endpoint.got) == 80
        assert await at.state() == "active"


# -- pauses, changes and secrets -------------------------------------------------------------------


async def test_a_pause_holds_and_a_resume_delivers_in_order() -> None:
    async with desk() as at:
        made = await at.subscribe()
        at.endpoint.says(500)
        await at.place("under way", cents=1)
        await at.system.settled()
        assert (await at.ask("PATCH", f"/{made['id']}", state="paused"))["state"] == "paused"
        at.endpoint.says(200)
        await at.place("under way", cents=2)
        for cents in range(3):
            await at.place("a", "b", cents=cents)
        await at.system.advance(3600.0)
        assert len(at.endpoint.got) == 1
        assert (await at.ask("PATCH", f"/{made['id']}", state="active"))["state"] == "active"
        await at.place("a", "b", cents=3)
        await at.until(lambda: len(at.endpoint.got) >= 11)
        await at.system.advance(100.0)
        found = defaultdict(list)
        for got in at.endpoint.got:
            found[_order(got)].append(got.event["data"]["cents"])
        assert found == {"under way": [1, 1, 2], "a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}
        assert await at.state() == "active"
        assert await at.system.dead("hooks") == []


async def test_a_rotated_secret_signs_until_the_overlap_ends() -> None:
    async with desk(overlap=3600.0) as at:
        made = await at.subscribe()
        rotated = await at.ask("POST", f"/{made['id']}/rotate")
        assert rotated["secret"] != made["secret"]
        await at.place("1")
        await at.system.settled()
        await at.system.advance(3601.0)
        await at.place("2")
        await at.system.settled()
        during, after = at.endpoint.got
        assert verified(made["secret"], during)
        assert verified(rotated["secret"], during)
        assert during.headers["webhook-signature"].count("v1,") == 2
        assert not verified(made["secret"], after)
        assert verified(rotated["secret"], after)
        assert after.headers["webhook-signature"].count("v1,") == 1
        for _ in range(3):
            await at.ask("POST", f"/{made['id']}/rotate")
        problem = await at.ask("POST", f"/{made['id']}/rotate", expect=422)
        assert "4 secrets sign at present" in problem["detail"]


async def test_a_change_holds_for_what_happens_from_then_on() -> None:
    other = Endpoint()
    async with desk(other) as at:
        made = await at.subscribe(types=["shop.order.placed"])
        await at.ask("PATCH", f"/{made['id']}", url=other.url(), types=["shop.order.s*"])
        await at.place("1")
        await at.system.publish(Shipped(order="2"))
        await at.system.settled()
        assert at.endpoint.got == []
        assert other.orders == ["2"]


async def test_a_deleted_subscription_gets_nothing_more() -> None:
    async with desk() as at:
        made = await at.subscribe()
        at.endpoint.says(500)
        await at.place("1")
        await at.system.settled()
        await at.ask("DELETE", f"/{made['id']}", expect=204)
        await at.place("2")
        await at.system.advance(100.0)
        assert at.endpoint.orders == ["1"]
        assert await at.system.dead("hooks") == []
        assert await at.rows("select * from webhook_attempt") == []
        await at.ask("GET", f"/{made['id']}", expect=404)


async def test_no_secret_is_stored_or_shown_again(capfd: pytest.CaptureFixture[str]) -> None:
    async with desk() as at:
        made = await at.subscribe()
        at.endpoint.says(500)
        await at.place("1")
        await at.system.advance(10.0)
        secret = made["secret"]
        shown = json.dumps([await at.ask("GET"), await at.ask("GET", f"/{made['id']}")])
        stored = ""
        for table in await at.rows("select name from sqlite_master where type = 'table'"):
            stored += repr(await at.rows(f"select * from {table['name']}"))
        told = repr(at.system.signals) + "".join(capfd.readouterr())
        told += repr([envelope.data for envelope in at.system.history()])
        for place in (shown, stored, told):
            assert "whsec_" not in place
            assert secret[6:] not in place
            assert KEY not in place


async def test_what_is_old_is_forgotten() -> None:
    async with desk(retry=Retry(attempts=1)) as at:
        made = await at.subscribe()
        await at.place(*map(str, range(ATTEMPTS + 5)))
        await at.until(lambda: len(at.endpoint.got) == ATTEMPTS + 5)
        await at.system.advance(61.0)
        (found,) = await at.rows("select count(*) as count from webhook_attempt")
        assert found["count"] == ATTEMPTS == len(await at.attempts(made))
        service = at.system.processes["hooks"].service
        for days, left in ((6, ATTEMPTS + 5), (1, 0)):
            async with service.transaction() as tx:
                sql = "update webhook_message set created = created - :seconds"
                tx.execute(sql, seconds=days * DAY)
            await at.system.advance(60.0)
            assert len(await at.rows("select id from webhook_message")) == left


# -- who may ask for what --------------------------------------------------------------------------


async def test_each_principal_has_its_own() -> None:
    async with desk() as at:
        made = await at.subscribe()
        where = f"/{made['id']}"
        assert (await at.ask("GET", by="key:bob"))["webhooks"] == []
        for method, path in (
            ("GET", where),
            ("PATCH", where),
            ("DELETE", where),
            ("POST", f"{where}/rotate"),
            ("POST", f"{where}/test"),
            ("GET", f"{where}/deliveries"),
            ("POST", f"{where}/redrive"),
        ):
            problem = await at.ask(method, path, by="key:bob", expect=404)
            assert problem["code"] == "no_such_webhook"
            await at.ask(method, path, by="", expect=401)
        assert [each["id"] for each in (await at.ask("GET"))["webhooks"]] == [made["id"]]
        for name in ("x", "%00", "'", "..%2f", "0" * 36):
            await at.ask("GET", f"/{name}", expect=404)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"types": []}, "$.types", "expected 1 to 100"),
        ({"types": ["shop.unheard"]}, "$.types[0]", "offered: shop.order.placed, shop.order.sh"),
        ({"types": ["*", "shop.*.placed"]}, "$.types[1]", "names no event"),
        ({"types": ["**"]}, "$.types[0]", "names no event"),
        ({"types": "*"}, "$.types", "Expected `array`"),
        ({"ordering": "some"}, "$.ordering", "Invalid enum value"),
        ({"concurrency": 0}, "$.concurrency", "expected 1 to 16"),
        ({"concurrency": 17}, "$.concurrency", "expected 1 to 16"),
        ({"description": "a\x1b[31m"}, "$.description", "printable"),
        ({"description": "a" * 501}, "$.description", "printable"),
        ({"secret": "mine"}, "$", "unknown field `secret`"),
        ({"url": "ftp://a.example/"}, "$.url", "expected https://HOST/PATH"),
        ({"url": "https://a.example:22/"}, "$.url", "port 22 is not allowed"),
    ],
)
async def test_what_can_not_be_is_refused_by_name(
    fields: dict[str, Any], field: str, words: str
) -> None:
    async with desk() as at:
        asked = {"url": at.endpoint.url(), "types": ["*"], **fields}
        problem = await at.ask("POST", expect=422, **asked)
        ((named,),) = [problem["errors"]]
        assert named["field"] == field
        assert words in named["problem"]
        if field != "$":
            made = await at.subscribe()
            await at.ask("PATCH", f"/{made['id']}", expect=422, **fields)


async def test_bodies_are_bounded_and_strict() -> None:
    async with desk() as at:

        async def post(content: bytes, kind: str = "application/json") -> int:
            async with at.client() as client:
                headers = {"content-type": kind}
                answer = await client.post("/webhooks", headers=headers, content=content)
            assert answer.headers["content-type"] == "application/problem+json"
            return answer.status_code

        assert await post(b"{}", "text/plain") == 415
        assert await post(b" " * 65_537) == 413
        assert await post(b"{") == 400
        assert await post(b"\xff") == 400
        assert await post(b'{"url": NaN, "types": []}') == 422
        assert await post(b'{"url": "a", "url": "b", "types": []}') == 422
        assert await post(b"[" * 60_000) == 422


async def test_a_principal_has_so_many_at_most() -> None:
    async with desk() as at:
        for _ in range(100):
            await at.subscribe()
        problem = await at.ask("POST", expect=409, url=at.endpoint.url(), types=["*"])
        assert problem["code"] == "too_many"
        await at.ask("POST", expect=201, by="key:bob", url=at.endpoint.url(), types=["*"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"events": []}, "expected the classes"),
        ({"events": [str]}, "is not an event"),
        ({"allow": ["10.0.0.1/8"]}, "expected networks"),
        ({"ports": [0]}, "expected 1 to 65535"),
        ({"dead": 0}, "dead of 1 or more"),
    ],
)
def test_a_wrong_declaration_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        webhooks("hooks", **{"events": [Placed], **options})


def test_a_day_of_attempts() -> None:
    waits = [min(RETRY.first * RETRY.factor**n, RETRY.longest) for n in range(RETRY.attempts - 1)]
    assert 0.9 * DAY < sum(waits) < 1.1 * DAY


def test_types_are_matched_by_their_beginning() -> None:
    assert matches(["shop.order.*"], "shop.order.placed")
    assert not matches(["shop.order.*"], "shop.orders")
    assert not matches(["shop.order"], "shop.order.placed")
    check_types(["*", "a.*", "a.b"], ["a.b"])
    with pytest.raises(InvalidEvent):
        check_types(["a.c"], ["a.b"])


def test_chains_differ_and_are_short() -> None:
    keys = ["", "a", "b" * 512, "b" * 511 + "c", "a\n", "a\r"]
    chains = {chain("s", key) for key in keys}
    assert len(chains) == len(keys)
    assert all(0 < len(each) <= 512 and each.isprintable() for each in chains)


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oyez.toml").write_text('[system]\nname = "shop"\ndata = "kept"\n')
    key = read_master()
    assert len(key) == 32
    assert read_master() == key
    path = tmp_path / "kept" / "webhooks.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["webhooks.key"]
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_master()


@pytest.mark.parametrize("given", ["", "secret", "5a" * 31, "5a" * 31 + "x"])
def test_a_weak_key_is_refused_and_not_shown(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(ConfigurationError, match="openssl rand -hex 32") as caught:
        read_master()
    assert not given or given not in str(caught.value)


# -- where nothing is sent -------------------------------------------------------------------------

NOWHERE = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://017700000001/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[fe80::1%25lo]/",
    "https://user:password@hooks.example/",
    "https://hooks.example@127.0.0.1/",
    "https://hooks.example\\@127.0.0.1/",
    "https://hooks.example#@127.0.0.1/",
    "https://hooks.example/#part",
    "https://hooks.example /",
    "https://hooks.example\r\nhost: a/",
    "https://hooks.example\u2024a/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "https://hooks.example:22/",
    "https://hooks.example:0/",
    "https://hooks.example:99999/",
    "https://hooks.example:/",
    "https:///",
    "https://",
    "//hooks.example/",
    "http://hooks.example/",
    "file:///etc/passwd",
    "gopher://hooks.example/",
    "https://" + "a" * 2_048 + "/",
]


@pytest.mark.parametrize("url", NOWHERE)
def test_a_url_to_nowhere_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Reach().target(url)
    assert caught.value.field == "$.url"
    assert "password" not in caught.value.problem.replace("user, password", "")


@given(st.ip_addresses())
def test_no_address_is_admitted_that_python_knows_to_be_special(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = not address.is_global or address.is_multicast or address.is_reserved
    assert not (special and Reach().admits(str(address)))
    assert Reach([f"{address}"]).admits(str(address))


def test_a_public_url_is_taken_apart() -> None:
    target = Reach(ports=[8443]).target("https://Hooks.example:8443/a/b?c=d&e=%20")
    assert (target.host, target.port, target.path) == ("Hooks.example", 8443, "/a/b?c=d&e=%20")
    assert target.authority == "Hooks.example:8443"
    assert Reach().target("https://1.1.1.1").authority == "1.1.1.1"
    assert Reach().target("https://[2606:4700::1111]?a").path == "/?a"
    assert Reach().target("https://[2606:4700::1111]/").authority == "[2606:4700::1111]"
    assert Reach(["10.0.0.0/8"]).target("https://10.0.0.1/").host == "10.0.0.1"
    with pytest.raises(InvalidEvent, match="not public"):
        Reach(["10.0.0.0/8"]).target("https://192.168.0.1/")


@asynccontextmanager
async def posting(reach: Reach, *names: list[str], **options: Any) -> AsyncIterator[Client]:
    """A client whose names resolve to these addresses, one list after the other."""
    left = list(names)
    async with Client(reach, resolve=lambda host, port: left.pop(0), **options) as client:
        yield client
        assert left == []  # each was asked for, and none twice


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%lo", "::ffff:127.0.0.1"]
)
async def test_a_name_of_a_private_address_is_not_connected_to(address: str) -> None:
    inner = Endpoint()
    async with listening(inner) as port, posting(Reach(ports=[port]), [address]) as client:
        answer = await client.post(f"https://hooks.example:{port}/", {}, b"{}")
    assert (answer.status, answer.error) == (None, "its address is not public")
    assert inner.got == []


async def test_a_name_that_changes_its_address_is_judged_where_it_is_connected_to() -> None:
    """127.0.0.2 stands for a public address here, and 127.0.0.1 for one that is not."""
    public, inner = Endpoint(), Endpoint()
    public.says(200, connection="close")
    async with listening(inner) as port, _listening_at(public, "127.0.0.2", port):
        reach = Reach(["127.0.0.2/32"], [port], http=True)
        url = f"http://hooks.example:{port}/"
        async with posting(reach, ["127.0.0.2"], ["127.0.0.1"]) as client:
            assert (await client.post(url, {}, b"{}")).status == 200
            assert (await client.post(url, {}, b"{}")).error == "its address is not public"
        async with posting(reach, ["127.0.0.1", "127.0.0.2"]) as client:
            assert (await client.post(url, {}, b"{}")).status == 200
    assert len(public.got) == 2
    assert public.got[0].headers["host"] == f"hooks.example:{port}"
    assert inner.got == []


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, endpoint = Endpoint(), Endpoint()
    async with listening(proxy) as at, listening(endpoint) as port:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{at}")
        reach = Reach(["127.0.0.0/8"], [port], http=True)
        async with posting(reach, ["127.0.0.1"]) as client:
            assert (await client.post(f"http://hooks.example:{port}/", {}, b"{}")).status == 204
    assert (len(proxy.got), len(endpoint.got)) == (0, 1)


async def test_the_certificate_is_that_of_the_name(tmp_path: Path) -> None:
    await _certify(tmp_path, "hooks.example")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    names: list[str | None] = []
    serving.sni_callback = lambda sock, name, context: names.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reach = Reach(["127.0.0.0/8"], [port])
        async with posting(reach, ["127.0.0.1"], ["127.0.0.1"], tls=trusting) as client:
            assert (await client.post(f"https://hooks.example:{port}/", {}, b"")).status == 200
            refused = await client.post(f"https://other.example:{port}/", {}, b"")
            assert (refused.status, refused.error) == (None, "its certificate was refused")
        async with posting(reach, ["127.0.0.1"]) as client:
            refused = await client.post(f"https://hooks.example:{port}/", {}, b"")
            assert refused.error == "its certificate was refused"
    assert names == ["hooks.example", "other.example", "hooks.example"]


@pytest.mark.parametrize(
    ("bytes_", "status", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", 200, ""),
        (b"HTTP/1.1 500 No\r\n\r\n", 500, "answered 500"),
        (b"nonsense\r\n\r\n", None, "the connection broke"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 300_000 + b"\r\n\r\n", None, "the connection"),
        (b"", None, "the connection broke"),
    ],
)
async def test_whatever_an_endpoint_answers_is_an_outcome(
    bytes_: bytes, status: int | None, error: str
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes_)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with posting(Reach(["127.0.0.0/8"], [port], http=True), ["127.0.0.1"]) as client:
            answer = await client.post(f"http://hooks.example:{port}/", {}, b"{}")
    assert answer.status == status
    assert answer.error.startswith(error)
    assert bool(answer.error) == bool(error)


async def test_an_answer_without_end_is_read_no_further_than_its_limit() -> None:
    sent, closed = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"400\r\n" + b"a" * 1024 + b"\r\n")
                await writer.drain()
                sent += 1024
        except ConnectionError:
            closed.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with posting(Reach(["127.0.0.0/8"], [port], http=True), ["127.0.0.1"]) as client:
            answer = await client.post(f"http://hooks.example:{port}/", {}, b"{}")
            assert (answer.status, answer.error) == (200, "")
            async with asyncio.timeout(10):
                await closed.wait()
    assert sent < MAX_ANSWER + 16_000_000  # what the kernel's buffers hold besides


async def test_an_endpoint_that_never_answers_is_given_up() -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reach = Reach(["127.0.0.0/8"], [port], http=True)
        async with posting(reach, ["127.0.0.1"], seconds=0.2) as client:
            answer = await client.post(f"http://hooks.example:{port}/", {}, b"{}")
        assert (answer.status, answer.error) == (None, "no answer in time")
        async with asyncio.timeout(10):
            await left.wait()


def _order(got: Got) -> str:
    return str(got.event["data"]["order"])


@asynccontextmanager
async def _listening_at(endpoint: Endpoint, host: str, port: int) -> AsyncIterator[None]:
    """Serve an endpoint at this address, with one answer for each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        pairs = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
        endpoint.got.append(Got(headers, body, head.split(" ")[1]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, host, port):
        yield


async def _certify(folder: Path, name: str) -> None:
    """Leave a certificate for a name, signed by itself, in a folder."""
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
