"""The master key of a service's webhooks, of which every signing secret is derived."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from oyez.config import FILE, given, load
from oyez.errors import ConfigurationError

VARIABLE = "OYEZ_WEBHOOKS_KEY"
_BYTES = 32


def read_master() -> bytes:
    """Return the key: ``OYEZ_WEBHOOKS_KEY``, or ``webhooks.key`` in the project's data folder.

    The file is created if it is missing, readable for its owner alone. Raises ConfigurationError.
    """
    text = given(VARIABLE)
    if text is not None:
        return _parse(text, VARIABLE)
    path = _folder() / "webhooks.key"
    try:
        if not path.exists():
            _create(path)
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: others can read this secret: chmod 600 it")
        return _parse(path.read_text().strip(), str(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}: or set {VARIABLE}") from None


def _parse(text: str, place: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < _BYTES:
        raise ConfigurationError(
            f"{place}: expected {_BYTES} random bytes as hexadecimal digits, such as "
            f"`openssl rand -hex {_BYTES}` prints"
        )
    return key


def _folder() -> Path:
    named = os.environ.get("OYEZ_PROJECT")
    if named is None and not Path(FILE).exists():
        return Path(".oyez")  # a test without a project
    config = load(Path(named) if named else None)
    return config.file(config.system.data)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and linked into place, so that replicas that start together share one key.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(_BYTES)}\n")
        file.flush()
        os.fsync(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
