"""Two spellings of one URL lead to one broker; what may be two brokers counts as two."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oyez import adapters
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.inspection.journey import trace
from oyez.ports import Record
from oyez.project import Project
from oyez.sites import kind, site


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("embedded:events.db", "embedded:./events.db"),
        ("embedded:events.db", "embedded:sub/../events.db"),
        ("embedded:events.db", "embedded:{root}/events.db"),
        ("embedded:events.db", "embedded://{root}/events.db"),
        ("embedded:events.db", "embedded:///{root}//events.db"),
        ("embedded:events.db", "embedded:link.db"),
        ("kafka://a,b", "kafka://b:9092,a:9092"),
        ("kafka://a?acks=1&tls=true", "kafka://A:9092?tls=true&linger=5"),
        ("kafka://one:x@a", "kafka://other:y@a"),
        ("kafka://a", "kafka://a/"),
        ("nats://u:x@a", "nats://u:y@A:4222"),
        ("nats://[::1]", "nats://[0:0:0:0:0:0:0:1]:4222"),
        ("amqp://a", "amqp://u:p@a:5672/"),
        ("amqp://a", "amqp://a/%2F"),
        ("amqp://a:5671/v", "amqps://a/v"),
        ("redis://a", "redis://:secret@a:6379/0"),
        ("redis://a/1", "rediss://a/01"),
        ("postgresql://u@a/db", "postgresql://v:p@a:5432/db?schema=oyez&poll=1"),
        ("sns+sqs://eu-west-1", "sns+sqs://EU-west-1?wait=5"),
        ("sns+sqs://r?endpoint=http://e", "sns+sqs://r?endpoint=http://E:80/"),
        ("pulsar://u:x@A/t?b=1&a=2", "pulsar://u:y@a/t?a=2&b=1"),
        ("memory:", "memory:"),
    ],
)
def test_one_broker(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "events.db")
    other = other.replace("{root}", str(tmp_path))
    assert site(one, tmp_path) == site(other, tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("embedded:events.db", "embedded:Events.db"),
        ("kafka://localhost", "kafka://127.0.0.1"),
        ("kafka://a,b", "kafka://a"),
        ("kafka://a", "nats://a:9092"),
        ("nats://one@a", "nats://other@a"),
        ("amqp://a", "amqps://a"),
        ("amqp://a/v", "amqp://a/V"),
        ("redis://a/1", "redis://a"),
        ("postgresql://a/db", "postgresql://a/Db"),
        ("postgresql://a/db", "postgresql://a/db?schema=other"),
        ("postgresql://u@a", "postgresql://v@a"),
        ("sns+sqs://eu-west-1", "sns+sqs://eu-west-2"),
        ("sns+sqs://r", "sns+sqs://r?endpoint=http://e"),
        ("sns+sqs://k:s@r", "sns+sqs://l:s@r"),
        ("pulsar://a/t?x=1&x=2", "pulsar://a/t?x=2&x=1"),
        ("pulsar://a/t", "pulsar://a/T"),
        ("kafka://a b", "kafka://A b"),
    ],
)
def test_two_brokers(tmp_path: Path, one: str, other: str) -> None:
    assert site(one, tmp_path) != site(other, tmp_path)


def test_encryption_makes_no_other_kind() -> None:
    schemes = ("amqps", "rediss", "kafka", "embedded", "pulsar")
    assert [kind(f"{scheme}://a") for scheme in schemes] == [
        "amqp",
        "redis",
        "kafka",
        "embedded",
        "pulsar",
    ]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with a broker that ignores all but the last part of a URL."""
    folder = tmp_path / "packages"
    metadata = folder / "pulsar_sites-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "pulsar_sites.py").write_text(
        "def site(url, *, root):\n    return 'pulsar:' + url.rpartition('/')[2]\n"
    )
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pulsar-sites\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[oyez.brokers]\npulsar = pulsar_sites:connect\npulsars = pulsar_sites:connect\n"
        "[oyez.sites]\npulsar = pulsar_sites:site\npulsars = pulsar_sites:site\n"
        "broken = gone:site\nkafka = gone:site\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    adapters.found.cache_clear()
    yield
    sys.modules.pop("pulsar_sites", None)
    adapters.found.cache_clear()


@pytest.mark.usefixtures("installed")
def test_an_adapter_of_another_package_tells_by_itself(tmp_path: Path) -> None:
    assert site("pulsar://a/x", tmp_path) == site("pulsar://b/x", tmp_path)
    assert site("pulsar://a/x", tmp_path) != site("pulsar://a/y", tmp_path)
    assert kind("pulsars://a/x") == "pulsar"
    with pytest.raises(ConfigurationError, match="install pulsar-sites again"):
        site("broken://a", tmp_path)


@pytest.mark.usefixtures("installed")
def test_none_replaces_a_scheme_of_our_own(tmp_path: Path) -> None:
    assert adapters.schemes(adapters.SITES).count("kafka") == 1
    assert site("kafka://a", tmp_path) == "kafka://a:9092/"


TOML = """
[system]
name = "till"
broker = "embedded:events.db"
[services.desk]
app = "no_desk:service"
broker = "embedded:{root}/events.db"
[services.ledger]
app = "sites_ledger:service"
broker = "embedded:./other.db"
[bridges.over]
source = "embedded:./events.db"
target = "embedded:other.db"
streams = ["till.*"]
"""
LEDGER = """
from oyez import Event, Service
service = Service("ledger")
class Sold(Event, type="t"):
    n: int
@service.on(Sold)
def record(event: Sold) -> None: ...
"""


async def test_a_system_s_brokers_are_told_apart_by_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "sites_ledger.py").write_text(LEDGER)
    (tmp_path / "oyez.toml").write_text(TOML.replace("{root}", os.fspath(tmp_path)))
    project = Project(load(tmp_path, {}))
    assert [each.name for each in project.brokers.values()] == ["embedded", "embedded:ledger"]
    async with project.opened_broker("desk", create=True) as broker:
        await broker.create("till.desk", 1)
        record = Record(stream="till.desk", key="k", headers={"id": "a", "type": "t"}, data=b"{}")
        await broker.publish([record])
    found = await trace(project, "k")
    sys.modules.pop("sites_ledger", None)
    ((event,),) = [journey.events for journey in found.journeys]
    assert [place.broker for place in event.places] == ["embedded"]
    assert [(each.handler, each.bridge) for each in event.reactions] == [("record", "over")]
    assert [gap.name for gap in found.gaps if gap.part == "broker"] == ["embedded:ledger"]
