"""What a service is installed as: its processes, the migrations it ran, the settings in effect."""

from __future__ import annotations

from typing import Any

import msgspec

from oyez import tables
from oyez.config import Config, ServiceSettings
from oyez.endpoint import redact
from oyez.ports import Store


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a service, as long as its lease is renewed."""

    owner: str
    admin: str
    """The address of its admin port."""
    since: float
    """When it started, in seconds since 1970."""


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration of the service's own that its store has run."""

    name: str
    digest: str
    """Of its text, which must not change afterwards."""
    applied: float
    """In seconds since 1970."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting in effect."""

    name: str
    """With its table, such as ``services.orders.store``."""
    value: str | None
    """As text, without secrets; None where there is none."""
    place: str | None
    """File and line, or the variable, that it is from; None for the default."""


async def read_leases(store: Store, now: float) -> list[Lease]:
    """Return the living processes, the one that started first first. Raises StoreError."""
    rows = await store.fetch(tables.REPLICAS, {})
    living = [row for row in rows if row["until"] > now]
    return [
        Lease(owner=row["owner"], admin=row["note"], since=row["started"])
        for row in sorted(living, key=lambda row: (row["started"], row["owner"]))
    ]


async def read_applied(store: Store) -> list[Migration]:
    """Return the migrations that the store has run, by name. Raises StoreError."""
    return [Migration(**row) for row in await store.fetch(tables.MIGRATIONS, {})]


def effective(config: Config, table: str) -> list[Setting]:
    """Return the settings of the system, and those of a table such as ``services.orders``.

    Passwords, tokens and keys in them are replaced by ``***``.
    """
    group, _, name = table.partition(".")
    chosen = getattr(config, group)[name]
    settings: dict[str, msgspec.Struct] = {"system": config.system, table: chosen}
    if isinstance(chosen, ServiceSettings):
        settings[f"{table}.scaling"] = chosen.scaling
        if chosen.url is not None:
            settings[f"{table}.bridge"] = chosen.bridge
    return [
        _setting(f"{key}.{field.name}", getattr(each, field.name), _default(field, name), config)
        for key, each in settings.items()
        for field in msgspec.structs.fields(each)
        if (field.name != "name" or key == "system") and field.name not in ("scaling", "bridge")
    ]


def _setting(name: str, value: Any, default: Any, config: Config) -> Setting:
    place = None if value == default else config.places.get(name)
    return Setting(name=name, value=_text(value), place=place)


def _default(field: msgspec.structs.FieldInfo, name: str) -> Any:
    found = field.default
    if isinstance(found, str):
        return found.replace("{service}", name).replace("{bridge}", name)
    return found


def _text(value: Any) -> str | None:
    if value is None or value == ():
        return None
    if isinstance(value, tuple):
        return ", ".join(redact(str(each)) for each in value)
    return redact(str(value))
