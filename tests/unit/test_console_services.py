"""The console's services: what each tells of itself, how it is shaped, and what is never shown."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Placed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from test_console import HOSTILE, SAME_SITE, TOKEN, served

from oyez import Retry, Service, Tick, View, applies, testing
from oyez.config import BridgeSettings, load
from oyez.console.access import Access
from oyez.console.answers import (
    Counts,
    HandlerTimes,
    ParkedPage,
    Replica,
    ServiceShown,
    SettingsShown,
    Timings,
)
from oyez.console.api import api
from oyez.console.app import console
from oyez.console.pages import SCREENS
from oyez.console.pages.services import carriers, handler_rows, replica_rows, stream_rows, worst
from oyez.console.system import Answer, System
from oyez.console.timings import BOUNDS, SLICE, SLICES, WINDOW, Stopwatch, percentile
from oyez.inspection.installation import Lease, Setting, effective
from oyez.inspection.lag import PartitionLag, ServiceLag
from oyez.inspection.parked import ParkedEvent
from oyez.inspection.reach import Gap
from oyez.inspection.schedule import Later
from oyez.project import Project
from oyez.runtime.admin import admin
from oyez.runtime.reports import Reports
from oyez.signals import HandlerCalled, Signals
from oyez.testing import VirtualAmbient, running

LIMIT = 0.3
"""Seconds that the server side takes for each page, at most."""


class Orders(View, table="orders_placed", key="order", version=3):
    order: str
    placed: bool = False

    @applies
    def place(self, event: Placed) -> None:
        self.placed = True


def desk() -> Service:
    """A service in which orders that begin with "slow" wait for another attempt."""
    service = Service("desk", migrations="migrations")

    @service.on(Placed, retry=Retry(attempts=3, first=60.0, jitter=0.0))
    async def sell(event: Placed) -> None:
        if event.order.startswith("slow"):
            raise ValueError(f"not yet {HOSTILE}")

    @service.every("0 6 * * *", tz="Europe/Berlin")
    async def close_till(tick: Tick) -> None:
        pass

    service.view(Orders)
    return service


@asynccontextmanager
async def opened(project: Project) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has signed in to the console of a project."""
    asks = System(project)
    access = Access(project.ambient, name="till", token=TOKEN, secure=True)
    app = console(asks, access, project.ambient)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="https://console"
    ) as client:
        headers = {**SAME_SITE, "Origin": "https://console"}
        answer = await client.post("/sign-in", data={"token": TOKEN}, headers=headers)
        assert answer.status_code == 303
        yield client
    await asks.close()


@asynccontextmanager
async def running_desk(root: Path) -> AsyncIterator[testing.System]:
    """A desk that has handled one order and parked two of one key, and its migrations."""
    (root / "migrations").mkdir()
    (root / "migrations" / "001_tills.sql").write_text("create table tills (name text);")
    async with running(desk(), root=root) as system:
        yield system


async def publish(system: testing.System) -> tuple[str, str]:
    """Publish the orders; return the ids of those that are parked."""
    await system.publish(Placed(order="good"))
    first = await system.publish(Placed(order="slow"))
    second = await system.publish(Placed(order="slow"))
    await system.settled()
    return first, second


def project(root: Path, toml: str, environment: Mapping[str, str] | None = None) -> Project:
    (root / "oyez.toml").write_text(toml)
    return Project(load(root, environment or {}))


TOML = """
[system]
name = "test"
data = "."
broker = "redis://me:canary-broker@127.0.0.1:1?deadline=0.2"
claim_check = "s3://access:canary-secret@127.0.0.1:1/box?session_token=canary-session"
[services.desk]
app = "desk:service"
admin = "{at}"
store = "postgresql://me:${{STORE_PASSWORD}}@127.0.0.1:1/none?deadline=0.2&password=canary-option"
[services.silent]
app = "silent:service"
admin = "127.0.0.1:1"
[services.unknown]
app = "unknown:service"
store = "postgresql://me:${{STORE_PASSWORD}}@127.0.0.1:1/none?deadline=0.2"
[bridges.over]
source = "redis://me:canary-source@127.0.0.1:1?deadline=0.2"
target = "nats://canary-token@127.0.0.1:1"
streams = ["test.*"]
admin = "127.0.0.1:1"
"""
ENVIRONMENT = {
    "STORE_PASSWORD": "canary-store",
    "OYEZ_SERVICES_DESK_BROKER": "redis://canary-own@127.0.0.1:1?deadline=0.2",
    "UNRELATED_SECRET": "canary-unrelated",
}


