"""How many replicas a service needs: by its store and broker, and as its admin port tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from parts import Placed

from oyez import Service, testing
from oyez.config import Replicas, load
from oyez.console.api import api
from oyez.errors import BrokerUnavailable, ConfigurationError, NotCreated
from oyez.inspection.scale import Outside, Scale
from oyez.observe.metrics import Metrics
from oyez.ports import Changes, Record, Store
from oyez.project import Project
from oyez.runtime.admin import admin
from oyez.scaling.rule import Limits
from oyez.testing import running

TOKEN, SCALE = "operate-this", "ask-this"
TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "no_desk:service"
replicas = "1..4"
[services.desk.scaling]
target = 10
"""


# -- the settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "replicas", "shown"),
    [
        ("replicas = 3", Replicas(3, 3), "3"),
        ('replicas = "3"', Replicas(3, 3), "3"),
        ('replicas = "1..4"', Replicas(1, 4), "1..4"),
        ('replicas = "2..256"', Replicas(2, 256), "2..256"),
    ],
)
def test_replicas_are_a_number_or_a_range(
    tmp_path: Path, text: str, replicas: Replicas, shown: str
) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.replace('replicas = "1..4"', text))
    settings = load(tmp_path, {}).services["desk"]
    assert (settings.replicas, str(settings.replicas)) == (replicas, shown)
    assert (settings.limits.least, settings.limits.most) == (replicas.least, replicas.most)
    assert (settings.limits.target, settings.limits.cooldown) == (10.0, 300.0)


@pytest.mark.parametrize(
    "value", ["0", "-1", "257", "1.5", "true", '"0..4"', '"4..1"', '"1..257"', '"1.."', '"1...4"']
)
def test_other_replicas_are_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "oyez.toml").write_text(TOML.replace('"1..4"', value))
    with pytest.raises(ConfigurationError, match=r"services\.desk\.replicas: .*or a range such as"):
        load(tmp_path, {})


def test_the_environment_sets_replicas_and_scaling(tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(TOML)
    environment = {
        "OYEZ_SERVICES_DESK_REPLICAS": "2..8",
        "OYEZ_SERVICES_DESK_SCALING_COOLDOWN": "60",
    }
    limits = load(tmp_path, environment).services["desk"].limits
    assert limits == Limits(least=2, most=8, target=10.0, cooldown=60.0)


# -- from outside ----------------------------------------------------------------------------------


@asynccontextmanager
async def living(project: Project) -> AsyncIterator[Store]:
    """The store of a desk that has one replica, alive."""
    store = project.store("desk")
    await store.open()
    await store.keep("one", 60.0, "127.0.0.1:1")
    yield store
    await store.close()


async def move(store: Store, position: int) -> None:
    """Let the replica have handled the stream up to there."""
    sql = (
        "insert into oyez_cursor (stream, partition, position, owner, epoch)"
        " values ('till.shop', 0, :position, 'one', 1)"
        " on conflict do update set position = excluded.position"
    )
    await store.begin().commit(Changes(writes=[(sql, [{"position": position}])]))


async def publish(project: Project, count: int) -> None:
    async with project.opened_broker(create=True) as broker:
        await broker.create("till.shop", 1)
        record = Record(stream="till.shop", key=None, headers={}, data=b"{}")
        await broker.publish([record] * count)


class Clock:
    """The project's own source of time, which moves when it is told to."""

    def __init__(self, ambient: Any) -> None:
        self._ambient = ambient
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ambient, name)

    def monotonic(self) -> float:
        return self.seconds


