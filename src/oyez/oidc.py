"""Login at an OpenID Connect provider: the authorization code flow, as its relying party.

::

    begin   ─► an address at the provider, and an `Attempt` that the browser keeps
    finish  ◄─ the provider's answer, by the browser, held against the attempt
            ─► the code is redeemed, the ID token checked ─► an `Identity`

The messages and the claims of the ID token are Authlib's, its signature is joserfc's. What this
adds: answers of the provider are bounded, its keys are kept, algorithms are pinned, and the issuer
is checked (RFC 9207), so that one provider's answer is not taken for another's.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import httpx
import msgspec
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from oyez.ambient import Ambient
from oyez.config import ProviderSettings
from oyez.config.rules import is_web_address
from oyez.errors import LoginDenied, LoginFailed
from oyez.http_client import Client

PATIENCE = 600.0
"""Seconds that a person may take at the provider."""
TIMEOUT = 10.0
"""Seconds for one answer of the provider."""
FRESH = 3_600.0
"""Seconds for which what the provider says of itself is kept."""
AGAIN = 10.0
"""Seconds between two looks for a key that the provider did not have."""
PAUSE = 1.0
"""Seconds after a failure for which the provider is not asked about itself."""
LEEWAY = 60
"""Seconds by which the provider's clock may differ from ours."""
LARGEST = 131_072
"""Bytes of one answer of the provider."""
ALGORITHMS = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512))
"""Signatures that are accepted, all by a private key of the provider."""

_SUBJECT = re.compile(r"[\x21-\x7e]{1,255}")
_CODE = re.compile(r"[\x20-\x7e]{1,4096}")
_ERROR = re.compile(r"[a-z0-9_]{1,60}")
_FIELDS = 32

T = TypeVar("T")


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """A login that has begun. The browser keeps it sealed until the provider has answered."""

    state: str
    nonce: str
    verifier: str
    """What proves that the code is redeemed by who asked for it (PKCE)."""
    redirect: str
    """Where the provider sends the browser."""
    to: str
    """Where the person wanted to go."""
    until: float
    """In seconds since 1970."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who logged in, as the provider vouches for it."""

    subject: str
    roles: frozenset[str]
    scopes: frozenset[str]
    claims: Mapping[str, Any]
    """All that the ID token says."""


class _Metadata(msgspec.Struct, frozen=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str | None = None
    authorization_response_iss_parameter_supported: bool = False
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)


class _Keys(msgspec.Struct, frozen=True):
    keys: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=100)]


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str | None = None
    scope: str | None = None


class _Error(msgspec.Struct, frozen=True):
    error: str


