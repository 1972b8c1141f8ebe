"""A configuration of Envoy 1.36, for ``envoy -c FILE``: JSON, which is YAML that takes comments.

Envoy matches a path as it was written. So one that services may read as another is refused first:
all that is encoded and need not be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from oyez.config import Config, GatewaySettings, IssuerSettings, Listen, Route
from oyez.gateway.exchange import SECURITY
from oyez.gateway.export.plan import (
    NOT_PASSED,
    OUR_HEADERS,
    Missing,
    Place,
    lacks_of_any,
    not_opened,
    plan,
    refusal_text,
    upstream,
)

_Tree = dict[str, Any]

_TYPES = "type.googleapis.com/envoy"
# RE2 has no lookahead: the characters that a path may have as they are, those that may be encoded
# (no letter, digit, dot, separator, percent or control character), and segments without dots alone.
_CHARACTER = (
    r'(?:[!"$&\'()*+,\-.0-9:<=>@A-Z\[\]^_`a-z{|}~]'
    r"|%(?:2[0-46-9A-Ca-c]|3[ACDEFacdef]|40|5[BDEbde]|60|7[B-Db-d]|[89A-Fa-f][0-9A-Fa-f]))"
)
_PATH = rf"/(?:{_CHARACTER}+/)*{_CHARACTER}*(?:\?.*)?"
_CLAIMED = ("x-oyez-", "x-envoy-")
"""Beginnings of headers that claim who sends a request, or tell Envoy how to send it on."""
_DOTS = r"(?:/[^?]*)?/\.{1,2}(?:[/?].*)?"


def write(config: Config, settings: GatewaySettings) -> tuple[str, list[Missing]]:
    """Return the text of the file, and what it can't hold."""
    planned = plan(config, settings, lambda route: _lacks(settings, route))
    opened = [place.route for place in planned.places if place.route is not None]
    tree: _Tree = {
        "static_resources": {
            "listeners": [_listener(config, settings, planned.places, planned.closed)],
            "clusters": [
                *_clusters(config, settings, opened),
                *(_cluster_of_keys(each) for each in _asked(settings, opened) if _remote(each)),
            ],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPES}.extensions.resource_monitors.downstream_connections"
                        ".v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": settings.connections,
                    },
                }
            ]
        },
    }
    text = msgspec.json.format(msgspec.json.encode(tree), indent=2).decode()
    return f"{text}\n", [*planned.missing, *_missing(settings, opened)]


def _lacks(settings: GatewaySettings, route: Route) -> str | None:
    if route.access == "user" and not _vouching(settings, route):
        return "no issuer vouches for its users"
    if len(route.limits) > 1:
        return "Envoy holds one limit of a route"
    for limit in (settings.limits[name] for name in route.limits):
        if limit.by != "route":
            return f'limit {limit.name} by = "{limit.by}" needs a rate limit service'
    return lacks_of_any(route)


def _missing(settings: GatewaySettings, opened: Sequence[Route]) -> Iterable[Missing]:
    yield Missing("gateway", "a client's headers x-forwarded-… reach services, but for those set")
    yield Missing("gateway", "a client's x-request-id is kept, whatever it is")
    yield Missing("gateway", "encoded letters, digits and dots in a path are refused (400)")
    yield Missing("gateway", "access_log: no line is written")
    yield Missing("gateway", "header_limit: it is rounded up to 1024 bytes")
    yield Missing("gateway", "cookies of the gateway that a client sends reach services")
    yield Missing("gateway", "request bodies with a content encoding reach services")
    if settings.concurrency is not None:
        yield Missing("gateway", "concurrency: there is none for all routes together")
    if settings.static is not None:
        yield Missing("static", "refused, Envoy serves no files")
    for issuer in _asked(settings, opened):
        where = f"issuer {issuer.name}"
        yield Missing(where, "algorithms: any that one of its keys is for, never none")


