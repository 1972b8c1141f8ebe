"""The client that posts to endpoints, and connects to nothing that `oyez.webhooks.reach` refuses.

Names are resolved here, and the connection is made to the address that was judged: a name that
resolves to another one a moment later (DNS rebinding) gains nothing. Redirects are not followed,
and no proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, cast

import httpcore
import msgspec

from oyez.errors import InvalidEvent
from oyez.webhooks.connections import Connections
from oyez.webhooks.reach import Reach

SECONDS = 10.0
"""A request that takes longer has failed."""
CONNECT = 5.0
"""The same for a connection."""
MAX_ANSWER = 65_536
"""Bytes of an answer's body that are read, and dropped, so that its connection can be kept."""
RESOLVERS = 32
"""The limit of names that are resolved at once."""
ADDRESSES = 4
"""The limit of a name's addresses that are tried."""

Resolve = Callable[[str, int], list[str]]
"""Returns the addresses of a name; it may block."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request."""

    status: int | None
    """None if none came."""
    error: str
    """Why it failed, for the subscriber; empty if it did not."""
    seconds: float
    later: float | None = None
    """The seconds after which the endpoint asks to try again."""
    fields: Mapping[bytes, Sequence[bytes]] = {}
    """The headers: the values of each, by its name in lower case."""
    body: bytes | None = None
    """The body, if it was asked for, and has come as a whole."""


class Client:
    """The client; an asynchronous context manager that closes its connections."""

    def __init__(
        self,
        reach: Reach,
        *,
        seconds: float = SECONDS,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
        socket: str | None = None,
    ) -> None:
        """``tls`` is by default one that trusts the usual authorities; it has to check names.

        With a ``socket``, all is posted to that Unix socket, whatever the URL's host.
        """
        self._reach = reach
        self._seconds = seconds
        self._names = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook-names")
        checked = _Checked(reach, self._names, resolve or _resolve, socket)
        self._connections = Connections(checked, tls=tls, socket=socket)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        await self._connections.aclose()
        self._names.shutdown(wait=False, cancel_futures=True)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, most: int = 0
    ) -> Answer:
        """Post to an endpoint; never raise what it or the network does.

        ``most`` is the limit of the bytes of its answer that are returned.
        """
        began = time.monotonic()
        status, later, error = None, None, ""
        fields: dict[bytes, list[bytes]] = {}
        answer: bytes | None = None
        try:
            target = self._reach.target(url)
            where = httpcore.URL(
                scheme=target.scheme, host=target.host, port=target.port, target=target.path
            )
            limits = {"connect": CONNECT, "read": self._seconds, "write": self._seconds}
            ours = (("host", target.authority), ("content-length", f"{len(body)}"))
            request = httpcore.Request(
                "POST",
                where,
                headers=[*ours, *headers.items()],
                content=body,
                extensions={"timeout": limits},
            )
            async with (
                asyncio.timeout(self._seconds),
                self._connections.sent(request) as response,
            ):
                status = response.status
                later = _later(response.headers)
                if most:
                    for name, value in response.headers:
                        fields.setdefault(name.lower(), []).append(value)
                    answer = await _read(response, most)
                else:
                    await _read(response, MAX_ANSWER)
        except InvalidEvent as refused:
            error = refused.problem
        except (TimeoutError, httpcore.TimeoutException):
            error = "no answer in time"
        except _NotAdmitted as refused:
            error = str(refused)
        except httpcore.ConnectError as failed:
            error = "no connection" if not _is_tls(failed) else "its certificate was refused"
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
            error = "the connection broke"
        if status is not None:  # whatever became of the rest of the answer, which says nothing
            error = "" if 200 <= status < 300 else _told(status)
        return Answer(
            status=status,
            error=error,
            seconds=time.monotonic() - began,
            later=later,
            fields=fields,
            body=answer,
        )


class _NotAdmitted(httpcore.ConnectError):
    """No address of the endpoint may be connected to."""


class _Checked(httpcore.AsyncNetworkBackend):
    """Connections to addresses that are admitted alone."""

    def __init__(
        self, reach: Reach, names: ThreadPoolExecutor, resolve: Resolve, socket: str | None
    ) -> None:
        self._socket = socket
        self._reach = reach
        self._names = names
        self._resolve = resolve
        self._plain = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._names, self._resolve, host, port)
        except (OSError, UnicodeError):
            raise _NotAdmitted("its name has no address") from None
        admitted = [each for each in dict.fromkeys(found) if self._reach.admits(each)]
        if not admitted:
            raise _NotAdmitted("its address is not public")
        failed: Exception | None = None
        for address in admitted[:ADDRESSES]:
            try:
                return await self._plain.connect_tcp(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        assert failed is not None
        raise failed

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        if path != self._socket:
            raise _NotAdmitted("its address is not public")
        return await self._plain.connect_unix_socket(path, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _read(response: httpcore.Response, most: int) -> bytes | None:
    """Return the body, or None if it is more than that."""
    parts, size = [], 0
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size > most:
            return None  # what is left closes the connection
        parts.append(chunk)
    return b"".join(parts)


def _told(status: int) -> str:
    return "redirects are not followed" if 300 <= status < 400 else f"answered {status}"


def _is_tls(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _later(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for; None without one that can be read."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("latin-1").strip()[:64]
            if text.isascii() and text.isdigit():
                return float(text[:9])
            try:
                return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
            except (ValueError, OverflowError):
                return None
    return None
