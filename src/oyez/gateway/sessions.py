"""Sessions: cookies that are signed here, and tell visitors apart."""

from __future__ import annotations

import hashlib
import hmac
import re

from oyez.ambient import Ambient
from oyez.config import GatewaySettings
from oyez.gateway.challenge import unauthorized
from oyez.gateway.exchange import Exchange, Refusal
from oyez.principal import Principal

COOKIE = "oyez_session"

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_TOKEN = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,12})\.([0-9a-f]{64})")


class Sessions:
    """The sessions of visitors; ``secret`` signs their cookies."""

    def __init__(self, settings: GatewaySettings, ambient: Ambient, secret: bytes) -> None:
        self._ambient = ambient
        self._secret = secret
        self._lifetime = settings.session_lifetime

    def cookie(self, exchange: Exchange) -> str:
        """Return the value of ``Set-Cookie`` for a new session, or to renew the present one."""
        refuse_other_origins(exchange)
        try:
            present = self.principal(exchange)
        except Refusal:
            present = None
        name = present.subject if present else self._ambient.new_id()
        expiry = int(self._ambient.now() + self._lifetime)
        token = f"{name}.{expiry}.{self._signature(name, str(expiry))}"
        secure = "; Secure" if exchange.scheme == "https" else ""
        age = int(self._lifetime)
        return f"{COOKIE}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"

    def principal(self, exchange: Exchange) -> Principal | None:
        """Return the session of a request; None where it has none.

        Raises :class:`Refusal`: 401 for a cookie that is not valid, 403 for a request that a page
        of another site makes.
        """
        sent = exchange.values(b"cookie")
        if not any(COOKIE in each for each in sent):
            return None
        tokens = [value for name, value in cookies(sent) if name == COOKIE]
        if not tokens:
            return None
        match = _TOKEN.fullmatch(tokens[0]) if len(tokens) == 1 else None
        signature = self._signature(match[1], match[2]) if match else ""
        if match is None or not hmac.compare_digest(signature, match[3]):
            raise unauthorized("session_invalid", "the session cookie was not made here")
        if int(match[2]) <= self._ambient.now():
            raise unauthorized("session_expired", "the session has expired")
        if exchange.method not in _SAFE_METHODS:
            refuse_other_origins(exchange)
        return Principal(kind="session", subject=match[1], issuer="session")

    def _signature(self, name: str, expiry: str) -> str:
        message = f"oyez session {name} {expiry}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def cookies(headers: list[str]) -> list[tuple[str, str]]:
    """Return the names and values in ``Cookie`` headers."""
    pairs = [part.strip().partition("=") for value in headers for part in value.split(";")]
    return [(name.strip(), value.strip()) for name, equals, value in pairs if equals]


def refuse_other_origins(exchange: Exchange) -> None:
    """Refuse requests that a page of another site makes with the session cookie."""
    site = exchange.value(b"sec-fetch-site")
    origin = exchange.value(b"origin")
    authority = origin.partition("://")[2].lower() if origin is not None else None
    foreign = authority is not None and authority != exchange.host.lower()
    if foreign or site not in (None, "same-origin", "none"):
        raise Refusal(403, "cross_origin", "the request comes from another site")