@asynccontextmanager
async def looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[httpx.AsyncClient, testing.System]]:
    """A console of a system of which the desk alone runs."""
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with running_desk(root) as system:
        process = system.processes["desk"]
        made: list[Project] = []

        def settings() -> list[Setting]:
            return effective(made[0].config, "services.desk")

        app = admin(process, token=TOKEN, metrics=str, details=lambda: api(process, settings))
        async with served(app) as at:
            made.append(project(root, TOML.format(at=at), ENVIRONMENT))
            async with opened(made[0]) as client:
                yield client, system


# -- what a service tells --------------------------------------------------------------------------


async def test_the_page_of_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looked_at(tmp_path, monkeypatch) as (client, system):
        begun = await client.get("/services/desk")
        assert "Counted from now on" in begun.text
        first, second = await publish(system)
        await system.advance(5.0)
        page = (await client.get("/services/desk")).text
        owner = system.processes["desk"].owner
        for shown in (
            owner,
            "Of the last 5.0 s",
            "001_tills.sql",
            "orders_placed</bdi> version 3",
            "active since",
            "close_till",
            "its next attempt",
            f'<a href="/find?q={first}">the event before it</a>',
            f'<a href="/find?q={second}"><bdi>shop.placed',
            "not yet &lt;script&gt;",
            "redis://me:***@127.0.0.1:1",
            "environment: OYEZ_SERVICES_DESK_BROKER",
            '<a href="/services/desk/partitions?stream=test.outside">',
            "/services/over",
        ):
            assert shown in page
        assert "No replica answers" not in page
        assert "none waits" not in page.lower()
        parked = (await client.get("/services/desk/parked")).text
        assert f"/find?q={first}" in parked
        partitions = (await client.get("/services/desk/partitions?stream=test.outside")).text
        assert partitions.count("<tr>") == 1 + 8
        assert 'aria-label="2 parked events"' in partitions
        for missing in ("/services/nobody", "/services/nobody/parked", "/services/x/partitions"):
            assert (await client.get(missing)).status_code == 404


async def test_calls_are_counted_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with looked_at(tmp_path, monkeypatch) as (client, system):
        await client.get("/services")
        assert not system.bus.calls
        await client.get("/services/desk")
        assert system.bus.calls
        await publish(system)
        page = (await client.get("/services/desk")).text
        (row,) = re.findall(r'<th scope="row"><bdi>sell</bdi></th>.*?</tr>', page, re.DOTALL)
        assert '<td class="n" data-label="Calls">2</td>' in row
        assert '<td class="n" data-label="Retried">1</td>' in row
        await system.advance(WINDOW + 1)
        await publish(system)
        assert not system.bus.calls


async def test_a_silent_service_is_unknown_and_never_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with looked_at(tmp_path, monkeypatch) as (client, _):
        for name in ("silent", "unknown", "over"):
            page = await client.get(f"/services/{name}")
            assert page.status_code == 200
            assert "No replica answers" in page.text
            assert page.text.count('class="gaps"') == 7
            for claimed in ("It has none", "It reads none", "None waits", "nothing to be done",
                            "run none", "None carries"):  # fmt: skip
                assert claimed not in page.text
            assert 'class="gaps"' in (await client.get(f"/services/{name}/parked")).text
            assert 'class="gaps"' in (await client.get(f"/services/{name}/partitions")).text


