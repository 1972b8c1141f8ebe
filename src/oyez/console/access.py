"""Who may see and who may act: sign-in, sessions, roles, and requests from other sites.

Sessions are kept by the console's process and a browser holds nothing but a random name of one. A
name is made at each sign-in, so none can be planted beforehand, and it is worth nothing after the
sign-out, which a signed cookie could not promise. Whatever turns a request into a `Person` may take
the place of the token, such as OpenID Connect.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from oyez.ambient import Ambient

Role = Literal["read", "operate"]

LIFETIME = 12 * 3600.0
"""Seconds after the sign-in at which a session ends."""
CODE_LIFETIME = 900.0
"""Seconds for which a sign-in link works."""
_SESSIONS = 1_000
_FAILURES = 20
_WINDOW = 60.0


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is signed in. Who may operate may read as well."""

    name: str
    roles: frozenset[Role]


READER = Person(name="reader", roles=frozenset({"read"}))
OPERATOR = Person(name="operator", roles=frozenset({"read", "operate"}))


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A sign-in that has not ended."""

    person: Person
    csrf: str
    """What its forms must contain."""
    until: float


class TooMany(Exception):
    """So many sign-ins have failed in the last minute that none is tried."""


class Access:
    """The sessions of one console."""

    def __init__(
        self,
        ambient: Ambient,
        *,
        name: str,
        token: str,
        read_token: str | None = None,
        code: str | None = None,
        secure: bool = False,
    ) -> None:
        """``token`` may operate, ``read_token`` only read. ``code`` works once, for a link.

        ``name`` keeps the cookies of several systems on one host apart. ``secure``: browsers come
        by https.
        """
        self._ambient = ambient
        self._tokens = {_digest(token): OPERATOR}
        if read_token is not None:
            self._tokens.setdefault(_digest(read_token), READER)
        self._code = None if code is None else _digest(code)
        self._code_until = ambient.monotonic() + CODE_LIFETIME
        self._secure = secure
        self._cookie = f"{'__Host-' if secure else ''}oyez-{name}"
        self._sessions: dict[bytes, Session] = {}
        self._failures: deque[float] = deque(maxlen=_FAILURES)

    def session(self, request: Request) -> Session | None:
        """Return the session of a request."""
        found = self._sessions.get(_digest(request.cookies.get(self._cookie, "")))
        if found is None or found.until < self._ambient.monotonic():
            return None
        return found

    def sign_in(self, secret: str) -> Person | None:
        """Return whose token, or link, this is. Raises TooMany."""
        now = self._ambient.monotonic()
        if len(self._failures) == _FAILURES and now - self._failures[0] < _WINDOW:
            raise TooMany
        given = _digest(secret)
        if self._code is not None and hmac.compare_digest(given, self._code):
            self._code = None
            if now < self._code_until:
                return OPERATOR
        person = None
        for known, each in self._tokens.items():
            if hmac.compare_digest(given, known):
                person = each
        if person is None:
            self._failures.append(now)
        return person

    def begin(self, person: Person, response: Response) -> None:
        """Begin a session of a person with this response."""
        now = self._ambient.monotonic()
        self._sessions = {k: each for k, each in self._sessions.items() if each.until > now}
        while len(self._sessions) >= _SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        name = secrets.token_urlsafe(32)
        self._sessions[_digest(name)] = Session(
            person=person, csrf=secrets.token_urlsafe(32), until=now + LIFETIME
        )
        response.set_cookie(
            self._cookie,
            name,
            max_age=int(LIFETIME),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    def end(self, request: Request, response: Response) -> None:
        """End the session of a request. Safe without one."""
        self._sessions.pop(_digest(request.cookies.get(self._cookie, "")), None)
        response.delete_cookie(
            self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict"
        )


def same_site(request: Request) -> bool:
    """Return whether a request that changes something comes from a page of this console.

    A browser tells in ``Sec-Fetch-Site`` or, an older one, in ``Origin``; who tells neither is
    refused.
    """
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None and fetched != "same-origin":
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return fetched == "same-origin"
    return urlsplit(origin).netloc == request.headers.get("host", "")


def genuine(session: Session, given: str) -> bool:
    """Return whether a form was made for this session."""
    return hmac.compare_digest(given.encode(), session.csrf.encode())


def _digest(secret: str) -> bytes:
    """Return what is compared: of one length, and a secret can't be found in memory by it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
