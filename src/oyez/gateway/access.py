"""Who sends a request: the holder of an API key, or a session with a signed cookie."""

from __future__ import annotations

import contextlib

from oyez.config import Route
from oyez.gateway.challenge import unauthorized
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.keys import Keys
from oyez.gateway.principal import Principal
from oyez.gateway.sessions import Sessions
from oyez.gateway.step import Answer


class Access:
    """Authentication of requests: each way is tried in turn."""

    def __init__(self, keys: Keys, sessions: Sessions) -> None:
        self._keys = keys
        self._sessions = sessions

    def before(self, route: Route, onward: Answer) -> Answer:
        """Admit who may use the route; others are refused (401, 403).

        A public route admits every request; without valid credentials it has no principal.
        """

        async def admit(exchange: Exchange) -> None:
            principal = self._principal(exchange)
            if principal is None:
                raise unauthorized("credentials_missing", "send an API key or a session cookie")
            exchange.principal = principal
            await onward(exchange)

        async def admit_all(exchange: Exchange) -> None:
            with contextlib.suppress(Refusal):
                exchange.principal = self._principal(exchange)
            await onward(exchange)

        return admit_all if route.access == "public" else admit

    def _principal(self, exchange: Exchange) -> Principal | None:
        return self._keys.principal(exchange) or self._sessions.principal(exchange)