def _listener(
    config: Config, settings: GatewaySettings, places: Sequence[Place], closed: Iterable[str]
) -> _Tree:
    asked = _asked(settings, [place.route for place in places if place.route is not None])
    router = {"@type": f"{_TYPES}.extensions.filters.http.router.v3.Router"}
    filters = [
        _filter("jwt_authn", _tokens(config, asked)) if asked else None,
        _filter(
            "local_ratelimit",
            {
                "@type": f"{_TYPES}.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
                "stat_prefix": "oyez",
            },
        ),
        _filter(
            "buffer",
            {
                "@type": f"{_TYPES}.extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": max(settings.body_limit, 1),
            },
        ),
        _filter("router", {**router, "suppress_envoy_headers": True}),
    ]
    manager: _Tree = {
        "@type": f"{_TYPES}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "oyez",
        "server_header_transformation": "OVERWRITE",
        "server_name": "oyez",
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "max_request_headers_kb": -(-settings.header_limit // 1024),
        "common_http_protocol_options": {
            "max_headers_count": 100,
            "headers_with_underscores_action": "DROP_HEADER",
            "idle_timeout": _time(settings.timeout),
        },
        "request_headers_timeout": _time(settings.timeout),
        "request_timeout": _time(settings.timeout),
        "normalize_path": False,
        "merge_slashes": False,
        "early_header_mutation_extensions": [_without(_CLAIMED)],
        "http_filters": [each for each in filters if each is not None],
        "route_config": _routes(config, settings, places, closed),
        **_client(settings),
    }
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "gateway",
        "address": _address(settings.listen),
        "per_connection_buffer_limit_bytes": max(settings.body_limit, 1024),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _client(settings: GatewaySettings) -> _Tree:
    """Return how the client's address is found: by its connection, or by trusted proxies."""
    if not settings.trusted_proxies:
        return {"use_remote_address": True}
    cidrs = [
        {"address_prefix": f"{each.network_address}", "prefix_len": each.prefixlen}
        for each in settings.trusted_proxies
    ]
    config = {
        "@type": f"{_TYPES}.extensions.http.original_ip_detection.xff.v3.XffConfig",
        "xff_trusted_cidrs": {"cidrs": cidrs},
    }
    found = {"name": "envoy.http.original_ip_detection.xff", "typed_config": config}
    return {"use_remote_address": False, "original_ip_detection_extensions": [found]}


def _routes(
    config: Config, settings: GatewaySettings, places: Sequence[Place], closed: Iterable[str]
) -> _Tree:
    bad_path = refusal_text(400, "bad_path", "the path is malformed or ambiguous")
    ok = {"status": 200, "body": {"inline_string": '{"status":"ok"}'}}
    routes = [
        _answer({"prefix": "/", "headers": [_path(_PATH, invert=True)]}, 400, bad_path),
        _answer({"prefix": "/", "headers": [_path(_DOTS)]}, 400, bad_path),
        *(
            {"match": {"path": path, "headers": [_method(("GET", "HEAD"))]}, "direct_response": ok}
            for path in ("/livez", "/readyz")
        ),
        *(_answer({"path": path}, 403, not_opened()) for path in closed),
    ]
    for place in places:
        routes += _at(config, settings, place)
    not_found = refusal_text(404, "not_found", "nothing is here")
    routes.append(_answer({"prefix": "/"}, 404, not_found))
    scheme = "https" if settings.tls else "http"
    address = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
    sent = {
        "forwarded": f'for="{address}";host="%REQ(:AUTHORITY)%";proto={scheme}',
        "x-forwarded-for": address,
        "x-forwarded-host": "%REQ(:AUTHORITY)%",
        "x-forwarded-proto": scheme,
    }
    return {
        "name": "gateway",
        "request_headers_to_remove": [*NOT_PASSED],
        "request_headers_to_add": [
            _header(name, value, "OVERWRITE_IF_EXISTS_OR_ADD") for name, value in sent.items()
        ],
        "response_headers_to_remove": [*OUR_HEADERS],
        "response_headers_to_add": [
            _header(name.decode(), value.decode(), "ADD_IF_ABSENT") for name, value in SECURITY
        ],
        "virtual_hosts": [{"name": "gateway", "domains": ["*"], "routes": routes}],
    }


def _at(config: Config, settings: GatewaySettings, place: Place) -> list[_Tree]:
    # A path below begins with the whole path and a separator; only "/" has all below it.
    below = {"prefix": "/"} if place.path == "/" else {"path_separated_prefix": place.path}
    found: list[_Tree] = []
    if place.refused:
        match = {**below, "headers": [_method(place.refused)]}
        found.append(_answer(match, 403, not_opened()))
    if place.route is not None:
        match = {**below, "headers": [_method(place.methods)]}
        found.append(_forwarded(config, settings, place.route, match))
    allow = ", ".join(sorted({*place.methods, *place.refused}))
    text = refusal_text(405, "method_not_allowed", f"allowed here: {allow}")
    answer = _answer(below, 405, text)
    answer["response_headers_to_add"].append(_header("allow", allow, "ADD_IF_ABSENT"))
    return [*found, answer]


def _forwarded(config: Config, settings: GatewaySettings, route: Route, match: _Tree) -> _Tree:
    address = upstream(config, route)
    sent: _Tree = {
        "cluster": _cluster(route),
        "host_rewrite_literal": address,
        "timeout": "0s" if route.stream else _time(settings.timeout),
    }
    if route.stream:
        sent["idle_timeout"] = "0s"
    held: _Tree = {}
    for limit in (settings.limits[name] for name in route.limits):
        held["envoy.filters.http.local_ratelimit"] = {
            "@type": f"{_TYPES}.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": limit.name,
            "token_bucket": {
                "max_tokens": limit.size,
                "tokens_per_fill": min(limit.rate.count, limit.size),
                "fill_interval": f"{limit.rate.seconds}s",
            },
            "filter_enabled": _always(f"oyez.{limit.name}.enabled"),
            "filter_enforced": _always(f"oyez.{limit.name}.enforced"),
        }
    if route.access == "user":
        held["envoy.filters.http.jwt_authn"] = {
            "@type": f"{_TYPES}.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
            "requirement_name": _requirement(_vouching(settings, route)),
        }
    found: _Tree = {"match": match, "route": sent}
    return {**found, "typed_per_filter_config": held} if held else found


def _tokens(config: Config, issuers: Sequence[IssuerSettings]) -> _Tree:
    """Return the filter that checks tokens, of those routes that name one of its requirements."""
    settings = config.gateway
    assert settings is not None
    asked = {
        _requirement(names): names
        for names in (
            _vouching(settings, route) for route in settings.routes if route.access == "user"
        )
    }
    return {
        "@type": f"{_TYPES}.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {each.name: _provider(config, each) for each in issuers},
        "requirement_map": {
            name: _of_any(names)
            for name, names in asked.items()
            if set(names) <= {each.name for each in issuers}
        },
    }


def _of_any(names: Sequence[str]) -> _Tree:
    each = [{"provider_name": name} for name in names]
    return {"requires_any": {"requirements": each}} if len(each) > 1 else {**each[0]}


def _provider(config: Config, issuer: IssuerSettings) -> _Tree:
    keys: _Tree
    if _remote(issuer):
        uri = {"uri": issuer.jwks, "cluster": f"keys-{issuer.name}", "timeout": "5s"}
        keys = {"remote_jwks": {"http_uri": uri, "cache_duration": "300s"}}
    else:
        keys = {"local_jwks": {"filename": f"{config.file(issuer.jwks).resolve()}"}}
    return {
        "issuer": issuer.issuer,
        "audiences": [*issuer.audience],
        "clock_skew_seconds": round(issuer.leeway),
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "require_expiration": True,
        **keys,
    }


def _asked(settings: GatewaySettings, opened: Iterable[Route]) -> list[IssuerSettings]:
    """Return the issuers whose tokens are checked on the routes that are opened."""
    routes = [route for route in opened if route.access == "user"]
    names = {name for route in routes for name in _vouching(settings, route)}
    return [settings.issuers[name] for name in sorted(names)]


def _vouching(settings: GatewaySettings, route: Route) -> tuple[str, ...]:
    return tuple(sorted(route.issuers or settings.issuers))


def _requirement(names: Iterable[str]) -> str:
    return " or ".join(names)


def _clusters(
    config: Config, settings: GatewaySettings, opened: Iterable[Route]
) -> Iterable[_Tree]:
    for name, route in {_cluster(route): route for route in opened}.items():
        address = Listen.parse(upstream(config, route))
        found = _cluster_at(name, address, settings.connect_timeout)
        if route.concurrency is not None:
            places = {"max_requests": route.concurrency, "max_pending_requests": route.concurrency}
            found["circuit_breakers"] = {"thresholds": [places]}
        yield found


def _cluster(route: Route) -> str:
    """Return the name of what a route's requests go to: its own if it bounds how many there are."""
    if route.concurrency is None:
        return route.service
    return f"{route.service} {' '.join(route.methods)} {route.path}"


def _cluster_of_keys(issuer: IssuerSettings) -> _Tree:
    url = urlsplit(issuer.jwks)
    host, secure = url.hostname or "", url.scheme == "https"
    address = Listen(host, url.port or (443 if secure else 80))
    found = _cluster_at(f"keys-{issuer.name}", address, 5)
    if secure:
        # Without a file of trusted roots Envoy would believe any certificate.
        tls = {
            "@type": f"{_TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": host,
            "common_tls_context": {
                "validation_context": {
                    "trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"},
                    "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": host}}
                    ],
                }
            },
        }
        found["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return found


def _cluster_at(name: str, address: Listen, connect_timeout: float) -> _Tree:
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": _time(connect_timeout),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _remote(issuer: IssuerSettings) -> bool:
    return "://" in issuer.jwks


def _without(beginnings: Iterable[str]) -> _Tree:
    """Return what takes a client's headers away before anything looks at them."""
    removed = [{"remove_on_match": {"key_matcher": {"prefix": each}}} for each in beginnings]
    config = {
        "@type": f"{_TYPES}.extensions.http.early_header_mutation.header_mutation.v3"
        ".HeaderMutation",
        "mutations": removed,
    }
    return {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}


def _filter(name: str, typed: _Tree) -> _Tree:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _address(listen: Listen) -> _Tree:
    return {"socket_address": {"address": listen.host, "port_value": listen.port}}


def _method(methods: Sequence[str]) -> _Tree:
    return {
        "name": ":method",
        "string_match": {"safe_regex": {"regex": "|".join(re.escape(each) for each in methods)}},
    }


def _path(regex: str, *, invert: bool = False) -> _Tree:
    found: _Tree = {"name": ":path", "string_match": {"safe_regex": {"regex": regex}}}
    return {**found, "invert_match": True} if invert else found


def _answer(match: _Tree, status: int, text: str) -> _Tree:
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "response_headers_to_add": [
            _header("content-type", "application/problem+json", "OVERWRITE_IF_EXISTS_OR_ADD"),
            _header("cache-control", "no-store", "OVERWRITE_IF_EXISTS_OR_ADD"),
        ],
    }


def _header(name: str, value: str, action: str) -> _Tree:
    return {"header": {"key": name, "value": value}, "append_action": action}


def _always(key: str) -> _Tree:
    return {
        "default_value": {"numerator": 100, "denominator": "HUNDRED"},
        "runtime_key": key,
    }


def _time(seconds: float) -> str:
    return f"{seconds:g}s"
