"""The header ``Idempotency-Key``, read."""

from __future__ import annotations

import re

from oyez.gateway.exchange import Exchange, Refusal

HEADER = b"idempotency-key"
LONGEST = 255
"""Characters of a key."""

# A string of a structured field (RFC 9651, section 3.3.3), as the draft asks for …
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
# … or the key without quotes, as most clients send it. A comma would join two headers.
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+")
_ESCAPED = re.compile(r"\\(.)")


def key_in(exchange: Exchange) -> str | None:
    """Return the key of a request, without its quotes; None if it has none.

    Raises :class:`Refusal` (400) for one that is malformed, or sent twice.
    """
    given = exchange.values(HEADER)
    if not given:
        return None
    key = parse(given[0]) if len(given) == 1 else None
    if key is None:
        detail = f"send one Idempotency-Key, a string of 1 to {LONGEST} printable ASCII characters"
        raise Refusal(400, "bad_idempotency_key", detail)
    return key


def parse(value: str) -> str | None:
    """Return the key that a header's value is, ``"k"`` and ``k`` alike; None if it is none."""
    quoted = _QUOTED.fullmatch(value)
    if quoted is not None:
        key = _ESCAPED.sub(r"\1", quoted[1])
    elif _BARE.fullmatch(value):
        key = value
    else:
        return None
    return key if 1 <= len(key) <= LONGEST else None
