"""Reading one's own writes through the gateway: a client's last token, kept in a cookie.

A service's answer names the events that its request published, in the header ``Oyez-After``. The
gateway keeps that for a minute in a cookie of the client, and passes it on with the client's next
requests, to whichever service. So a page that is loaded after an order was placed shows the order,
and the page needs no code for it. A client that sends the header itself is not interfered with.
"""

from __future__ import annotations

import base64
import binascii

from oyez.errors import InvalidEvent
from oyez.freshness import merged
from oyez.gateway.exchange import Exchange
from oyez.gateway.http1 import Headers
from oyez.gateway.sessions import cookies

COOKIE = "oyez_after"
HEADER = b"oyez-after"
SECONDS = 60
"""Seconds for which a client's requests carry the token: longer than any view lags."""
_LARGEST = 3_500
"""Bytes of a cookie's value; browsers drop cookies of more than about 4,096 bytes."""


def token_in(exchange: Exchange) -> str:
    """Return the token that a request's cookie holds; empty for none, or one that is broken."""
    sent = exchange.values(b"cookie")
    if not any(COOKIE in each for each in sent):
        return ""
    found = [value for name, value in cookies(sent) if name == COOKIE]
    if len(found) != 1 or len(found[0]) > _LARGEST:
        return ""
    try:
        padded = found[0] + "=" * (-len(found[0]) % 4)
        token = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        return merged(token)
    except (binascii.Error, ValueError, InvalidEvent):
        return ""


def cookie_for(exchange: Exchange, answered: list[bytes]) -> Headers:
    """Return the header that keeps what the header of a service's answer names."""
    tokens = [value.decode("latin-1") for value in answered]
    earlier = token_in(exchange)
    try:
        token = merged(earlier, ", ".join(tokens))
    except InvalidEvent:
        return []
    if not token:
        return []
    entries = token.split(", ")
    value = _encoded(entries)
    while len(value) > _LARGEST:
        del entries[0]  # the oldest one; one alone is never too large
        value = _encoded(entries)
    secure = "; Secure" if exchange.scheme == "https" else ""
    kept = f"{COOKIE}={value}; Path=/; Max-Age={SECONDS}; HttpOnly; SameSite=Strict{secure}"
    return [(b"set-cookie", kept.encode())]


def _encoded(entries: list[str]) -> str:
    return base64.urlsafe_b64encode(", ".join(entries).encode()).decode().rstrip("=")
