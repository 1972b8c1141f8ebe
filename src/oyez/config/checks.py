"""What has to hold between settings, beyond the rule of each."""

from __future__ import annotations

from typing import NoReturn, Protocol

from oyez.config.mistakes import Key, closest
from oyez.config.rules import is_remote
from oyez.config.settings import (
    BridgeSettings,
    Config,
    HttpBridgeSettings,
    ProviderSettings,
    Route,
    ServiceSettings,
)
from oyez.sites import site

_RESERVED_PATHS = ("/session", "/livez", "/readyz", "/.well-known/jwks.json")
DESCRIPTIONS = ("/openapi.json", "/reference")
"""Where the gateway describes the API."""
LOGIN_PATHS = ("/login", "/login/callback", "/logout")
"""Where people log in and out."""
_RESERVED_ISSUERS = ("key", "session")
FLOWS = "/flows"
"""Where the gateway tells of the flows of routes with ``until``."""


class Fail(Protocol):
    """Raises the ConfigurationError about the setting at ``key``."""

    def __call__(self, key: Key, expected: str, found: str, hint: str | None = None) -> NoReturn:
        """Raise it."""
        ...


def check(config: Config, fail: Fail) -> None:
    """Fail where the settings contradict each other."""
    _check_names(config, fail)
    _check_http_bridges(config, fail)
    _check_bridges(config, fail)
    _check_issuers(config, fail)
    _check_cors(config, fail)
    _check_routes(config, fail)
    _check_senders(config, fail)
    _check_own_paths(config, fail)
    _check_login(config, fail)


def _check_names(config: Config, fail: Fail) -> None:
    for name in config.companions:
        if name in config.services:
            expected = "a name that no service has"
            fail(("companions", name), expected, f'"{name}"')


def _check_http_bridges(config: Config, fail: Fail) -> None:
    for name, service in config.services.items():
        key: Key = ("services", name)
        if service.url is None:
            if not service.app:
                expected = '"module:attribute", or the url of a program in another language'
                fail((*key, "app"), expected, "nothing")
            given = {
                "handles": bool(service.handles),
                "publishes": bool(service.publishes),
                "bridge": service.bridge != HttpBridgeSettings(),
                "deploy.url": service.deploy.url is not None,
            }
            for each in (name for name, is_given in given.items() if is_given):
                expected = "a service with a url: one with an app says it in its code"
                fail((*key, *each.split(".")), expected, "a service without")
        else:
            _check_http_bridge(service, service.url, key, fail)


def _check_http_bridge(service: ServiceSettings, url: str, key: Key, fail: Fail) -> None:
    if service.app:
        fail((*key, "url"), "either an app or a url", "both")
    if not (service.handles or service.publishes):
        fail((*key, "handles"), "the types that it handles, or publishes", "neither")
    for each in ("handles", "publishes"):
        types = [kind.partition("@")[0] for kind in getattr(service, each)]
        for kind in types:
            if types.count(kind) > 1:
                fail((*key, each), "each type once", f'"{kind}" again')
    bridge = service.bridge
    listens = service.http is not None or bridge.socket is not None
    if service.http is not None and bridge.token is None:
        expected = "a token, as there is an address where events are published"
        fail((*key, "bridge", "token"), expected, "nothing")
    if listens and not service.publishes:
        fail((*key, "publishes"), "the types that may be published there", "none")
    if bridge.socket is not None and service.replicas.most > 1:
        expected = "an address, http, which replicas can share"
        fail((*key, "bridge", "socket"), expected, f"a socket of {service.replicas} replicas")
    for place, sink in ((("url",), url), (("deploy", "url"), service.deploy.url)):
        if sink is None or not is_remote(sink):
            continue
        if not bridge.secret:
            expected = f"a secret that signs, as the {'.'.join(place)} is of another machine"
            fail((*key, "bridge", "secret"), expected, "nothing")
        if sink.startswith("http:") and not bridge.allow:
            expected = "https, or http within the networks that bridge.allow names"
            fail((*key, *place), expected, f'"{sink}"')


