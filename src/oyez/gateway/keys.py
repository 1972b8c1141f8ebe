"""API keys: a file of their digests, and who holds a key."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Annotated

import msgspec

from oyez.config import Config, Rule, read_file
from oyez.gateway.challenge import unauthorized
from oyez.gateway.principal import Principal
from oyez.gateway.secret import refuse_readable


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError
    return bytes.fromhex(value)


class _ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sha256: Annotated[bytes, Rule("the SHA-256 of the key, 64 hexadecimal digits", _digest)]


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    keys: dict[str, _ApiKey] = {}


class Keys:
    """The API keys of the file ``gateway.keys``; none without that setting.

    Raises :class:`ConfigurationError` if the file is invalid or readable for others.
    """

    def __init__(self, config: Config) -> None:
        name = config.gateway.keys if config.gateway else None
        self._keys = {} if name is None else _read_keys(config, config.file(name))

    def holder(self, key: str) -> Principal:
        """Return who holds an API key. Raises :class:`Refusal` (401) for one that is not known."""
        found = None
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        # Every key is compared: the time must not reveal which one was close.
        for name, known in self._keys.items():
            if hmac.compare_digest(digest, known):
                found = Principal(kind="api_key", subject=name, issuer="key")
        if found is None:
            raise unauthorized("key_invalid", "the API key is not known")
        return found


def _read_keys(config: Config, path: Path) -> dict[str, bytes]:
    if not path.is_file():
        raise config.error("gateway.keys", "a file of API keys", f"none at {path}")
    refuse_readable(config, path, "gateway.keys", 0o007)
    return {name: key.sha256 for name, key in read_file(path, _KeyFile).keys.items()}
