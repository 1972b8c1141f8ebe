"""The file of API keys: a table ``[keys.NAME]`` for each, with the digest of the key."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from oyez.config import Config, Rule, read_file, rules
from oyez.errors import ConfigurationError
from oyez.gateway.secret import refuse_readable

_SETTING = "gateway.keys"


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError
    return bytes.fromhex(value)


def _time(value: object) -> float:
    """Return the seconds since 1970 of a time with its offset, of TOML's own or as a text."""
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ValueError
    return time.timestamp()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A table ``[keys.NAME]``: who holds a key, until when, and what the holder may do.

    ``expires`` is in seconds since 1970.
    """

    name: str
    sha256: Annotated[bytes, Rule("the SHA-256 of the key, 64 hexadecimal digits", _digest)]
    expires: Annotated[
        float | None, Rule("a time with its offset, such as 2030-01-31T12:00:00Z", _time)
    ] = None
    scopes: Annotated[tuple[str, ...], rules.SCOPES] = ()
    roles: Annotated[tuple[str, ...], rules.ROLES] = ()


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    keys: dict[str, ApiKey] = {}


def key_file(config: Config) -> Path | None:
    """Return the file that ``gateway.keys`` names; None without that setting."""
    name = config.gateway.keys if config.gateway else None
    return None if name is None else config.file(name)


def read_keys(config: Config, path: Path) -> list[ApiKey]:
    """Return the keys of the file.

    Raises :class:`ConfigurationError` if it is missing, invalid or readable for others.
    """
    if not path.is_file():
        found = f"none at {path}: oyez gateway key NAME makes one"
        raise config.error(_SETTING, "a file of API keys", found)
    refuse_readable(config, path, _SETTING, 0o007)
    return list(read_file(path, _KeyFile).keys.values())


def add_key(
    config: Config,
    name: str,
    *,
    scopes: Sequence[str] = (),
    roles: Sequence[str] = (),
    expires: float | None = None,
) -> str:
    """Make a key of that name, and write its digest to the file, which is made if need be.

    Returns the key, which is kept nowhere. Raises :class:`ConfigurationError` for a name that is
    taken, and for what the file can't hold.
    """
    path = key_file(config)
    if path is None:
        raise config.error(_SETTING, 'a file for API keys, such as keys = "keys.toml"', "nothing")
    if not rules.NAME.fullmatch(name):
        raise ConfigurationError(f"name: expected [a-z][a-z0-9-]{{0,40}}, found {name!a}")
    key = f"oyez_{secrets.token_urlsafe(32)}"
    lines = [f"[keys.{name}]", f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    if expires is not None:
        lines.append(f"expires = {datetime.fromtimestamp(int(expires), UTC):%Y-%m-%dT%H:%M:%SZ}")
    for setting, rule, values in (("scopes", rules.SCOPES, scopes), ("roles", rules.ROLES, roles)):
        try:
            found = rule.read(list(values))
        except ValueError:
            raise ConfigurationError(f"{setting}: expected {rule.expected}") from None
        if found:
            lines.append(f"{setting} = {json.dumps(found, ensure_ascii=False)}")
    try:
        with _alone(path.parent):
            present = _without(config, path, name)
            text = "".join((present, "\n" if present else "", *(f"{line}\n" for line in lines)))
            try:
                tomllib.loads(text)
            except ValueError:
                expected = "keys as tables of their own, [keys.NAME]"
                raise ConfigurationError(f"{path}: expected {expected}") from None
            _replace(path, text.encode())
    except OSError as error:
        reason = f"{error.strerror or error} at {path}"
        raise config.error(_SETTING, "a file that can be written", reason) from None
    return key


def _without(config: Config, path: Path, name: str) -> str:
    """Return the text of the file, which has no key of that name; empty if there is no file."""
    if not path.exists():
        return ""
    if any(each.name == name for each in read_keys(config, path)):
        raise ConfigurationError(f"{path}: keys.{name}: expected a new name, found a key of it")
    text = path.read_text("utf-8-sig")
    return text if text.endswith("\n") or not text else f"{text}\n"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, so that of two keys that are added at the same time none is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Write the whole file or nothing; a gateway never reads a half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if path.exists():
            # The gateway may run as another user, or in the file's group.
            found = path.stat()
            aside.chmod(found.st_mode & 0o660)
            with contextlib.suppress(PermissionError):
                os.chown(aside, found.st_uid, found.st_gid)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
