"""A catch-all mailbox: SMTP in, a web page out.

Each message is kept once per Message-ID. A repeat is accepted with 250 and counted, as a mailbox
that recognises duplicates would do. Whatever a mail contains is shown as text.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesParser
from html import escape
from typing import NamedTuple

from aiosmtpd.smtp import SMTP, Envelope, Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from outside.books import Books
from outside.json_http import Problem, application
from outside.pages import STATIC, FileEndpoint, SecurityHeaders
from outside.server import announce, arguments, bind, exit_zero_on_signals, serve

NAME = "mailbox"
MESSAGE_LIMIT = 1024 * 1024
"""The largest message, in bytes."""

RECIPIENT_LIMIT = 50
"""The most recipients of one message."""

PAGE_LENGTH = 100
"""How many messages the list shows."""

IDLE_SECONDS = 30
"""How long an SMTP client may stay silent."""

SCHEMA = """
create table if not exists mail (
  number integer primary key,
  message_id text not null unique,
  recipients text not null,
  subject text not null,
  text text not null,
  stage text,
  shop_order text,
  received_at real not null,
  repeats integer not null default 0
);
"""


class Mail(NamedTuple):
    """What the mailbox keeps of a message; every string is storable and free of control codes."""

    message_id: str
    subject: str
    text: str
    order: str | None
    stage: str | None


def read_mail(content: bytes) -> Mail:
    """The parts of a raw message that the mailbox keeps, however malformed it is."""
    message = BytesParser().parsebytes(content)
    # A message without an identity is told apart by its content.
    fallback = f"<{hashlib.sha256(content).hexdigest()}@mailbox>"
    return Mail(
        message_id=_header(message, "Message-ID") or fallback,
        subject=_header(message, "Subject") or "(no subject)",
        text=_plain_text(message),
        order=_header(message, "X-Order"),
        stage=_header(message, "X-Stage"),
    )


def _header(message: Message, name: str) -> str | None:
    value = message.get(name)
    if value is None:
        return None
    try:
        text = str(make_header(decode_header(value)))
    except (LookupError, ValueError, MessageError):
        text = str(value)  # an encoding nobody knows: better raw than lost
    return " ".join(_storable(text).split())[:998] or None


def _plain_text(message: Message) -> str:
    for part in message.walk():
        if part.get_content_type() == "text/plain" and not part.is_multipart():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            try:
                text = content.decode(part.get_content_charset("utf-8"), "replace")
            except (LookupError, ValueError):
                text = content.decode("utf-8", "replace")
            return _storable(text.replace("\r\n", "\n"))
    return "(no plain text)"


def _storable(text: str) -> str:
    """The text without surrogates and control codes, but with tabs and line ends."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c in "\t\n" or (c >= " " and c != "\x7f") else "\ufffd" for c in whole)


class Postman:
    """Takes what SMTP brings and puts it into the books; the hooks are aiosmtpd's."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: Sequence[str],
    ) -> str:
        """Accept any recipient, up to the limit."""
        if len(envelope.rcpt_tos) >= RECIPIENT_LIMIT:
            return "452 4.5.3 Too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Answer 250 only when the message is on disk."""
        content = envelope.content
        assert isinstance(content, bytes)
        try:
            mail = read_mail(content)
        except RecursionError:
            return "554 5.6.0 The message is nested too deeply"
        try:
            with self._books.transaction():
                self._keep(mail, [_storable(address) for address in envelope.rcpt_tos])
        except sqlite3.Error:
            return "451 4.3.0 The mailbox can't be written now; try again"
        return "250 2.0.0 Kept"

    def _keep(self, mail: Mail, recipients: Sequence[str]) -> None:
        self._books.write(
            "insert into mail"
            " (message_id, recipients, subject, text, shop_order, stage, received_at)"
            " values (:message_id, :recipients, :subject, :text, :order, :stage, :now)"
            " on conflict (message_id) do update set repeats = repeats + 1",
            recipients=json.dumps(recipients),
            now=time.time(),
            **mail._asdict(),
        )


