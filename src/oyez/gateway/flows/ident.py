"""The id of a flow: any replica of the gateway can tell from it alone who may read it.

It is ``UUID.ROUTE.SEAL``. The UUID (version 7) has the time at which the flow was begun, ROUTE
names the route that says what ends it, and the seal binds both to whoever began it. The events of
the flow have ``flow-UUID`` as their correlation id: a client can't choose a request id of that
form, so no request joins the flow of another.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

from oyez.gateway.exchange import FLOW
from oyez.principal import Principal

_UUID = r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_CORRELATION = re.compile(f"{FLOW}{_UUID}")
_ID = re.compile(rf"({_UUID})\.([0-9a-f]{{12}})\.([0-9a-f]{{32}})")


class Begun(NamedTuple):
    """A flow that a gateway has begun."""

    id: str
    correlation: str
    """The correlation id of its events."""
    made: float
    """When it was begun, in seconds since 1970."""
    route: str
    """What `route_key` returns for its route."""


class Seal:
    """It makes the ids of flows, and opens them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def close(self, uuid: str, route: str, principal: Principal | None) -> Begun:
        """Return a flow that a principal begins, or somebody unknown."""
        begun = f"{uuid}.{route}"
        return _begun(f"{begun}.{self._mac(begun, _name(principal))}")

    def open(self, given: str, principal: Principal | None) -> Begun | None:
        """Return the flow of an id; None unless it was made here, and for who asks.

        What somebody unknown began, whoever has the id may read.
        """
        match = _ID.fullmatch(given)
        if match is None:
            return None
        begun, mac = f"{match[1]}.{match[4]}", match[5]
        mine = hmac.compare_digest(mac, self._mac(begun, _name(principal)))
        anyones = hmac.compare_digest(mac, self._mac(begun, ""))
        return _begun(given) if mine or anyones else None

    def _mac(self, begun: str, owner: str) -> str:
        message = f"oyez flow {begun} {owner}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:32]


def route_key(method: str, path: str) -> str:
    """Return what names a route in the ids of flows: each method of a path has one route."""
    return hashlib.blake2b(f"{method} {path}".encode(), digest_size=6).hexdigest()


def made_at(correlation: str) -> float | None:
    """Return when the flow of a correlation id was begun; None if it is no flow's."""
    match = _CORRELATION.fullmatch(correlation)
    return int(match[1] + match[2], 16) / 1000 if match else None


def _begun(given: str) -> Begun:
    uuid, route, _ = given.split(".")
    correlation = FLOW + uuid
    return Begun(given, correlation, made_at(correlation) or 0.0, route)


def _name(principal: Principal | None) -> str:
    return "" if principal is None else principal.name