async def test_no_secret_is_on_any_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OYEZ_READ_TOKEN", "canary-reader")
    async with looked_at(tmp_path, monkeypatch) as (client, system):
        await publish(system)
        named = ("desk", "silent", "unknown", "over")
        addresses = (route.path for screen in SCREENS for route in screen.routes)
        paths = {
            re.sub(r"\{\w+(?::\w+)?\}", "1", path.replace("{service}", name))
            for path in addresses
            for name in named
        }
        stored = {f"/services/{name}" for name in named}
        for path in sorted(paths - {path for path in paths if path.startswith("/live/")}):
            page = await client.get(path)
            assert "canary" not in page.text
            assert TOKEN not in page.text
            stored -= {path} if "Configuration in effect" in page.text else set()
        assert stored == set()
        assert "***" in (await client.get("/services/desk")).text
        assert "***" in (await client.get("/services/over")).text


def test_settings_in_effect_name_where_they_are_from(tmp_path: Path) -> None:
    found = project(tmp_path, TOML.format(at="127.0.0.1:7"), ENVIRONMENT)
    settings = {each.name: each for each in effective(found.config, "services.desk")}
    assert settings["services.desk.admin"].value == "127.0.0.1:7"
    assert str(settings["services.desk.admin"].place).endswith("oyez.toml:9")
    assert settings["services.desk.grace"] == Setting(
        name="services.desk.grace", value="10.0", place=None
    )
    assert settings["services.desk.http"].value is None
    assert settings["services.desk.replicas"].value == "1"
    assert settings["services.desk.scaling.target"].value == "300.0"
    assert "services.desk.scaling" not in settings
    own = settings["services.desk.broker"]
    assert (own.value, own.place) == (
        "redis://***@127.0.0.1:1?deadline=0.2",
        "environment: OYEZ_SERVICES_DESK_BROKER",
    )
    bridge = effective(found.config, "bridges.over")
    assert "canary" not in repr([*settings.values(), *bridge])
    stores = {each.name: each.place for each in bridge if each.name.endswith("store")}
    assert stores == {"bridges.over.store": None}


# -- shaping ---------------------------------------------------------------------------------------


def replica(owner: str, *reasons: str) -> Replica:
    return Replica(
        service="desk", owner=owner, publishes=(), handlers={"sell": ("shop.placed",)},
        reasons=reasons, warnings=(), counts=Counts(handled={}, published={}, retried={}, dead={}),
    )  # fmt: skip


def silent(at: str) -> Answer[Replica]:
    gap = Gap(part="service", name="desk", cause="unreachable", effect=at, reason="no connection")
    return Answer(service="desk", at=at, gap=gap)


def answer(at: str, owner: str, *reasons: str) -> Answer[Replica]:
    return Answer(service="desk", at=at, value=replica(owner, *reasons))


def test_replicas_answer_are_silent_or_were_not_asked() -> None:
    leases = [Lease(owner=owner, admin=f"h:{n}", since=float(n)) for n, owner in enumerate("abc")]
    found = replica_rows(leases, [answer("h:0", "a", "slow"), silent("h:1")])
    assert [(each.owner, each.state, each.notes) for each in found] == [
        ("a", "answers", ("slow",)),
        ("b", "silent", ("no connection",)),
        ("c", "not asked", ()),
    ]
    found = replica_rows(None, [silent("h:1"), answer("h:0", "a")])
    assert [(each.owner, each.admin, each.since, each.state) for each in found] == [
        ("a", "h:0", None, "answers"),
        ("", "h:1", None, "silent"),
    ]


def times(calls: int, bucket: int, retried: int = 0) -> HandlerTimes:
    buckets = [0] * (len(BOUNDS) + 1)
    buckets[bucket] = calls
    return HandlerTimes(
        done=calls - retried, retried=retried, dead=0, buckets=tuple(buckets), line=(calls,) * 3
    )


