"""A payment provider that captures, declines, stalls and fails on demand.

The token decides what a charge does: ``tok_ok`` captures, ``tok_declined`` declines,
``tok_slow`` captures and then stalls on the first request of each key, ``tok_flaky`` answers 500
to the first request of each key and captures on the next.

The idempotency key decides how often: one key moves money at most once, whatever happens to the
answer on its way. ``POST /weather`` makes charges, refunds and ``/healthz`` fail or crawl;
``/ledger`` and ``/weather`` stay reachable, so that a test can look at the books in a storm.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from outside.books import Books
from outside.json_http import Problem, application, idempotency_key, read_fields
from outside.server import announce, arguments, bind, exit_zero_on_signals, fail, serve

NAME = "provider"
TOKENS = ("tok_ok", "tok_declined", "tok_slow", "tok_flaky")
WEATHERS = ("fair", "down", "slow", "errors")
SLOW_SECONDS = 2.0
"""How long each request waits in slow weather."""

SCHEMA = """
create table if not exists charge (
  key text primary key,
  payload text not null,
  charge_id text not null,
  reference text not null,
  amount_cents integer not null,
  status text not null check (status in ('captured', 'declined')),
  reason text,
  refunded integer not null default 0
);
create table if not exists refund (key text primary key, charge_key text not null, status text);
create table if not exists void (charge_key text primary key);
create table if not exists stumbled (key text primary key);
"""


class Provider:
    """The endpoints, over one set of books. ``stall`` is how long ``tok_slow`` stalls, seconds."""

    def __init__(self, books: Books, stall: float) -> None:
        self._books = books
        self._stall = stall

    async def charge(self, request: Request) -> Response:
        """Capture or decline, once per key; a repeat gets the recorded answer."""
        key = idempotency_key(request)
        fields = await read_fields(request)
        amount = fields.integer("amount_cents", at_least=1, at_most=10**12)
        currency = fields.choice("currency", ("EUR",))
        token = fields.choice("token", TOKENS)
        reference = fields.text("reference", at_most=255)
        fields.done()
        payload = json.dumps([amount, currency, token, reference])

        with self._books.transaction():
            first = self._recorded(key) is None
            if first and token == "tok_flaky" and self._stumbles(key):  # noqa: S105
                answer: Response = Problem(500, "stumbled", "The provider stumbled.").response()
            else:
                if first:
                    self._record(key, payload, amount, token, reference)
                answer = self._answer(key, payload)
        # The money has moved and is on disk: only the answer is late.
        if first and token == "tok_slow":  # noqa: S105
            await asyncio.sleep(self._stall)
        return answer

    async def refund(self, request: Request) -> Response:
        """Give a captured charge back, once; make sure that any other key never captures."""
        key = idempotency_key(request)
        fields = await read_fields(request)
        charge_key = fields.text("charge_key", at_most=255)
        fields.done()

        with self._books.transaction():
            known = self._books.first("select * from refund where key = :key", key=key)
            if known is None:
                status = self._refund_or_void(charge_key)
                self._books.write(
                    "insert into refund values (:key, :charge_key, :status)",
                    key=key,
                    charge_key=charge_key,
                    status=status,
                )
            elif known["charge_key"] != charge_key:
                raise _other_payload()
            else:
                status = known["status"]
        return JSONResponse({"status": status})

    async def ledger(self, _: Request) -> Response:
        """All charges. ``captured_cents`` counts refunded ones too: the net is the difference."""
        charges = [
            {
                "key": row["key"],
                "reference": row["reference"],
                "status": row["status"],
                "amount_cents": row["amount_cents"],
                "refunded": bool(row["refunded"]),
            }
            for row in self._books.all("select * from charge order by rowid")
        ]
        captured = [charge for charge in charges if charge["status"] == "captured"]
        return JSONResponse(
            {
                "captured_cents": sum(charge["amount_cents"] for charge in captured),
                "refunded_cents": sum(c["amount_cents"] for c in captured if c["refunded"]),
                "charges": charges,
            }
        )

    def _recorded(self, key: str) -> str | None:
        row = self._books.first("select payload from charge where key = :key", key=key)
        return None if row is None else row["payload"]

    def _stumbles(self, key: str) -> bool:
        """Whether this is the key's first request; remembers that it was made."""
        if self._books.first("select 1 from stumbled where key = :key", key=key):
            return False
        self._books.write("insert into stumbled values (:key)", key=key)
        return True

    def _record(self, key: str, payload: str, amount: int, token: str, reference: str) -> None:
        reason = None
        if self._books.first("select 1 from void where charge_key = :key", key=key):
            reason = "voided"
        elif token == "tok_declined":  # noqa: S105
            reason = "card_declined"
        self._books.write(
            "insert into charge values"
            " (:key, :payload, :charge_id, :reference, :amount, :status, :reason, 0)",
            key=key,
            payload=payload,
            charge_id=f"ch_{uuid.uuid4().hex}",
            reference=reference,
            amount=amount,
            status="declined" if reason else "captured",
            reason=reason,
        )

    def _answer(self, key: str, payload: str) -> Response:
        row = self._books.first("select * from charge where key = :key", key=key)
        assert row is not None
        if row["payload"] != payload:
            raise _other_payload()
        if row["status"] == "declined":
            return JSONResponse({"status": "declined", "reason": row["reason"]}, 402)
        return JSONResponse(
            {
                "charge_id": row["charge_id"],
                "status": row["status"],
                "amount_cents": row["amount_cents"],
            },
            201,
        )

    def _refund_or_void(self, charge_key: str) -> str:
        captured = self._books.first(
            "select 1 from charge where key = :key and status = 'captured'", key=charge_key
        )
        if captured:
            self._books.write("update charge set refunded = 1 where key = :key", key=charge_key)
            return "refunded"
        self._books.write("insert or ignore into void values (:key)", key=charge_key)
        return "voided"


