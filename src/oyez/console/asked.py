"""What a request to the admin port asks: the numbers of its query and its body, within bounds."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from oyez.errors import InvalidEvent
from oyez.event import MAX_DATA

T = TypeVar("T")

LARGEST = 2**63 - 1
"""The largest number that a store has."""
BODY = MAX_DATA * 4 // 3 + 4096
"""The limit of bytes of a body: data of an event in base64, and what is said of it."""


def number(request: Request, name: str, default: int, most: int) -> int:
    """Return a number of the query, cut to ``most``. Raises InvalidEvent."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidEvent(name, "a number from 0 up")
    return min(int(text), most)


async def read_body(request: Request, kind: type[T]) -> T:
    """Return the body as a type. Raises InvalidEvent and DecodeError."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise InvalidEvent("body", f"at most {BODY} bytes")
    return msgspec.json.decode(bytes(body), type=kind)
