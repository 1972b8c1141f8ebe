"""Sessions of people who have logged in: sealed cookies that any replica can open."""

from __future__ import annotations

from typing import Any

import msgspec

from oyez.ambient import Ambient
from oyez.config import LoginSettings
from oyez.gateway.challenge import unauthorized, unmade
from oyez.gateway.exchange import Refusal
from oyez.oidc import Identity, found
from oyez.principal import Principal
from oyez.sealing import Seal

LARGEST = 3_800
"""Bytes of a session; browsers drop cookies of more than about 4,096 bytes."""
_ENDED = 100_000


class _Session(msgspec.Struct, frozen=True, array_like=True):
    id: str
    issuer: str
    subject: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    claims: dict[str, Any]
    began: float
    until: float


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Session).decode


class Users:
    """The sessions of users; ``secret`` seals their cookies.

    A session that was ended by its user is remembered until it would have expired: by this process
    alone, and at most the last 100,000 of them.
    """

    def __init__(self, settings: LoginSettings, ambient: Ambient, secret: bytes) -> None:
        self._settings = settings
        self._ambient = ambient
        self._seal = Seal(secret, "session of a user")
        self._ended: dict[str, float] = {}

    def begin(self, identity: Identity) -> tuple[str, float]:
        """Return a new session of who has logged in, and its age in seconds.

        Raises :class:`Refusal` (500) if what is kept of the person does not fit a cookie.
        """
        kept = {name: found(identity.claims, name) for name in self._settings.claims}
        now = self._ambient.now()
        return self._sealed(
            _Session(
                id=self._ambient.new_id(),
                issuer=self._settings.name,
                subject=identity.subject,
                roles=tuple(sorted(identity.roles)),
                scopes=tuple(sorted(identity.scopes)),
                claims={name: value for name, value in kept.items() if value is not None},
                began=now,
                until=now,
            )
        )

    def principal(self, token: str) -> Principal:
        """Return whose session this is; raises :class:`Refusal` (401) for one that is none."""
        session = self._opened(token)
        return Principal(
            kind="user",
            issuer=session.issuer,
            subject=session.subject,
            roles=frozenset(session.roles),
            scopes=frozenset(session.scopes),
            claims=session.claims,
        )

    def renewed(self, token: str) -> tuple[str, float]:
        """Return the session with a later end, and its age in seconds.

        No renewal leads beyond the end of the login's lifetime. Raises :class:`Refusal` (401).
        """
        return self._sealed(self._opened(token))

    def end(self, token: str) -> None:
        """End a session. Safe for one that is none."""
        try:
            session = self._opened(token)
        except Refusal:
            return
        now = self._ambient.now()
        if len(self._ended) >= _ENDED:
            self._ended = {name: end for name, end in self._ended.items() if end > now}
        while len(self._ended) >= _ENDED:
            del self._ended[next(iter(self._ended))]
        # A copy of the cookie may have been renewed: it is as long as the login may last.
        self._ended[session.id] = session.began + self._settings.session_lifetime

    def _sealed(self, session: _Session) -> tuple[str, float]:
        now = self._ambient.now()
        end = session.began + self._settings.session_lifetime
        until = min(now + self._settings.idle_timeout, end)
        token = self._seal.close(_encode(msgspec.structs.replace(session, until=until)))
        if len(token) > LARGEST:
            detail = f"what the session keeps of you is more than {LARGEST} bytes"
            remedy = "gateway.login.claims, or the roles that the provider gives"
            raise Refusal(500, "session_too_large", f"{detail}: shorten {remedy}")
        return token, until - now

    def _opened(self, token: str) -> _Session:
        content = self._seal.open(token)
        if content is None:
            raise unmade()
        try:
            session = _decode(content)
        except msgspec.MsgspecError:  # sealed by another version
            raise unmade() from None
        if session.issuer != self._settings.name or session.id in self._ended:
            raise unmade()
        now = self._ambient.now()
        if now >= session.until or now >= session.began + self._settings.session_lifetime:
            raise unauthorized("session_expired", "the session has expired")
        return session
