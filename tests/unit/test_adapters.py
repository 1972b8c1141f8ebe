"""Oyez's own adapters: one table of entry points, which the build and the system read alike."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import Distribution
from importlib.resources import files
from pathlib import Path

import pytest

from oyez import adapters

ROOT = Path(__file__).parents[2]
GROUPS = (adapters.BROKERS, adapters.STORES, adapters.SITES)
DRIVERS = ("confluent_kafka", "pamqp", "redis", "aiobotocore", "asyncpg")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_build_takes_the_table_that_the_system_reads(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "entry-points" in project["project"]["dynamic"]
    setuptools = project["tool"]["setuptools"]
    assert setuptools["dynamic"]["entry-points"] == {"file": "src/oyez/entry_points.txt"}
    assert "entry_points.txt" in setuptools["package-data"]["oyez"]
    folder = tmp_path / "oyez-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text(files("oyez").joinpath("entry_points.txt").read_text())
    points = Distribution.at(folder).entry_points
    for group in (*GROUPS, "pytest11"):
        read = {each.name: each.value for each in points.select(group=group)}
        assert adapters.own(group) == read
        assert read


@pytest.mark.parametrize("group", GROUPS)
def test_each_leads_to_a_function(group: str) -> None:
    for scheme in adapters.own(group):
        assert callable(adapters.load(group, scheme))


def test_each_scheme_has_a_site() -> None:
    served = {*adapters.own(adapters.BROKERS), *adapters.own(adapters.STORES)}
    assert served == set(adapters.own(adapters.SITES))


def test_no_driver_is_imported_before_a_broker_is_connected() -> None:
    code = f"""
        import sys
        from oyez import adapters
        for group in {GROUPS}:
            for scheme in adapters.own(group):
                adapters.load(group, scheme)
        print([name for name in {DRIVERS} if name in sys.modules])
    """
    assert run(code) == "[]\n"


def test_other_packages_are_looked_up_for_other_schemes_only() -> None:
    code = """
        from oyez import adapters
        from oyez.sites import kind
        adapters.load(adapters.STORES, "sqlite")
        assert kind("kafka://a") == "kafka" and adapters.serves(adapters.BROKERS, "nats")
        print(adapters.found.cache_info().misses, end=" ")
        adapters.serves(adapters.BROKERS, "pulsar")
        print(adapters.found.cache_info().misses)
    """
    assert run(code) == "0 1\n"


@pytest.mark.parametrize(
    ("call", "driver", "extra"),
    [
        ("brokers", "confluent_kafka", "kafka://a"),
        ("stores", "asyncpg", "postgresql://a/b"),
    ],
)
def test_a_missing_driver_is_named(call: str, driver: str, extra: str) -> None:
    code = f"""
        import sys
        from pathlib import Path
        sys.modules[{driver!r}] = None
        from oyez import {call} as group
        from oyez.ambient import SystemAmbient
        from oyez.errors import ConfigurationError
        try:
            group.connect({extra!r}, SystemAmbient(), root=Path())
        except ConfigurationError as error:
            print(error)
    """
    name = extra.partition(":")[0]
    assert run(code) == f"the driver {driver} is not installed: pip install 'oyez[{name}]'\n"
