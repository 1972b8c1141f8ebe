"""Who sends a request: what authentication found, and what authorization asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Kind = Literal["api_key", "session", "user"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a request, as the gateway authenticated it."""

    kind: Kind
    """How: by an API key, by an anonymous session, or as a user that an issuer vouches for."""
    subject: str
    """Who, for its issuer: the name of a key, the id of a session, the ``sub`` of a token."""
    issuer: str
    """The name of the issuer in the configuration; ``key`` and ``session`` are the gateway's."""
    scopes: frozenset[str] = frozenset()
    """What it may do, in the words of its issuer."""
    roles: frozenset[str] = frozenset()
    """What it is, in the words of its issuer."""
    claims: Mapping[str, Any] = {}
    """What else its issuer says of it."""

    @property
    def name(self) -> str:
        """Its name for services, limits and logs, such as ``key:ci``: no two share one."""
        return f"{self.issuer}:{self.subject}"
