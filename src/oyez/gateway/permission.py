"""What a sender may do: the scopes and roles that a route asks for."""

from __future__ import annotations

from collections.abc import Awaitable

from oyez.config import Route
from oyez.gateway.challenge import insufficient_scope
from oyez.gateway.exchange import Exchange
from oyez.gateway.step import Answer


class Permission:
    """Authorization of requests whose sender is known. What belongs to whom, services know."""

    def before(self, route: Route, onward: Answer) -> Answer:
        """Admit a sender that has all scopes and any of the roles; others are refused (403)."""
        scopes, roles = frozenset(route.scopes), frozenset(route.roles)
        if not scopes and not roles:
            return onward

        def admit(exchange: Exchange) -> Awaitable[None]:
            principal = exchange.principal
            if principal is None or not scopes <= principal.scopes:
                raise insufficient_scope("the sender lacks a scope that is asked for here", scopes)
            if roles and roles.isdisjoint(principal.roles):
                raise insufficient_scope("the sender has none of the roles that are asked for here")
            return onward(exchange)

        return admit
