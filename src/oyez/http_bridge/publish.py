"""``POST /publish``: events of the program, published in a transaction of its service.

202 is the answer once they are in the outbox. Of a request that comes again, with the same
``Idempotency-Key``, nothing is published twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from oyez.cloudevents import FORMS
from oyez.envelope import parse_time
from oyez.errors import BadJson, ConstraintViolated, InvalidEvent, NotEvents
from oyez.http_bridge.announced import MAX_BODY, Announced, Publishing
from oyez.listening import LOCAL
from oyez.schedule import Tick
from oyez.service import Service
from oyez.transaction import Transaction

SECONDS = 10.0
"""A body that takes longer to arrive is refused."""
REQUESTS = 64
"""The limit of requests at once, in each replica."""
BYTES = 8 * MAX_BODY
"""The limit of the bytes of their bodies together."""
WEEK = 7 * 86_400.0
"""Seconds that an Idempotency-Key is known."""

_KEY = re.compile(r'"[\x20\x21\x23-\x5b\x5d-\x7e]{1,200}"|[\x21\x23-\x2b\x2d-\x7e]{1,200}')
_INSERT = """insert into bridge_published (key, fingerprint, ids, created)
 values (:key, :fingerprint, :ids, :created)"""
_FIND = "select fingerprint, ids from bridge_published where key = :key"
_FORGET = "delete from bridge_published where created < :before"
_RETRY = {"retry-after": "1"}


class Problem(Exception):
    """An answer other than 202."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = headers or {}


class Desk:
    """The HTTP side of a bridged service."""

    def __init__(self, service: Service, publishing: Publishing, token: str | None) -> None:
        """``token`` is asked of whoever does not come by a Unix socket; None lets nobody else."""
        self._service = service
        self._publishing = publishing
        self._token = None if token is None else f"Bearer {token}".encode()
        self._running = 0
        self._bytes = 0

    def app(self) -> Starlette:
        """Return it as an ASGI app."""
        made = Starlette(
            routes=[Route("/publish", self._publish, methods=["POST"])],
            exception_handlers={Problem: _problem, HTTPException: _problem},
        )
        made.router.redirect_slashes = False
        return made

    async def tidy(self, tick: Tick, tx: Transaction) -> None:
        """Forget the keys of a week ago."""
        tx.execute(_FORGET, before=parse_time(tx.time).timestamp() - WEEK)

    async def _publish(self, request: Request) -> Response:
        self._authorize(request)
        key = _key(request)
        if self._running >= REQUESTS:
            raise Problem(503, "busy", "too many requests are under way", headers=_RETRY)
        self._running += 1
        body = bytearray()
        try:
            await self._receive(request, body)
            return await self._accept(request, key, bytes(body))
        finally:
            self._running -= 1
            self._bytes -= len(body)

    def _authorize(self, request: Request) -> None:
        if request.scope.get(LOCAL):  # the file's mode says who may
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._token is None or not hmac.compare_digest(given, self._token):
            detail = "send the service's token: Authorization: Bearer …"
            headers = {"www-authenticate": "Bearer"}
            raise Problem(401, "not_authorized", detail, headers=headers)

    async def _receive(self, request: Request, body: bytearray) -> None:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "encoded", "send the body without a Content-Encoding")
        too_large = Problem(413, "too_large", f"a body is at most {MAX_BODY} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > MAX_BODY:
            raise too_large
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes += len(chunk)
                    if len(body) > MAX_BODY:
                        raise too_large
                    if self._bytes > BYTES:
                        detail = "too many bytes are under way"
                        raise Problem(503, "busy", detail, headers=_RETRY)
        except TimeoutError:
            detail = f"the body did not arrive within {SECONDS:g} seconds"
            headers = {"connection": "close"}
            raise Problem(408, "slow_body", detail, headers=headers) from None
        except ClientDisconnect:
            raise Problem(400, "broken_off", "the body broke off") from None

    async def _accept(self, request: Request, key: str, body: bytes) -> Response:
        fields: dict[bytes, list[bytes]] = {}
        for name, value in request.headers.raw:
            fields.setdefault(name, []).append(value)
        try:
            announced = self._publishing.read(fields, body)
            return _accepted(await self._once(key, _fingerprint(fields, body), announced))
        except NotEvents as error:
            headers = {"accept-post": FORMS} if error.status == 415 else {}
            raise Problem(error.status, error.code, error.detail, headers=headers) from error
        except BadJson as error:
            raise Problem(400, "bad_json", f"{error}", field=error.field) from error
        except InvalidEvent as error:
            raise Problem(422, "invalid_event", f"{error}", field=error.field) from error

    async def _once(self, key: str, fingerprint: str, announced: list[Announced]) -> list[str]:
        """Publish the events, unless that was done under this key; return their ids."""
        try:
            async with self._service.transaction() as tx:
                ids = [tx.publish(each.event, key=each.key) for each in announced]
                created = parse_time(tx.time).timestamp()
                known = {"key": key, "fingerprint": fingerprint, "created": created}
                tx.execute(_INSERT, ids=" ".join(ids), **known)
            return ids
        except ConstraintViolated:
            rows = await self._service.fetch(_FIND, key=key)
        if not rows:
            raise Problem(503, "busy", "send it again in a moment", headers=_RETRY)
        if rows[0]["fingerprint"] != fingerprint:
            detail = "Idempotency-Key: was used for other events: use a new one"
            raise Problem(422, "idempotency_key_reused", detail, field="idempotency-key")
        return str(rows[0]["ids"]).split()


def _key(request: Request) -> str:
    given = request.headers.getlist("idempotency-key")
    if len(given) != 1 or not _KEY.fullmatch(given[0]):
        detail = "Idempotency-Key: send one, of 1 to 200 printable ASCII characters"
        raise Problem(400, "bad_idempotency_key", detail, field="idempotency-key")
    return given[0].strip('"')


def _fingerprint(fields: dict[bytes, list[bytes]], body: bytes) -> str:
    digest = hashlib.sha256()
    for name in sorted(fields):
        if name.startswith(b"ce-") or name == b"content-type":
            digest.update(b"%s:%s\n" % (name, b",".join(fields[name])))
    digest.update(body)
    return digest.hexdigest()


def _accepted(ids: list[str]) -> Response:
    body = msgspec.json.encode({"accepted": len(ids), "ids": ids})
    return Response(body, status_code=202, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = error.detail.lower().replace(" ", "_")
        headers = dict(error.headers or {})
        error = Problem(error.status_code, code, f"{error.detail}.", headers=headers)
    assert isinstance(error, Problem)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.field:
        body["errors"] = [{"field": error.field, "detail": error.detail}]
    return Response(
        msgspec.json.encode(body),
        status_code=error.status,
        headers=error.headers,
        media_type="application/problem+json",
    )
