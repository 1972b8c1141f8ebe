"""Adapters of another package: installed beside Oyez, they are used as its own are."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import Shop, running_shop

from oyez import adapters, brokers, stores
from oyez.ambient import SystemAmbient
from oyez.config import load
from oyez.errors import ConfigurationError
from oyez.testing.broker_suite import BrokerSuite, Factory

MODULE = """
from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions
from oyez.stores.sqlite import SqliteStore


class PulsarBroker(EmbeddedBroker):
    pass


def connect(url, ambient, *, root, group, partitions, retention):
    options = EmbeddedOptions(partitions=partitions, retention=retention)
    return PulsarBroker(root / url.removeprefix("pulsar://"), ambient, options)


def connect_store(url, ambient, *, root):
    return SqliteStore(root / url.removeprefix("drawer://"), ambient)
"""
POINTS = """
[oyez.brokers]
pulsar = third_party:connect
broken = third_party_that_is_gone:connect

[oyez.stores]
drawer = third_party:connect_store
"""
TOML = """
[system]
name = "shop"
broker = "{broker}"

[services.desk]
app = "desk:service"
store = "drawer://desk.db"
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds the package and what pip would write of it, on every process's path."""
    folder = tmp_path / "site"
    metadata = folder / "third_party-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "third_party.py").write_text(textwrap.dedent(MODULE))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(textwrap.dedent(POINTS))
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
    monkeypatch.syspath_prepend(str(folder))
    adapters.found.cache_clear()
    yield folder
    sys.modules.pop("third_party", None)
    adapters.found.cache_clear()


class TestThirdParty(BrokerSuite):
    """The whole suite, its ``kill -9`` of a process that connects by the URL included."""

    def make(self, tmp_path: Path) -> Factory:
        url = self.url(tmp_path)
        return lambda: brokers.connect(url, SystemAmbient(), root=tmp_path)

    def url(self, tmp_path: Path) -> str:
        return "pulsar://events.db"


def test_the_shop_runs_on_it_and_outlives_a_kill(tmp_path: Path) -> None:
    environment = {
        "OYEZ_BROKER": "pulsar://.oyez/pulsar.db",
        "OYEZ_STORE": "drawer://.oyez/{service}.drawer",
    }
    with running_shop(tmp_path, environment=environment) as shop:
        _publish(shop, "1")
        shop.wait_for(lambda: _reserved(shop, "1"))
        shop.kill("inventory")
        _publish(shop, "2")
        shop.wait_for(lambda: _reserved(shop, "2"))
        assert (shop.root / ".oyez" / "pulsar.db").exists()
        assert (shop.root / ".oyez" / "inventory.drawer").exists()


def test_settings_take_its_schemes_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "oyez.toml"
    file.write_text(TOML.format(broker="pulsar://events.db"))
    assert load(file, {}).system.broker == "pulsar://events.db"
    for broker in ("pulsar:", "quasar://events.db"):
        file.write_text(TOML.format(broker=broker))
        with pytest.raises(ConfigurationError, match=r"system\.broker"):
            load(file, {})


def test_one_that_is_half_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="install third-party again"):
        brokers.connect("broken://x", SystemAmbient(), root=tmp_path)
    with pytest.raises(ConfigurationError, match="drawer"):
        stores.connect("quasar://x", SystemAmbient(), root=tmp_path)


def _publish(shop: Shop, order: str) -> None:
    data = {
        "order_id": order,
        "customer": "c1",
        "email": "a@example.org",
        "phone": "+4912345678",
        "card": "4000000000000002",
        "lines": [{"sku": "lantern", "quantity": 1}],
        "total_cents": 900,
    }
    run = shop.run("publish", "shop.order.placed", json.dumps(data))
    assert run.returncode == 0, run.stderr


def _reserved(shop: Shop, order: str) -> bool:
    flow = shop.run("flow", order, "--json")
    return flow.returncode == 0 and "shop.stock." in flow.stdout
