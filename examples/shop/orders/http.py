"""The HTTP side of Orders: the catalogue, placing an order, reading one or all, following one.

Below ``/clerk`` is what clerks do, with the orders of all customers.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orders.events import CancellationAsked, Line, OrderApproved, OrderPlaced
from orders.history import CustomerOrders
from oyez import InvalidEvent, Service, Transaction, caller, parse
from oyez.errors import BadJson, Stale

MAX_BODY = 65_536
"""Bytes of an order's JSON."""
MAX_LINES = 20
MAX_QUANTITY = 99
MOST = 20
"""The number of orders that a customer's list shows."""
MOST_OF_ALL = 50
"""The number of orders that a clerk's list shows."""
CANCELLABLE = ("placed", "paid", "reserved", "held")
"""The statuses from which an order can still be cancelled."""
BEAT = 15.0
"""Seconds of silence after which a comment keeps the stream open."""

_EMAIL = re.compile(r"[^@\s<>,;\x00-\x1f]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_PHONE = re.compile(r"\+[1-9]\d{6,14}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_CARDS = ("tok_ok", "tok_declined", "tok_slow", "tok_flaky")

_ORDER = "select * from orders where order_id = :order_id and principal = :principal"
_MINE = """select order_id, status, total_cents from customer_orders
 where customer = :principal order by order_id desc limit :limit"""
_FLAGS = "paid, reserved, flagged, approved, confirmed, shipped, cancelled"
_ALL = f"""select order_id, email, total_cents, {_FLAGS} from orders
 order by case when flagged = 1 and approved + cancelled + shipped = 0 then 0 else 1 end,
  order_id desc limit :limit"""
_LINES = """select sku, name, quantity, cents from order_line where order_id = :order_id
 order by sku"""
_HISTORY = "select stage, at from order_history where order_id = :order_id order by at, stage"


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends to place an order."""

    lines: list[Line]
    email: str
    card: str
    phone: str | None = None


class Problem(Exception):
    """An answer other than the one hoped for: status, code, words, and which fields are wrong."""

    def __init__(
        self, status: int, code: str, detail: str, fields: list[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields or []


async def catalogue(request: Request) -> Response:
    """``GET /catalogue``: what can be bought."""
    rows = await _service(request).fetch("select sku, name, blurb, cents from product order by sku")
    return JSONResponse({"products": rows})


async def place(request: Request) -> Response:
    """``POST /orders``: 202 with the order's address; repeating an Idempotency-Key is safe."""
    service = _service(request)
    principal = _principal()
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise Problem(400, "bad_idempotency_key", "Idempotency-Key: 1 to 128 visible characters")
    body = await _body(request)
    placement = parse(Placement, body)
    _check(placement)
    digest = hashlib.sha256(body).hexdigest()
    async with service.transaction() as tx:
        order_id = await _repeated(tx, principal, key, digest) if key else None
        if order_id is None:
            order_id = tx.new_id()
            await _store(tx, order_id, principal, placement)
            if key:
                tx.execute(
                    "insert into placement values (:principal, :key, :digest, :order_id)",
                    principal=principal,
                    key=key,
                    digest=digest,
                    order_id=order_id,
                )
    url = f"/orders/{order_id}"
    answer = {"order_id": order_id, "status": "placed", "url": url}
    return JSONResponse(answer, status_code=202, headers={"Location": url})


async def mine(request: Request) -> Response:
    """``GET /orders``: what the customer has ordered, the newest first.

    The gateway's header names the orders that this customer has just placed, so they are in the
    list; ``complete`` is false if the list could not catch up with them in time.
    """
    service, complete = _service(request), True
    try:
        await service.caught_up(CustomerOrders, after=request.headers.get("oyez-after", ""))
    except Stale:
        complete = False
    rows = await service.fetch(_MINE, principal=_principal(), limit=MOST)
    return JSONResponse({"orders": rows, "complete": complete})


async def read(request: Request) -> Response:
    """``GET /orders/{id}``: the order as it is now, to whoever placed it."""
    return JSONResponse(await _order(request))


async def follow(request: Request) -> Response:
    """``GET /orders/{id}/events``: the order as server-sent events, until it is settled."""
    changes = _service(request).changes(every=BEAT)
    first = await _order(request)

    async def events() -> AsyncIterator[str]:
        order = first
        yield _sse(order)
        sent = time.monotonic()
        async for _ in changes:
            found = await _order(request)
            if found != order:
                order, sent = found, time.monotonic()
                yield _sse(order)
            elif time.monotonic() - sent >= BEAT:
                sent = time.monotonic()
                yield ": still here\n\n"
            if order["status"] in ("shipped", "cancelled"):
                return

    return StreamingResponse(
        events(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def everyones(request: Request) -> Response:
    """``GET /clerk/orders``: the newest orders of all customers, after those that are held."""
    _check_clerk()
    rows = await _service(request).fetch(_ALL, limit=MOST_OF_ALL)
    orders = [
        {
            "order_id": row["order_id"],
            "email": row["email"],
            "total_cents": row["total_cents"],
            "status": status_of(row),
            "can_be_cancelled": status_of(row) in CANCELLABLE,
            "can_be_approved": status_of(row) == "held",
        }
        for row in rows
    ]
    return JSONResponse({"orders": orders})


async def cancel(request: Request) -> Response:
    """``POST /clerk/orders/{id}/cancel``: 202, and the order is undone; 409 if it is too late.

    What was paid is given back and what was reserved is free again, before the order is cancelled.
    Asking twice is safe.
    """
    return await _decide(request, CANCELLABLE, CancellationAsked)


async def approve(request: Request) -> Response:
    """``POST /clerk/orders/{id}/approve``: 202, and a held order goes on; 409 if it is not held."""
    return await _decide(request, ("held",), OrderApproved)


async def _decide(
    request: Request,
    statuses: tuple[str, ...],
    decision: type[CancellationAsked | OrderApproved],
) -> Response:
    _check_clerk()
    service, order_id = _service(request), request.path_params["order_id"]
    async with service.transaction() as tx:
        sql = f"select {_FLAGS} from orders where order_id = :order_id"
        order = await tx.fetch_one(sql, order_id=order_id)
        if order is None:
            raise Problem(404, "no_such_order", "There is no such order.")
        if status_of(order) not in statuses:
            raise Problem(409, "too_late", f"The order is {status_of(order)}.")
        tx.publish(decision(order_id=order_id))
    return JSONResponse({"order_id": order_id}, status_code=202)


def status_of(order: dict[str, Any]) -> str:
    """What the flags of an order add up to."""
    if order["cancelled"]:
        return "cancelled"
    for status in ("shipped", "confirmed"):
        if order[status]:
            return status
    if order["flagged"] and not order["approved"]:
        return "held"
    for status in ("paid", "reserved"):
        if order[status]:
            return status
    return "placed"


async def _store(tx: Transaction, order_id: str, principal: str, placement: Placement) -> None:
    products = {row["sku"]: row for row in await tx.fetch("select sku, name, cents from product")}
    unknown = [
        (f"$.lines[{index}].sku", f"there is no article {line.sku[:40]!r}")
        for index, line in enumerate(placement.lines)
        if line.sku not in products
    ]
    if unknown:
        raise Problem(422, "invalid_order", "The order names articles that do not exist.", unknown)
    total = sum(products[line.sku]["cents"] * line.quantity for line in placement.lines)
    tx.execute(
        """insert into orders (order_id, principal, email, phone, total_cents)
          values (:order_id, :principal, :email, :phone, :total_cents)""",
        order_id=order_id,
        principal=principal,
        email=placement.email,
        phone=placement.phone,
        total_cents=total,
    )
    for line in placement.lines:
        tx.execute(
            "insert into order_line values (:order_id, :sku, :name, :quantity, :cents)",
            order_id=order_id,
            sku=line.sku,
            name=products[line.sku]["name"],
            quantity=line.quantity,
            cents=products[line.sku]["cents"],
        )
    tx.execute(
        "insert into order_history values (:order_id, 'placed', :at)", order_id=order_id, at=tx.time
    )
    tx.publish(
        OrderPlaced(
            order_id=order_id,
            customer=principal,
            email=placement.email,
            phone=placement.phone,
            card=placement.card,
            total_cents=total,
            lines=placement.lines,
        )
    )


async def _repeated(tx: Transaction, principal: str, key: str, digest: str) -> str | None:
    found = await tx.fetch_one(
        "select digest, order_id from placement where principal = :principal and key = :key",
        principal=principal,
        key=key,
    )
    if found is None:
        return None
    if found["digest"] != digest:
        raise Problem(
            422, "idempotency_key_reused", "This Idempotency-Key was used for another order."
        )
    return str(found["order_id"])


def _check(placement: Placement) -> None:
    wrong: list[tuple[str, str]] = []
    if not _EMAIL.fullmatch(placement.email):
        wrong.append(("$.email", "is not an e-mail address"))
    if placement.phone is not None and not _PHONE.fullmatch(placement.phone):
        wrong.append(("$.phone", "expected a number such as +31612345678"))
    if placement.card not in _CARDS:
        wrong.append(("$.card", f"expected one of {', '.join(_CARDS)}"))
    if not 1 <= len(placement.lines) <= MAX_LINES:
        wrong.append(("$.lines", f"expected 1 to {MAX_LINES} lines"))
    seen: set[str] = set()
    for index, line in enumerate(placement.lines[: MAX_LINES + 1]):
        if not 1 <= line.quantity <= MAX_QUANTITY:
            wrong.append((f"$.lines[{index}].quantity", f"expected 1 to {MAX_QUANTITY}"))
        if line.sku in seen:
            wrong.append((f"$.lines[{index}].sku", "stands in the order twice"))
        seen.add(line.sku)
    if wrong:
        raise Problem(422, "invalid_order", "Some fields of the order are not right.", wrong)


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "An order is application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Problem(413, "too_large", f"An order is at most {MAX_BODY} bytes.")
    return bytes(body)


async def _order(request: Request) -> dict[str, Any]:
    service = _service(request)
    order_id = request.path_params["order_id"]
    rows = await service.fetch(_ORDER, order_id=order_id, principal=_principal())
    if not rows:
        raise Problem(404, "no_such_order", "There is no such order of yours.")
    order = rows[0]
    return {
        "order_id": order_id,
        "status": status_of(order),
        "paid": bool(order["paid"]),
        "reserved": bool(order["reserved"]),
        "shipped": bool(order["shipped"]),
        "reason": order["reason"],
        "total_cents": order["total_cents"],
        "lines": await service.fetch(_LINES, order_id=order_id),
        "history": await service.fetch(_HISTORY, order_id=order_id),
    }


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _principal() -> str:
    sender = caller()
    if sender is None:
        raise Problem(401, "nobody", "Orders belong to somebody: ask through the gateway.")
    return sender.name


def _check_clerk() -> None:
    sender = caller()
    if sender is None or "clerk" not in sender.roles:
        raise Problem(403, "no_clerk", "Only clerks do that.")


def _sse(order: dict[str, Any]) -> str:
    return f"event: order\ndata: {msgspec.json.encode(order).decode()}\n\n"


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, BadJson):
        error = Problem(400, "malformed_json", f"The body {error.problem}.")
    elif isinstance(error, InvalidEvent):
        fields = [(error.field, error.problem)]
        error = Problem(422, "invalid_order", "A field of the order is not right.", fields)
    assert isinstance(error, Problem)
    return JSONResponse(
        {
            "type": "about:blank",
            "title": error.code.replace("_", " "),
            "status": error.status,
            "code": error.code,
            "detail": error.detail,
            "errors": [{"field": field, "problem": problem} for field, problem in error.fields],
        },
        status_code=error.status,
        media_type="application/problem+json",
    )


app = Starlette(
    routes=[
        Route("/catalogue", catalogue),
        Route("/orders", mine),
        Route("/orders", place, methods=["POST"]),
        Route("/orders/{order_id}", read),
        Route("/orders/{order_id}/events", follow),
        Route("/clerk/orders", everyones),
        Route("/clerk/orders/{order_id}/cancel", cancel, methods=["POST"]),
        Route("/clerk/orders/{order_id}/approve", approve, methods=["POST"]),
    ],
    exception_handlers={Problem: _problem, InvalidEvent: _problem},
)