class Pages:
    """The web side, over the same books."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def newest(self, _: Request) -> Response:
        """The newest messages; the page renews itself."""
        counted = self._books.first("select count(*) as kept, sum(repeats) as repeats from mail")
        rows = self._books.all(
            "select number, subject, recipients, stage, received_at from mail"
            " order by number desc limit :n",
            n=PAGE_LENGTH,
        )
        assert counted is not None
        kept, repeats = counted["kept"], counted["repeats"] or 0
        shown = f"{kept} kept" if kept <= PAGE_LENGTH else f"newest {PAGE_LENGTH} of {kept} kept"
        items = "".join(_list_item(row) for row in rows)
        body = (
            f"<p class=count>{shown}, {repeats} repeat{'' if repeats == 1 else 's'} recognised</p>"
            + (f"<ol class=mails>{items}</ol>" if items else "<p class=empty>No mail yet.</p>")
        )
        return _page("Mailbox", body, renews=True)

    async def message(self, request: Request) -> Response:
        """One message as plain text."""
        number: str = request.path_params["number"]
        row = None
        if number.isdecimal() and len(number) < 19:  # SQLite's integers have 19 digits
            row = self._books.first("select * from mail where number = :n", n=int(number))
        if row is None:
            raise Problem(404, "not_found", "There is no such message.")
        details = [
            ("To", _recipients(row)),
            ("Received", _when(row["received_at"])),
            ("Order", row["shop_order"]),
            ("Stage", row["stage"]),
            ("Message-ID", row["message_id"]),
            ("Repeats", str(row["repeats"])),
        ]
        listed = "".join(
            f"<dt>{term}</dt><dd><bdi>{escape(value)}</bdi></dd>"
            for term, value in details
            if value
        )
        body = (
            '<p><a href="/">All mail</a></p>'
            f"<article><h2><bdi>{escape(row['subject'])}</bdi></h2>"
            f"<dl>{listed}</dl><pre><bdi>{escape(row['text'])}</bdi></pre></article>"
        )
        return _page(row["subject"], body)

    async def as_json(self, request: Request) -> Response:
        """Every message, oldest first; ``?to=`` keeps those with this recipient."""
        to = request.query_params.get("to")
        return JSONResponse(
            [
                {
                    "message_id": row["message_id"],
                    "to": _recipients(row),
                    "subject": row["subject"],
                    "text": row["text"],
                    "received_at": _when(row["received_at"]),
                    "order": row["shop_order"],
                    "stage": row["stage"],
                    "repeats": row["repeats"],
                }
                for row in self._books.all("select * from mail order by number")
                if to is None or to in json.loads(row["recipients"])
            ]
        )


def build(books: Books) -> Starlette:
    """The web side as an ASGI app."""
    pages = Pages(books)
    return application(
        [
            Route("/", pages.newest),
            Route("/messages/{number}", pages.message),
            Route("/messages.json", pages.as_json),
            Route("/style.css", FileEndpoint(STATIC / "style.css")),
            Route("/icon.svg", FileEndpoint(STATIC / "icon.svg")),
            Route("/renew.js", FileEndpoint(STATIC / "renew.js")),
        ],
        middleware=[Middleware(SecurityHeaders)],
    )


def _list_item(row: sqlite3.Row) -> str:
    stage = f"<span class=stage>{escape(row['stage'])}</span>" if row["stage"] else ""
    return (
        f'<li><a href="/messages/{row["number"]}"><bdi>{escape(row["subject"])}</bdi></a>{stage}'
        f"<span class=to><bdi>{escape(_recipients(row))}</bdi></span>"
        f"<time>{_when(row['received_at'])[:19].replace('T', ' ')} UTC</time></li>"
    )


def _recipients(row: sqlite3.Row) -> str:
    return ", ".join(json.loads(row["recipients"]))


def _page(title: str, body: str, *, renews: bool = False) -> Response:
    script = '<script type="module" src="/renew.js"></script>' if renews else ""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="/icon.svg">'
        f'<link rel="stylesheet" href="/style.css">{script}</head>'
        f"<body><header><h1>Mailbox</h1></header><main>{body}</main></body></html>"
    )


def _when(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def main() -> None:
    """``python -m outside.mailbox``."""
    parser = arguments(NAME, "A catch-all mailbox for tests.", listen="127.0.0.1:8026")
    parser.add_argument(
        "--smtp", default="127.0.0.1:8025", metavar="HOST:PORT", help="SMTP address"
    )
    options = parser.parse_args()
    exit_zero_on_signals()
    web = bind(NAME, options.listen)
    smtp = bind(NAME, options.smtp, option="--smtp")
    books = Books.open(options.data, NAME, SCHEMA)
    announce(NAME, web)
    announce(NAME, smtp, scheme="smtp")

    async def both() -> None:
        session = functools.partial(
            SMTP,
            Postman(books),
            data_size_limit=MESSAGE_LIMIT,
            enable_SMTPUTF8=True,
            hostname="mailbox",
            ident="Mailbox",
            timeout=IDLE_SECONDS,
        )
        receiver = await asyncio.get_running_loop().create_server(session, sock=smtp)
        try:
            await serve(build(books), web)
        finally:
            # Not wait_closed: a silent SMTP client must not hold up the exit.
            receiver.close()

    try:
        asyncio.run(both())
    finally:
        books.close()


if __name__ == "__main__":
    main()
