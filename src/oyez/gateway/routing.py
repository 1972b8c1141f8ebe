"""The safe path of a request, and its route. A path without a route is refused."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from oyez.config import Config, Listen, Route
from oyez.gateway.exchange import Exchange, Refusal

# Separators and dots that are encoded once or more often: a service that decodes once more than the
# gateway, or cuts at ";", would see another path than the one admitted.
_DISGUISED = re.compile(r"//|;|\\|%(?:25)*(?:2e|2f|5c|3b|00)|%(?![0-9a-f]{2})", re.IGNORECASE)
# Most paths: nothing is encoded, and no segment is empty or begins with a dot.
_PLAIN = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*+)++")


def safe_path(exchange: Exchange) -> str:
    """Return the decoded path of the request; raises :class:`Refusal` (400) if it is ambiguous."""
    if _PLAIN.fullmatch(exchange.path):
        return exchange.path.decode()
    try:
        raw = exchange.path.decode("ascii")
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raw = path = ""
    plain = raw.startswith("/") and not _DISGUISED.search(raw)
    dots = any(segment in (".", "..") for segment in path.split("/"))
    if not plain or dots or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise Refusal(400, "bad_path", "the path is malformed or ambiguous")
    return path


class Target(NamedTuple):
    """A route and the address of its service."""

    route: Route
    address: Listen


class Routes:
    """The routes of a configuration; the longest matching path applies."""

    def __init__(self, config: Config) -> None:
        self._by_path: dict[tuple[str, ...], dict[str, Target]] = {}
        for route in config.gateway.routes if config.gateway else ():
            address = config.services[route.service].reached_at()
            if address is None:
                raise ValueError(route)
            methods = self._by_path.setdefault(_segments(route.path), {})
            for method in route.methods:
                methods[method] = Target(route, address)
        for methods in self._by_path.values():
            if "GET" in methods:
                methods.setdefault("HEAD", methods["GET"])
        self._deepest = max(map(len, self._by_path), default=0)

    def match(self, path: str, method: str) -> Target | None:
        """Return the target of a path; None without a route; 405 if its route has other methods."""
        segments = _segments(path)
        for length in range(min(len(segments), self._deepest), -1, -1):
            methods = self._by_path.get(segments[:length])
            if methods is None:
                continue
            if method not in methods:
                raise not_allowed(*methods)
            return methods[method]
        return None


def not_allowed(*methods: str) -> Refusal:
    """Return the refusal of any method but these."""
    allow = ", ".join(sorted(methods))
    return Refusal(
        405, "method_not_allowed", f"allowed here: {allow}", [(b"allow", allow.encode())]
    )


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:]) if path != "/" else ()
