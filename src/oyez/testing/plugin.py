"""The pytest plugin: what a project's tests import, and the harness as a fixture.

A test belongs to the project whose ``oyez.toml`` stands in its folder or the nearest one above it.
It imports what ``oyez run`` would import there, from wherever pytest is started, and never a module
of the same name that another project's tests have loaded in the same run.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from oyez.config import FILE
from oyez.errors import ConfigurationError
from oyez.testing import harness
from oyez.testing.harness import Running

# Pytest explains failed assertions only in modules that are named before they are imported.
pytest.register_assert_rewrite(
    "oyez.testing.broker_suite",
    "oyez.testing.delivery_suite",
    "oyez.testing.store_suite",
    "oyez.testing.ticks",
)


class Projects:
    """Lets tests of several projects import in one process, as if each ran alone.

    Tests outside of every project see what pytest was configured to show them.
    """

    def __init__(self) -> None:
        self._roots: dict[Path, Path | None] = {}
        """The project's folder, by each folder that was asked about."""
        self._views: dict[Path | None, dict[str, ModuleType]] = {}
        """By each project that was left, the modules that its tests had loaded."""
        self._current: Path | None = None
        self._outside: list[str] = []
        """``sys.path`` as it was before the current project was entered."""
        self._inside: list[str] = []
        """``sys.path`` as it was just after."""

    def root_of(self, path: Path) -> Path | None:
        """Return the folder of the project that a file or folder is in; None outside of all."""
        if (path / FILE).is_file():
            return path
        folder = path.parent
        if folder not in self._roots:
            self._roots[folder] = self.root_of(folder) if folder != path else None
        return self._roots[folder]

    def enter(self, path: Path | None) -> None:
        """Show the modules of the project that a file is in, and hide those of others.

        None shows what is outside of every project.
        """
        root = None if path is None else self.root_of(path)
        if root == self._current:
            return
        homes = {name: _home(name) for name in list(sys.modules)}
        roots = {home for home in set(homes.values()) if home and self._is_root(home)}
        hidden = roots | _overlaid(root, homes)
        left = {
            name: sys.modules.pop(name)
            for name, home in homes.items()
            if home in hidden and (home in roots or _provides(root, name))
        }
        self._views[self._current] = left
        if root not in self._views:
            # What is the project's own and came before its tests (by ``-p``, say) is not made anew.
            own = {name: module for name, module in left.items() if homes[name] == str(root)}
            self._views[root] = own
        sys.modules.update(self._views[root])
        self._change_path(root)
        self._current = root

    def _change_path(self, root: Path | None) -> None:
        if self._current is not None:
            # Pytest itself adds the folders of test files as it comes to them.
            added = [each for each in sys.path if each not in self._inside]
            sys.path[:] = [*added, *self._outside]
        if root is not None:
            self._outside = sys.path.copy()
            sys.path[:] = [str(root), *(each for each in sys.path if not self._is_root(each))]
            self._inside = sys.path.copy()

    def _is_root(self, folder: str) -> bool:
        path = Path(folder)
        return self.root_of(path) == path


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Running:
    """Return `oyez.testing.running` with ``system`` and ``root`` of the test's own project."""
    root = _projects(request.config).root_of(request.path)
    if root is None:
        raise ConfigurationError(
            f"{request.path}: the fixture `running` expects an {FILE} in this folder or one above "
            "it: write one, or import oyez.testing.running"
        )
    try:
        name = tomllib.loads((root / FILE).read_text(encoding="utf-8"))["system"]["name"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{root / FILE}: system.name: expected a name") from error
    return partial(harness.running, system=str(name), root=root)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Have each ``conftest.py`` import what the tests beside it do."""
    manager: Any = early_config.pluginmanager
    projects = _projects(early_config)
    # One hook imports those of all folders on the command line: none comes before each of them.
    original = getattr(manager, "_importconftest", None)
    if original is None:
        return

    def import_conftest(path: Path, *rest: object, **named: object) -> object:
        projects.enter(path)
        return original(path, *rest, **named)

    manager._importconftest = import_conftest


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart(collector: pytest.Collector) -> None:
    """Enter the project of what is about to be imported."""
    _projects(collector.config).enter(collector.path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Enter the project of a test that is about to run, for what it imports only now."""
    _projects(item.config).enter(item.path)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the process as it was."""
    _projects(config).enter(None)


_KEY = pytest.StashKey[Projects]()


def _projects(config: pytest.Config) -> Projects:
    return config.stash.setdefault(_KEY, Projects())


def _overlaid(root: Path | None, homes: Mapping[str, str]) -> set[str]:
    """Return the homes that are above a project: it may have folders of the same names there."""
    return {str(each) for each in root.parents} & set(homes.values()) if root else set()


def _provides(root: Path | None, name: str) -> bool:
    """Return whether a project has a folder of the name of a module's first package."""
    return root is not None and (root / name.partition(".")[0]).is_dir()


def _home(name: str) -> str:
    """The folder that the module's first package was found in; empty for one without a file."""
    found = getattr(sys.modules.get(name.partition(".")[0]), "__dict__", {})
    file = found.get("__file__")
    if file is None:
        folders = list(found.get("__path__") or ())
        return str(Path(folders[0]).parent) if folders else ""
    path = Path(file)
    return str(path.parents[1] if path.stem == "__init__" else path.parent)
