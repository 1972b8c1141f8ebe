"""Who sends a request: the holder of an API key, a user with a token, or a session."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from oyez.config import Route
from oyez.gateway.challenge import unauthorized
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.keys import Keys
from oyez.gateway.sessions import Sessions
from oyez.gateway.step import Answer
from oyez.principal import Principal

if TYPE_CHECKING:
    from oyez.gateway.tokens import Tokens

_ASKS = {
    "session": "send an API key, a token or a session cookie",
    "key": "send an API key",
    "user": "log in, or send a token",
}
_ADMITS = {
    "session": ("api_key", "session", "user"),
    "key": ("api_key",),
    "user": ("user",),
}


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

        def admit_all(exchange: Exchange) -> Awaitable[None]:
            try:
                found = self._known(exchange)
            except Refusal:
                return onward(exchange)
            if isinstance(found, str):
                return admit_all_verified(exchange, found)
            exchange.principal = _telling(found, route)
            return onward(exchange)

        async def admit_all_verified(exchange: Exchange, token: str) -> None:
            try:
                found = await self._verified(token)
            except Refusal:
                found = None
            exchange.principal = _telling(found, route)
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
            exchange.principal = _telling(principal, route)
            return onward(exchange)

        return admit

    def _known(self, exchange: Exchange) -> Principal | str | None:
        """Return who sends a request, or a token that is to be verified first."""
        keys, others = exchange.values(b"x-api-key"), exchange.values(b"authorization")
        if not keys and not others:
            return self._sessions.principal(exchange)
        if len(keys) + len(others) > 1:
            raise unauthorized("key_invalid", "send one API key or one token")
        if keys:
            return self._keys.holder(keys[0])
        scheme, _, value = others[0].partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized("key_invalid", "send an API key or a token as Bearer")
        value = value.strip()
        if self._tokens is not None and value.count(".") == 2:
            return self._tokens.known(value) or value
        return self._keys.holder(value)

    async def _verified(self, token: str) -> Principal | None:
        return None if self._tokens is None else await self._tokens.user(token)


def _telling(principal: Principal | None, route: Route) -> Principal | None:
    """Return the principal with no claims but those that the route names."""
    if principal is None or not principal.claims:
        return principal
    claims = {name: principal.claims[name] for name in route.claims if name in principal.claims}
    return msgspec.structs.replace(principal, claims=claims)
