"""Finds the adapters that serve a URL: brokers and stores, registered by entry points.

A package names in its metadata each URL scheme that it serves, and a function for each::

    [project.entry-points."oyez.brokers"]
    pulsar = "oyez_pulsar:connect"

The groups are ``oyez.brokers`` and ``oyez.stores``, whose functions have the parameters of
`oyez.brokers.Connect` and `oyez.stores.Connect`, and ``oyez.sites``, whose functions read a URL
without connecting (`oyez.sites.Site`). A module is imported when a URL with its scheme is used.

Oyez's own adapters register in the same way, in ``oyez/entry_points.txt``, from which the build
makes the metadata. Oyez reads the file itself: so they are found in a checkout, in a zip file and
in an old installation too, and the metadata of other packages is searched only for other schemes.
Another package can't replace a scheme of Oyez's own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from oyez.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BROKERS = "oyez.brokers"
STORES = "oyez.stores"
SITES = "oyez.sites"


@cache
def own(group: str) -> Mapping[str, str]:
    """Return the places, ``module:attribute``, of Oyez's own functions of a group, by scheme.

    Raises ConfigurationError when the installation lacks the file of them.
    """
    try:
        text = files("oyez").joinpath("entry_points.txt").read_text("utf-8")
    except OSError as error:
        raise ConfigurationError(
            "oyez/entry_points.txt, which names Oyez's adapters, can't be read: install oyez "
            "again; a program that is frozen must include the data of the package"
        ) from error
    found: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == group and line and not line.startswith("#"):
            name, _, place = line.partition(" = ")
            found[name] = place
    return found


@cache
def found(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of other packages of a group, by scheme.

    They are those that are installed at the first call.
    """
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return {each.name: each for each in entry_points(group=group) if each.name not in own(group)}


def schemes(group: str) -> tuple[str, ...]:
    """Return the schemes that a group serves: Oyez's own first, then those of other packages."""
    return (*own(group), *sorted(found(group)))


def serves(group: str, scheme: str) -> bool:
    """Return whether a group has a function for the scheme."""
    return scheme in own(group) or scheme in found(group)


def load(group: str, scheme: str) -> Any:
    """Return the function of a group for the scheme; None where no package has one.

    Raises ConfigurationError, naming the package to install again, when it can't be imported.
    """
    place = own(group).get(scheme)
    package = "oyez"
    if place is None:
        point = found(group).get(scheme)
        if point is None:
            return None
        place = point.value
        package = point.dist.name if point.dist is not None else point.module
    module, _, attribute = place.partition(" ")[0].partition(":")
    try:
        value: Any = importlib.import_module(module)
        for name in attribute.split(".") if attribute else ():
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{scheme}: the adapter {place} of {package} can't be imported ({error}): "
            f"install {package} again"
        ) from error
    return value


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
