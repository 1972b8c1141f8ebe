"""Verifies who a request says sends it, before the service's app sees the request.

The gateway proves it by a signed token (`oyez.identity`). A request that claims an identity in any
other way, or a stale or foreign one, is answered with 401. One that claims none passes: what a
service lets nobody in particular do is its own to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from oyez.ambient import Ambient
from oyez.config import Config
from oyez.errors import Unproven
from oyez.identity import (
    HEADER,
    MAX_KEYS,
    NAME_HEADER,
    PUBLISHED,
    key_of,
    opened,
    read_keys,
)
from oyez.logger import Logger
from oyez.principal import Principal, caller_here
from oyez.transaction import origin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Keys = Callable[[], Awaitable[bytes]]
"""It returns the gateway's keys, as a JWKS; raises OSError or ValueError if it can't."""
Header = tuple[bytes, bytes]

REMEMBERED = 1_024
"""The number of verified tokens that are kept, each until it expires."""
KEPT = 300.0
"""Seconds after which the gateway's keys are read again, so that a removed one is forgotten."""
PAUSE = 1.0
"""Seconds between two readings of the keys, at least, whatever requests name."""
WITHIN = 2.0
"""Seconds for one reading."""


def _spellings(name: bytes) -> list[bytes]:
    """Return the header's names for an app to which ``_`` is ``-``, as it is to some servers."""
    parts = name.split(b"-")
    joined = product((b"-", b"_"), repeat=len(parts) - 1)
    return [b"".join(map(bytes.__add__, parts, (*each, b""))) for each in joined]


_CLAIMS = frozenset([*_spellings(HEADER), *_spellings(NAME_HEADER)])


class KeysUnknown(Exception):
    """The gateway's keys can't be read at present."""


class _Known(NamedTuple):
    principal: Principal
    name: bytes
    until: float


class Identities:
    """The identities that requests to one service claim, verified with the gateway's keys."""

    def __init__(self, system: str, service: str, ambient: Ambient, keys: Keys) -> None:
        self._system = system
        self._service = service
        self._ambient = ambient
        self._source = keys
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._known: dict[bytes, _Known] = {}
        self._looked = self._read = -inf
        """When the keys were asked for last, and for the last time that they came (monotonic)."""
        self._failing = False
        self._one = asyncio.Lock()
        self._log = Logger(service=service)

    async def verified(self, claims: Sequence[Header]) -> Principal:
        """Return whom these headers prove. Raises Unproven and KeysUnknown."""
        tokens = [value for name, value in claims if name == HEADER]
        names = [value for name, value in claims if name == NAME_HEADER]
        if len(tokens) != 1 or len(names) > 1 or len(tokens) + len(names) != len(claims):
            raise Unproven("an identity is one signed token, and one name beside it")
        now = self._ambient.now()
        known = self._known.get(tokens[0])
        if known is None or known.until <= now:
            known = await self._verify(tokens[0], now)
        if names and names[0] != known.name:
            raise Unproven("the name is not that of the signed token")
        return known.principal

    async def _verify(self, token: bytes, now: float) -> _Known:
        self._known.pop(token, None)
        text = token.decode("latin-1")
        key = await self._key(key_of(text))
        principal, until = opened(text, key, self._system, self._service, now)
        known = self._known[token] = _Known(principal, principal.name.encode(), until)
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return known

    async def _key(self, name: str) -> Ed25519PublicKey:
        clock = self._ambient.monotonic
        if name not in self._keys or (
            clock() - self._read > KEPT
            and clock() - self._looked > PAUSE
            and not self._one.locked()
        ):
            await self._read_keys()
        if name in self._keys:
            return self._keys[name]
        if self._read < self._looked:  # it failed, or was given up
            raise KeysUnknown
        raise Unproven("the gateway has no key of that name")

    async def _read_keys(self) -> None:
        async with self._one:
            now = self._ambient.monotonic()
            if now - self._looked < PAUSE:
                return
            self._looked = now
            try:
                self._keys = read_keys(await self._source())
            except (OSError, ValueError) as error:
                if not self._failing:
                    self._log.warning("the gateway's keys can't be read", reason=str(error))
                self._failing = True
            else:
                self._failing = False
                self._read = now


def identities(config: Config, service: str, ambient: Ambient) -> Identities | None:
    """Return what verifies identities for a project's service; None in one without a gateway."""
    gateway = config.gateway
    if gateway is None:
        return None
    published = config.file(config.system.data) / PUBLISHED
    keys = keys_in(published) if gateway.jwks is None else keys_at(gateway.jwks)
    return Identities(config.system.name, service, ambient, keys)


def keys_in(path: Path) -> Keys:
    """Return the keys of a file, which the gateway of the same folder writes.

    While there is no file there are no keys: no gateway has ever started here.
    """

    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_KEYS + 1)
        except FileNotFoundError:
            return b'{"keys":[]}'

    async def keys() -> bytes:
        return await asyncio.to_thread(read)

    return keys


def keys_at(url: str) -> Keys:
    """Return the keys that a gateway publishes at a URL."""

    async def keys() -> bytes:
        import httpx

        from oyez.http_client import Client

        found = bytearray()
        try:
            async with (
                asyncio.timeout(WITHIN),
                Client(timeout=WITHIN, trust_env=False) as client,
                client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
            ):
                if answer.status_code != 200:
                    raise ValueError(f"{url} answers with {answer.status_code}")
                async for part in answer.aiter_raw():
                    found += part
                    if len(found) > MAX_KEYS:
                        raise ValueError(f"{url} answers with more than {MAX_KEYS} bytes")
        except httpx.HTTPError as error:
            raise ValueError(f"{url}: {type(error).__name__}") from None
        return bytes(found)

    return keys


def identified(app: Any, identities: Identities | None) -> Any:
    """Wrap an ASGI app so that it sees no request whose claim of an identity is not proven.

    Within a request, `oyez.caller` and the origin of its events know who sends it. Without
    ``identities`` no claim can be proven.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        claims = [(name, value) for name, value in scope["headers"] if name in _CLAIMS]
        principal = None
        if claims:
            try:
                if identities is None:
                    raise Unproven("this service knows no gateway")
                principal = await identities.verified(claims)
            except Unproven as error:
                await _refuse(scope, receive, send, 401, str(error))
                return
            except KeysUnknown:
                await _refuse(scope, receive, send, 503, "the gateway's keys can't be read")
                return
            since = origin.get()
            origin.set(
                msgspec.structs.replace(since, authid=principal.name, authtype=principal.authtype)
            )
        outside = caller_here.set(principal)
        try:
            await app(scope, receive, send)
        finally:
            caller_here.reset(outside)

    return call


_REFUSED = {
    401: ("Unauthorized", "identity_unproven", (b"www-authenticate", b'Bearer realm="oyez"')),
    503: ("Service Unavailable", "identity_unknown", (b"retry-after", b"1")),
}


async def _refuse(scope: Any, receive: Any, send: Any, status: int, detail: str) -> None:
    title, code, header = _REFUSED[status]
    body = msgspec.json.encode(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    )
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        kind = "websocket.http.response"
        if kind not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})  # the handshake is refused: 403
            return
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        header,
    ]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