def _check_bridges(config: Config, fail: Fail) -> None:
    ends = {
        name: (site(bridge.source, config.root), site(bridge.target, config.root))
        for name, bridge in config.bridges.items()
    }
    for name, bridge in config.bridges.items():
        if name in config.services or name in config.companions:
            expected = "a name that no service and no companion has"
            fail(("bridges", name), expected, f'"{name}"')
        source, target = ends[name]
        if source == target:
            expected = "another broker than the source"
            fail(("bridges", name, "target"), expected, "the same")
        others = [ends[each.name] for each in config.bridges.values() if _overlap(each, bridge)]
        reached = {target}
        for _ in others:
            reached |= {end for start, end in others if start in reached}
        if source in reached:
            expected = "streams that no other bridge brings back to the source, in a circle"
            fail(("bridges", name, "streams"), expected, ", ".join(bridge.streams))


def _overlap(one: BridgeSettings, other: BridgeSettings) -> bool:
    return any(other.carries(each) for each in one.streams) or any(
        one.carries(each) for each in other.streams
    )


def _check_issuers(config: Config, fail: Fail) -> None:
    known: dict[str, str] = {}
    for name, issuer in config.gateway.issuers.items() if config.gateway else ():
        key: Key = ("gateway", "issuers", name)
        if name in _RESERVED_ISSUERS:
            fail(key, "a name that the gateway doesn't use", f'"{name}"')
        if issuer.issuer in known:
            found = f"that of {known[issuer.issuer]} again"
            fail((*key, "issuer"), "each issuer once, with a list of audiences", found)
        known[issuer.issuer] = name


def _check_cors(config: Config, fail: Fail) -> None:
    cors = config.gateway.cors if config.gateway else None
    if cors is not None and cors.credentials and "*" in cors.origins:
        expected = "the origins that may use sessions, each by name, as there are credentials"
        fail(("gateway", "cors", "origins"), expected, '"*", every page there is')


def _check_who_and_may(config: Config, route: Route, key: Key, fail: Fail) -> None:
    issuers = list(config.gateway.issuers) if config.gateway else []
    if config.gateway is not None and config.gateway.login is not None:
        issuers.append(config.gateway.login.name)
    for name in route.issuers:
        if name not in issuers:
            expected = f"issuers, of {', '.join(issuers) or '(none)'}"
            fail((*key, "issuers"), expected, f'"{name}"', closest(name, issuers))
    if route.issuers and route.access != "user":
        fail((*key, "access"), '"user", as there are issuers', f'"{route.access}"')
    if route.access == "public" and (route.scopes or route.roles):
        expected = '"session", "key" or "user", as there are scopes or roles'
        fail((*key, "access"), expected, '"public"')
    if route.access == "key" and (config.gateway is None or config.gateway.keys is None):
        fail((*key, "access"), "a file of API keys: set keys in [gateway]", "none")


def _check_routes(config: Config, fail: Fail) -> None:
    taken: set[tuple[str, str]] = set()
    login = config.gateway is not None and config.gateway.login is not None
    reserved = (*_RESERVED_PATHS, *LOGIN_PATHS) if login else _RESERVED_PATHS
    if config.gateway is not None and config.gateway.openapi is not None:
        reserved = (*reserved, *DESCRIPTIONS)
    for index, route in enumerate(config.gateway.routes if config.gateway else ()):
        key: Key = ("gateway", "routes", index)
        dots = any(part in (".", "..") for part in route.path.split("/"))
        if dots or route.path in reserved:
            fail((*key, "path"), "a path that the gateway doesn't use", f'"{route.path}"')
        _check_flows(config, route, key, fail)
        service = config.services.get(route.service)
        if service is None:
            known = f"a service, one of {', '.join(config.services) or '(none)'}"
            hint = closest(route.service, config.services)
            fail((*key, "service"), known, f'"{route.service}"', hint)
        address = service.reached_at()
        if address is None or address.port == 0:
            expected = f'a service that listens: set http = "HOST:PORT" in services.{service.name}'
            found = "no http" if address is None else "port 0"
            fail((*key, "service"), expected, found)
        _check_who_and_may(config, route, key, fail)
        limits = config.gateway.limits if config.gateway else {}
        for name in route.limits:
            if name not in limits:
                known = f"a limit, one of {', '.join(limits) or '(none)'}"
                fail((*key, "limits"), known, f'"{name}"', closest(name, limits))
        if route.idempotency != "off":
            _check_idempotency(route, key, fail)
        for method in route.methods:
            if (route.path, method) in taken:
                expected = "each path and method once"
                fail((*key, "path"), expected, f"{method} {route.path} again")
            taken.add((route.path, method))


