"""Answers by gzip, for clients that accept it: text alone, where it is worth the time.

What an answer shares with a request can be guessed from the length of what is compressed, secrets
beside it included (BREACH). So it is for routes that say so, and neither for answers that set a
cookie nor for those that a page of another site asks for with its visitor's cookies.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Awaitable
from functools import lru_cache

from oyez.config import Route
from oyez.gateway.exchange import Exchange
from oyez.gateway.http1 import Headers
from oyez.gateway.step import Answer

_LEAST = 1024
"""Bytes below which an answer is left as it is, where its length is known."""
# A megabyte of JSON keeps the event loop for 7 ms; level 6 takes a third longer for a tenth less.
_LEVEL = 4
# Half of the usual window and table: 128 KiB while an answer goes on, and streams go on for long.
_WINDOW, _MEMORY = 14, 7
_GZIP = 16 + _WINDOW
_TEXT = re.compile(
    rb"(?:text/(?!event-stream)[^;\s]+|image/svg\+xml|application/(?:[^;\s]+\+(?:json|xml|yaml)"
    rb"|json|xml|yaml|javascript|graphql|(?:x-)?ndjson|jsonl|json-seq))(?:\s*;.*)?",
    re.IGNORECASE,
)
# An answer to a part of a resource, or without a body.
_AS_IT_IS = (204, 205, 206)
# They are of the bytes that the service sent.
_OF_THE_BYTES = (b"content-digest", b"content-md5", b"digest", b"repr-digest")
_CODING = re.compile(
    r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*[qQ]\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*)?"
)


class Compression:
    """The step that compresses the answers of routes with ``compress``."""

    def before(self, route: Route, onward: Answer) -> Answer:
        """Compress what is worth it, for clients that prefer it so."""
        if not route.compress:
            return onward

        def compress(exchange: Exchange) -> Awaitable[None]:
            wanted = accepts_gzip(b",".join(exchange.fields.get(b"accept-encoding", ())))
            exchange.through(_Gzip(wanted=wanted and not _may_spy(exchange)))
            return onward(exchange)

        return compress


@lru_cache(maxsize=256)
def accepts_gzip(accepted: bytes) -> bool:
    """Whether a client with this ``Accept-Encoding`` likes gzip at least as well as plain bytes.

    A list that is malformed asks for plain bytes.
    """
    weights: dict[str, float] = {}
    for each in accepted.decode("latin-1").split(","):
        if not each.strip():
            continue
        match = _CODING.fullmatch(each)
        if match is None:
            return False
        weights[match[1].lower()] = float(match[2] or 1)
    others = weights.get("*", 0.0)
    gzip = weights.get("gzip", weights.get("x-gzip", others))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


class _Gzip:
    """One answer; see :class:`oyez.gateway.exchange.Filter`. ``wanted``: by its client."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._made: zlib._Compress | None = None
        self._at_once = False

    def head(self, status: int, headers: Headers) -> Headers:
        names = dict(headers)
        if status == 304:
            # The client has what this tag says, and so as it would be sent now.
            changed = [_weak(each) for each in headers] if self._wanted else headers
            return [*changed, (b"vary", b"accept-encoding")]
        if not _worth_it(status, names) or _is_to_stay(headers):
            return headers
        if not self._wanted:
            return [*headers, (b"vary", b"accept-encoding")]
        self._made = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, _MEMORY)
        self._at_once = b"content-length" not in names
        kept = [
            _weak(each)
            for each in headers
            if each[0] not in (b"content-length", b"content-encoding", b"accept-ranges")
        ]
        return [*kept, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]

    def part(self, content: bytes) -> bytes:
        made = self._made
        if made is None or not content:
            return content
        content = made.compress(content)
        # What arrives bit by bit is to reach the client so too.
        return content + made.flush(zlib.Z_SYNC_FLUSH) if self._at_once else content

    def last(self, content: bytes) -> bytes:
        made = self._made
        return content if made is None else made.compress(content) + made.flush()


def _worth_it(status: int, names: dict[bytes, bytes]) -> bool:
    if status in _AS_IT_IS or b"set-cookie" in names:
        return False
    if not _TEXT.fullmatch(names.get(b"content-type", b"")):
        return False
    if names.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return False
    if any(each in names for each in _OF_THE_BYTES):
        return False
    return int(names.get(b"content-length", _LEAST)) >= _LEAST


def _is_to_stay(headers: Headers) -> bool:
    said = [value.lower() for name, value in headers if name == b"cache-control"]
    return any(b"no-transform" in each for each in said)


def _weak(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return a header; a tag of a whole answer is one of what it says, not of its bytes."""
    name, value = header
    return (name, b"W/" + value) if name == b"etag" and value.startswith(b'"') else header


def _may_spy(exchange: Exchange) -> bool:
    """Whether a page of another site sends it, with the cookies of its visitor."""
    return b"cookie" in exchange.fields and exchange.value(b"sec-fetch-site") == "cross-site"
