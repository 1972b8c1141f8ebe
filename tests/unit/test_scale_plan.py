"""`oyez scale plan` and `serve`: a load on paper, and one address for autoscalers."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
from click.testing import CliRunner, Result
from test_scale import SCALE, TOKEN, TOML, bearing, desk, living, move, publish

from oyez.cli import root
from oyez.config import load
from oyez.deploy.scaler import scaler
from oyez.inspection.scale import measure_rate
from oyez.listening import HttpServer, bind
from oyez.observe.metrics import Metrics
from oyez.project import Project
from oyez.runtime.admin import admin
from oyez.scaling.chart import clock
from oyez.scaling.forecast import recorded
from oyez.signals import BatchHandled
from oyez.testing import running

GIVEN = ("--rate", "100/s", "--burst", "5m", "--per-replica", "40/s")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``oyez scale plan desk`` in a folder with a project."""
    (tmp_path / "oyez.toml").write_text(TOML + "cooldown = 60\n")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(root, ["scale", "plan", "desk", *arguments])

    return run


def test_a_plan_says_what_it_assumes_and_what_comes_of_it(planned) -> None:
    found = planned(*GIVEN)
    assert found.exit_code == 0, found.output
    assert "a replica handles 40/s (as given, not measured)" in found.output
    assert "replicas 1..4, of 8 partitions" in found.output
    assert "at most: 4 replicas" in found.output
    assert "replica-hours" in found.output


def test_a_plan_as_json_holds_the_load(planned) -> None:
    value = json.loads(planned(*GIVEN, "--base", "10/s", "--json").output)
    assert (value["rate"], value["most_replicas"], value["measured_on"]) == (40.0, 4, 0)
    inflows = {each["inflow"] for each in value["moments"]}
    assert inflows == {10.0, 100.0}
    assert value["changes"][0]["from"] == 1
    assert value["changes"][-1]["to"] == 1
    ending = value["moments"][-1]
    assert (ending["replicas"], ending["lag"] < 40) == (1, True)
    # Three replicas handle what arrives; what waited before they came asks for one more.
    assert value["most_oldest_seconds"] < 60


def test_what_is_shared_bounds_the_plan(planned) -> None:
    value = json.loads(planned(*GIVEN, "--shared", "42/s", "--json").output)
    assert value["most_lag"] > 10_000
    assert "is the limit" in " ".join(each["why"] for each in value["moments"])


def test_the_chart_is_a_picture_of_the_plan(planned, tmp_path: Path) -> None:
    planned(*GIVEN, "--chart", "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    svg = ElementTree.fromstring(text)
    paths = svg.findall("{http://www.w3.org/2000/svg}path")
    assert len(paths) == 4
    assert paths[1].attrib["d"].count("V") == planned_changes(planned)
    texts = [each.text for each in svg.findall("{http://www.w3.org/2000/svg}text")]
    assert "replicas" in texts
    assert any("as given, not measured" in str(each) for each in texts)


def planned_changes(planned) -> int:
    return len(json.loads(planned(*GIVEN, "--json").output)["changes"])


def test_a_recorded_load_is_played(planned, tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text("# of Monday\n0,10\n60,100\n360,0\n")
    value = json.loads(planned("--from", "load.csv", "--per-replica", "40/s", "--json").output)
    assert {each["inflow"] for each in value["moments"]} == {10.0, 100.0, 0.0}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "two lines"),
        ("0,1", "two lines"),
        ("0,1\n0,2", "line 2"),
        ("0,1\nx,2", "line 2"),
        ("0,1\n1,nan", "line 2"),
        ("0,1\n1,-2", "line 2"),
        ("0,1\n1e9,2", "line 2"),
        ("0,1\n1,2,3", "line 2"),
    ],
)
def test_a_load_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        recorded(text)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "either --rate or --from"),
        (("--rate", "many"), 'a rate such as "200/s"'),
        (("--rate", "5/s", "--burst", "long"), 'a time such as "90s"'),
        (("--rate", "5/s", "--burst", "999999h"), "7 days at most"),
        (("--rate", "5/s"), "give --per-replica"),
    ],
)
def test_a_plan_of_nothing_is_refused(planned, arguments: tuple[str, ...], problem: str) -> None:
    found = planned(*arguments)
    assert found.exit_code != 0
    assert problem in " ".join(found.output.split())


def test_times_are_read_as_on_a_clock() -> None:
    assert [clock(each) for each in (0, 59.6, 270, 3900)] == ["0:00", "1:00", "4:30", "1:05:00"]


async def test_the_rate_is_what_replicas_have_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that were not busy, what they handled over the time that it took."""
    (tmp_path / "oyez.toml").write_text(TOML)
    monkeypatch.setenv("OYEZ_TOKEN", TOKEN)
    project = Project(load(tmp_path, {}))
    metrics = Metrics(service="desk")
    for _ in range(2):
        batch = BatchHandled(service="desk", stream="s", partition=0, events=30, seconds=0.25)
        metrics.count(batch)
    async with running(desk()) as system:
        app = admin(system.processes["desk"], token=TOKEN, metrics=metrics.render)
        server = HttpServer(app, bind("127.0.0.1", 0, project.config.error), grace=1.0)  # type: ignore[arg-type]
        await server.start()
        store = project.store("desk")
        await store.open()
        assert await measure_rate(project, "desk") is None
        await store.keep("one", 60.0, server.address)
        found = await measure_rate(project, "desk")
        await store.close()
        await server.stop()
    assert found is not None
    assert (found.rate, found.replicas) == (120.0, 1)
    assert found.how.startswith("60 events in 0.5 s")


async def test_one_address_tells_of_every_service(tmp_path: Path) -> None:
    """Also of one without a replica; what is not known is no number."""
    (tmp_path / "oyez.toml").write_text(TOML)
    project = Project(load(tmp_path, {}))
    transport = httpx.ASGITransport(app=scaler(project, [TOKEN, SCALE]))
    async with httpx.AsyncClient(transport=transport, base_url="http://scale") as client:
        never = await client.get("/desk", headers=bearing(SCALE))
        assert (never.status_code, "does not exist yet" in never.json()["detail"]) == (503, True)
        for token in ("", "wrong", SCALE + "x"):
            assert (await client.get("/desk", headers=bearing(token))).status_code == 401
        missing = await client.get("/dsk", headers=bearing(TOKEN))
        assert (missing.status_code, missing.json()["detail"]) == (404, "there are: desk")
        assert (await client.get("/livez")).status_code == 200
    await publish(project, 100)
    async with living(project) as store:
        await move(store, 40)
        await store.leave("one")
    transport = httpx.ASGITransport(app=scaler(project, [TOKEN, SCALE]))
    async with httpx.AsyncClient(transport=transport, base_url="http://scale") as client:
        told = (await client.get("/desk", headers=bearing(SCALE))).json()
        assert (told["replicas"], told["lag"], told["wanted"]) == (0, 60, 1)