def _check_senders(config: Config, fail: Fail) -> None:
    """Fail for what sends nothing, and for streams that have another publisher."""
    gateway = config.gateway
    ingest = gateway.ingest if gateway else None
    if ingest is not None and not ingest.senders:
        expected = "tables [gateway.ingest.senders.NAME], which say who may send"
        fail(("gateway", "ingest", "senders"), expected, "none")
    for name, sender in (ingest.senders if ingest else {}).items():
        key: Key = ("gateway", "ingest", "senders", name)
        if not (sender.principals or sender.scopes):
            fail((*key, "principals"), "who may send: principals or scopes", "neither")
        if not (sender.events or sender.types):
            fail((*key, "events"), "what may be sent: events or types", "neither")
        _check_stream(config, key, sender.stream, fail)
    for name, webhook in (gateway.webhooks if gateway else {}).items():
        _check_stream(config, ("gateway", "webhooks", name), webhook.stream, fail)


def _check_stream(config: Config, key: Key, stream: str, fail: Fail) -> None:
    if stream in config.services:
        expected = "a stream that no service publishes"
        fail((*key, "stream"), expected, f'"{stream}", which is the service {stream}\'s')


def _check_own_paths(config: Config, fail: Fail) -> None:
    """Fail where a path of the gateway's own is another's too."""
    gateway = config.gateway
    if gateway is None:
        return
    own: list[tuple[Key, str]] = []
    if gateway.ingest is not None:
        own.append((("gateway", "ingest", "path"), gateway.ingest.path))
    own += [(("gateway", "webhooks", n, "path"), each.at()) for n, each in gateway.webhooks.items()]
    taken = {route.path for route in gateway.routes} | {*_RESERVED_PATHS, *LOGIN_PATHS, "/"}
    for key, path in own:
        if path in taken or any(part in (".", "..") for part in path.split("/")):
            fail(key, "a path that nothing else uses", f'"{path}"')
        taken.add(path)


def _check_idempotency(route: Route, key: Key, fail: Fail) -> None:
    if route.access == "public":
        expected = '"session", as an idempotency key is kept for a principal'
        fail((*key, "access"), expected, '"public"')
    if route.stream:
        expected = (
            "false, as idempotency keeps whole answers: give its methods a route of their own"
        )
        fail((*key, "stream"), expected, "true")
    if set(route.methods) <= {"GET", "HEAD"}:
        expected = "a method such as POST, as idempotency is for those that change something"
        fail((*key, "methods"), expected, ", ".join(route.methods))


def _check_flows(config: Config, route: Route, key: Key, fail: Fail) -> None:
    """Check what a route says of work that goes on after the answer, and of WebSockets."""
    changing = [method for method in route.methods if method not in ("GET", "HEAD")]
    if route.until and not changing:
        expected = "a route with a method that changes something, such as POST"
        fail((*key, "until"), expected, ", ".join(route.methods))
    if route.show and not route.until:
        fail((*key, "show"), "a route with until", ", ".join(route.show))
    if route.websocket and "GET" not in route.methods:
        expected = "a route with the method GET, with which a WebSocket begins"
        fail((*key, "websocket"), expected, ", ".join(route.methods))
    routes = config.gateway.routes if config.gateway else ()
    taken = route.path == FLOWS or route.path.startswith(f"{FLOWS}/")
    if taken and any(each.until for each in routes):
        expected = "a path that the gateway doesn't use: a route has until"
        fail((*key, "path"), expected, f'"{route.path}"')


def _check_login(config: Config, fail: Fail) -> None:
    login = config.gateway.login if config.gateway else None
    if login is not None:
        _check_provider(login, ("gateway", "login"), fail)
        if login.name in _RESERVED_ISSUERS:
            expected = "a name that the gateway doesn't use"
            fail(("gateway", "login", "name"), expected, f'"{login.name}"')
        namesake = config.gateway.issuers.get(login.name) if config.gateway else None
        if namesake is not None and namesake.issuer != login.issuer:
            expected = "a name of its own: only the same issuer's users are the same"
            fail(("gateway", "login", "name"), expected, f'"{login.name}"')
    signing_in = config.console.login if config.console else None
    if signing_in is not None:
        _check_provider(signing_in, ("console", "login"), fail)
        if not (signing_in.roles.read or signing_in.roles.operate):
            expected = "roles that may read or operate"
            fail(("console", "login", "roles"), expected, "none: nobody could sign in")


def _check_provider(settings: ProviderSettings, key: Key, fail: Fail) -> None:
    if "openid" not in settings.scopes:
        fail((*key, "scopes"), 'a list with "openid"', ", ".join(settings.scopes) or "none")
