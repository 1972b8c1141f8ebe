"""Who sends a request: the holder of an API key, a user with a token, or a session."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from oyez.config import Route
from oyez.gateway.challenge import unauthorized
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.keys import Keys
from oyez.gateway.sessions import COOKIE, Sessions
from oyez.gateway.step import Answer
from oyez.principal import Principal

if TYPE_CHECKING:
    from oyez.gateway.tokens import Tokens, Verified

_ASKS = {
    "session": "send an API key, a token or a session cookie",
    "key": "send an API key",
    "user": "log in, or send a token",
}
_NOTHING: Final = "nothing"
_SESSION: Final = "session"
_KEY: Final = "key"
_BEARER: Final = "bearer"
_ADMITS = {
    "session": ("api_key", "session", "user"),
    "key": ("api_key",),
    "user": ("user",),
}


class _Sent:
    """The credentials in the headers of a request: a key, a token, a session or nothing.

    ``verified`` is what was last known of the token.
    """

    def __init__(self, kind: str, value: str = "") -> None:
        self.kind = kind
        self.value = value
        self.verified: Verified | None = None


class _Told:
    """A principal as it is known, and as a route is told of it."""

    def __init__(self, known: Principal, told: Principal) -> None:
        self.known = known
        self.told = told


class Access:
    """Authentication of requests: each way is tried in turn.

    ``tokens`` is None where no issuer is configured.
    """

    def __init__(self, keys: Keys, tokens: Tokens | None, sessions: Sessions) -> None:
        self._keys = keys
        self._tokens = tokens
        self._sessions = sessions

    def before(self, route: Route, onward: Answer) -> Answer:
        """Admit who may use the route; others are refused (401, 403).

        A public route admits every request; without valid credentials it has no principal. Of the
        claims of a principal it leaves those that the route names.
        """
        telling = _Telling(route.claims)

        def admit_all(exchange: Exchange) -> Awaitable[None]:
            try:
                found = self._known(exchange)
            except Refusal:
                return onward(exchange)
            if isinstance(found, str):
                return admit_all_verified(exchange, found)
            exchange.principal = telling.of(exchange, found)
            return onward(exchange)

        async def admit_all_verified(exchange: Exchange, token: str) -> None:
            try:
                found = await self._verified(token)
            except Refusal:
                found = None
            exchange.principal = telling.of(exchange, found)
            await onward(exchange)

        if route.access == "public":
            return admit_all
        asks, admits, issuers = _ASKS[route.access], _ADMITS[route.access], route.issuers

        def admit(exchange: Exchange) -> Awaitable[None]:
            found = self._known(exchange)
            if isinstance(found, str):
                return admit_verified(exchange, found)
            return admitted(exchange, found)

        async def admit_verified(exchange: Exchange, token: str) -> None:
            await admitted(exchange, await self._verified(token))

        def admitted(exchange: Exchange, principal: Principal | None) -> Awaitable[None]:
            if principal is None:
                raise unauthorized("credentials_missing", asks)
            if principal.kind not in admits or (issuers and principal.issuer not in issuers):
                raise unauthorized("credentials_unfit", f"others are asked for here: {asks}")
            exchange.principal = telling.of(exchange, principal)
            return onward(exchange)

        return admit

    def _known(self, exchange: Exchange) -> Principal | str | None:
        """Return who sends a request, or a token that is to be verified first."""
        sent = exchange.section.found(self)
        if not isinstance(sent, _Sent):
            sent = self._sent(exchange)
            exchange.section.leave(self, sent)
        if sent.kind == _NOTHING:
            return None
        if sent.kind == _SESSION:
            return self._sessions.principal(exchange)
        if sent.kind == _KEY or self._tokens is None:
            return self._keys.holder(sent.value)
        verified = sent.verified
        if verified is None or not self._tokens.holds(verified):
            verified = sent.verified = self._tokens.known(sent.value)
        return sent.value if verified is None else verified.principal

    def _sent(self, exchange: Exchange) -> _Sent:
        keys, others = exchange.values(b"x-api-key"), exchange.values(b"authorization")
        if not keys and not others:
            session = any(COOKIE in each for each in exchange.values(b"cookie"))
            return _Sent(_SESSION if session else _NOTHING)
        if len(keys) + len(others) > 1:
            raise unauthorized("key_invalid", "send one API key or one token")
        if keys:
            return _Sent(_KEY, keys[0])
        scheme, _, value = others[0].partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized("key_invalid", "send an API key or a token as Bearer")
        value = value.strip()
        is_token = self._tokens is not None and value.count(".") == 2
        return _Sent(_BEARER if is_token else _KEY, value)

    async def _verified(self, token: str) -> Principal | None:
        return None if self._tokens is None else await self._tokens.user(token)


class _Telling:
    """Which claims of a principal a route names: it is told of no others."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def of(self, exchange: Exchange, principal: Principal | None) -> Principal | None:
        """Return the principal of a request as the route is told of it."""
        if principal is None or not principal.claims:
            return principal
        told = exchange.section.found(self)
        if not isinstance(told, _Told) or told.known is not principal:
            known = principal.claims
            claims = {name: known[name] for name in self._names if name in known}
            told = _Told(principal, msgspec.structs.replace(principal, claims=claims))
            exchange.section.leave(self, told)
        return told.told
