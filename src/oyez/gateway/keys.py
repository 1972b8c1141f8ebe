"""Who holds an API key: the keys of a file, which is read again when it changes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path

import msgspec

from oyez.ambient import Ambient
from oyez.config import Config
from oyez.errors import ConfigurationError
from oyez.gateway.challenge import unauthorized
from oyez.gateway.keyfile import key_file, read_keys
from oyez.logger import Logger
from oyez.principal import Principal

_LOOK_SECONDS = 1.0


class _Holder(msgspec.Struct, frozen=True):
    principal: Principal
    expires: float | None


class Keys:
    """The API keys of the file ``gateway.keys``; none without that setting.

    Raises :class:`ConfigurationError` if the file is invalid or readable for others.
    """

    def __init__(self, config: Config, ambient: Ambient) -> None:
        self._config = config
        self._ambient = ambient
        self._path = key_file(config)
        self._seen = _state(self._path)
        # Digests are looked up under a secret of this process, so that the time that takes tells
        # nothing about those in the file.
        self._secret = secrets.token_bytes(32)
        self._holders = {} if self._path is None else self._read(self._path)
        self._timer: asyncio.TimerHandle | None = None
        self._log = Logger()

    async def open(self) -> None:
        """Read the file again whenever it has changed: it is looked at once in a second."""
        if self._path is not None:
            self._look_later(self._path)

    async def close(self) -> None:
        """Look no more. Safe to call twice, and without `open`."""
        if self._timer is not None:
            self._timer.cancel()

    def holder(self, key: str) -> Principal:
        """Return who holds an API key. Raises :class:`Refusal` (401) for others and old ones."""
        found = self._holders.get(self._blinded(hashlib.sha256(key.encode("latin-1")).digest()))
        if found is None:
            raise unauthorized("key_invalid", "the API key is not known")
        if found.expires is not None and found.expires <= self._ambient.now():
            raise unauthorized("key_expired", "the API key has expired")
        return found.principal

    def _look_later(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK_SECONDS, self._look, path)

    def _look(self, path: Path) -> None:
        self._look_later(path)
        seen = _state(path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._holders = self._read(path)
        except (ConfigurationError, OSError) as error:
            self._log.error(
                "API keys not read again",
                file=f"{path}",
                error=f"{error}",
                remedy="repair the file; until then the keys of before hold",
            )
        else:
            self._log.info("API keys read again", file=f"{path}", keys=len(self._holders))

    def _read(self, path: Path) -> dict[bytes, _Holder]:
        return {
            self._blinded(each.sha256): _Holder(
                Principal(
                    kind="api_key",
                    subject=each.name,
                    issuer="key",
                    scopes=frozenset(each.scopes),
                    roles=frozenset(each.roles),
                ),
                each.expires,
            )
            for each in read_keys(self._config, path)
        }

    def _blinded(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()


def _state(path: Path | None) -> tuple[int, ...]:
    """Return what differs after a file was written, replaced or closed to others."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        found = None
    if found is None:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
