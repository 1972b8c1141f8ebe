"""Sign-in at an OpenID Connect provider, for people whose roles there let them in."""

from __future__ import annotations

import re
import secrets

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from oyez.ambient import Ambient
from oyez.config import ConsoleLoginSettings
from oyez.console.access import OPERATOR, READER, Person
from oyez.errors import LoginFailed
from oyez.logger import Logger
from oyez.oidc import PATIENCE, Attempt, Identity, RelyingParty, found
from oyez.runtime.audit import MAX_WHO
from oyez.sealing import Seal

BEGIN = "/sign-in/provider"
"""Where a sign-in begins."""
CALLBACK = "/sign-in/callback"
"""Where the provider sends people back to; it has to know this address."""

_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Attempt).decode


class Login:
    """The sign-ins of one console at its provider."""

    def __init__(
        self, settings: ConsoleLoginSettings, ambient: Ambient, *, name: str, secure: bool = False
    ) -> None:
        """``name`` and ``secure`` are those of `oyez.console.access.Access`."""
        self._settings = settings
        self._party = RelyingParty(settings, ambient)
        self._seal = Seal(secrets.token_bytes(32), "attempt of a sign-in")
        self._secure = secure
        self._cookie = f"{'__Host-' if secure else ''}oyez-{name}-login"
        self._log = Logger()

    async def begin(self, request: Request, wanted: str) -> Response:
        """Return the answer that leads to the provider; ``wanted`` is the page for afterwards.

        Raises :class:`LoginFailed`.
        """
        redirect = f"{self._origin(request)}{CALLBACK}"
        try:
            address, attempt = await self._party.begin(redirect, wanted)
        except LoginFailed as failure:
            self._tell(failure)
            raise
        answer = RedirectResponse(address, 303)
        answer.set_cookie(
            self._cookie,
            self._seal.close(_encode(attempt)),
            max_age=int(PATIENCE),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
        return answer

    async def finish(self, request: Request) -> tuple[Person, str]:
        """Return who has signed in, and the page that was wanted.

        Raises :class:`LoginFailed`, also for a person without a role that lets them in.
        """
        content = self._seal.open(request.cookies.get(self._cookie, ""))
        if content is None:
            raise LoginFailed("login_unknown", "no sign-in of this browser has begun")
        attempt = _decode(content)
        try:
            identity = await self._party.finish(attempt, request.url.query)
            return self._person(identity), attempt.to
        except LoginFailed as failure:
            self._tell(failure)
            raise

    def forget(self, response: Response) -> None:
        """End the attempt of this browser."""
        response.delete_cookie(
            self._cookie, path="/", secure=self._secure, httponly=True, samesite="lax"
        )

    def _person(self, identity: Identity) -> Person:
        roles = self._settings.roles
        if identity.roles.intersection(roles.operate):
            allowed = OPERATOR.roles
        elif identity.roles.intersection(roles.read):
            allowed = READER.roles
        else:
            raise LoginFailed("role_missing", "none of your roles lets you in here")
        name = found(identity.claims, self._settings.name_claim)
        shown = isinstance(name, str) and name.strip() and name.isprintable()
        if not isinstance(name, str) or not shown or len(name) > MAX_WHO:
            name = identity.subject[:MAX_WHO]
        return Person(name=name, roles=allowed)

    def _origin(self, request: Request) -> str:
        if self._settings.url is not None:
            return self._settings.url
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise LoginFailed("bad_host", "the Host header is missing or malformed")
        return f"{'https' if self._secure else 'http'}://{host}"

    def _tell(self, failure: LoginFailed) -> None:
        self._log.warning("sign-in failed", code=failure.code, why=failure.detail)
