"""Who sends a request, as its service is told: a name, and a signed token that proves it."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path

from oyez.ambient import Ambient
from oyez.config import Config, Route
from oyez.errors import Unproven
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.secret import make_once, refuse_readable
from oyez.gateway.step import Answer
from oyez.identity import (
    HEADER,
    LIFETIME,
    MAX_KEYS,
    NAME_HEADER,
    PUBLISHED,
    Signer,
    new_key,
)
from oyez.principal import Principal

KEY = "gateway.key"
"""The file in the data folder with the private keys, in PEM; the first one signs."""
REMEMBERED = 4_096
"""The number of tokens that are kept to be sent again."""


class _Told:
    """What a service is told of a principal, until then."""

    def __init__(self, principal: Principal, until: float, lines: bytes) -> None:
        self.principal = principal
        self.until = until
        self.lines = lines


class Identity:
    """The step that tells a service who sends a request, and the keys that prove it.

    Replicas of the gateway need the same ``gateway.key``; it is made at the first start. Raises
    :class:`ConfigurationError`.
    """

    def __init__(self, config: Config, ambient: Ambient) -> None:
        self._ambient = ambient
        self._signer = _read_signer(config)
        self._file: Path | None = config.file(config.system.data) / PUBLISHED
        """Where the keys are still to be published, before the first token."""
        self._told: dict[tuple[str, str], _Told] = {}
        """What services were told of late, by the principal's name and the service."""

    def before(self, route: Route, onward: Answer) -> Answer:
        """Tell the service of a request that has a principal; of no other there is a word."""
        service = route.service

        def tell(exchange: Exchange) -> Awaitable[None]:
            principal = exchange.principal
            if principal is not None:
                exchange.told = self._lines(principal, service)
            return onward(exchange)

        return tell

    async def publish(self, exchange: Exchange) -> None:
        """Answer with the public keys."""
        jwks = self._signer.jwks
        headers = [
            (b"content-type", b"application/jwk-set+json"),
            (b"content-length", b"%d" % len(jwks)),
            (b"cache-control", b"public, max-age=60"),
        ]
        exchange.start(200, headers)
        await exchange.end(jwks)

    def _lines(self, principal: Principal, service: str) -> bytes:
        name, now = principal.name, self._ambient.now()
        found = self._told.get((name, service))
        same = found is not None and (found.principal is principal or found.principal == principal)
        if found is None or not same or found.until <= now:
            found = self._tell(principal, name, service, now)
        return found.lines

    def _tell(self, principal: Principal, name: str, service: str, now: float) -> _Told:
        if self._file is not None:
            _publish(self._file, self._signer.jwks)
            self._file = None
        try:
            token = self._signer.sign(principal, service, now)
        except Unproven as error:
            raise Refusal(403, "principal_unfit", str(error)) from None
        lines = b"%b: %b\r\n%b: %b\r\n" % (NAME_HEADER, name.encode(), HEADER, token.encode())
        # Half of its life is left to it on its way, whichever request takes it last.
        made = _Told(principal, now + LIFETIME / 2, lines)
        self._told.pop((name, service), None)
        self._told[name, service] = made
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        return made


def _read_signer(config: Config) -> Signer:
    path = config.file(config.system.data) / KEY
    try:
        if not path.exists():
            make_once(path, new_key())
        refuse_readable(config, path, "system.data", 0o077)
        with path.open("rb") as file:
            pem = file.read(MAX_KEYS)
        return Signer(config.system.name, pem)
    except OSError as error:
        reason = f"{error.strerror or error} at {path}"
        raise config.error("system.data", "a folder that can be written", reason) from None
    except ValueError as error:
        found = f"{error} in {path}: delete it to make a new one"
        raise config.error("system.data", "Ed25519 private keys in PEM", found) from None


def _publish(path: Path, jwks: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(jwks)
    aside.chmod(0o644)
    aside.replace(path)
