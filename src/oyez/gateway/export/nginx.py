"""A configuration of nginx, for ``nginx -c FILE``; its modules are those of every build.

nginx matches a location against the path that it has decoded, and sends on the one that the client
wrote. So a path that services may read in another way is refused first, as the gateway does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import indent

from oyez.config import Config, GatewaySettings, Limit, Route
from oyez.gateway.exchange import SECURITY
from oyez.gateway.export.plan import (
    NOT_PASSED,
    OUR_COOKIES,
    OUR_HEADERS,
    Missing,
    Place,
    lacks_of_any,
    not_opened,
    plan,
    refusal_text,
    upstream,
)

_MARGIN = 64
"""Connections of a worker that are neither a client's nor a service's: listeners, files."""
_KEPT = 64
"""Idle connections to a service that a worker keeps."""
_ENDLESS = "365d"

_OK = '{"status":"ok"}'
_TYPES = """\
text/html html htm; text/css css; text/javascript js mjs; text/plain txt; text/xml xml;
application/json json map; application/manifest+json webmanifest; application/pdf pdf;
application/wasm wasm; font/ttf ttf; font/woff woff; font/woff2 woff2; image/avif avif;
image/gif gif; image/jpeg jpg jpeg; image/png png; image/svg+xml svg; image/webp webp;
image/x-icon ico;"""

# Of the request line, up to "?": characters that a path may have as they are, and well-formed UTF-8
# that is encoded; without what hides a separator, a dot or a control character.
_PATH = (
    r"~*^[^ ]+ (?![^? ]*(?://|/\.{1,2}(?:[/? ]|\z)|%(?:25)*(?:2e|2f|5c|3b|00)"
    r"|%(?:[01][0-9a-f]|7f)))"
    r"/(?:[!\"$&-:<->@-\[\]-~]|%[0-7][0-9a-f]|%(?:c[2-9a-f]|d[0-9a-f])%[89ab][0-9a-f]"
    r"|%e0%[ab][0-9a-f]%[89ab][0-9a-f]|%ed%[89][0-9a-f]%[89ab][0-9a-f]"
    r"|%e[1-9a-cef](?:%[89ab][0-9a-f]){2}"
    r"|%f0%[9ab][0-9a-f](?:%[89ab][0-9a-f]){2}|%f[1-3](?:%[89ab][0-9a-f]){3}"
    r"|%f4%8[0-9a-f](?:%[89ab][0-9a-f]){2})*+(?:[? ]|\z)"
)

_BAD_PATH = refusal_text(400, "bad_path", "the path is malformed or ambiguous")
_BAD_HOST = refusal_text(400, "bad_host", "the Host header is malformed")


def write(config: Config, settings: GatewaySettings) -> tuple[str, list[Missing]]:
    """Return the text of the file, and what it can't hold."""
    planned = plan(config, settings, lambda route: _lacks(settings, route))
    opened = [place for place in planned.places if place.route is not None]
    routes = [place.route for place in opened if place.route is not None]
    limits = {name: settings.limits[name] for route in routes for name in route.limits}
    static, without = _static(config, settings)
    http = [
        *_general(settings),
        *_maps(settings),
        *(_zone(limit) for limit in limits.values()),
        *_rooms(settings, routes),
        *_upstreams(config, routes),
        "server {",
        *_indented(_server(settings)),
        *_indented(_own(planned.closed)),
        *(line for place in planned.places for line in _indented(_at(config, settings, place))),
        *_indented(() if _has_root(planned.places) else static),
        *_indented(_errors(settings)),
        "}",
    ]
    # Each client may have a connection to a service besides its own.
    connections = 2 * settings.connections + _MARGIN
    lines = [
        "worker_processes auto;",
        f"worker_rlimit_nofile {connections + _MARGIN};",
        "pid oyez-nginx.pid;",
        "error_log oyez-error.log;",
        f"events {{ worker_connections {connections}; }}",
        "http {",
        *_indented(http),
        "}",
    ]
    missing = [*planned.missing, *without, *_missing(settings, limits.values())]
    return "".join(f"{line}\n" for line in lines), missing


