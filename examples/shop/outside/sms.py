"""An SMS provider that sends nothing: it keeps what it was asked to send, once per key."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from outside.books import Books
from outside.json_http import Problem, application, idempotency_key, read_fields
from outside.server import announce, arguments, bind, exit_zero_on_signals, serve

NAME = "sms"
TEXT_LIMIT = 1600
"""The longest text in characters: ten joined messages."""

SCHEMA = """
create table if not exists message (
  key text primary key,
  message_id text not null,
  recipient text not null,
  text text not null,
  sent_at real not null,
  repeats integer not null default 0
);
"""


class Sms:
    """The endpoints, over one set of books."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def send(self, request: Request) -> Response:
        """Accept a message for a number in E.164 form (``+31612345678``); one key sends once."""
        key = idempotency_key(request)
        fields = await read_fields(request)
        to = fields.text(
            "to",
            at_most=16,
            pattern=r"\+[1-9][0-9]{6,14}",
            meaning="a number in international form is required, e.g. +31612345678",
        )
        text = fields.text("text", at_most=TEXT_LIMIT)
        fields.done()

        with self._books.transaction():
            known = self._books.first("select * from message where key = :key", key=key)
            if known is None:
                message_id = f"sm_{uuid.uuid4().hex}"
                self._books.write(
                    "insert into message values (:key, :message_id, :to, :text, :now, 0)",
                    key=key,
                    message_id=message_id,
                    to=to,
                    text=text,
                    now=time.time(),
                )
            elif (known["recipient"], known["text"]) != (to, text):
                raise Problem(
                    422, "key_reused", "This Idempotency-Key was used with another payload."
                )
            else:
                message_id = known["message_id"]
                self._books.write(
                    "update message set repeats = repeats + 1 where key = :key", key=key
                )
        return JSONResponse({"message_id": message_id}, 202)

    async def messages(self, _: Request) -> Response:
        """Every message, oldest first; ``repeats`` counts the requests after the first."""
        return JSONResponse(
            [
                {
                    "key": row["key"],
                    "message_id": row["message_id"],
                    "to": row["recipient"],
                    "text": row["text"],
                    "repeats": row["repeats"],
                }
                for row in self._books.all("select * from message order by rowid")
            ]
        )


def build(books: Books) -> Starlette:
    """The SMS provider as an ASGI app."""
    sms = Sms(books)
    return application(
        [
            Route("/messages", sms.send, methods=["POST"]),
            Route("/messages", sms.messages, methods=["GET"]),
        ]
    )


def main() -> None:
    """``python -m outside.sms``."""
    options = arguments(NAME, "An SMS provider for tests.", listen="127.0.0.1:8091").parse_args()
    exit_zero_on_signals()
    listener = bind(NAME, options.listen)
    books = Books.open(options.data, NAME, SCHEMA)
    announce(NAME, listener)
    try:
        asyncio.run(serve(build(books), listener))
    finally:
        books.close()


if __name__ == "__main__":
    main()
