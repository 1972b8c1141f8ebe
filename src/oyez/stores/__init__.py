"""Where services keep their data: one adapter a file, behind `oyez.ports.Store`."""

from __future__ import annotations

from pathlib import Path

from oyez.ambient import Ambient
from oyez.errors import ConfigurationError
from oyez.ports import Store


def connect(url: str, ambient: Ambient, *, root: Path) -> Store:
    """The store that a URL names; nothing is opened yet.

    ``root`` is what a relative file is relative to. Raises ConfigurationError for a scheme that has
    no adapter.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        from oyez.stores.sqlite import SqliteStore

        return SqliteStore(root / rest, ambient)
    raise ConfigurationError(
        f"store: expected sqlite:FILE, found {scheme!r}, which this version has no adapter for"
    )