class Weather:
    """The mood of the provider; kept in memory, fair after a start."""

    def __init__(self) -> None:
        self.mode = "fair"

    async def change(self, request: Request) -> Response:
        """Take the mode that the request names."""
        fields = await read_fields(request)
        mode = fields.choice("mode", WEATHERS)
        fields.done()
        self.mode = mode
        return JSONResponse({"mode": mode})


class WeatherMiddleware:
    """Lets the weather reach every request but those to ``/weather`` and ``/ledger``.

    It acts before the request is read: in bad weather no money moves.
    """

    def __init__(self, app: ASGIApp, weather: Weather) -> None:
        self._app = app
        self._weather = weather

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as ASGI wants it."""
        mode = "fair" if scope["path"] in ("/weather", "/ledger") else self._weather.mode
        if mode == "down":
            await Problem(503, "down", "The provider is down.").response()(scope, receive, send)
        elif mode == "errors":
            await Problem(500, "broken", "The provider is broken.").response()(scope, receive, send)
        else:
            if mode == "slow":
                await asyncio.sleep(SLOW_SECONDS)
            await self._app(scope, receive, send)


def build(books: Books, stall: float) -> Starlette:
    """The provider as an ASGI app."""
    provider, weather = Provider(books, stall), Weather()
    return application(
        [
            Route("/charges", provider.charge, methods=["POST"]),
            Route("/refunds", provider.refund, methods=["POST"]),
            Route("/ledger", provider.ledger),
            Route("/weather", weather.change, methods=["POST"]),
        ],
        middleware=[Middleware(WeatherMiddleware, weather=weather)],
    )


def _other_payload() -> Problem:
    return Problem(422, "key_reused", "This Idempotency-Key was used with another payload.")


def main() -> None:
    """``python -m outside.provider``."""
    parser = arguments(NAME, "A payment provider for tests.", listen="127.0.0.1:8090")
    parser.add_argument(
        "--stall", type=float, default=5.0, metavar="SECONDS", help="how long tok_slow stalls"
    )
    options = parser.parse_args()
    stall = cast(float, options.stall)
    if not 0 <= stall <= 3600:
        fail(NAME, f"--stall: expected 0 to 3600 seconds, found {stall:g}")
    exit_zero_on_signals()
    listener = bind(NAME, options.listen)
    books = Books.open(options.data, NAME, SCHEMA)
    announce(NAME, listener)
    try:
        asyncio.run(serve(build(books, stall), listener))
    finally:
        books.close()


if __name__ == "__main__":
    main()