class RelyingParty:
    """A client of one provider."""

    def __init__(self, settings: ProviderSettings, ambient: Ambient) -> None:
        self._settings = settings
        self._ambient = ambient
        # A login is rare: no connection is kept for the next.
        limits = httpx.Limits(max_connections=20, max_keepalive_connections=0)
        self._http = Client(timeout=TIMEOUT, limits=limits)
        self._asking = asyncio.Lock()
        self._metadata: _Metadata | None = None
        self._metadata_until = 0.0
        self._keys: KeySet | None = None
        self._keys_from = 0.0
        self._failure: LoginFailed | None = None
        self._failed_at = 0.0

    async def begin(self, redirect: str, to: str) -> tuple[str, Attempt]:
        """Return where the browser has to go, and what it has to keep meanwhile.

        The provider will send it to ``redirect``, a URL that it knows; ``to`` is the caller's.
        Raises :class:`LoginFailed` if the provider can't be asked.
        """
        metadata = await self._discovered()
        attempt = Attempt(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            redirect=redirect,
            to=to,
            until=self._ambient.now() + PATIENCE,
        )
        address = prepare_grant_uri(
            metadata.authorization_endpoint,
            self._settings.client_id,
            "code",
            redirect_uri=redirect,
            scope=" ".join(self._settings.scopes),
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=create_s256_code_challenge(attempt.verifier),
            code_challenge_method="S256",
        )
        return str(address), attempt

    async def finish(self, attempt: Attempt, query: str) -> Identity:
        """Return who logged in, by the query of the provider's answer.

        Raises :class:`LoginFailed` for an answer that is not the one to this attempt, and
        :class:`LoginDenied` where the provider did not let the person in.
        """
        answer = _parameters(query)
        if attempt.until <= self._ambient.now():
            raise LoginFailed("login_expired", "the login took too long: begin again")
        if not hmac.compare_digest(answer.get("state", "").encode(), attempt.state.encode()):
            raise LoginFailed("login_unknown", "this answer is not to the login of this browser")
        metadata = await self._discovered()
        issuer = answer.get("iss")
        required = metadata.authorization_response_iss_parameter_supported
        if (issuer is None and required) or issuer not in (None, metadata.issuer):
            raise LoginFailed("login_mixed_up", "the answer is another provider's")
        if "error" in answer:
            said = answer["error"] if _ERROR.fullmatch(answer["error"]) else "something else"
            raise LoginDenied("login_denied", f"the provider said: {said}")
        code = answer.get("code", "")
        if not _CODE.fullmatch(code):
            raise LoginFailed("login_malformed", "the provider's answer has no code")
        tokens = await self._redeemed(metadata, attempt, code)
        claims = await self._checked(metadata, attempt, tokens)
        scope = " ".join(self._settings.scopes) if tokens.scope is None else tokens.scope
        return Identity(
            subject=claims["sub"],
            roles=frozenset(names(found(claims, self._settings.roles_claim))),
            scopes=frozenset(scope.split()),
            claims=claims,
        )

    async def farewell(self, back: str) -> str | None:
        """Return where the browser ends its session at the provider; None where it can't.

        From there it comes to ``back``, a URL that the provider knows.
        """
        metadata = await self._discovered()
        if metadata.end_session_endpoint is None:
            return None
        parameters = [
            ("client_id", self._settings.client_id),
            ("post_logout_redirect_uri", back),
        ]
        return str(add_params_to_uri(metadata.end_session_endpoint, parameters))

    # -- what the provider says of itself ----------------------------------------------------------

    async def _discovered(self) -> _Metadata:
        async with self._asking:  # those who wait are answered by the first one's question
            now = self._ambient.monotonic()
            if self._metadata is not None and now < self._metadata_until:
                return self._metadata
            if self._failure is not None and now < self._failed_at + PAUSE:
                raise self._failure.with_traceback(None)
            try:
                self._metadata = await self._discover()
            except LoginFailed as failure:
                self._failure, self._failed_at = failure, self._ambient.monotonic()
                raise
            self._metadata_until = self._ambient.monotonic() + FRESH
            return self._metadata

    async def _discover(self) -> _Metadata:
        issuer = self._settings.issuer
        address = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = _read(await self._get(address), _Metadata, "what it says of itself")
        if metadata.issuer != issuer:
            raise _fault(f"it calls itself another issuer than {issuer}")
        needed = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        given = metadata.end_session_endpoint
        if not all(map(is_web_address, (*needed, *([given] if given else ())))):
            raise _fault("one of its addresses is neither https nor on this machine")
        if not ALGORITHMS.intersection(metadata.id_token_signing_alg_values_supported):
            raise _fault("it signs by none of RS, PS and ES")
        return metadata

    async def _key_set(self, metadata: _Metadata, *, newer: bool = False) -> KeySet:
        async with self._asking:
            now = self._ambient.monotonic()
            age = now - self._keys_from
            if self._keys is None or age > FRESH or (newer and age > AGAIN):
                found = _read(await self._get(metadata.jwks_uri), _Keys, "its keys")
                try:
                    self._keys = KeySet.import_key_set({"keys": found.keys})
                except (JoseError, ValueError, TypeError, KeyError):
                    raise _fault("its keys can't be read") from None
                self._keys_from = self._ambient.monotonic()
            return self._keys

    # -- tokens ------------------------------------------------------------------------------------

    async def _redeemed(self, metadata: _Metadata, attempt: Attempt, code: str) -> _Tokens:
        body = prepare_token_request(
            "authorization_code",
            code=code,
            redirect_uri=attempt.redirect,
            code_verifier=attempt.verifier,
        )
        secret = self._settings.client_secret
        method = "none" if secret is None else "client_secret_basic"
        auth = ClientAuth(self._settings.client_id, secret.text if secret else None, method)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        address, headers, body = auth.prepare("POST", metadata.token_endpoint, headers, body)
        status, content = await self._ask("POST", address, headers, body)
        if status == 200:
            return _read(content, _Tokens, "its tokens")
        try:
            error = msgspec.json.decode(content, type=_Error).error
        except (msgspec.MsgspecError, RecursionError, ValueError):
            error = ""
        if error == "invalid_grant":
            raise LoginFailed("login_refused", "the provider does not take this answer: it is old")
        said = error if _ERROR.fullmatch(error) else f"status {status}"
        raise _fault(f"it did not redeem the code: {said}")

    async def _checked(
        self, metadata: _Metadata, attempt: Attempt, tokens: _Tokens
    ) -> dict[str, Any]:
        """Return the claims of the ID token; raises LoginFailed for one that is not for us."""
        algorithms = ALGORITHMS.intersection(metadata.id_token_signing_alg_values_supported)
        try:
            keys = await self._key_set(metadata)
            try:
                token = jwt.decode(tokens.id_token, keys, algorithms=algorithms)
            except InvalidKeyIdError:
                keys = await self._key_set(metadata, newer=True)
                token = jwt.decode(tokens.id_token, keys, algorithms=algorithms)
            claims = CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": metadata.issuer},
                    "aud": {"essential": True, "value": self._settings.client_id},
                },
                {
                    "nonce": attempt.nonce,
                    "client_id": self._settings.client_id,
                    "access_token": tokens.access_token,
                },
            )
            claims.validate(int(self._ambient.now()), LEEWAY)
        except (JoseError, LookupError, RecursionError, TypeError, ValueError) as error:
            why = error.error if isinstance(error, JoseError) else "it can't be read"
            raise LoginFailed(
                "login_not_vouched", f"the provider's ID token is not accepted: {why}", ours=True
            ) from None
        if not isinstance(claims["sub"], str) or not _SUBJECT.fullmatch(claims["sub"]):
            raise _fault("the subject of its ID token is not 1 to 255 visible ASCII characters")
        return dict(claims)

    # -- requests ----------------------------------------------------------------------------------

    async def _get(self, address: str) -> bytes:
        status, content = await self._ask("GET", address, {}, None)
        if status != 200:
            raise _fault(f"it answered with status {status}")
        return content

    async def _ask(
        self, method: str, address: str, headers: Mapping[str, str], body: str | None
    ) -> tuple[int, bytes]:
        """Return status and body of an answer; no redirect is followed."""
        # Only plain bytes can be counted before they are unpacked.
        plain = {**headers, "Accept": "application/json", "Accept-Encoding": "identity"}
        content = bytearray()
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._http.stream(method, address, headers=plain, content=body) as answer,
            ):
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise _fault("its answer is compressed, which it was not asked for")
                async for part in answer.aiter_raw():
                    content += part
                    if len(content) > LARGEST:
                        raise _fault(f"its answer is larger than {LARGEST} bytes")
                return answer.status_code, bytes(content)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError):
            raise LoginFailed(
                "provider_unreachable", "the provider of logins can't be reached", ours=True
            ) from None


def found(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim by its name, where dots lead into objects; None without it."""
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def names(value: object) -> list[str]:
    """Return the names in a claim: those of a list, or the one of a text."""
    if isinstance(value, str):
        return [value] if value else []
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        pairs = []
    answer = dict(pairs)
    if not answer or len(answer) != len(pairs):
        raise LoginFailed("login_malformed", "the provider's answer is malformed")
    return answer


def _read(content: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise _fault(f"{what} can't be read") from None


def _fault(what: str) -> LoginFailed:
    return LoginFailed("provider_fault", f"the provider of logins is at fault: {what}", ours=True)
