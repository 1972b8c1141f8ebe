"""The gateway: the steps of one request, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import TYPE_CHECKING, Literal

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.config import Config, GatewaySettings, Route
from oyez.gateway.access import Access
from oyez.gateway.compression import Compression
from oyez.gateway.cors import Cors, is_preflight
from oyez.gateway.exchange import (
    NO_ROUTE,
    UNDERWAY,
    ClientGone,
    Exchange,
    Refusal,
    Responder,
    raising,
    refusal_of,
)
from oyez.gateway.flows import Flows, Records
from oyez.gateway.flows.flows import ROUTE
from oyez.gateway.forward import Forwarder
from oyez.gateway.http1 import Malformed
from oyez.gateway.idempotency import idempotency
from oyez.gateway.identity import Identity
from oyez.gateway.ingest import ingest
from oyez.gateway.keys import Keys
from oyez.gateway.limits import Concurrency, Rates, Shedding
from oyez.gateway.openapi import Openapi
from oyez.gateway.permission import Permission
from oyez.gateway.routing import Routes, Target, safe_path
from oyez.gateway.sessions import Sessions
from oyez.gateway.static import Files, not_found
from oyez.gateway.step import Answer, Part, Step, walk
from oyez.identity import JWKS
from oyez.logger import Logger
from oyez.signals import Listener, RequestAnswered
from oyez.spans import Failure, Span, Tracer, here

if TYPE_CHECKING:
    from oyez.gateway.login import Login
    from oyez.gateway.tokens import Tokens

NAME = "gateway"
"""The gateway as the sender of signals."""


def gateway(
    config: Config,
    ambient: Ambient,
    *,
    secret: bytes,
    tell: Listener | None = None,
    tracer: Tracer | None = None,
    records: Records | None = None,
) -> Gateway:
    """Return the gateway of a configuration; ``secret`` signs its sessions and flows.

    ``tell`` receives a signal for each request. ``tracer`` records spans; None where none are
    recorded. ``records`` are those of the brokers: without them routes answer as if they had no
    ``until``. Raises :class:`ConfigurationError` if there is no ``[gateway]``, or if the files it
    names are missing or readable for others.
    """
    return Gateway(config, ambient, secret, tell, tracer, records)


class Gateway(Responder):
    """It responds to requests. See :func:`gateway`."""

    def __init__(
        self,
        config: Config,
        ambient: Ambient,
        secret: bytes,
        tell: Listener | None = None,
        tracer: Tracer | None = None,
        records: Records | None = None,
    ) -> None:
        if config.gateway is None:
            raise config.error("gateway", "a table [gateway]", "nothing")
        self._logged: float = config.gateway.access_log
        self._ambient = ambient
        keys, tokens = Keys(config, ambient), _tokens(config, ambient)
        self._sessions, self._login = _sessions(config.gateway, ambient, secret)
        self._tracer = tracer
        self._forwarder = Forwarder(config.gateway, ambient, tracer, tell)
        self._files = _files(config)
        cors = config.gateway.cors
        self._cors = None if cors is None else Cors(cors)
        shedding, rates = Shedding(config.gateway.lag_limit), Rates(config, ambient, tell)
        self._ingest = ingest(
            config, config.gateway, ambient, sender=NAME, tell=tell, tracer=tracer
        )
        once = idempotency(config, ambient)
        self._identity = Identity(config, ambient)
        self._flows = _flows(config, ambient, secret, records)
        self._steps: list[Step] = [
            Access(keys, tokens, self._sessions),
            Permission(),
            shedding,
            rates,
            Compression(),  # after the answer was kept, as others may not accept it so
            once,
            *([self._flows] if self._flows is not None else []),
            Concurrency(config.gateway),  # who waits for the end of a flow holds no place
            self._identity,
        ]
        """The steps of a request to a service, in their order; see `oyez.gateway.step`."""
        self._parts: list[Part] = [self._forwarder, keys, shedding, rates, once]
        """What goes on besides requests, in the order in which it begins."""
        if tokens is not None:
            self._parts.append(tokens)
        if self._ingest is not None:
            self._parts.append(self._ingest.publisher)
        if self._flows is not None:
            self._parts.append(self._flows)
        self._openapi = None
        if config.gateway.openapi is not None:
            self._openapi = Openapi(config, config.gateway.openapi, ambient, self._forwarder.fetch)
            self._parts.append(self._openapi)
        self._routes = self._routed(config, config.gateway.routes)
        self.draining = False
        """Whether it is about to stop."""
        self.in_flight = 0
        """The number of requests that are being answered."""
        self._tell = tell
        self._log = Logger()

    @property
    def watchers(self) -> int:
        """The number of clients that wait for more of a flow."""
        return 0 if self._flows is None else self._flows.watchers

    @property
    def tunnels(self) -> int:
        """The number of WebSockets between clients and services."""
        return self._forwarder.tunnels.open

    async def open(self) -> None:
        """Begin what goes on besides requests.

        It connects to what the replicas of the gateway share, and to the broker if events of others
        are taken in; reads keys that change again; watches the event loop. Raises
        ConfigurationError and BrokerRefused for what can't be used.
        """
        for part in self._parts:
            await part.open()

    def drain(self) -> None:
        """Become unready, and end endless responses."""
        self.draining = True
        self._forwarder.drain()
        if self._flows is not None:
            self._flows.drain()

    async def close(self) -> None:
        """Close all connections but those of clients, and end what `open` began.

        Safe to call twice.
        """
        for part in reversed(self._parts):
            await part.close()

    def __call__(self, exchange: Exchange) -> Awaitable[None]:
        """Respond to one request, whatever happens, and log it.

        Returns what to await for it, or `UNDERWAY`.
        """
        exchange.began = self._ambient.monotonic()
        exchange.responder = self
        self.in_flight += 1
        exchange.unawaited = self._tracer is None
        if self._tracer is not None:
            self._begin_span(exchange, self._tracer)
        try:
            answering = self._answer(exchange)
        except Exception as error:  # noqa: BLE001  `respond` tells of it
            answering = raising(error)
        if answering is UNDERWAY:
            return answering
        exchange.unawaited = False
        return self.respond(exchange, answering)

    async def respond(
        self, exchange: Exchange, answering: Awaitable[None], *, begun: bool = False
    ) -> None:
        """See :class:`oyez.gateway.exchange.Responder`."""
        here.set(exchange)  # until the next request of the connection, whose task this is
        try:
            if exchange.interruption is not None and not begun:
                if isinstance(answering, Coroutine):
                    answering.close()
                raise asyncio.CancelledError
            await answering
        except Refusal as refusal:
            # A shared one would keep all that each request held.
            refusal.__traceback__ = refusal.__context__ = None
            await exchange.refuse(refusal)
        except Malformed as error:
            await exchange.refuse(refusal_of(error))
        except asyncio.CancelledError:
            await _interrupted(exchange)
        except Exception:  # noqa: BLE001  a bug: its stack is logged, and not sent to the client
            self._log.exception("gateway failed", request_id=exchange.request_id)
            if exchange.status == 0:
                await exchange.refuse(Refusal(500, "internal", "the gateway failed"))
        finally:
            self.ended(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Tell of an exchange that has ended."""
        self.in_flight -= 1
        seconds = self._ambient.monotonic() - exchange.began
        if exchange.recorded is not None:
            self._end_span(exchange, exchange.recorded)
        if self._tell is not None:
            self._tell(_answered(exchange, seconds))
        if self._is_logged(exchange):
            outer = here.set(exchange)
            self._write_line(exchange, seconds)
            here.reset(outer)

    def refused(self, refusal: Refusal) -> None:
        """Tell of what was refused without becoming a request."""
        if self._tell is not None:
            self._tell(
                RequestAnswered(
                    service=NAME,
                    route=NO_ROUTE,
                    method="",
                    status=refusal.status,
                    seconds=None,
                    code=refusal.code,
                )
            )

    def _begin_span(self, exchange: Exchange, tracer: Tracer) -> None:
        span = tracer.serve(
            exchange.method,
            exchange.scheme,
            exchange.given,
            exchange.tracestate,
            self._ambient.now(),
        )
        if span is not None:
            exchange.recorded, exchange.traceparent = span, span.traceparent

    def _end_span(self, exchange: Exchange, span: Span) -> None:
        found: dict[str, str | int] = {}
        if exchange.label != "-":
            found["http.route"] = exchange.label
        if exchange.status:
            found["http.response.status_code"] = exchange.status
        failure = None
        if exchange.status >= 500:
            failure = Failure(str(exchange.status))
        elif not exchange.complete:
            gone = isinstance(exchange.interruption, ClientGone)
            failure = Failure("client_gone" if gone else "cut_off")
        span.end(self._ambient.now(), failure, found)

    def _routed(self, config: Config, routes: Sequence[Route]) -> Routes:
        routed = Routes()
        routed.add("/livez", ["GET"], _well, exact=True)
        routed.add("/readyz", ["GET"], self._ready, exact=True)
        routed.add("/session", ["POST"], self._session, exact=True)
        routed.add(JWKS, ["GET"], self._identity.publish, exact=True)
        if self._flows is not None:
            steps = self._steps[: self._steps.index(self._flows)]
            routed.add(ROUTE.path, ["GET"], walk(steps, ROUTE, self._flows.answer))
        if self._login is not None:
            routed.add("/session", ["GET"], self._login.show, exact=True)
            routed.add("/login", ["GET"], self._login.begin, exact=True)
            routed.add("/login/callback", ["GET"], self._login.callback, exact=True)
            routed.add("/logout", ["POST"], self._login.logout, exact=True)
        if self._openapi is not None:
            for route, answer in self._openapi.resources():
                self._add_own(routed, route, answer)
        for route in routes:
            address = config.services[route.service].reached_at()
            if address is None:
                raise ValueError(route)
            forward = self._forwarder.to(route, address)
            routed.add(route.path, route.methods, walk(self._steps, route, forward))
        if self._ingest is not None:
            for path, answer in self._ingest.events.items():
                self._add_own(routed, _posted(path, "session"), answer)
            for path, answer in self._ingest.webhooks.items():
                self._add_own(routed, _posted(path, "public"), answer)
        return routed

    def _add_own(self, routed: Routes, route: Route, answer: Answer) -> None:
        """Answer at a path here, after the steps of a request to a service.

        Nobody is told of its sender: that step is left out.
        """
        steps = [each for each in self._steps if each is not self._identity]
        routed.add(route.path, route.methods, walk(steps, route, answer), exact=True)

    def _answer(self, exchange: Exchange) -> Awaitable[None]:
        if self._cors is not None:
            self._cors.open(exchange)
        exchange.check_head()
        line = exchange.line
        target = line.found(self._routes)
        if not isinstance(target, Target):
            path = safe_path(exchange)
            target = self._routes.match(path)
            if target is None:
                return self._storefront(exchange, path)
            line.leave(self._routes, target)
        exchange.label = target.label
        if self._cors is not None and is_preflight(exchange):
            return self._cors.preflight(exchange, target.answers)
        return target.answer(exchange.method)(exchange)

    async def _ready(self, exchange: Exchange) -> None:
        if self.draining:
            raise Refusal(503, "draining", "the gateway is about to stop")
        await _well(exchange)

    async def _session(self, exchange: Exchange) -> None:
        cookie = self._sessions.cookie(exchange)
        await exchange.body()
        await exchange.plain(204, [(b"set-cookie", cookie.encode())])

    async def _storefront(self, exchange: Exchange, path: str) -> None:
        if self._files is None or exchange.method not in ("GET", "HEAD"):
            raise not_found()
        exchange.label = "static"
        await self._files.serve(exchange, path)

    def _is_logged(self, exchange: Exchange) -> bool:
        share = self._logged
        # A line costs about as much as to refuse a request, which has to be cheap under load.
        failed = exchange.status >= 500 and exchange.refused != "overloaded"
        failed = failed or not exchange.complete
        return failed or share == 1 or (share > 0 and self._ambient.chance() < share)

    def _write_line(self, exchange: Exchange, seconds: float) -> None:
        more: dict[str, str] = {}
        if exchange.principal is not None:
            more["sender"] = exchange.principal.kind  # of which kind, and not who
        if not exchange.complete:
            gone = isinstance(exchange.interruption, ClientGone)
            more["ended"] = "client gone" if gone else "cut off"
        self._log.info(
            "request",
            method=exchange.method,
            route=exchange.label,
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            request_id=exchange.request_id,
            **more,
        )


