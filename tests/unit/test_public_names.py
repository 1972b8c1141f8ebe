"""The public names as they are meant: a change here is a change for every user."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import oyez
import oyez.errors
import oyez.testing


def test_oyez() -> None:
    assert oyez.__all__ == [
        "After",
        "Context",
        "Event",
        "InvalidEvent",
        "OyezError",
        "Retry",
        "Service",
        "Transaction",
        "event",
        "parse",
    ]


def test_oyez_testing() -> None:
    assert oyez.testing.__all__ == ["NotSettled", "Running", "System", "VirtualAmbient", "running"]
    for module, suite in (("broker_suite", "BrokerSuite"), ("store_suite", "StoreSuite")):
        assert inspect.getdoc(getattr(import_module(f"oyez.testing.{module}"), suite))


@pytest.mark.parametrize("module", [oyez, oyez.testing])
def test_every_name_is_there_and_says_what_it_is(module: ModuleType) -> None:
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


def test_no_other_name_looks_public() -> None:
    for module in (oyez, oyez.testing):
        public = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not inspect.ismodule(value)
        }
        assert public == set(module.__all__)


def test_every_error_hangs_on_the_tree_and_is_drawn_there() -> None:
    for name, value in vars(oyez.errors).items():
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, oyez.OyezError)
            assert f" {name} " in f" {oyez.errors.__doc__} ".replace("\n", " ")
            drawn = next(
                line for line in (oyez.errors.__doc__ or "").splitlines()
                if f" {name} " in f"{line} "
            )  # fmt: skip
            if "permanent" in drawn or "transient" in drawn:
                assert ("transient" in drawn) == value.transient, name


def test_importing_oyez_loads_no_server_and_no_test_tool() -> None:
    program = "import oyez, sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = set(subprocess.run(command, capture_output=True, text=True).stdout.split())
    assert "oyez.service" in loaded
    assert not loaded & {"pytest", "uvicorn", "starlette", "httpx", "apsw", "oyez.testing"}
