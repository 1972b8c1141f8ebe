"""The public keys of an issuer: fetched within bounds, and kept while the issuer is down.

Whatever a token says of its key but the id is not looked at: keys come from the configured place
alone. Each is bound to one algorithm, so none is ever used by another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from oyez import strict_json
from oyez.ambient import Ambient
from oyez.config import Config, IssuerSettings
from oyez.endpoint import redact
from oyez.errors import InvalidEvent
from oyez.gateway.exchange import Refusal
from oyez.http_client import Client
from oyez.logger import Logger

MOST_BYTES = 256 * 1024
"""Bytes of a key set."""
MOST_KEYS = 100
"""Keys of a key set."""
PAUSE = 10.0
"""Seconds between two fetches of one issuer's keys, whatever asks for them."""
REFRESH = 300.0
"""Seconds after which keys are fetched again."""
STALE = 86_400.0
"""Seconds for which keys are used that could not be fetched again."""

_TIMEOUT = 5.0
_RSA_BITS = range(2048, 8193)
_RSA = {"kty": "RSA"}
_FITTING: dict[str, dict[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), _RSA),
    "ES256": {"kty": "EC", "crv": "P-256"},
    "ES384": {"kty": "EC", "crv": "P-384"},
    "ES512": {"kty": "EC", "crv": "P-521"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
"""What a key is for an algorithm: RFC 7518 and RFC 8037."""


class Unusable(Exception):
    """A key set can't be fetched, or is none; the message says why."""


class Key(NamedTuple):
    """A public key for one algorithm, and its id, if it has one."""

    id: str | None
    algorithm: str
    key: PyJWK


class KeySet:
    """The keys of one issuer.

    Raises :class:`ConfigurationError` where they are in a file that has none.
    """

    def __init__(self, config: Config, issuer: IssuerSettings, ambient: Ambient) -> None:
        self.issuer = issuer
        self._ambient = ambient
        self._keys: list[Key] = []
        self._fetched = self._tried = -math.inf
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._log = Logger(issuer=issuer.name)
        self._file = None if "://" in issuer.jwks else config.file(issuer.jwks)
        if self._file is not None:
            try:
                self._take(_content(self._file))
            except (Unusable, OSError) as error:
                expected = f"a file with a key for {', '.join(issuer.algorithms)}"
                raise config.error(
                    f"gateway.issuers.{issuer.name}.jwks", expected, _said(error)
                ) from None

    def start(self) -> None:
        """Fetch the keys now, and again long before they are stale."""
        self._keeping = asyncio.create_task(self._keep())

    def close(self) -> None:
        """Fetch no more. Safe to call twice, and before the start."""
        for task in (self._keeping, self._fetching):
            if task is not None:
                task.cancel()

    async def key(self, id: str | None, algorithm: str) -> PyJWK | None:  # noqa: A002
        """Return the issuer's key of that id for that algorithm; None if it has none.

        Without an id, it is the only key for the algorithm. A key that is not known has all
        fetched again, if that was not tried within ``PAUSE`` seconds. Raises :class:`Refusal`
        (503) for one that may be new while the issuer can't be asked, and for all once the keys
        are stale.
        """
        found = self._find(id, algorithm)
        if found is None:
            await self._refresh()
            found = self._find(id, algorithm)
        if found is None and (self._failures or self._stale):
            detail = "the keys of the issuer of this token can't be fetched"
            raise Refusal(503, "issuer_unavailable", detail, [(b"retry-after", b"%d" % PAUSE)])
        return found

    @property
    def _stale(self) -> bool:
        return self._ambient.monotonic() - self._fetched > STALE

    def _find(self, id: str | None, algorithm: str) -> PyJWK | None:  # noqa: A002
        if self._stale:
            return None
        found = [
            each.key
            for each in self._keys
            if each.algorithm == algorithm and (id is None or each.id == id)
        ]
        return found[0] if len(found) == 1 else None

    async def _keep(self) -> None:
        while True:
            await self._refresh()
            longer = PAUSE * 2.0 ** min(self._failures - 1, 10) if self._failures else REFRESH
            await self._ambient.sleep(min(longer, REFRESH))

    async def _refresh(self) -> None:
        """Wait for a fetch of the keys: the present one, or a new one if none was tried lately."""
        if self._fetching is None:
            if self._ambient.monotonic() - self._tried < PAUSE:
                return
            self._tried = self._ambient.monotonic()
            # A task of its own: it goes on when the client whose request asked for it is gone.
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with self._ambient.timeout(_TIMEOUT):
                content = await self._content()
            self._take(content)
        except Exception as error:  # noqa: BLE001  whatever it answers, it is asked again
            self._failures += 1
            self._log.error(
                "keys of an issuer not fetched",
                jwks=redact(self.issuer.jwks),
                error=_said(error),
                remedy="see that it can be reached from here, and is a key set",
            )
        finally:
            self._fetching = None

    def _take(self, content: bytes) -> None:
        self._keys = keys_of(content, self.issuer.algorithms)
        self._fetched = self._ambient.monotonic()
        self._failures = 0
        if not self._keys:
            raise Unusable(f"none of its keys is for {', '.join(self.issuer.algorithms)}")

    async def _content(self) -> bytes:
        if self._file is not None:
            return await asyncio.to_thread(_content, self._file)
        url = self.issuer.jwks
        secure = url.startswith("https:")
        # A proxy of the environment is for what is outside of this machine.
        client = Client(
            verify=self._trusted if secure else False, trust_env=secure, timeout=_TIMEOUT
        )
        # An encoded answer could be small, and large when it is decoded.
        asked = {"accept": "application/json", "accept-encoding": "identity"}
        async with client, client.stream("GET", url, headers=asked) as answer:
            if answer.status_code != 200:
                raise Unusable(f"it answered {answer.status_code}, not 200")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise Unusable("its answer is encoded")
            content = b""
            async for part in answer.aiter_raw():
                content += part
                if len(content) > MOST_BYTES:
                    raise Unusable(f"it has more than {MOST_BYTES} bytes")
            return content

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()


def keys_of(content: bytes, algorithms: tuple[str, ...]) -> list[Key]:
    """Return the public keys of a key set (RFC 7517) that are for one of the algorithms.

    Others in it are left out, as are weak and broken ones. Raises :class:`Unusable`.
    """
    try:
        found = strict_json.read(content, most=MOST_BYTES)
    except InvalidEvent as error:
        raise Unusable(f"{error}") from None
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise Unusable("it is no key set: a JSON object with a list named keys")
    if len(listed) > MOST_KEYS:
        raise Unusable(f"it has more than {MOST_KEYS} keys")
    named = [each for each in listed if isinstance(each, dict)]
    return [
        Key(each.get("kid"), algorithm, key)
        for each in named
        for algorithm in algorithms
        if isinstance(each.get("kid"), str | None) and (key := _key(each, algorithm))
    ]


def _key(jwk: dict[str, Any], algorithm: str) -> PyJWK | None:
    """Return the key for the algorithm; None if it is for another one, or is not to be used."""
    if any(jwk.get(name) != value for name, value in _FITTING[algorithm].items()):
        return None
    operations = jwk.get("key_ops", ["verify"])
    meant = jwk.get("alg", algorithm) == algorithm and jwk.get("use", "sig") == "sig"
    # Whoever reads a private key in the set can sign with it.
    if not meant or "d" in jwk or not isinstance(operations, list) or "verify" not in operations:
        return None
    key = None
    with contextlib.suppress(PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
        key = PyJWK(jwk, algorithm)
        if isinstance(key.key, RSAPublicKey) and key.key.key_size not in _RSA_BITS:
            return None
    return key


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES + 1)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:g} s"
    return f"{error}" or type(error).__name__
