"""The HTTP side: subscriptions, their secrets, and what became of their deliveries.

The gateway in front of it lets pass who has the scope ``webhooks:read`` for GET and
``webhooks:write`` for the rest. Each principal sees its own subscriptions alone; those of others
are not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oyez.contract import parse
from oyez.envelope import format_time, parse_time
from oyez.errors import BadJson, InvalidEvent
from oyez.principal import caller
from oyez.service import Service
from oyez.transaction import Transaction
from oyez.webhooks.deliveries import ATTEMPTS, DELIVER, Deliveries
from oyez.webhooks.reach import Reach
from oyez.webhooks.signing import Secret, derive
from oyez.webhooks.subscriptions import Ordering, Subscription, check_types

MAX_BODY = 65_536
MAX_SUBSCRIPTIONS = 100
"""The subscriptions of one principal."""
MAX_CONCURRENCY = 16
MAX_DESCRIPTION = 500
REDRIVEN = 1_000
"""Dead deliveries that one request redrives."""

_ID = re.compile(r"[0-9a-f-]{36}")

_ALL = "select * from webhook where principal = :principal order by id"
_ONE = "select * from webhook where principal = :principal and id = :id"
_FOR_UPDATE = """update webhook set state = state where principal = :principal and id = :id
 returning *"""
_COUNT = "select count(*) as count from webhook where principal = :principal"
_INSERT = """insert into webhook (id, principal, url, types, description, ordering, concurrency,
 state, secrets, created, failing, failures, dead) values (:id, :principal, :url, :types,
 :description, :ordering, :concurrency, :state, :secrets, :created, :failing, :failures, :dead)"""
_UPDATE = """update webhook set url = :url, types = :types, description = :description,
 ordering = :ordering, concurrency = :concurrency, state = :state, secrets = :secrets,
 failing = :failing, failures = :failures, dead = :dead where id = :id"""
_DELETE = (
    "delete from webhook_held where subscription = :id",
    "delete from webhook_attempt where subscription = :id",
    "delete from webhook where id = :id",
)
_ATTEMPTS = """select message, type, attempt, status, error, ms, created from webhook_attempt
 where subscription = :id order by webhook_attempt.id desc limit :most"""
_DEAD = """select id from oyez_dead where handler = :handler and state = 'dead'
 and substr(key, 1, :length) = :prefix order by id limit :most"""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new subscription is to be."""

    url: str
    types: list[str]
    description: str = ""
    ordering: Ordering = "key"
    concurrency: int = 4


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a subscription."""

    url: str | None = None
    types: list[str] | None = None
    description: str | None = None
    ordering: Ordering | None = None
    concurrency: int | None = None
    state: str | None = None


class Problem(Exception):
    """An answer other than the one hoped for."""

    def __init__(self, status: int, code: str, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field


def _asking() -> str:
    """Return the name of who asks, as the gateway has signed it."""
    found = caller()
    if found is None:
        raise Problem(401, "no_principal", "Ask through the gateway, which says who asks.")
    return found.name


def app(
    service: Service,
    deliveries: Deliveries,
    reach: Reach,
    offered: Sequence[str],
    master: Callable[[], bytes],
    overlap: float,
) -> Starlette:
    """Return the HTTP side; its arguments are parts of `oyez.webhooks.webhooks`."""
    desk = _Desk(service, deliveries, reach, offered, master, overlap)
    made = Starlette(
        routes=[
            Route("/webhooks", desk.every, methods=["GET"]),
            Route("/webhooks", desk.create, methods=["POST"]),
            Route("/webhooks/{id}", desk.one, methods=["GET"]),
            Route("/webhooks/{id}", desk.change, methods=["PATCH"]),
            Route("/webhooks/{id}", desk.delete, methods=["DELETE"]),
            Route("/webhooks/{id}/rotate", desk.rotate, methods=["POST"]),
            Route("/webhooks/{id}/test", desk.test, methods=["POST"]),
            Route("/webhooks/{id}/deliveries", desk.attempts, methods=["GET"]),
            Route("/webhooks/{id}/redrive", desk.redrive, methods=["POST"]),
        ],
        exception_handlers={
            Problem: _problem,
            InvalidEvent: _problem,
            HTTPException: _problem,
        },
    )
    made.router.redirect_slashes = False  # to the host that the client names
    return made


class _Desk:
    def __init__(
        self,
        service: Service,
        deliveries: Deliveries,
        reach: Reach,
        offered: Sequence[str],
        master: Callable[[], bytes],
        overlap: float,
    ) -> None:
        self._service = service
        self._deliveries = deliveries
        self._reach = reach
        self._offered = offered
        self._master = master
        self._overlap = overlap

    async def every(self, request: Request) -> Response:
        rows = await self._service.fetch(_ALL, principal=_asking())
        shown = [_shown(Subscription.of(row)) for row in rows]
        return JSONResponse({"webhooks": shown, "types": list(self._offered)})

    async def create(self, request: Request) -> Response:
        principal = _asking()
        wanted = parse(Wanted, await _body(request))
        async with self._service.transaction() as tx:
            made = Subscription(
                id=tx.new_id(),
                principal=principal,
                url=wanted.url,
                types=wanted.types,
                description=wanted.description,
                ordering=wanted.ordering,
                concurrency=wanted.concurrency,
                state="active",
                secrets=[Secret(1)],
                created=_now(tx),
            )
            self._check(made)
            count = await tx.fetch_one(_COUNT, principal=principal)
            if count is not None and count["count"] >= MAX_SUBSCRIPTIONS:
                raise Problem(
                    409, "too_many", f"There are {MAX_SUBSCRIPTIONS} webhooks already: delete some."
                )
            tx.execute(_INSERT, **made.row())
        return self._with_secret(made, 201)

    async def one(self, request: Request) -> Response:
        rows = await self._service.fetch(_ONE, **_asked(request))
        if not rows:
            raise _missing()
        return JSONResponse(_shown(Subscription.of(rows[0])))

    async def change(self, request: Request) -> Response:
        change = parse(Change, await _body(request))
        fields: dict[str, Any] = {
            name: value
            for name in Change.__struct_fields__
            if (value := getattr(change, name)) is not None
        }
        state = fields.pop("state", None)
        async with self._service.transaction() as tx:
            found = await _locked(tx, request)
            if state == "paused" and found.state != "disabled":
                fields["state"] = "paused"
            elif state == "active" and found.state in ("paused", "disabled"):
                # What was held goes first.
                fields |= {"state": "resuming", "failing": None, "failures": 0, "dead": 0}
                self._deliveries.resume(tx, found.id)
            elif state == "paused":
                raise Problem(409, "disabled", "It is disabled; make it active first.", "$.state")
            elif state not in (None, "active"):
                raise InvalidEvent("$.state", 'expected "active" or "paused"')
            changed = msgspec.structs.replace(found, **fields)
            self._check(changed)
            tx.execute(_UPDATE, **_updated(changed))
        return JSONResponse(_shown(changed))

    async def delete(self, request: Request) -> Response:
        async with self._service.transaction() as tx:
            found = await _locked(tx, request)
            for statement in _DELETE:
                tx.execute(statement, id=found.id)
        return Response(status_code=204)

    async def rotate(self, request: Request) -> Response:
        async with self._service.transaction() as tx:
            found = await _locked(tx, request)
            rotated = msgspec.structs.replace(found, secrets=found.rotated(_now(tx), self._overlap))
            tx.execute(_UPDATE, **_updated(rotated))
        return self._with_secret(rotated, 200)

    async def test(self, request: Request) -> Response:
        async with self._service.transaction() as tx:
            found = await _locked(tx, request)
            if found.state == "disabled":
                raise Problem(409, "disabled", "It is disabled; make it active first.")
            message = self._deliveries.test(tx, found.id)
        where = f"/webhooks/{found.id}/deliveries"
        return JSONResponse({"message": message}, status_code=202, headers={"location": where})

    async def attempts(self, request: Request) -> Response:
        found = await self._service.fetch(_ONE, **_asked(request))
        if not found:
            raise _missing()
        rows = await self._service.fetch(_ATTEMPTS, id=found[0]["id"], most=ATTEMPTS)
        for row in rows:
            row["at"] = format_time(row.pop("created"))
            row["delivered"] = not row["error"]
        return JSONResponse({"deliveries": rows})

    async def redrive(self, request: Request) -> Response:
        asked = _asked(request)
        found = await self._service.fetch(_ONE, **asked)
        if not found:
            raise _missing()
        if found[0]["state"] == "disabled":
            raise Problem(409, "disabled", "It is disabled; make it active first.")
        prefix = f"{found[0]['id']}/"
        rows = await self._service.fetch(
            _DEAD, handler=DELIVER, prefix=prefix, length=len(prefix), most=REDRIVEN
        )
        letters = [row["id"] for row in rows]
        done = await self._service.redrive(letters, who=asked["principal"])
        answer = {"redriven": done, "refused": len(letters) - done}
        return JSONResponse({**answer, "more": len(letters) == REDRIVEN}, status_code=202)

    def _check(self, found: Subscription) -> None:
        self._reach.target(found.url)
        check_types(found.types, self._offered)
        if not 1 <= found.concurrency <= MAX_CONCURRENCY:
            raise InvalidEvent("$.concurrency", f"expected 1 to {MAX_CONCURRENCY}")
        if len(found.description) > MAX_DESCRIPTION or not found.description.isprintable():
            raise InvalidEvent(
                "$.description", f"expected up to {MAX_DESCRIPTION} printable characters"
            )

    def _with_secret(self, found: Subscription, status: int) -> Response:
        secret = derive(self._master(), found.id, found.secrets[0])
        return JSONResponse(
            {**_shown(found), "secret": secret},
            status_code=status,
            headers={"location": f"/webhooks/{found.id}", "cache-control": "no-store"},
        )


async def _locked(tx: Transaction, request: Request) -> Subscription:
    row = await tx.fetch_one(_FOR_UPDATE, **_asked(request))
    if row is None:
        raise _missing()
    return Subscription.of(row)


def _asked(request: Request) -> dict[str, str]:
    name = request.path_params["id"]
    return {"principal": _asking(), "id": name if _ID.fullmatch(name) else ""}


def _missing() -> Problem:
    return Problem(404, "no_such_webhook", "There is no such webhook of yours.")


def _updated(found: Subscription) -> dict[str, Any]:
    row = found.row()
    del row["principal"], row["created"]
    return row


def _shown(found: Subscription) -> dict[str, Any]:
    shown = found.shown()
    shown["created"] = format_time(found.created)
    shown["failing"] = None if found.failing is None else format_time(found.failing)
    return shown


def _now(tx: Transaction) -> float:
    return parse_time(tx.time).timestamp()


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "Send application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Problem(413, "too_large", f"A webhook is at most {MAX_BODY} bytes.")
    return bytes(body)


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, BadJson):
        error = Problem(400, "malformed_json", f"The body {error.problem}.")
    elif isinstance(error, InvalidEvent):
        error = Problem(422, "invalid_webhook", error.problem, error.field)
    elif isinstance(error, HTTPException):
        code = error.detail.lower().replace(" ", "_")
        error = Problem(error.status_code, code, f"{error.detail}.")
    assert isinstance(error, Problem)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.field:
        body["errors"] = [{"field": error.field, "problem": error.detail}]
    return JSONResponse(body, status_code=error.status, media_type="application/problem+json")