def _sessions(
    settings: GatewaySettings, ambient: Ambient, secret: bytes
) -> tuple[Sessions, Login | None]:
    if settings.login is None:
        return Sessions(settings, ambient, secret), None
    with driver("oyez[login]"):
        from oyez.gateway.login import Login
        from oyez.gateway.users import Users
    users = Users(settings.login, ambient, secret)
    sessions = Sessions(settings, ambient, secret, users)
    return sessions, Login(settings.login, ambient, secret, sessions, users)


def _posted(path: str, access: Literal["public", "session"]) -> Route:
    """Return the route of what is posted to the gateway itself."""
    return Route(path=path, service=NAME, methods=("POST",), access=access)


async def _well(exchange: Exchange) -> None:
    await exchange.plain(200, [(b"content-type", b"application/json")], b'{"status":"ok"}')


def _answered(exchange: Exchange, seconds: float) -> RequestAnswered:
    return RequestAnswered(
        service=NAME,
        route=exchange.label,
        method=exchange.method,
        status=exchange.status,
        seconds=seconds,
        code=exchange.refused,
        trace_id=exchange.trace_id,
    )


async def _interrupted(exchange: Exchange) -> None:
    """Refuse what was interrupted before its answer began; else the answer stays incomplete."""
    if exchange.interruption is None:
        raise asyncio.CancelledError
    if isinstance(exchange.interruption, Refusal) and not exchange.status:
        await exchange.refuse(exchange.interruption)


def _tokens(config: Config, ambient: Ambient) -> Tokens | None:
    if config.gateway is None or not config.gateway.issuers:
        return None
    from oyez.gateway.tokens import Tokens  # where there are issuers alone: it takes memory

    return Tokens(config, ambient)


def _flows(
    config: Config, ambient: Ambient, secret: bytes, records: Records | None
) -> Flows | None:
    settings = config.gateway
    if settings is None or not any(route.until for route in settings.routes):
        return None
    return None if records is None else Flows(config, settings, ambient, secret, records)


def _files(config: Config) -> Files | None:
    name = config.gateway.static if config.gateway else None
    if name is None:
        return None
    folder = config.file(name)
    if not folder.is_dir():
        raise config.error("gateway.static", "a folder", f"none at {folder}")
    return Files(folder)
