"""Sessions: cookies that are made here, and tell visitors apart or say who has logged in.

A visitor's is signed: its id, and when it ends. A user's is sealed; see `oyez.gateway.users`. Both
have one name, so that a browser is one or the other, and a login ends the visitor's session.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway.challenge import unauthorized, unmade
from oyez.gateway.exchange import Exchange, Refusal
from oyez.principal import Principal

if TYPE_CHECKING:
    from oyez.gateway.users import Users

COOKIE = "oyez_session"
LOGIN = "oyez_login"
"""The cookie of a login that has begun; see `oyez.gateway.login`."""
HOST = "__Host-"
"""Before the name of a cookie that browsers take from this host by https alone."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_TOKEN = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")


class Sessions:
    """The sessions of a gateway; ``secret`` signs those of visitors.

    ``users`` are those of people who have logged in; None where nobody can.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        ambient: Ambient,
        secret: bytes,
        users: Users | None = None,
    ) -> None:
        self._ambient = ambient
        self._secret = secret
        self._users = users
        self._lifetime = settings.session_lifetime
        self._friends = settings.friends
        self._name = f"{HOST}{COOKIE}" if settings.tls else COOKIE

    def cookie(self, exchange: Exchange) -> str:
        """Return the value of ``Set-Cookie`` for a new session, or to renew the present one."""
        refuse_other_origins(exchange, self._friends)
        try:
            present = self.principal(exchange)
        except Refusal:
            present = None
        if present is not None and present.kind == "user" and self._users is not None:
            token, age = self._users.renewed(self.token(exchange) or "")
            return self.user_cookie(token, age)
        name = present.subject if present else self._ambient.new_id()
        expiry = int(self._ambient.now() + self._lifetime)
        token = f"{name}.{expiry}.{self._signature(name, str(expiry))}"
        return set_cookie(self._name, token, self._lifetime, "Strict")

    def user_cookie(self, token: str, age: float) -> str:
        """Return the value of ``Set-Cookie`` for the session of a user, of ``age`` seconds.

        A link from another site leads to a page that knows the user, and so does the provider's
        answer to a login. Requests that change something are refused from there all the same.
        """
        return set_cookie(self._name, token, age, "Lax")

    def no_cookie(self) -> str:
        """Return the value of ``Set-Cookie`` that takes the session away."""
        return set_cookie(self._name, "", 0, "Lax")

    def token(self, exchange: Exchange) -> str | None:
        """Return the value of a request's session cookie; None where there is none.

        Raises :class:`Refusal` (401) where there are several.
        """
        sent = exchange.values(b"cookie")
        if not any(COOKIE in each for each in sent):
            return None
        tokens = [value for name, value in cookies(sent) if name == self._name]
        if len(tokens) > 1:
            raise unmade()
        return tokens[0] if tokens else None

    def principal(self, exchange: Exchange) -> Principal | None:
        """Return the session of a request; None where it has none.

        Raises :class:`Refusal`: 401 for a cookie that is not valid, 403 for a request that a page
        of another site makes.
        """
        token = self.token(exchange)
        if token is None:
            return None
        match = _TOKEN.fullmatch(token)
        if match is None and self._users is not None:
            principal = self._users.principal(token)
        else:
            principal = self._visitor(match)
        if exchange.method not in _SAFE_METHODS:
            refuse_other_origins(exchange, self._friends)
        return principal

    def _visitor(self, match: re.Match[str] | None) -> Principal:
        signature = self._signature(match[1], match[2]) if match else ""
        if match is None or not hmac.compare_digest(signature, match[3]):
            raise unmade()
        if int(match[2]) <= self._ambient.now():
            raise unauthorized("session_expired", "the session has expired")
        return Principal(kind="session", subject=match[1], issuer="session")

    def _signature(self, name: str, expiry: str) -> str:
        message = f"oyez session {name} {expiry}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def cookies(headers: list[str]) -> list[tuple[str, str]]:
    """Return the names and values in ``Cookie`` headers."""
    pairs = [part.strip().partition("=") for value in headers for part in value.split(";")]
    return [(name.strip(), value.strip()) for name, equals, value in pairs if equals]


def set_cookie(name: str, value: str, age: float, same_site: str) -> str:
    """Return the value of ``Set-Cookie``, for ``age`` seconds; 0 takes the cookie away."""
    secure = "; Secure" if name.startswith(HOST) else ""
    return f"{name}={value}; Path=/; Max-Age={round(age)}; HttpOnly; SameSite={same_site}{secure}"


def refuse_other_origins(exchange: Exchange, friends: Collection[str] = ()) -> None:
    """Refuse requests that a page of another site makes with the session cookie.

    ``friends`` are the origins whose pages may.
    """
    site = exchange.value(b"sec-fetch-site")
    origin = exchange.value(b"origin")
    if origin in friends:
        return
    authority = origin.partition("://")[2].lower() if origin is not None else None
    # A form of a page that sends no referrer has the origin "null"; the browser says it is ours.
    hidden = origin == "null" and site == "same-origin"
    foreign = authority is not None and authority != exchange.host.lower() and not hidden
    if foreign or site not in (None, "same-origin", "none"):
        raise Refusal(403, "cross_origin", "the request comes from another site")