async def test_replicas_are_told_from_positions_alone(tmp_path: Path) -> None:
    """No replica is asked: what is counted is what the broker has after each position."""
    (tmp_path / "oyez.toml").write_text(TOML)
    project = Project(load(tmp_path, {}))
    clock = project.ambient = Clock(project.ambient)  # type: ignore[assignment]
    desk = Outside(project, "desk")
    with pytest.raises(NotCreated):
        await desk.look()
    await publish(project, 1000)
    async with living(project) as store:
        await move(store, 100)
        first = await desk.look()
        assert (first.replicas, first.lag, first.inflow, first.rate) == (1, 900, None, None)
        assert (first.wanted, first.oldest_seconds) == (1, None)
        clock.seconds = 10.0
        await publish(project, 500)
        await move(store, 300)
        second = await desk.look()
    assert (second.lag, second.inflow, second.total, second.rate) == (1200, 50.0, 20.0, 20.0)
    # 170/s are needed to keep up and to be done in 10 s. There is one partition.
    assert (second.wanted, second.partitions, second.partitions_with_lag) == (1, 1, 1)
    assert second.why == "9 are needed, of 1 at most"


async def test_what_stands_still_is_told(tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(TOML)
    project = Project(load(tmp_path, {}))
    clock = project.ambient = Clock(project.ambient)  # type: ignore[assignment]
    desk = Outside(project, "desk")
    await publish(project, 1000)
    async with living(project) as store:
        await move(store, 100)
        await desk.look()
        clock.seconds = 10.0
        await publish(project, 500)
        assert "nothing is handled" in (await desk.look()).why


# -- at the admin port -----------------------------------------------------------------------------


def desk() -> Service:
    service = Service("desk")

    @service.on(Placed)
    async def take(event: Placed) -> None:
        pass

    return service


@asynccontextmanager
async def asked() -> AsyncIterator[tuple[httpx.AsyncClient, testing.System]]:
    """A client of the admin port of a desk that has handled three orders."""
    async with running(desk()) as system:
        process = system.processes["desk"]
        app = admin(
            process,
            token=TOKEN,
            metrics=Metrics().render,
            details=lambda: api(process),
            scale_token=SCALE,
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
            for order in ("a", "b", "c"):
                await system.publish(Placed(order=order))
            await system.settled()
            yield client, system


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_process_tells_how_many_replicas_the_service_needs() -> None:
    async with asked() as (client, system):
        answer = await client.get("/oyez/scale", headers=bearing(TOKEN))
        assert (answer.status_code, answer.json()["wanted"]) == (200, 1)
        await system.publish(Placed(order="d"))
        await system.advance(10.0)
        told = (await client.get("/oyez/scale", headers=bearing(TOKEN))).json()
        assert set(told) == set(Scale.__struct_fields__)
        assert (told["service"], told["lag"], told["oldest_seconds"]) == ("desk", 0, 0.0)
        assert (told["inflow"], told["total"], told["replicas"]) == (0.1, 0.1, 1)


async def test_its_token_opens_nothing_else() -> None:
    async with asked() as (client, _):
        assert (await client.get("/oyez/scale", headers=bearing(SCALE))).status_code == 200
        for path in ("/oyez/scale/", "/oyez/lag", "/oyez/status", "/oyez/dead", "/oyez/letters"):
            assert (await client.get(path, headers=bearing(SCALE))).status_code == 401, path
        for token in ("", "wrong", SCALE + "x"):
            assert (await client.get("/oyez/scale", headers=bearing(token))).status_code == 401
        assert (await client.post("/oyez/scale", headers=bearing(SCALE))).status_code == 405


async def test_an_unknown_lag_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all 0: whoever asks keeps what there is."""
    async with asked() as (client, system):

        async def gone(*arguments: object) -> None:
            raise BrokerUnavailable("gone")

        monkeypatch.setattr(system.broker, "lag", gone)
        answer = await client.get("/oyez/scale", headers=bearing(SCALE))
        assert (answer.status_code, answer.json()["detail"]) == (503, "gone")
        await system.ambient.advance(2.0)

        async def silent(*arguments: object) -> dict[int, int]:
            return {}

        monkeypatch.setattr(system.broker, "lag", silent)
        answer = await client.get("/oyez/scale", headers=bearing(SCALE))
        assert answer.status_code == 503
        assert "is not known" in answer.json()["detail"]