def _lacks(settings: GatewaySettings, route: Route) -> str | None:
    if route.access == "user":
        return 'access = "user" needs tokens checked, which nginx can\'t'
    for name in route.limits:
        if _rate(settings.limits[name])[0] is None:
            return f"limit {name} is less than one in a minute"
    return lacks_of_any(route)


def _missing(settings: GatewaySettings, limits: Iterable[Limit]) -> Iterator[Missing]:
    named = ", ".join(OUR_HEADERS)
    yield Missing("gateway", f"a client's headers x-oyez-… reach services, but for {named}")
    yield Missing("gateway", "a client's headers x-forwarded-… reach services, but for those set")
    yield Missing("gateway", "timeout: it is that between two reads, not of a whole request")
    yield Missing("gateway", "header_limit: up to 1024 bytes more, in any number of headers")
    yield Missing("gateway", "connections: those of each worker; new ones are not let in above it")
    if settings.body_limit == 0:
        yield Missing("gateway", "body_limit: 1 byte, as 0 would be none")
    if settings.concurrency is not None or any(route.concurrency for route in settings.routes):
        yield Missing("gateway", "concurrency: a request above it is refused, and doesn't wait")
    for limit in limits:
        where = f"limit {limit.name}"
        if limit.by in ("principal", "key"):
            yield Missing(where, f'by = "{limit.by}": all are counted by the address')
        rate, exact = _rate(limit)
        if not exact:
            yield Missing(where, f"{limit.rate} is written as {rate}, which is less")


def _general(settings: GatewaySettings) -> Iterator[str]:
    timeout = _time(settings.timeout)
    yield "server_tokens off; absolute_redirect off; uninitialized_variable_warn off;"
    yield "default_type application/problem+json;"
    yield f"client_max_body_size {max(settings.body_limit, 1)};"
    # One large buffer holds the request line and the headers together.
    yield "client_header_buffer_size 1k;"
    yield f"large_client_header_buffers 1 {settings.header_limit};"
    yield f"client_header_timeout {timeout}; client_body_timeout {timeout};"
    yield f"send_timeout {timeout}; keepalive_timeout {timeout};"
    yield f"proxy_connect_timeout {_time(settings.connect_timeout)};"
    yield f"proxy_send_timeout {timeout}; proxy_read_timeout {timeout};"
    yield "limit_req_status 429; limit_conn_status 503;"
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        yield f"{kind}_temp_path oyez-{kind.replace('_', '-')};"
    yield from _log(settings.access_log)


def _log(share: float) -> Iterator[str]:
    fields = {
        "method": "$request_method",
        "status": "$status",
        "seconds": "$request_time",
        "request_id": "$oyez_id",
        "traceparent": "$oyez_trace",
    }
    line = ",".join(f'"{name}":"{value}"' for name, value in fields.items())
    yield f"log_format oyez escape=json '{{{line}}}';"
    if share not in (0, 1):
        yield f'split_clients "$request_id" $oyez_share {{ {share:.2%} 1; * 0; }}'
    other = "$oyez_share" if share not in (0, 1) else f"{share:.0f}"
    yield f"map $status $oyez_logged {{ ~^5 1; default {other}; }}"
    yield "access_log oyez-access.log oyez if=$oyez_logged;"


