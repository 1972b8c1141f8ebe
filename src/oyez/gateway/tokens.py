"""Users with a token that an issuer signed: JSON Web Tokens (RFC 7519), read as RFC 8725 asks.

Nothing of a token is believed before its signature is verified, except which issuer's keys to
verify it with. A token that was verified is known for a while, so that the next requests with it
cost a look into a dictionary.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from oyez import strict_json
from oyez.ambient import Ambient
from oyez.config import Config, IssuerSettings
from oyez.errors import InvalidEvent
from oyez.gateway.challenge import invalid_token
from oyez.gateway.keysets import KeySet
from oyez.principal import Principal

MOST_BYTES = 8 * 1024
"""Bytes of a token."""
KNOWN_SECONDS = 60.0
"""Seconds for which a verified token is known: so long a key is used that its issuer withdrew."""

_MOST_KNOWN = 4096
_MOST_ID = 256
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# A service is told the subject in a header.
_SUBJECT = re.compile(r"[!-~]{1,255}")
_TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")
"""Types of tokens for access; others that an issuer signs say something else."""


class Verified(msgspec.Struct, frozen=True):
    """A token that was verified: whose it is, and until when that is known."""

    principal: Principal
    until: float


class Tokens:
    """The tokens of all issuers ``[gateway.issuers]``.

    Raises :class:`ConfigurationError` where an issuer's keys are in a file that has none.
    """

    def __init__(self, config: Config, ambient: Ambient) -> None:
        settings = config.gateway.issuers if config.gateway else {}
        self._ambient = ambient
        self._issuers = {each.issuer: KeySet(config, each, ambient) for each in settings.values()}
        self._signed = PyJWS()
        self._known: dict[bytes, Verified] = {}

    async def open(self) -> None:
        """Fetch the issuers' keys, and keep them fresh."""
        for each in self._issuers.values():
            each.start()

    async def close(self) -> None:
        """Fetch no more. Safe to call twice, and without `open`."""
        for each in self._issuers.values():
            each.close()

    async def user(self, token: str) -> Principal:
        """Return the user of a token, with all claims.

        Raises :class:`Refusal`: 401 for a token that is not valid, 503 while the keys of its issuer
        are not known.
        """
        known = self.known(token)
        if known is not None:
            return known.principal
        digest = _digest(token)
        principal, until = await self._verified(token)
        self._known.pop(digest, None)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[digest] = Verified(principal, min(until, self._ambient.now() + KNOWN_SECONDS))
        return principal

    def known(self, token: str) -> Verified | None:
        """Return a token that was verified of late; None for others."""
        known = self._known.get(_digest(token))
        return known if known is not None and self._ambient.now() < known.until else None

    def holds(self, verified: Verified) -> bool:
        """Return whether a token that was verified is still known."""
        return self._ambient.now() < verified.until

    async def _verified(self, token: str) -> tuple[Principal, float]:
        """Return the user of a token, and until when the token is valid."""
        if len(token) > MOST_BYTES:
            raise invalid_token(f"a token has at most {MOST_BYTES} bytes")
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise invalid_token("the token is no signed JSON Web Token")
        header, claims = _read(parts[1]), _read(parts[2])
        issuer = claims.get("iss")
        keys = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise invalid_token("the issuer of the token is not known")
        settings = keys.issuer
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
            raise invalid_token("the token is signed by an algorithm that is not accepted")
        if "crit" in header or "cty" in header or "b64" in header:
            raise invalid_token("the header of the token asks for what is not supported")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise invalid_token("the token is of a type that is not for access")
        if key_id is not None and (not isinstance(key_id, str) or len(key_id) > _MOST_ID):
            raise invalid_token("the id of the key of the token is malformed")
        key = await keys.key(key_id, algorithm)
        if key is None:
            raise invalid_token("the key of the token is not one of its issuer")
        try:
            self._signed.decode(token, key, algorithms=[algorithm])
        except (PyJWTError, ValueError):
            raise invalid_token("the signature of the token is not valid") from None
        until = _valid_until(claims, settings, self._ambient.now())
        return _user(claims, settings), until


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("latin-1")).digest()


def _read(part: str) -> dict[str, Any]:
    try:
        found = strict_json.read(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (InvalidEvent, ValueError):
        found = None
    if not isinstance(found, dict):
        raise invalid_token("the token is no signed JSON Web Token")
    return found


def _valid_until(claims: Mapping[str, Any], settings: IssuerSettings, now: float) -> float:
    """Return when a token ends, leeway included. Raises :class:`Refusal` for one not valid now."""
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in times.values()):
        raise invalid_token("the token has a time that is no number")
    if "exp" not in times:
        raise invalid_token("the token has no end: it lacks exp")
    until: float = times["exp"] + settings.leeway
    if now >= until:
        raise invalid_token("the token has expired")
    if max(times.get("nbf", now), times.get("iat", now)) > now + settings.leeway:
        raise invalid_token("the token is not valid yet")
    return until


def _user(claims: Mapping[str, Any], settings: IssuerSettings) -> Principal:
    audience = claims.get("aud")
    meant = audience if isinstance(audience, list) else [audience]
    if not any(each in settings.audience for each in meant):
        raise invalid_token("the token is for another audience")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise invalid_token("the token does not say whose it is: sub is missing or malformed")
    scopes, roles = _claim(claims, settings.scopes_claim), _claim(claims, settings.roles_claim)
    return Principal(
        kind="user",
        subject=subject,
        issuer=settings.name,
        scopes=_names(scopes.split() if isinstance(scopes, str) else scopes),
        roles=_names([roles] if isinstance(roles, str) else roles),
        claims=claims,
    )


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return the claim of that name, or what is at that path; None where there is nothing."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _names(listed: Any) -> frozenset[str]:
    if listed is None:
        return frozenset()
    if not isinstance(listed, list) or any(not isinstance(each, str) for each in listed):
        raise invalid_token("the scopes or roles of the token are malformed")
    return frozenset(listed)
