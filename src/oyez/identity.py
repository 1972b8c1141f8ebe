"""How a service is told who sends a request: a JWT that the gateway signs for a minute.

The gateway's key is Ed25519, and its tokens are signed by EdDSA, never by another algorithm. The
public half is a JWKS (RFC 7517), where a key is named by its thumbprint (RFC 7638).

The libraries are imported with the first token: a process at rest does without them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from oyez.errors import Unproven
from oyez.principal import AUTHTYPES, MAX_NAME, Kind, Principal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

HEADER = b"x-oyez-identity"
"""The header of a request that holds the token."""
NAME_HEADER = b"x-oyez-principal"
"""The header that holds the sender's name beside it, for people."""
JWKS = "/.well-known/jwks.json"
"""The path at which the gateway publishes its keys."""
PUBLISHED = "gateway.jwks"
"""The file in the data folder that holds the same, for services of that folder."""
LIFETIME = 60
"""Seconds from a token's issue to its expiry."""
LEEWAY = 5
"""Seconds by which the clocks of a gateway and a service may differ."""
MAX_TOKEN = 8_192
"""Bytes of the longest token."""
MAX_KEYS = 65_536
"""Bytes of the longest JWKS, and of the longest file of keys."""
MOST_KEYS = 8
"""The most keys that a gateway has: one that signs, and those that did or will."""

_ALGORITHM: Literal["EdDSA"] = "EdDSA"
_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----(.+?)-----END PRIVATE KEY-----", re.DOTALL)
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
"""What comes before an Ed25519 key in DER (RFC 8410, section 7)."""
_SEED = 32
_KINDS: dict[str, Kind] = {authtype: kind for kind, authtype in AUTHTYPES.items()}


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA"] = _ALGORITHM


class _KeySet(msgspec.Struct, frozen=True, kw_only=True):
    keys: list[_Key]


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    sub: str
    authtype: str
    iat: int
    exp: int
    scopes: list[str] = []
    roles: list[str] = []
    claims: dict[str, Any] = {}


class Signer:
    """The gateway's keys. The first one signs, and all of them are published."""

    def __init__(self, system: str, pem: bytes) -> None:
        """``pem`` holds 1 to `MOST_KEYS` private keys (PKCS 8), one after the other.

        Raises ValueError, which quotes nothing of them, for anything else.
        """
        self._seeds = [_seed(block) for block in _PEM.findall(pem)]
        if not 1 <= len(self._seeds) <= MOST_KEYS:
            raise ValueError(f"{len(self._seeds)} private keys in PEM")
        self._issuer = issuer(system)

    @cached_property
    def jwks(self) -> bytes:
        """The public halves, as a JWKS."""
        return msgspec.json.encode(_KeySet(keys=self._published))

    def sign(self, principal: Principal, service: str, now: float) -> str:
        """Return a token that tells a service who sends a request, until `LIFETIME` after ``now``.

        Raises Unproven for a principal that is too long to be told, or whose name is not printable.
        """
        import jwt

        name = principal.name
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise Unproven(f"the principal's name is not 1 to {MAX_NAME} printable characters")
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": service,
            "sub": name,
            "authtype": principal.authtype,
            "iat": int(now),
            "exp": int(now) + LIFETIME,
        }
        if principal.scopes:
            claims["scopes"] = sorted(principal.scopes)
        if principal.roles:
            claims["roles"] = sorted(principal.roles)
        if principal.claims:
            claims["claims"] = dict(principal.claims)
        token = jwt.encode(claims, self._keys[0], algorithm=_ALGORITHM, headers={"kid": self._kid})
        if len(token) > MAX_TOKEN:
            raise Unproven(f"a token of the principal has more than {MAX_TOKEN} bytes")
        return token

    @cached_property
    def _keys(self) -> list[Ed25519PrivateKey]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return [Ed25519PrivateKey.from_private_bytes(seed) for seed in self._seeds]

    @cached_property
    def _published(self) -> list[_Key]:
        return [_jwk(key.public_key()) for key in self._keys]

    @cached_property
    def _kid(self) -> str:
        return self._published[0].kid


def issuer(system: str) -> str:
    """Return the name of a system's gateway in its tokens."""
    return f"/{system}/gateway"


def new_key() -> bytes:
    """Return a new private key, in PEM."""
    text = base64.b64encode(_PKCS8 + secrets.token_bytes(_SEED))
    return b"-----BEGIN PRIVATE KEY-----\n%b\n-----END PRIVATE KEY-----\n" % text


def read_keys(jwks: bytes) -> dict[str, Ed25519PublicKey]:
    """Return the keys of a JWKS by name. Raises ValueError for anything else than a gateway's."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(jwks) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} bytes")
    try:
        found = msgspec.json.decode(jwks, type=_KeySet).keys[: MOST_KEYS + 1]
        keys = {key.kid: Ed25519PublicKey.from_public_bytes(_unpacked(key.x)) for key in found}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("no JWKS of Ed25519 keys") from None
    if len(found) > MOST_KEYS:
        raise ValueError(f"more than {MOST_KEYS} keys")
    return keys


def key_of(token: str) -> str:
    """Return the name of the key that a token says it is signed with. Raises Unproven."""
    import jwt

    if len(token) > MAX_TOKEN:
        raise Unproven(f"the token has more than {MAX_TOKEN} bytes")
    try:
        head = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise Unproven("it is no JWT") from None
    name = head.get("kid")
    if not isinstance(name, str):
        raise Unproven("it names no key")
    return name


def opened(
    token: str, key: Ed25519PublicKey, system: str, service: str, now: float
) -> tuple[Principal, float]:
    """Return whom a token tells a service of, and until when. Raises Unproven.

    ``key`` is the one that the token names.
    """
    import jwt

    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            audience=service,
            issuer=issuer(system),
            # The time is judged below, by the clock that is given.
            options={"require": ["iss", "aud"], "verify_exp": False, "verify_iat": False},
        )
        told = msgspec.convert(claims, _Claims)
    except jwt.InvalidAudienceError:
        raise Unproven("it is for another service") from None
    except (jwt.PyJWTError, msgspec.ValidationError):
        raise Unproven("the gateway of this system did not sign it") from None
    if told.exp + LEEWAY <= now:
        raise Unproven("it has expired")
    if told.iat - LEEWAY > now:
        raise Unproven("it is of the future: the clocks differ")
    kind, (source, colon, subject) = _KINDS.get(told.authtype), told.sub.partition(":")
    if kind is None or not colon:
        raise Unproven("a newer gateway signed it")
    principal = Principal(
        kind=kind,
        issuer=source,
        subject=subject,
        scopes=frozenset(told.scopes),
        roles=frozenset(told.roles),
        claims=told.claims,
    )
    return principal, told.exp + LEEWAY


def _seed(pem: bytes) -> bytes:
    """Return what an Ed25519 key is made of: any bytes of that number are one."""
    try:
        key = base64.b64decode(b"".join(pem.split()), validate=True)
    except ValueError:
        key = b""
    if not key.startswith(_PKCS8) or len(key) != len(_PKCS8) + _SEED:
        raise ValueError("a private key that is not Ed25519")
    return key[len(_PKCS8) :]


def _jwk(key: Ed25519PublicKey) -> _Key:
    x = _packed(key.public_bytes_raw())
    named = f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()
    return _Key(kty="OKP", crv="Ed25519", x=x, kid=_packed(hashlib.sha256(named).digest()))


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