def test_handlers_are_summed_over_replicas() -> None:
    one = Timings(owner="a", seconds=10.0, handlers={"sell": times(100, 3, retried=5)})
    two = Timings(owner="b", seconds=100.0, handlers={"sell": times(100, 5), "old": times(1, 17)})
    old, sell = handler_rows([replica("a")], [one, two])
    assert (sell.name, sell.types, sell.calls, sell.retried) == ("sell", ("shop.placed",), 200, 5)
    assert sell.rate == pytest.approx(11.0)
    assert sell.line == [200.0] * 3
    assert sell.percentiles[0] == pytest.approx(BOUNDS[3])
    assert BOUNDS[4] < (sell.percentiles[1] or 0) < BOUNDS[5]
    assert (old.name, old.types, old.percentiles) == ("old", (), (float("inf"),) * 3)
    (idle,) = handler_rows([replica("a")], [])
    assert (idle.rate, idle.percentiles) == (None, (None, None, None))


def partition(number: int, stream: str = "s", **changed: Any) -> PartitionLag:
    found = PartitionLag(
        stream=stream, partition=number, owner="a", alive=True, epoch=1, position=5, end=5, lag=0,
        oldest=None, oldest_known=True, parked=0, dead=0,
    )  # fmt: skip
    return msgspec.structs.replace(found, **changed)


def test_partitions_are_grouped_and_the_worst_come_first() -> None:
    found = [
        partition(0),
        partition(1, lag=9, oldest=50.0, oldest_id="late"),
        partition(2, lag=3, oldest=20.0, oldest_id="early"),
        partition(3, lag=None, oldest_known=False),
        partition(4, lag=1),
        partition(5, lag=4),
        partition(0, "t", alive=False),
        partition(1, "t", dead=2, parked=1),
    ]
    s, t = stream_rows(found)
    assert (s.stream, s.partitions, s.owned, s.lag) == ("s", 6, 6, None)
    assert (s.oldest, s.oldest_id, s.oldest_known) == (20.0, "early", False)
    assert (t.owned, t.lag, t.oldest, t.parked, t.dead) == (1, 0, None, 1, 2)
    assert [(each.stream, each.partition) for each in worst(found)] == [
        ("s", 2), ("s", 1), ("s", 5), ("s", 4), ("t", 1), ("s", 3), ("t", 0),
    ]  # fmt: skip


def test_bridges_are_those_that_carry_what_a_service_reads() -> None:
    found = lag([partition(0, "shop.orders")])
    over, _ = bridges = [
        BridgeSettings(name=name, source="redis://u:secret@a", target="embedded:b", streams=(s,))
        for name, s in (("over", "shop.*"), ("under", "other.*"))
    ]
    (row,) = carriers(bridges, found)
    assert (row.name, row.source) == (over.name, "redis://u:***@a")
    assert carriers(bridges, None) == []


# -- timings ---------------------------------------------------------------------------------------


def called(seconds: float, outcome: str = "done", handler: str = "sell") -> HandlerCalled:
    return HandlerCalled(
        service="desk", handler=handler, event_id="e", type="t", attempt=1, start=0.0,
        seconds=seconds, outcome=outcome, trace_id="", span_id="", parent_id="",
    )  # fmt: skip


async def test_a_stopwatch_keeps_the_last_minutes() -> None:
    ambient, signals = VirtualAmbient(), Signals()
    watch = Stopwatch(Reports("desk", signals), ambient)
    signals.emit_call(called(0.1))
    assert watch.read("me") == Timings(owner="me", seconds=0.0, handlers={})
    signals.emit_call(called(0.002))
    signals.emit_call(called(99.0, "retry"))
    signals.emit_call(called(0.002, "dead", "other"))
    await ambient.advance(SLICE)
    signals.emit_call(called(0.002))
    found = watch.read("me")
    sell = found.handlers["sell"]
    assert found.seconds == pytest.approx(SLICE)
    assert (sell.done, sell.retried, sell.dead) == (2, 1, 0)
    assert (sell.buckets[4], sell.buckets[-1], sum(sell.buckets)) == (2, 1, 3)
    assert sell.line == (*[0] * (SLICES - 2), 2, 1)
    assert found.handlers["other"].dead == 1
    await ambient.advance(WINDOW - SLICE)
    left = watch.read("me")
    assert set(left.handlers) == {"sell"}
    assert sum(left.handlers["sell"].line) == 1
    assert left.seconds <= WINDOW
    await ambient.advance(WINDOW + 1)
    signals.emit_call(called(0.1))
    assert not signals.calls
    assert watch.read("me") == Timings(owner="me", seconds=0.0, handlers={})


