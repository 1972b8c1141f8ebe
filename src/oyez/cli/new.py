"""``oyez new NAME``: creates a small runnable system."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from oyez.cli.printing import write
from oyez.errors import ConfigurationError

NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,39}[a-z0-9])?")
SUFFIX = ".template"
"""The suffix of the template's files, so that tools don't treat them as code of this package."""
PLACEHOLDER = "{{name}}"


@click.command("new")
@click.argument("name")
def command(name: str) -> None:
    """Scaffold a runnable two-service project with tests in a new folder NAME."""
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"NAME: expected one of a-z, then up to 40 of a-z, 0-9 and '-' (not at the end), "
            f"found {name!r}"
        )
    folder = Path(name)
    try:
        if folder.is_symlink() or folder.exists():
            if not folder.is_dir():
                raise ConfigurationError(f"{folder} exists and is not a folder: choose another")
            if any(folder.iterdir()):
                raise ConfigurationError(f"{folder} exists and is not empty: choose another")
        written = _copy(files("oyez.cli").joinpath("template"), folder, name)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder}: {error.strerror}") from error
    write(f"{name}: {written} files. Next:")
    write(f"\n  cd {name}\n  pytest\n  oyez dev\n\nContinue with its README.md.")


def _copy(source: Traversable, target: Path, name: str) -> int:
    target.mkdir(exist_ok=True)
    written = 0
    for entry in sorted(source.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            written += _copy(entry, target / entry.name, name)
        elif entry.name.endswith(SUFFIX):
            text = entry.read_text(encoding="utf-8").replace(PLACEHOLDER, name)
            # A file with a leading dot would not be packaged.
            file = entry.name.removesuffix(SUFFIX).replace("dot-", ".", 1)
            (target / file).write_text(text, encoding="utf-8")
            written += 1
    return written
