"""Finds the adapters of other packages: brokers and stores that register an entry point.

A package names in its metadata, under ``oyez.brokers`` or ``oyez.stores``, each URL scheme that it
serves and the function that connects it::

    [project.entry-points."oyez.brokers"]
    pulsar = "oyez_pulsar:connect"

The function has the parameters of `oyez.brokers.Connect` or `oyez.stores.Connect`. The packages are
imported when a URL asks for their scheme, never before. A scheme that Oyez serves itself can't be
replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from oyez.errors import ConfigurationError

BROKERS = "oyez.brokers"
STORES = "oyez.stores"


@cache
def found(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by scheme, as installed at the first call."""
    return {point.name: point for point in entry_points(group=group)}


def load(group: str, scheme: str) -> Any:
    """Return the function that connects URLs of that scheme; None where no package serves it.

    Raises ConfigurationError, naming the package, when it can't be imported.
    """
    point = found(group).get(scheme)
    if point is None:
        return None
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = point.dist.name if point.dist is not None else point.module
        raise ConfigurationError(
            f"{scheme}: the adapter {point.value} of {package} can't be imported ({error}): "
            f"install {package} again"
        ) from error


@contextlib.contextmanager
def driver(requirement: str) -> Iterator[None]:
    """Turn a module that is missing within the block into an error that says how to install it.

    ``requirement`` is what pip installs, such as ``oyez[kafka]``. Raises ConfigurationError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the driver {error.name} is not installed: pip install '{requirement}'"
        ) from error