def _maps(settings: GatewaySettings) -> Iterator[str]:
    yield from _map("$request", "$oyez_bad_path", {_PATH: "0"}, "1")
    host = r"~^(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\z"
    yield from _map("$http_host", "$oyez_bad_host", {"": "0", host: "0"}, "1")
    encoding = r"~*^[\s,]*(?:identity[\s,]*)*\z"
    yield from _map("$http_content_encoding", "$oyez_encoded", {"": "0", encoding: "0"}, "1")
    yield from _map(
        "$http_x_request_id",
        "$oyez_id",
        {r"~^[A-Za-z0-9-]{8,64}\z": "$http_x_request_id"},
        "$request_id",
    )
    yield from _map("$request_id", "$oyez_span", {"~^(?<oyez_half>.{16})": "$oyez_half"}, "")
    given = (
        r"~^00-(?!0{32})(?<oyez_known>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-"
        r"(?<oyez_flags>[0-9a-f]{2})\z"
    )
    yield from _map(
        "$http_traceparent",
        "$oyez_trace",
        {given: "00-$oyez_known-$oyez_span-$oyez_flags"},
        "00-$request_id-$oyez_span-01",
    )
    yield from _map("$http_traceparent", "$oyez_tracestate", {given: "$http_tracestate"}, "")
    yield from _map("$remote_addr", "$oyez_for", {"~:": "[$remote_addr]"}, "$remote_addr")
    network = "~(?s)^(?<oyez_network>.{8}).{8}$"
    yield from _map(
        "$binary_remote_addr", "$oyez_address", {network: "$oyez_network"}, "$binary_remote_addr"
    )
    if settings.static is not None:
        yield from _map("$uri", "$oyez_file", {r"~/\z": "${uri}index.html"}, "$uri")
    yield from _cookie_maps()
    for name, value in SECURITY:
        # The service's own goes first, and comes by itself.
        plain = name.decode().replace("-", "_")
        yield from _map(f"$upstream_http_{plain}", f"$oyez_{plain}", {"": value.decode()}, "")


def _cookie_maps() -> Iterator[str]:
    """Write the maps to `$oyez_cookie`: what a client sent, without the gateway's cookies."""
    source = "$http_cookie"
    for number, name in enumerate(OUR_COOKIES):
        before, after = f"oyez_before_{number}", f"oyez_after_{number}"
        cases = {
            rf"~^{name}=[^;]*(?:;\s*(?<{after}>.*))?\z": f"${after}",
            rf"~^(?<{before}>.*?);\s*{name}=[^;]*(?<{after}x>.*)\z": f"${before}${after}x",
        }
        yield from _map(source, f"$oyez_cookie_{number}", cases, source)
        source = f"$oyez_cookie_{number}"
    left = rf"~(?:{'|'.join(OUR_COOKIES)})="
    yield from _map(source, "$oyez_cookie", {left: ""}, source)


def _map(source: str, target: str, cases: dict[str, str], default: str) -> Iterator[str]:
    yield f"map {source} {target} {{"
    yield f"  default {_quoted(default)};"
    for case, value in cases.items():
        yield f"  {_quoted(case)} {_quoted(value)};"
    yield "}"


def _zone(limit: Limit) -> str:
    key, size = ('"$oyez_route"', "1m") if limit.by == "route" else ("$oyez_address", "10m")
    return f"limit_req_zone {key} zone=oyez_{limit.name}:{size} rate={_rate(limit)[0]};"


def _rate(limit: Limit) -> tuple[str | None, bool]:
    """Return nginx's word for a rate, None if it has none, and whether it is the same rate."""
    count, seconds = limit.rate.count, limit.rate.seconds
    if count % seconds == 0:
        return f"{count // seconds}r/s", True
    minutely, rest = divmod(count * 60, seconds)
    return (f"{minutely}r/m" if minutely else None), not rest


def _rooms(settings: GatewaySettings, routes: Sequence[Route]) -> Iterator[str]:
    if settings.concurrency is not None:
        yield 'limit_conn_zone "all" zone=oyez_at_work:32k;'
    if any(route.concurrency is not None for route in routes):
        yield 'limit_conn_zone "$oyez_route" zone=oyez_at_work_on_route:1m;'