@given(st.lists(st.integers(0, 50), min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1))
def test_percentiles_are_in_order_and_in_their_bucket(buckets: list[int]) -> None:
    found = [percentile(buckets, share / 20) for share in range(1, 21)]
    if not sum(buckets):
        assert set(found) == {None}
        return
    values = [value for value in found if value is not None]
    assert values == sorted(values)
    first, *_, last = [index for index, calls in enumerate(buckets) if calls] * 2
    assert values[0] > ((0.0, *BOUNDS)[first])
    assert values[-1] == (float("inf") if last == len(BOUNDS) else pytest.approx(BOUNDS[last]))


# -- a large service -------------------------------------------------------------------------------


def lag(partitions: list[PartitionLag]) -> ServiceLag:
    return ServiceLag(
        service="desk", replicas={"a": "h:1"}, partitions=tuple(partitions), outbox=3,
        outbox_later=1, outbox_refused=1, outbox_oldest=1.0, outbox_owner="a", outbox_alive=True,
        parked_oldest=None,
    )  # fmt: skip


def told(large: int) -> Mapping[str, object]:
    """What a service with so many partitions, and as much of everything else, tells."""
    partitions = [
        partition(n % 100, f"test.stream{n // 100:02}", lag=n, oldest=float(n + 1), oldest_id="e")
        for n in range(large)
    ]
    parked = [
        ParkedEvent(
            seq=n + 1, event_id=f"e{n}", type="t", key="k", handler="sell", reader="", stream="s",
            partition=0, position=n, since=1.0, due=2.0, behind=None, attempts=1, error="x" * 500,
        )
        for n in range(100)
    ]  # fmt: skip
    later = [
        Later(what="timer", due=float(n), kind="Order", key=f"k{n}", name="pay", id=None)
        for n in range(100)
    ]
    names = [f"handler{n}" for n in range(50)]
    return {
        "replica": msgspec.structs.replace(replica("a"), handlers=dict.fromkeys(names, ("t",) * 9)),
        "timings": Timings(
            owner="a", seconds=300.0, handlers={name: times(1000, 5) for name in names}
        ),
        "lag": lag(partitions),
        "parked": ParkedPage(events=tuple(parked), more=True),
        "service": ServiceShown(
            leases=tuple(Lease(owner=f"o{n}", admin=f"h:{n}", since=1.0) for n in range(50)),
            later=tuple(later),
            more_later=True,
            views=(),
            migrations=(),
        ),
        "settings": SettingsShown(settings=()),
        "letters": {"letters": [], "more": False},
    }


async def test_a_thousand_partitions_are_shown_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    answers = {name: msgspec.json.encode(value) for name, value in told(1000).items()}

    async def tell(request: Request) -> Response:
        return Response(answers[request.path_params["name"]], media_type="application/json")

    async with served(Starlette(routes=[Route("/oyez/{name}", tell)])) as at:
        toml = f'[system]\nname = "test"\n[services.desk]\napp = "d:s"\nadmin = "{at}"'
        async with opened(project(tmp_path, toml)) as client:
            for path, holds in (
                ("/services", "desk"),
                ("/services/desk", "test.stream09"),
                ("/services/desk/partitions", "1 to 100 of 1"),
                ("/services/desk/partitions?from=950", "901 to 1"),
                ("/services/desk/partitions?stream=test.stream05&from=-1", "[99]"),
                ("/services/desk/parked?after=x", "Later ones"),
            ):
                took: list[float] = []
                for _ in range(4):
                    # Of this process alone, whatever else the machine does meanwhile.
                    began = time.process_time()
                    page = await client.get(path)
                    took.append(time.process_time() - began)
                assert page.status_code == 200
                assert holds in page.text.replace("\u202f", "")
                assert min(took) < LIMIT
                assert page.text.count("<tr") <= 400


def test_each_screen_has_a_key_of_its_own() -> None:
    assert len({screen.key for screen in SCREENS}) == len(SCREENS)
