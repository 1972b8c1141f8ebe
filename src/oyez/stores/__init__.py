"""The stores of services: one adapter a file, each an `oyez.ports.Store`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oyez import adapters
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
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
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        from oyez.stores.sqlite import SqliteStore

        return SqliteStore(root / rest, ambient)
    if scheme == "postgresql":
        try:
            from oyez.postgresql import PORT
            from oyez.stores.postgres.store import PostgresOptions, PostgresStore
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"store: {scheme} needs the package {error.name}: pip install 'oyez[postgresql]'"
            ) from error
        endpoint = Endpoint(url, port=PORT)
        return PostgresStore(endpoint, ambient, endpoint.options(PostgresOptions))
    make: Connect | None = adapters.load(adapters.STORES, scheme)
    if make is not None:
        return make(url, ambient, root=root)
    known = ", ".join(("sqlite", "postgresql", *adapters.found(adapters.STORES)))
    raise ConfigurationError(f"store: expected one of {known}, found {scheme!r}")
