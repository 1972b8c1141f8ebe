"""Who sends a request: the gateway authenticates it, and a service asks `caller`."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

Kind = Literal["api_key", "session", "user"]

MAX_NAME = 512
"""Characters of the longest name that services, and events, are told."""


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

    @property
    def authtype(self) -> str:
        """Its kind in the words of CloudEvents, as the attribute ``authtype`` of events has it."""
        return AUTHTYPES[self.kind]


AUTHTYPES: Mapping[Kind, str] = {
    "api_key": "api_key",
    "session": "unauthenticated",
    "user": "app_user",
}
"""What CloudEvents' extension for the auth context calls each kind: no two share one."""


caller_here: ContextVar[Principal | None] = ContextVar("oyez_caller", default=None)
"""The sender of the request that is answered here: set by the service's process, once verified."""


def caller() -> Principal | None:
    """Return who sends the request that is answered here; None if nobody is known to.

    It is what the gateway has said and signed. A service is never called with a claim that it could
    not verify: such a request is answered with 401.
    """
    return caller_here.get()
