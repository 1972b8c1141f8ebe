"""Finds the file of settings, and reads it and others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from oyez.config.checks import check
from oyez.config.environment import resolved
from oyez.config.mistakes import mistake
from oyez.config.reader import Reader
from oyez.config.settings import Config

FILE = "oyez.toml"

T = TypeVar("T", bound=msgspec.Struct)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the settings.

    Without a ``path``, ``oyez.toml`` is looked for in the current folder and those above it; a
    folder means its ``oyez.toml``. ``environ`` is ``os.environ`` unless given. Raises
    :class:`ConfigurationError`, one line: place, key, what is allowed, what was found.
    """
    file = _locate(path)
    reader = Reader(file, resolved(os.environ if environ is None else environ))
    config = reader.read(
        Config, path=file, root=Path(os.path.abspath(file)).parent, places=reader.places
    )
    reader.refuse_unknown_variables()
    services = {
        name: msgspec.structs.replace(each, store=each.store.replace("{service}", name))
        for name, each in config.services.items()
    }
    bridges = {
        name: msgspec.structs.replace(each, store=each.store.replace("{bridge}", name))
        for name, each in config.bridges.items()
    }
    config = msgspec.structs.replace(config, services=services, bridges=bridges)
    check(config, reader.fail)
    return config


def read_file(path: Path, schema: type[T]) -> T:
    """Read another TOML file as ``schema``, with errors as good as those of :func:`load`.

    The environment plays no part and values are never shown in errors, so it suits secrets.
    """
    return Reader(path, None).read(schema)


def _locate(path: Path | None) -> Path:
    try:
        if path is not None:
            return path / FILE if path.is_dir() else path
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / FILE).is_file():
                return folder / FILE
    except (OSError, ValueError) as error:
        raise mistake(f"{path or '.'}", "", "a readable folder", f"{error}") from None
    raise mistake(f"{here}", "", f"{FILE} in this folder or one above it", "none")
