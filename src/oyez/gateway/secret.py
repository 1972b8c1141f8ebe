"""The gateway's own files: the secret, how one is made, and that others must not read them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from oyez.config import Config

_SECRET_BYTES = 32


def read_secret(config: Config) -> bytes:
    """Return the key that signs sessions, created at the first start.

    It is ``gateway.secret`` in the data folder; all replicas of the gateway need the same one.
    Raises :class:`ConfigurationError`.
    """
    path = config.file(config.system.data) / "gateway.secret"
    try:
        if not path.exists():
            make_once(path, secrets.token_bytes(_SECRET_BYTES))
        refuse_readable(config, path, "system.data", 0o077)
        secret = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror or error} at {path}"
        raise config.error("system.data", "a folder that can be written", reason) from None
    if len(secret) < _SECRET_BYTES:
        found = f"{len(secret)} bytes in {path}: delete it to make a new one"
        raise config.error("system.data", f"{_SECRET_BYTES} bytes of secret", found)
    return secret


def make_once(path: Path, content: bytes) -> None:
    """Make a file that its owner alone can read, unless it is there already.

    It is written aside and linked into place, so that gateways that start together share one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def refuse_readable(config: Config, path: Path, setting: str, mask: int) -> None:
    """Raise :class:`ConfigurationError` about a setting whose file's mode has a bit of ``mask``.

    A file of another owner, as a mounted secret is, may be readable for our group: how else.
    """
    status = path.stat()
    mode = status.st_mode & 0o777
    if mode & (mask if status.st_uid == os.geteuid() else mask & 0o007):
        found = f"mode {mode:04o}: run chmod 600 {path}"
        raise config.error(setting, f"{path.name} closed to others", found)
