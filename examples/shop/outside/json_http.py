"""Strict JSON over HTTP: bodies are bounded and checked, refusals are problem+json (RFC 9457)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

BODY_LIMIT = 64 * 1024
"""The largest request body, in bytes."""

BODY_SECONDS = 10.0
"""The longest time a client may take to send its body."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_log = logging.getLogger("outside")
_T = TypeVar("_T")


class Problem(Exception):
    """A refusal: the HTTP status, a code for programs, a sentence for people, the fields at fault.

    ``fields`` maps a path such as ``$.amount_cents`` to what is wrong there.
    """

    def __init__(
        self, status: int, code: str, detail: str, fields: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = dict(fields or {})

    def response(self) -> Response:
        """The answer that tells the client."""
        body: dict[str, object] = {
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.fields:
            body["errors"] = [{"field": f, "problem": p} for f, p in self.fields.items()]
        headers = {}
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["retry-after"] = "1"
        if self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            # The rest of the body is still on its way and nobody will read it.
            headers["connection"] = "close"
        return JSONResponse(
            body, self.status, headers=headers, media_type="application/problem+json"
        )


def idempotency_key(request: Request) -> str:
    """The ``Idempotency-Key`` header: 1 to 255 visible ASCII characters, exactly once."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        raise Problem(400, "idempotency_key_missing", "The Idempotency-Key header is required.")
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise Problem(
            400,
            "idempotency_key_invalid",
            "Idempotency-Key must be sent once, as 1 to 255 visible ASCII characters.",
        )
    return keys[0]


class Fields:
    """The fields of a JSON object, checked one by one and refused together.

    Every reader returns a harmless value for a wrong field and remembers the problem; call
    :meth:`done` before using what was read.
    """

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body
        self._problems: dict[str, str] = {}

    def text(self, name: str, *, at_most: int, pattern: str = "", meaning: str = "") -> str:
        """A string of 1 to ``at_most`` characters that matches ``pattern``, if one is given."""
        value = self._body.get(name)
        if not isinstance(value, str):
            return self._wrong(name, "a string is required", "")
        if not 1 <= len(value) <= at_most:
            return self._wrong(name, f"1 to {at_most} characters are allowed", "")
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            return self._wrong(name, "NUL and lone surrogates are not allowed", "")
        if pattern and not re.fullmatch(pattern, value):
            return self._wrong(name, meaning, "")
        return value

    def integer(self, name: str, *, at_least: int, at_most: int) -> int:
        """A whole number within the bounds, both included."""
        value = self._body.get(name)
        # bool is an int to Python, but not to anybody who sends JSON.
        if isinstance(value, bool) or not isinstance(value, int):
            return self._wrong(name, "a whole number is required", at_least)
        if not at_least <= value <= at_most:
            return self._wrong(name, f"{at_least} to {at_most} is allowed", at_least)
        return value

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """One of the allowed strings."""
        value = self._body.get(name)
        if not isinstance(value, str) or value not in allowed:
            return self._wrong(name, f"one of {', '.join(allowed)} is required", allowed[0])
        return value

    def done(self) -> None:
        """Raise a 422 :class:`Problem` that names every wrong field."""
        if self._problems:
            raise Problem(422, "invalid_fields", "Some fields are invalid.", self._problems)

    def _wrong(self, name: str, problem: str, instead: _T) -> _T:
        self._problems[f"$.{name}"] = problem
        return instead


async def read_fields(request: Request) -> Fields:
    """The request's body as one JSON object within the limits of this module."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "media_type", "Content-Type must be application/json.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "content_encoding", "A compressed body is not accepted.")
    return Fields(_parse(await read_body(request)))


async def read_body(request: Request) -> bytes:
    """The request's body within the limits of this module."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise Problem(413, "body_too_large", f"At most {BODY_LIMIT} bytes are allowed.")
    except ClientDisconnect:
        raise Problem(400, "body_incomplete", "The body ended too early.") from None
    except TimeoutError:
        raise Problem(408, "body_too_slow", f"Send the body within {BODY_SECONDS:g} s.") from None
    return bytes(body)


def _parse(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_not_a_number
        )
    except ValueError:
        raise Problem(400, "invalid_json", "The body is not valid UTF-8 JSON.") from None
    except RecursionError:
        raise Problem(422, "too_deep", "The body is nested too deeply.") from None
    if not isinstance(value, dict):
        raise Problem(422, "invalid_fields", "The body must be an object.", {"$": "not an object"})
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Problem(422, "duplicate_key", "A key appears twice in one object.")
    return found


def _not_a_number(name: str) -> object:
    raise Problem(422, "invalid_number", f"{name} is not a JSON number.")


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    response = Problem(error.status_code, code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def _on_books_error(_: Request, error: Exception) -> Response:
    _log.error("the books can't be used: %s", error)
    return Problem(503, "books_unavailable", "The books can't be written now.").response()


async def _on_bug(_: Request, error: Exception) -> Response:
    return Problem(500, "internal_error", "Something went wrong on this side.").response()


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


Endpoint = Callable[[Request], Awaitable[Response]]


def application(routes: Sequence[BaseRoute], **options: Any) -> Starlette:
    """A Starlette app of these routes and ``/healthz`` whose every error is problem+json."""
    return Starlette(
        routes=[*routes, Route("/healthz", _healthz)],
        exception_handlers={
            Problem: _on_problem,
            HTTPException: _on_http_error,
            sqlite3.Error: _on_books_error,
            Exception: _on_bug,
        },
        **options,
    )
