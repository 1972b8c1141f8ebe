"""Login of browsers: the gateway's own resources ``/login``, ``/login/callback``, ``/logout``.

::

    GET  /login?to=/path    ─► to the provider, with an attempt in a cookie of this browser
    GET  /login/callback    ◄─ from the provider: the attempt ends, a session begins, on to /path
    GET  /session           who has logged in
    POST /logout            the session ends, here and at the provider
"""

from __future__ import annotations

import re
from html import escape
from urllib.parse import parse_qsl, unquote

import msgspec

from oyez.ambient import Ambient
from oyez.config import LoginSettings
from oyez.errors import LoginDenied, LoginFailed
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.http1 import Headers
from oyez.gateway.routing import is_disguised
from oyez.gateway.sessions import HOST, LOGIN, Sessions, cookies, refuse_other_origins, set_cookie
from oyez.gateway.users import Users
from oyez.logger import Logger
from oyez.oidc import PATIENCE, Attempt, RelyingParty
from oyez.sealing import Seal

PATHS = ("/login", "/login/callback", "/logout")

_JSON = (b"content-type", b"application/json")
_HTML = (b"content-type", b"text/html; charset=utf-8")
_TARGET = re.compile(r"/[\x21-\x7e]{0,1023}")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Attempt).decode


class Login:
    """It answers at those paths; ``secret`` seals attempts."""

    def __init__(
        self,
        settings: LoginSettings,
        ambient: Ambient,
        secret: bytes,
        sessions: Sessions,
        users: Users,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._users = users
        self._party = RelyingParty(settings, ambient)
        self._seal = Seal(secret, "attempt of a login")
        self._log = Logger()

    async def begin(self, exchange: Exchange) -> None:
        """Send the browser to the provider; ``?to=`` is where it goes in the end."""
        to = _target(exchange)
        await exchange.body()
        redirect = f"{self._origin(exchange)}/login/callback"
        try:
            address, attempt = await self._party.begin(redirect, to)
        except LoginFailed as failure:
            raise self._refusal(failure) from None
        kept = set_cookie(_name(exchange), self._seal.close(_encode(attempt)), PATIENCE, "Lax")
        await _redirect(exchange, address, kept)

    async def callback(self, exchange: Exchange) -> None:
        """Begin a session for whom the provider vouches, and send the browser on.

        It never goes on with the session that the browser had before. Who went back at the
        provider comes back without one.
        """
        attempt = self._attempt(exchange)
        await exchange.body()
        over = set_cookie(_name(exchange), "", 0, "Lax")
        query = exchange.target.partition(b"?")[2].decode("latin-1")
        try:
            identity = await self._party.finish(attempt, query)
            token, age = self._users.begin(identity)
        except LoginDenied as failure:
            self._log.info("login denied", code=failure.code, why=failure.detail)
            await _redirect(exchange, attempt.to, over)
            return
        except LoginFailed as failure:
            raise self._refusal(failure, (b"set-cookie", over.encode())) from None
        self._end(exchange)
        await _redirect(exchange, attempt.to, self._sessions.user_cookie(token, age), over)

    async def logout(self, exchange: Exchange) -> None:
        """End the session, here and where the provider can end its own too."""
        refuse_other_origins(exchange)
        to = _target(exchange)
        await exchange.body()
        self._end(exchange)
        gone = self._sessions.no_cookie()
        try:
            farewell = await self._party.farewell(f"{self._origin(exchange)}/")
        except LoginFailed:
            farewell = None  # the session here has ended all the same
        if farewell is None:
            await _redirect(exchange, to, gone)
            return
        # A page's policy may forbid its forms to lead elsewhere, also by a redirect.
        page = _LEAVING.format(escape(farewell)).encode()
        await exchange.plain(200, [_HTML, (b"set-cookie", gone.encode())], page)

    async def show(self, exchange: Exchange) -> None:
        """Respond with who has logged in; ``user`` is null for anybody else."""
        await exchange.body()
        try:
            principal = self._sessions.principal(exchange)
        except Refusal:
            principal = None
        user = None
        if principal is not None and principal.kind == "user":
            user = {
                "name": principal.name,
                "roles": sorted(principal.roles),
                "claims": principal.claims,
            }
        await exchange.plain(200, [_JSON], msgspec.json.encode({"user": user}))

    def _attempt(self, exchange: Exchange) -> Attempt:
        sent = cookies(exchange.values(b"cookie"))
        kept = [value for name, value in sent if name == _name(exchange)]
        content = self._seal.open(kept[0]) if len(kept) == 1 else None
        try:
            if content is not None:
                return _decode(content)
        except msgspec.MsgspecError:  # sealed by another version
            pass
        raise Refusal(400, "login_unknown", "no login of this browser has begun: begin at /login")

    def _end(self, exchange: Exchange) -> None:
        try:
            token = self._sessions.token(exchange)
        except Refusal:
            return
        if token is not None:
            self._users.end(token)

    def _origin(self, exchange: Exchange) -> str:
        if self._settings.url is not None:
            return self._settings.url
        if not exchange.host:
            raise Refusal(400, "bad_host", "the Host header is missing")
        return f"{exchange.scheme}://{exchange.host}"

    def _refusal(self, failure: LoginFailed, *headers: tuple[bytes, bytes]) -> Refusal:
        self._log.warning("login failed", code=failure.code, why=failure.detail)
        if not failure.ours:
            return Refusal(400, failure.code, failure.detail, headers)
        # What is wrong at the provider, or in our settings, is for the log alone.
        detail = "the provider of logins can't be used now: try again later"
        return Refusal(502, failure.code, detail, headers)


_LEAVING = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Logged out</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="refresh" content="0; url={0}"></head>'
    '<body><p>You are logged out here.</p><p><a href="{0}">Log out at the provider too</a></p>'
    "</body></html>"
)


def _name(exchange: Exchange) -> str:
    return f"{HOST}{LOGIN}" if exchange.scheme == "https" else LOGIN


def _target(exchange: Exchange) -> str:
    """Return where a request wants to go in the end: a path of this site, by default ``/``.

    Raises :class:`Refusal` (400) for anything that a browser could take for another site's, and
    for the paths of the login itself.
    """
    query = exchange.target.partition(b"?")[2].decode("latin-1")
    try:
        wanted = [value for name, value in parse_qsl(query, max_num_fields=8) if name == "to"]
    except ValueError:
        wanted = ["", ""]
    if not wanted:
        return "/"
    path = wanted[0].partition("?")[0].partition("#")[0]
    own = len(wanted) == 1 and _TARGET.fullmatch(wanted[0]) and "\\" not in wanted[0]
    dots = any(part in (".", "..") for part in path.split("/"))
    if not own or dots or is_disguised(path) or unquote(path) in PATHS:
        raise Refusal(400, "bad_target", "to: expected a path of this site, such as /orders")
    return wanted[0]


async def _redirect(exchange: Exchange, to: str, *kept: str) -> None:
    headers: Headers = [(b"location", to.encode("ascii"))]
    headers += [(b"set-cookie", each.encode()) for each in kept]
    headers.append((b"content-length", b"0"))
    exchange.start(303, [*headers, (b"cache-control", b"no-store")])
    await exchange.end()
