"""The reference: what the docstrings of public names say, as Markdown."""

from __future__ import annotations

import importlib
import inspect
import re
from types import FunctionType, ModuleType

MODULES = {
    "oyez": "what a service is written with",
    "oyez.saga": "steps, undos, ends, timers of sagas",
    "oyez.testing": "services in one process, under a clock that the test moves",
    "oyez.testing.sagas": "sagas as tables",
    "oyez.errors": "every error, and whether a retry can succeed",
    "oyez.signals": "what a running service tells those who listen",
    "oyez.ports": "what a broker and a store must do",
}


def reference(name: str) -> str:
    """The page of a module."""
    module = importlib.import_module(name)
    parts = [f"# {name}", said(module)]
    for public in names(module):
        value = getattr(module, public)
        if inspect.isclass(value):
            parts += [f"## {public}", signature(public, value), said(value)]
            for method, function in members(value):
                parts += [f"### {public}.{method}", signature(method, function), said(function)]
        elif callable(value):
            parts += [f"## {public}", signature(public, value), said(value)]
        else:
            parts += [f"## {public}", said(type(value))]
    return "\n\n".join(part for part in parts if part) + "\n"


def names(module: ModuleType) -> list[str]:
    """The public names of a module, those that it makes itself."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def members(cls: type) -> list[tuple[str, object]]:
    """The public methods and properties that a class of ours declares or inherits from ours."""
    found: dict[str, object] = {}
    for each in reversed(cls.__mro__):
        if not each.__module__.startswith("oyez"):
            continue
        for name, value in vars(each).items():
            if name.startswith("_"):
                continue
            value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if isinstance(value, (FunctionType, property)) and inspect.getdoc(value):
                found[name] = value
    return list(found.items())


def signature(name: str, value: object) -> str:
    """How it is called, where that can be told."""
    if isinstance(value, property):
        return f"`{name}`, a property"
    if inspect.isclass(value) and issubclass(value, Exception):
        return ""
    try:
        told = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    told = re.sub(r"<([\w.]+)[^>]*>", r"\1", told).replace("'", "").replace("oyez.", "")
    word = "async def" if inspect.iscoroutinefunction(value) else "def"
    word = "class" if inspect.isclass(value) else word
    return f"```python\n{word} {name}{told}\n```"


def said(value: object) -> str:
    """Its docstring: names in one pair of backticks, indented blocks as code."""
    text = (inspect.getdoc(value) or "").replace("``", "`")
    return re.sub(r"(?m)^::$|::$", ":", text)
