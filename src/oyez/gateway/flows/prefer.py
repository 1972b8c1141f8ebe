"""How long a client would wait: the preference ``wait`` of the header ``Prefer`` (RFC 7240)."""

from __future__ import annotations

import re

from oyez.gateway.exchange import Exchange
from oyez.gateway.http1 import Headers

_LONGEST = 512
"""Characters of the header; a longer one is ignored."""
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"')
_WAIT = re.compile(r"wait[ \t]*=[ \t]*([0-9]{1,9})[ \t]*(?:;.*)?", re.IGNORECASE)


def preferred_wait(exchange: Exchange, most: float) -> int:
    """Return the whole seconds that the client would wait, at most ``most``; 0 if it said none.

    A preference that makes no sense is ignored, as the standard asks.
    """
    if b"prefer" not in exchange.fields:
        return 0
    given = ",".join(exchange.values(b"prefer"))
    if len(given) > _LONGEST:
        return 0
    plain = _QUOTED.sub(lambda quoted: quoted[1] if quoted[1].isdigit() else "", given)
    for preference in plain.split(","):
        match = _WAIT.fullmatch(preference.strip(" \t"))
        if match is not None:  # the first one counts
            return min(int(match[1]), int(most))
    return 0


def applied(seconds: int) -> Headers:
    """Return the header that tells a client how long it was waited for; none for 0 seconds."""
    return [(b"preference-applied", b"wait=%d" % seconds)] if seconds else []
