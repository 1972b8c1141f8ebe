"""What a store needs before its service runs: Oyez's tables, its own migrations, its views."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.errors import ConfigurationError, StoreMissing, StoreOutdated, StoreRefused
from oyez.ports import Store
from oyez.runtime import views
from oyez.service import Service
from oyez.view import ViewType


class Change(msgspec.Struct, frozen=True):
    """A change of its store that a service needs before it runs."""

    what: Literal["tables", "migration", "view"]
    """Oyez's own tables, a migration of the service, or the table of a view."""
    name: str
    """``new`` or ``older`` for the tables, else the file, or the view with its version."""

    def __str__(self) -> str:
        return (
            f"Oyez's tables ({self.name})" if self.what == "tables" else f"{self.what} {self.name}"
        )


async def due(store: Store, service: Service, root: Path) -> list[Change]:
    """Open the store and return the changes that `migrate` would make, in order. Changes nothing.

    What else is due is unknown while Oyez's tables are older. A store that is missing stays so, and
    is not open then. Raises ConfigurationError and StoreError, as `migrate` would.
    """
    scripts = read_migrations(service, root)
    try:
        await store.open(create=False)
    except StoreMissing:
        found = [Change("tables", "new"), *(Change("migration", name) for name, _ in scripts)]
        return found + _made_of(service.views)
    except StoreOutdated:
        return [Change("tables", "older")]
    applied = {row["name"]: row["digest"] for row in await store.fetch(tables.MIGRATIONS, {})}
    for name, sql in scripts:
        if applied.get(name, "") not in ("", sha256(sql.encode()).hexdigest()):
            raise StoreRefused(
                f"migration {name} has run and was changed since: restore it and put the change "
                "into a new file with the next number"
            )
    found = [Change("migration", name) for name, _ in scripts if name not in applied]
    return found + _made_of(await views.lacking(store, tuple(service.views)))


async def migrate(store: Store, service: Service, root: Path, ambient: Ambient) -> None:
    """Open the store and make all the changes that are due.

    Each is made once, in a transaction, under the store's lock: of several processes that do this
    at once, one makes it and the others wait. Raises ConfigurationError and StoreError; the changes
    before the one that failed are made then.
    """
    scripts = read_migrations(service, root)
    await store.open()
    await store.migrate(scripts)
    await views.prepare(store, tuple(service.views), ambient)


def read_migrations(service: Service, root: Path) -> list[tuple[str, str]]:
    """Return the service's migrations in order: (file name, SQL).

    Raises ConfigurationError for a folder that is missing, and for a file that can't be read or
    whose name has no number.
    """
    if service.migrations is None:
        return []
    folder = root / service.migrations
    if not folder.is_dir():
        raise ConfigurationError(
            f"service {service.name}: migrations: expected a folder, found nothing at {folder}"
        )
    files = sorted(folder.glob("*.sql"))
    numbers: dict[str, str] = {}
    for file in files:
        number = file.name.partition("_")[0]
        if not number.isdigit():
            raise ConfigurationError(f"{file}: expected a name such as 001_orders.sql")
        if number in numbers:
            raise ConfigurationError(f"{file}: has the same number as {numbers[number]}")
        numbers[number] = file.name
    return [(file.name, _text(file)) for file in files]


def _made_of(kinds: Iterable[ViewType]) -> list[Change]:
    return [Change("view", f"{kind.view}@{kind.version}") for kind in kinds]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: expected readable UTF-8: {error}") from None
