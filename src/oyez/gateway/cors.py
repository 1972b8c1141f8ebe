"""Pages of other origins: what the Fetch standard asks of a server that lets them in.

A browser keeps an answer from a page of another origin, and does not even send most requests of
one, unless the gateway says that it may. What others than browsers send is not affected.
"""

from __future__ import annotations

from collections.abc import Collection

from oyez.config import CorsSettings
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.http1 import Headers
from oyez.gateway.routing import not_allowed

_ASKED = b"access-control-request-method"
# The gateway says them itself: a browser refuses an answer that has one twice.
_REPLACED = {
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-expose-headers",
}


class Cors:
    """Says to browsers which pages may send what, and read the answers."""

    def __init__(self, settings: CorsSettings) -> None:
        self._everybody = "*" in settings.origins
        self._origins = frozenset(settings.origins)
        self._methods = settings.methods
        # What it says of each answer to an origin that may read it, and of each preflight.
        self._reading: Headers = []
        if settings.credentials:
            self._reading.append((b"access-control-allow-credentials", b"true"))
        if settings.expose:
            self._reading.append((b"access-control-expose-headers", _list(settings.expose)))
        self._sending: Headers = [
            (b"vary", b"access-control-request-method, access-control-request-headers"),
            (b"access-control-max-age", b"%d" % settings.max_age),
        ]
        if settings.headers:
            self._sending.append((b"access-control-allow-headers", _list(settings.headers)))

    def open(self, exchange: Exchange) -> None:
        """Let the page that sent a request read the answer, if its origin is configured.

        That holds for refusals too, so that the page can say what was wrong.
        """
        origin = self._admitted(exchange)
        said = [(b"access-control-allow-origin", origin), *self._reading] if origin else []
        exchange.through(_Opened([(b"vary", b"origin"), *said]))

    async def preflight(self, exchange: Exchange, methods: Collection[str]) -> None:
        """Answer whether a page may send what it wants to a path that has these methods.

        Raises :class:`Refusal`, at which a browser sends nothing: for a page of an origin that is
        not configured (403), and for a method that the path does not have (405).
        """
        if not self._admitted(exchange):
            raise Refusal(403, "origin_refused", "pages of this origin may not use the gateway")
        if exchange.value(_ASKED) not in methods:
            raise not_allowed(*methods)
        allowed = _list([each for each in self._methods if each in methods])
        await exchange.body()
        await exchange.plain(204, [(b"access-control-allow-methods", allowed), *self._sending])

    def _admitted(self, exchange: Exchange) -> bytes:
        """Return the origin that may read the answer, ``*`` for all; empty for none."""
        origins = exchange.values(b"origin")
        if len(origins) != 1:
            return b""
        if self._everybody:
            return b"*"
        return origins[0].encode("latin-1") if origins[0] in self._origins else b""


def is_preflight(exchange: Exchange) -> bool:
    """Whether a browser asks what a page may send, before it sends it."""
    fields = exchange.fields
    return exchange.method == "OPTIONS" and b"origin" in fields and _ASKED in fields


class _Opened:
    """An answer on its way to a browser; see :class:`oyez.gateway.exchange.Filter`."""

    def __init__(self, said: Headers) -> None:
        self._said = said

    def head(self, status: int, headers: Headers) -> Headers:
        return [*(each for each in headers if each[0] not in _REPLACED), *self._said]

    def part(self, content: bytes) -> bytes:
        return content

    def last(self, content: bytes) -> bytes:
        return content


def _list(names: Collection[str]) -> bytes:
    return ", ".join(names).encode()
