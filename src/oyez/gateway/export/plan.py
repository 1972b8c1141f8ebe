"""Which routes another proxy opens, which it refuses, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from oyez.config import Config, GatewaySettings, Route
from oyez.config.checks import DESCRIPTIONS, LOGIN_PATHS
from oyez.gateway.after import COOKIE as AFTER
from oyez.gateway.exchange import Refusal, problem
from oyez.gateway.sessions import COOKIE as SESSION
from oyez.identity import HEADER, JWKS, NAME_HEADER

OUR_COOKIES = (SESSION, AFTER)
"""The cookies of the gateway, which services don't see."""
OUR_HEADERS = (HEADER.decode(), NAME_HEADER.decode())
"""The headers by which the gateway tells a service who asks."""
NOT_PASSED = (
    *OUR_HEADERS,
    "authorization",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "trailer",
    "via",
    "x-api-key",
    "x-real-ip",
)
"""Headers of a client that no service sees."""


SAID_OF_ROUTES = frozenset(
    "path service methods access issuers scopes roles claims stream compress limits concurrency "
    "idempotency websocket until within show".split()
)
"""The settings of routes that are written, refused or named here: all there are."""
SAID_OF_THE_GATEWAY = frozenset(
    "listen static body_limit buffer_limit header_limit timeout connect_timeout connections "
    "concurrency tls trusted_proxies access_log issuers cors openapi limits ingest webhooks login "
    "routes "
    # These need no word: the routes that use them are refused, or they are of the process alone.
    "admin store grace drain_delay lag_limit session_lifetime keys jwks wait watchers tunnels "
    "tunnel_timeout idempotency".split()
)
"""Those of the gateway."""


class Missing(NamedTuple):
    """What a proxy can't hold: of a route, or of the whole gateway."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Place(NamedTuple):
    """A path and what is below it.

    ``route`` is what is open there, for ``methods``; None where nothing is. ``refused`` are the
    methods of the routes that are not opened.
    """

    path: str
    route: Route | None
    methods: tuple[str, ...]
    refused: tuple[str, ...]


Lacks = Callable[[Route], str | None]
"""It returns why a proxy can't hold a route; None if it can."""


class Plan(NamedTuple):
    """Places, the longest path first; paths that only the gateway answers; what is missing."""

    places: list[Place]
    closed: list[str]
    missing: list[Missing]


def plan(config: Config, settings: GatewaySettings, lacks: Lacks) -> Plan:
    """Return what is opened and what is refused."""
    missing: list[Missing] = []
    by_path: dict[str, list[Route]] = {}
    for route in settings.routes:
        by_path.setdefault(route.path, []).append(route)
    places = [_place(path, routes, lacks, missing) for path, routes in by_path.items()]
    places.sort(key=lambda place: (-_depth(place.path), place.path))
    closed = _closed(settings)
    missing += [Missing(path, f"refused, {reason}") for path, reason in closed.items()]
    missing += _of_the_gateway(settings)
    return Plan(places, list(closed), missing)


def lacks_of_any(route: Route) -> str | None:
    """Return why no proxy but the gateway can hold a route; None if one can."""
    if route.access in ("session", "key"):
        return f'access = "{route.access}" is known to the gateway alone'
    if route.scopes or route.roles:
        return "scopes and roles are checked by the gateway alone"
    if route.idempotency != "off":
        return f'idempotency = "{route.idempotency}" is held by the gateway alone'
    if route.until:
        return "until: what becomes of the work is told by the gateway alone"
    if route.websocket:
        return "websocket: who may open one is checked by the gateway alone"
    return None


def refusal_text(status: int, code: str, detail: str) -> str:
    """Return the problem document of a refusal, as the gateway writes it."""
    return problem(Refusal(status, code, detail))[1].decode()


def not_opened() -> str:
    """Return the problem document of a route that is refused."""
    return refusal_text(403, "not_exported", "this is open at the gateway only")


def upstream(config: Config, route: Route) -> str:
    """Return ``HOST:PORT`` of a route's service."""
    address = config.services[route.service].reached_at()
    assert address is not None, route  # the configuration was checked
    return f"{address}"


def _place(path: str, routes: list[Route], lacks: Lacks, missing: list[Missing]) -> Place:
    found: Route | None = None
    methods: list[str] = []
    refused: list[str] = []
    for route in routes:
        reason = lacks(route)
        if reason is None and found is not None and not _alike(found, route):
            reason = f"it differs from {' '.join(found.methods)} of the same path"
        if reason is None:
            found = found or route
            methods += route.methods
        else:
            refused += route.methods
            missing.append(Missing(_name(route), f"refused, {reason}"))
    if "GET" in methods and "HEAD" not in refused:
        methods.append("HEAD")
    elif "GET" in refused and "HEAD" not in methods:
        refused.append("HEAD")
    return Place(path, found, _once(methods), _once(refused))


def _alike(one: Route, other: Route) -> bool:
    """Return whether two routes differ in their methods alone."""
    # What counts the requests of a route would count those of both.
    counted = one.limits or one.concurrency
    return not counted and msgspec.structs.replace(other, methods=one.methods) == one


def _closed(settings: GatewaySettings) -> dict[str, str]:
    found = {
        "/session": "sessions are the gateway's own",
        JWKS: "the keys are the gateway's own",
    }
    if settings.ingest is not None:
        found[settings.ingest.path] = "events are taken in by the gateway alone"
    for webhook in settings.webhooks.values():
        found[webhook.at()] = "webhooks are taken in by the gateway alone"
    if settings.login is not None:
        found |= dict.fromkeys(LOGIN_PATHS, "the gateway logs in alone")
    if settings.openapi is not None:
        found |= dict.fromkeys(DESCRIPTIONS, "the gateway describes the API alone")
    return found


def _of_the_gateway(settings: GatewaySettings) -> Iterable[Missing]:
    said = [
        "services are not told who asks: they refuse any identity that the gateway has not signed",
        "one's own writes: no cookie oyez_after is set, nor passed on as Oyez-After",
        "buffer_limit: no one budget for all bodies",
        "a service that fails again and again is still asked, and no request is sent twice",
    ]
    if any(route.limits for route in settings.routes):
        said.append("limits: no RateLimit headers, and replicas share no count")
    if any(route.compress for route in settings.routes):
        said.append("compress: answers are passed on as they are")
    if settings.cors is not None:
        said.append("cors: pages of other origins are not let in")
    return [Missing("gateway", each) for each in said]


def _name(route: Route) -> str:
    return f"{' '.join(route.methods)} {route.path}"


def _depth(path: str) -> int:
    return 0 if path == "/" else path.count("/")


def _once(methods: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(methods)))
