"""What a client without valid credentials is told: RFC 6750, section 3."""

from __future__ import annotations

from oyez.gateway.exchange import Refusal


def unauthorized(code: str, detail: str) -> Refusal:
    """Return the refusal of a request whose credentials are missing or invalid (401)."""
    return Refusal(401, code, detail, [(b"www-authenticate", b'Bearer realm="oyez"')])
