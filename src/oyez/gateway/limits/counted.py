"""Whose requests a limit counts together."""

from __future__ import annotations

from collections.abc import Callable

from oyez.config import Limit, Route
from oyez.gateway.address import network
from oyez.gateway.exchange import Exchange

Whose = Callable[[Exchange], str]
"""It returns the name of the bucket of a request, within a limit."""


def whose(limit: Limit, route: Route) -> Whose:
    """Return whose bucket a limit takes a token of, for the requests of a route.

    Anybody can have an anonymous session, and as many as they like: such requests are counted by
    the address, as those without a principal or a key are.
    """
    if limit.by == "route":
        name = f"{' '.join(route.methods)} {route.path}"
        return lambda exchange: name
    if limit.by == "address":
        return lambda exchange: network(exchange.client)
    kinds = ("api_key",) if limit.by == "key" else ("api_key", "user")

    def known(exchange: Exchange) -> str:
        principal = exchange.principal
        if principal is not None and principal.kind in kinds:
            return principal.name
        return network(exchange.client)

    return known
