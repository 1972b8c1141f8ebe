"""The stores of services: one adapter a file, each an `oyez.ports.Store`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oyez import adapters
from oyez.ambient import Ambient
from oyez.errors import ConfigurationError
from oyez.ports import Store


class Connect(Protocol):
    """The function that an entry point of ``oyez.stores`` names; see `oyez.adapters`."""

    def __call__(self, url: str, ambient: Ambient, *, root: Path) -> Store:
        """Return the store of a URL, not open; parameters as in `connect`."""
        ...


def connect(url: str, ambient: Ambient, *, root: Path) -> Store:
    """Return the store of a URL, not open.

    Relative files are relative to ``root``. Raises ConfigurationError for a scheme without an
    adapter, an unknown option or an adapter whose driver is not installed.
    """
    scheme = url.partition(":")[0]
    make: Connect | None = adapters.load(adapters.STORES, scheme)
    if make is None:
        known = ", ".join(adapters.schemes(adapters.STORES))
        raise ConfigurationError(f"store: expected one of {known}, found {scheme!r}")
    return make(url, ambient, root=root)