def _upstreams(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    for name, address in {route.service: upstream(config, route) for route in routes}.items():
        yield f"upstream oyez_{name} {{ server {address}; keepalive {_KEPT}; }}"


def _server(settings: GatewaySettings) -> Iterator[str]:
    scheme = "https" if settings.tls else "http"
    yield f"listen {settings.listen} default_server;"
    yield "server_name _;"
    yield from (f"set_real_ip_from {each};" for each in settings.trusted_proxies)
    if settings.trusted_proxies:
        yield "real_ip_header X-Forwarded-For; real_ip_recursive on;"
    for name in ("allow", "wait", "next", "route", "service"):
        yield f'set $oyez_{name} "";'
    yield "set $oyez_cache no-store;"
    for name in (each.decode() for each, _ in SECURITY):
        yield f"add_header {name} $oyez_{name.replace('-', '_')} always;"
    yield "add_header x-request-id $oyez_id always;"
    yield "add_header allow $oyez_allow always;"
    yield "add_header cache-control $oyez_cache always;"
    yield "add_header retry-after $oyez_wait always;"
    yield "proxy_http_version 1.1; proxy_next_upstream off; proxy_max_temp_file_size 0;"
    yield from (f"proxy_hide_header {name};" for name in ("x-request-id", *OUR_HEADERS))
    # A service has no say in which files and addresses nginx looks at.
    yield "proxy_ignore_headers X-Accel-Redirect X-Accel-Limit-Rate X-Accel-Charset;"
    for name in NOT_PASSED:
        yield f'proxy_set_header {name} "";'
    sent = {
        "host": "$oyez_service",
        "connection": "",
        "cookie": "$oyez_cookie",
        "forwarded": f'for="$oyez_for";host="$http_host";proto={scheme}',
        "x-forwarded-for": "$remote_addr",
        "x-forwarded-host": "$http_host",
        "x-forwarded-proto": scheme,
        "x-request-id": "$oyez_id",
        "traceparent": "$oyez_trace",
        "tracestate": "$oyez_tracestate",
    }
    yield from (f"proxy_set_header {name} {_quoted(value)};" for name, value in sent.items())
    yield f"if ($oyez_bad_host) {{ return 400 {_text(_BAD_HOST)}; }}"
    yield f"if ($oyez_bad_path) {{ return 400 {_text(_BAD_PATH)}; }}"
    yield "if ($oyez_encoded) { return 415; }"


def _own(closed: Iterable[str]) -> Iterator[str]:
    for path in ("/livez", "/readyz"):
        yield f"location = {path} {{"
        yield from _indented(_only(("GET", "HEAD")))
        yield f"  default_type application/json; return 200 {_text(_OK)};"
        yield "}"
    for path in closed:
        yield f"location = {path} {{ return 403; }}"


def _at(config: Config, settings: GatewaySettings, place: Place) -> Iterator[str]:
    below = "/" if place.path == "/" else rf"{re.escape(place.path)}(?:/|\z)"
    yield f"location ~ {_quoted('^' + below)} {{"
    if place.refused:
        yield f"  # Not opened, see above: {' '.join(place.refused)}."
        yield f"  if ($request_method ~ {_quoted(_any_of(place.refused))}) {{"
        yield "    return 403;"
        yield "  }"
    yield from _indented(_only(place.methods, place.refused))
    if place.route is not None:
        yield from _indented(_forwarded(config, settings, place.route))
    yield "}"


def _only(methods: Sequence[str], refused: Sequence[str] = ()) -> Iterator[str]:
    allow = ", ".join(sorted({*methods, *refused}))
    stop = f'set $oyez_allow "{allow}"; return 405;'
    if methods:
        yield f"if ($request_method !~ {_quoted(_any_of(methods))}) {{ {stop} }}"
    else:
        yield stop


def _forwarded(config: Config, settings: GatewaySettings, route: Route) -> Iterator[str]:
    address = upstream(config, route)
    yield f'set $oyez_route "{" ".join(route.methods)} {route.path}";'
    yield f'set $oyez_service "{address}"; set $oyez_cache "";'
    for limit in (settings.limits[name] for name in route.limits):
        burst = f" burst={limit.size - 1} nodelay" if limit.size > 1 else ""
        yield f"limit_req zone=oyez_{limit.name}{burst};"
    if route.limits:
        yield f'set $oyez_next "{max(_next(settings.limits[name]) for name in route.limits)}";'
    if settings.concurrency is not None:
        yield f"limit_conn oyez_at_work {settings.concurrency};"
    if route.concurrency is not None:
        yield f"limit_conn oyez_at_work_on_route {route.concurrency};"
    if route.stream:
        yield f"proxy_buffering off; proxy_read_timeout {_ENDLESS}; send_timeout {_ENDLESS};"
    yield f"proxy_redirect http://{address}/ /;"
    yield f"proxy_pass http://oyez_{route.service};"


def _next(limit: Limit) -> int:
    """Return the seconds until a limit lets one more through, rounded up."""
    return max(-(-limit.rate.seconds // limit.rate.count), 1)


def _static(config: Config, settings: GatewaySettings) -> tuple[list[str], list[Missing]]:
    none = ["location / { return 404; }"]
    if settings.static is None:
        return none, []
    folder = f"{config.file(settings.static).resolve()}"
    if "$" in folder:
        return none, [Missing("static", "refused, nginx takes a $ in a path for a variable")]
    lines = [
        "location / {",
        "  if ($request_method !~ ^(?:GET|HEAD)$) { return 404; }",
        r'  if ($uri ~ "/\\.") { return 404; }',
        "  set $oyez_cache no-cache;",
        f"  root {_quoted(folder)}; disable_symlinks on from={_quoted(folder)};",
        f"  types {{\n{indent(_TYPES, '    ')}\n  }}",
        "  default_type application/octet-stream;",
        "  charset utf-8; charset_types text/css text/javascript text/plain text/xml;",
        "  try_files $oyez_file =404;",
        "}",
    ]
    return "\n".join(lines).split("\n"), []


def _has_root(places: Iterable[Place]) -> bool:
    return any(place.path == "/" for place in places)


def _errors(settings: GatewaySettings) -> Iterator[str]:
    """Write what is refused, by nginx itself or above, as problem documents."""
    limit = settings.body_limit
    documents = {
        400: refusal_text(400, "malformed", "the request is not well-formed HTTP/1.1"),
        403: not_opened(),
        404: refusal_text(404, "not_found", "nothing is here"),
        405: refusal_text(405, "method_not_allowed", "allowed here: $oyez_allow"),
        408: refusal_text(408, "slow_body", "the body did not arrive in time"),
        413: refusal_text(413, "body_too_large", f"the body of a request is at most {limit} bytes"),
        415: refusal_text(
            415, "encoded_body", "request bodies are accepted without a content encoding only"
        ),
        429: refusal_text(429, "rate_limited", "more requests than a limit lets through"),
        431: refusal_text(431, "headers_too_large", "the head of the request is too large"),
        500: refusal_text(500, "internal", "the gateway failed"),
        502: refusal_text(502, "service_broken", "the service can't be reached, or disconnected"),
        503: refusal_text(503, "overloaded", "too many requests at the same time"),
        504: refusal_text(504, "service_timeout", "the service did not answer in time"),
    }
    waits = {429: "$oyez_next", 502: "1", 503: "1", 504: "1"}
    # What nginx answers otherwise than the gateway: 494 is a large head, 501 an unknown coding.
    given = {400: "400 501 =400", 431: "414 494 =431"}
    for status, document in documents.items():
        wait = f"set $oyez_wait {waits[status]}; " if status in waits else ""
        inner = f"set $oyez_cache no-store; {wait}return {status} {_text(document)};"
        if status in given:
            # Not every malformed request has a path, and without one no @ can be gone to.
            yield f"error_page {given[status]} /.oyez-{status};"
            yield f"location = /.oyez-{status} {{ internal; {inner} }}"
        else:
            yield f"error_page {status} @oyez_{status};"
            yield f"location @oyez_{status} {{ {inner} }}"


def _any_of(methods: Iterable[str]) -> str:
    return rf"^(?:{'|'.join(methods)})\z"


def _time(seconds: float) -> str:
    return f"{max(round(seconds * 1000), 1)}ms"


def _quoted(text: str) -> str:
    """Return a word of nginx's language; a ``$`` in it begins a variable where nginx has those."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(document: str) -> str:
    """Return a JSON document as a word, between the marks that it has not."""
    escaped = document.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
