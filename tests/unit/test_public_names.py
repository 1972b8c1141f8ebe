"""The public names as they are meant: a change here is a change for every user."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import pytest

import oyez
import oyez.errors
import oyez.testing


def test_oyez() -> None:
    assert oyez.__all__ == [
        "GONE",
        "After",
        "Command",
        "Context",
        "Event",
        "Gone",
        "InvalidEvent",
        "OyezError",
        "Personal",
        "Principal",
        "Retry",
        "RetryLater",
        "Saga",
        "Service",
        "State",
        "Tick",
        "Transaction",
        "View",
        "Window",
        "applies",
        "caller",
        "event",
        "migrates",
        "parse",
        "upcast",
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


def test_no_error_stands_elsewhere() -> None:
    """But for those that no module outside of their package names.

    Such a one is not an OyezError: it is caught in its package. Or it is the refinement of an error
    of the tree in an adapter, and its callers see that error.
    """
    modules = [import_module(name) for name in _modules()]
    imported = [pair for module in modules for pair in _imports(module)]
    elsewhere = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, BaseException)
        if value.__module__.startswith("oyez.") and value.__module__ != "oyez.errors"
    }
    assert elsewhere
    for error in elsewhere:
        home = _package(error.__module__)
        users = {user for user, name in imported if name == (error.__module__, error.__name__)}
        assert all(f"{user}.".startswith(f"{home}.") for user in users), error
        if issubclass(error, oyez.OyezError):
            assert home.startswith(("oyez.brokers.", "oyez.stores.")), error
            assert {base.__module__ for base in error.__bases__} == {"oyez.errors"}, error
            assert oyez.OyezError not in error.__bases__, error


def _modules() -> list[str]:
    found = [module.name for module in walk_packages(oyez.__path__, "oyez.")]
    return [name for name in found if name != "oyez.__main__"]


def _package(module: str) -> str:
    """The smallest package around a module that holds one idea."""
    parent = module.rpartition(".")[0]
    return module if parent in ("oyez", "oyez.brokers", "oyez.stores") else parent


def _imports(module: ModuleType) -> Iterator[tuple[str, tuple[str, str]]]:
    """The module's name with each class that it imports: where that is defined, and its name."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oyez"):
            source = import_module(node.module or "")
            for alias in node.names:
                value = getattr(source, alias.name, None)
                if inspect.isclass(value):
                    yield module.__name__, (value.__module__, value.__name__)


def test_importing_oyez_loads_no_server_and_no_test_tool() -> None:
    program = "import oyez, sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = set(subprocess.run(command, capture_output=True, text=True).stdout.split())
    assert "oyez.service" in loaded
    assert not loaded & {"pytest", "uvicorn", "starlette", "httpx", "apsw", "oyez.testing"}


@pytest.mark.parametrize("name", [each.name for each in walk_packages(oyez.__path__, "oyez.")])
def test_no_name_is_given_twice(name: str) -> None:
    """The second of two statements with one name would take the place of the first unseen."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text())
    given = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    twice = {each for each in given if given.count(each) > 1}
    assert not twice
