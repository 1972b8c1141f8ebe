"""A service's own migrations: the numbered SQL files of a folder."""

from __future__ import annotations

from pathlib import Path

from oyez.errors import ConfigurationError
from oyez.service import Service


def read_migrations(service: Service, root: Path) -> list[tuple[str, str]]:
    """Return the service's migrations in order: (file name, SQL).

    Raises ConfigurationError for a folder that is missing or a file whose name has no number.
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
    return [(file.name, file.read_text(encoding="utf-8")) for file in files]
