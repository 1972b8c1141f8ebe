"""The variables of a user's modules, which a real process loses when it dies."""

from __future__ import annotations

import copy
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_CONTAINERS = (dict, list, set, deque, defaultdict, Counter, OrderedDict, bytearray)
_OTHERS = ("site-packages", ".venv")
_TESTS = ("test_", "conftest")
_VALUES = (int, float, str, bytes, bool, type(None))


class Globals:
    """The variables of the modules below a folder, as they were when a run began."""

    def __init__(self, roots: Iterable[Path], leave: Iterable[str] = ()) -> None:
        """``leave`` are modules that are no part of a service, by name."""
        self._before: dict[tuple[str, str], tuple[Any, Any]] = {}
        left = set(leave)
        for module in _modules(list(roots)):
            if module.__name__ in left:
                continue
            for name, value in vars(module).items():
                if name.startswith("__"):
                    continue
                if type(value) in _CONTAINERS:
                    self._before[module.__name__, name] = (value, copy.copy(value))
                elif type(value) in _VALUES:
                    self._before[module.__name__, name] = (value, value)

    def changed(self) -> list[str]:
        """Return the variables that have changed since."""
        found = []
        for (module, name), (value, before) in self._before.items():
            now = vars(sys.modules[module]).get(name)
            if now is not value or value != before:
                found.append(f"{module}.{name}")
        return found

    def restore(self) -> None:
        """Make them what they were, as in a process that has just started."""
        for (module, name), (value, before) in self._before.items():
            names = vars(sys.modules[module])
            if names.get(name) is not value:
                names[name] = value
            if value is not before and value != before:
                _fill(value, before)


def _fill(value: Any, before: Any) -> None:
    value.clear()
    if isinstance(value, dict | set):
        value.update(before)
    else:
        value.extend(before)


def _modules(roots: list[Path]) -> Iterator[ModuleType]:
    starts = tuple(f"{root}/" for root in roots)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not file.startswith(starts) or Path(file).name.startswith(_TESTS):
            continue
        if not set(_OTHERS) & set(Path(file).parts):
            yield module
