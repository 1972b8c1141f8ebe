"""Who may pass: the holder of an API key, or a session with a signed cookie."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import msgspec

from oyez.ambient import Ambient
from oyez.config import Config, Route, Rule, read_file
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.principal import Principal
from oyez.gateway.step import Answer

COOKIE = "oyez_session"

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_TOKEN = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")
_SECRET_BYTES = 32


def _digest(value: object) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError
    return bytes.fromhex(value)


class _ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sha256: Annotated[bytes, Rule("the SHA-256 of the key, 64 hexadecimal digits", _digest)]


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    keys: dict[str, _ApiKey] = {}


class Access:
    """Authentication and authorization of requests, by API keys and sessions.

    ``secret`` signs the sessions. Raises :class:`ConfigurationError` if the file of API keys is
    invalid or readable for others.
    """

    def __init__(self, config: Config, ambient: Ambient, secret: bytes) -> None:
        settings = config.gateway
        if settings is None:
            raise ValueError(config)
        self._ambient = ambient
        self._secret = secret
        self._lifetime = settings.session_lifetime
        self._keys: dict[str, bytes] = {}
        if settings.keys is not None:
            self._keys = _read_keys(config, config.file(settings.keys))

    def before(self, route: Route, onward: Answer) -> Answer:
        """Admit who may use the route; others are refused (401, 403).

        A public route admits every request; without valid credentials it has no principal.
        """

        async def admit(exchange: Exchange) -> None:
            principal = self._principal(exchange)
            if principal is None:
                raise _unauthorized("credentials_missing", "send an API key or a session cookie")
            exchange.principal = principal
            await onward(exchange)

        async def admit_all(exchange: Exchange) -> None:
            with contextlib.suppress(Refusal):
                exchange.principal = self._principal(exchange)
            await onward(exchange)

        return admit_all if route.access == "public" else admit

    def session(self, exchange: Exchange) -> str:
        """Return the value of ``Set-Cookie`` for a new session, or to renew the present one."""
        _refuse_other_origins(exchange)
        try:
            present = self._by_session(exchange)
        except Refusal:
            present = None
        name = present.subject if present else self._ambient.new_id()
        expiry = int(self._ambient.now() + self._lifetime)
        token = f"{name}.{expiry}.{self._signature(name, str(expiry))}"
        secure = "; Secure" if exchange.scheme == "https" else ""
        age = int(self._lifetime)
        return f"{COOKIE}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"

    def _principal(self, exchange: Exchange) -> Principal | None:
        return self._by_key(exchange) or self._by_session(exchange)

    def _by_key(self, exchange: Exchange) -> Principal | None:
        given = exchange.values(b"x-api-key")
        for value in exchange.values(b"authorization"):
            scheme, _, key = value.partition(" ")
            given.append(key.strip() if scheme.lower() == "bearer" else "")
        if not given:
            return None
        found = None
        if len(given) == 1:
            digest = hashlib.sha256(given[0].encode("latin-1")).digest()
            # Every key is compared: the time must not reveal which one was close.
            for name, known in self._keys.items():
                if hmac.compare_digest(digest, known):
                    found = Principal(kind="api_key", subject=name, issuer="key")
        if found is None:
            raise _unauthorized("key_invalid", "the API key is not known")
        return found

    def _by_session(self, exchange: Exchange) -> Principal | None:
        sent = exchange.values(b"cookie")
        if not any(COOKIE in each for each in sent):
            return None
        tokens = [value for name, value in cookies(sent) if name == COOKIE]
        if not tokens:
            return None
        match = _TOKEN.fullmatch(tokens[0]) if len(tokens) == 1 else None
        signature = self._signature(match[1], match[2]) if match else ""
        if match is None or not hmac.compare_digest(signature, match[3]):
            raise _unauthorized("session_invalid", "the session cookie was not made here")
        if int(match[2]) <= self._ambient.now():
            raise _unauthorized("session_expired", "the session has expired")
        if exchange.method not in _SAFE_METHODS:
            _refuse_other_origins(exchange)
        return Principal(kind="session", subject=match[1], issuer="session")

    def _signature(self, name: str, expiry: str) -> str:
        message = f"oyez session {name} {expiry}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def cookies(headers: list[str]) -> list[tuple[str, str]]:
    """Return the names and values in ``Cookie`` headers."""
    pairs = [part.strip().partition("=") for value in headers for part in value.split(";")]
    return [(name.strip(), value.strip()) for name, equals, value in pairs if equals]


def read_secret(config: Config) -> bytes:
    """Return the key that signs sessions, created at the first start.

    It is ``gateway.secret`` in the data folder; all replicas of the gateway need the same one.
    Raises :class:`ConfigurationError`.
    """
    path = config.file(config.system.data) / "gateway.secret"
    try:
        if not path.exists():
            _make_secret(path)
        _refuse_readable(config, path, "system.data", 0o077)
        secret = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror or error} at {path}"
        raise config.error("system.data", "a folder that can be written", reason) from None
    if len(secret) < _SECRET_BYTES:
        found = f"{len(secret)} bytes in {path}: delete it to make a new one"
        raise config.error("system.data", f"{_SECRET_BYTES} bytes of secret", found)
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and linked into place, so that gateways that start together share one secret.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_SECRET_BYTES))
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _read_keys(config: Config, path: Path) -> dict[str, bytes]:
    if not path.is_file():
        raise config.error("gateway.keys", "a file of API keys", f"none at {path}")
    _refuse_readable(config, path, "gateway.keys", 0o007)
    return {name: key.sha256 for name, key in read_file(path, _KeyFile).keys.items()}


def _refuse_readable(config: Config, path: Path, setting: str, mask: int) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & mask:
        found = f"mode {mode:04o}: run chmod 600 {path}"
        raise config.error(setting, f"{path.name} closed to others", found)


def _refuse_other_origins(exchange: Exchange) -> None:
    """Refuse requests that a page of another site makes with the session cookie."""
    site = exchange.value(b"sec-fetch-site")
    origin = exchange.value(b"origin")
    authority = origin.partition("://")[2].lower() if origin is not None else None
    foreign = authority is not None and authority != exchange.host.lower()
    if foreign or site not in (None, "same-origin", "none"):
        raise Refusal(403, "cross_origin", "the request comes from another site")


def _unauthorized(code: str, detail: str) -> Refusal:
    return Refusal(401, code, detail, [(b"www-authenticate", b'Bearer realm="oyez"')])
