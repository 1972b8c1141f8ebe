"""The console's app: who may pass, what may be sent, and the pages behind that."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oyez.ambient import Ambient
from oyez.console.access import Access, TooMany, genuine, same_site
from oyez.console.desk import Desk, desk, form
from oyez.console.live import Live
from oyez.console.pages import SCREENS
from oyez.console.system import System, Unanswered
from oyez.errors import LoginFailed

if TYPE_CHECKING:
    from oyez.console.login import Login

FORM = 4_194_304
"""The largest form, in bytes."""
_FIELDS = 32
_OPEN = ("/sign-in", "/sign-in/provider", "/sign-in/callback", "/livez")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # Without a referrer at all, browsers would hide from which site a form comes.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def console(
    system: System, access: Access, ambient: Ambient, login: Login | None = None
) -> Starlette:
    """Return the console of a system as an ASGI app, which closes the system at its end.

    ``login`` lets people in by a provider besides the tokens.
    """
    live = Live(system, ambient)
    shared = Desk(system, live, access, ambient, SCREENS, by_provider=login is not None)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await live.close()
            await system.close()

    app = Starlette(
        routes=[
            Route("/sign-in", _sign_in_page),
            Route("/sign-in", _sign_in, methods=["POST"]),
            *(() if login is None else _by_provider(login)),
            Route("/sign-out", _sign_out, methods=["POST"]),
            Route("/livez", _livez),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
            *(route for screen in SCREENS for route in screen.routes),
        ],
        middleware=[Middleware(_Headers), Middleware(_Guard, shared=shared)],
        exception_handlers={HTTPException: _refused, Unanswered: _unanswered},
        lifespan=lifespan,
    )
    app.state.desk = shared
    return app


class _Guard:
    """Lets nothing pass but what is allowed: a page needs a session, a change a role as well."""

    def __init__(self, app: ASGIApp, shared: Desk) -> None:
        self._app = app
        self._desk = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        state = scope.setdefault("state", {})
        state["session"] = self._desk.access.session(request)
        state["form"] = {}
        if request.method in ("GET", "HEAD"):
            refusal = self._reading(request)
        else:
            refusal = await self._changing(request)
        await (refusal or self._app)(scope, receive, send)

    def _reading(self, request: Request) -> Response | None:
        path = request.url.path
        if path in _OPEN or path.startswith("/static/") or request.scope["state"]["session"]:
            return None
        if request.headers.get("accept", "").startswith("text/event-stream"):
            return PlainTextResponse("sign in first", 401)
        there = path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(there, safe='')}", 303)

    async def _changing(self, request: Request) -> Response | None:
        session = request.scope["state"]["session"]
        problem = self._desk.problem
        if request.method != "POST":
            return problem(request, 405, "Not allowed", f"There is no {request.method} here.")
        if not same_site(request):
            return problem(request, 403, "From another site", "Only this console's own pages act.")
        fields = await _fields(request)
        if fields is None:
            return problem(request, 413, "Too large", f"A form has at most {FORM} bytes.")
        request.scope["state"]["form"] = fields
        path = request.url.path
        if path == "/sign-in":
            return None
        if session is None:
            return problem(request, 401, "Signed out", "Sign in, then do it once more.")
        if not genuine(session, fields.get("csrf", "")):
            return problem(request, 403, "An old page", "Load the page again, then repeat it.")
        if path != "/sign-out" and "operate" not in session.person.roles:
            needed = "You may read here. To change something, sign in with the operator's token."
            return problem(request, 403, "Only to read", needed)
        return None


class _Headers:
    """Adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                fixed = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "no-cache" if fixed else "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


async def _fields(request: Request) -> dict[str, str] | None:
    """Return the fields of a form; None when it is too large."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > FORM:
            return None
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        return {}
    return dict(pairs)


async def _sign_in_page(request: Request) -> Response:
    wanted = _local(request.query_params.get("next", "/"))
    return desk(request).page(request, "sign-in.html", wanted=wanted, failed="")


async def _sign_in(request: Request) -> Response:
    fields = form(request)
    wanted = _local(fields.get("next", "/"))
    access = desk(request).access
    try:
        person = access.sign_in(fields.get("token", "").strip())
        failed = "That is not a token of this system, or the link was used before."
    except TooMany:
        person, failed = None, "Too many attempts have failed. Wait a minute."
    if person is None:
        return desk(request).page(request, "sign-in.html", 403, wanted=wanted, failed=failed)
    answer = RedirectResponse(wanted, 303)
    access.begin(person, answer)
    return answer


def _by_provider(login: Login) -> Iterator[Route]:
    from oyez.console.login import BEGIN, CALLBACK

    async def begin(request: Request) -> Response:
        wanted = _local(request.query_params.get("next", "/"))
        try:
            return await login.begin(request, wanted)
        except LoginFailed as failure:
            return _not_signed_in(request, failure.detail)

    async def callback(request: Request) -> Response:
        try:
            person, wanted = await login.finish(request)
        except LoginFailed as failure:
            answer = _not_signed_in(request, failure.detail)
        else:
            # A redirect would still count as coming from the provider's site, without the session.
            answer = desk(request).page(request, "signed-in.html", wanted=wanted)
            desk(request).access.begin(person, answer)
        login.forget(answer)
        return answer

    yield Route(BEGIN, begin)
    yield Route(CALLBACK, callback)


def _not_signed_in(request: Request, why: str) -> Response:
    failed = f"You are not signed in: {why}."
    return desk(request).page(request, "sign-in.html", 403, wanted="/", failed=failed)


async def _sign_out(request: Request) -> Response:
    answer = RedirectResponse("/sign-in", 303)
    desk(request).access.end(request, answer)
    return answer


async def _livez(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title = HTTPStatus(status).phrase
    detail = "There is nothing here." if status == 404 else "It can't be done in this way."
    return desk(request).problem(request, status, title, detail)


async def _unanswered(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Unanswered) else 500
    title = "It was refused" if status == 409 else "No answer"
    return desk(request).problem(request, status, title, str(error))


def _local(path: str) -> str:
    """Return a path of this console; the first page for any other address."""
    plain = path.isprintable() and path.startswith("/") and "\\" not in unquote(path)
    return path if plain and not path.startswith("//") else "/"
