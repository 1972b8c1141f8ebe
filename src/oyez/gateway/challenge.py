"""What a client is told that may not pass: RFC 6750, section 3."""

from __future__ import annotations

from collections.abc import Iterable

from oyez.gateway.exchange import Refusal

_BEARER = 'Bearer realm="oyez"'


def unauthorized(code: str, detail: str) -> Refusal:
    """Return the refusal of a request whose credentials are missing or invalid (401)."""
    return Refusal(401, code, detail, [(b"www-authenticate", _BEARER.encode())])


def invalid_token(detail: str) -> Refusal:
    """Return the refusal of a token (401). ``detail`` has no quotation marks."""
    said = f'{_BEARER}, error="invalid_token", error_description="{detail}"'
    return Refusal(401, "invalid_token", detail, [(b"www-authenticate", said.encode())])


def insufficient_scope(detail: str, scopes: Iterable[str] = ()) -> Refusal:
    """Return the refusal of a sender that is known, and may not do this (403).

    ``scopes`` are those that are asked for. ``detail`` has no quotation marks.
    """
    said = f'{_BEARER}, error="insufficient_scope", error_description="{detail}"'
    if asked := " ".join(sorted(scopes)):
        said += f', scope="{asked}"'
    return Refusal(403, "insufficient_scope", detail, [(b"www-authenticate", said.encode())])


def unmade() -> Refusal:
    """Return the refusal of a session cookie that this gateway did not make, or has ended."""
    return unauthorized("session_invalid", "the session cookie was not made here")
