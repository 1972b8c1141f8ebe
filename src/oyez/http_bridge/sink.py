"""Posts events to the program of a service, and reads its answers.

An answer says what becomes of an event: 2xx, it is handled; 429 and 503 with ``Retry-After``, it is
tried again then; 408, 425, 429, 5xx, and none in time, by the retry policy; any other, it is a dead
letter. Events that wait while all POSTs are under way go in one, if batches are allowed; each is of
another key, since the events of a key come one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import msgspec

from oyez.cloudevents import BATCHED, are_events, binary
from oyez.config import ServiceSettings
from oyez.config.rules import is_remote
from oyez.envelope import STRUCTURED, Envelope, is_json
from oyez.errors import InvalidEvent, NotEvents, RetryLater, Undeliverable
from oyez.http_bridge.announced import MAX_BODY, Announced, Publishing
from oyez.parameters import Context
from oyez.transaction import After
from oyez.webhooks.client import Answer, Client
from oyez.webhooks.reach import Reach
from oyez.webhooks.signing import sign

BATCH = 100
"""The limit of events in one POST."""
BATCH_BYTES = 1_048_576
"""The limit of bytes of their data (a single event may exceed it)."""
SHOWN = 300
"""Characters of an answer that a dead letter shows."""
LATER = (408, 425, 429)
"""The statuses below 500 after which an event is tried again."""

_HERE = ("127.0.0.0/8", "::1/128")
_valid = msgspec.json.Decoder().decode


class Failed(Exception):
    """The program did not take an event; it is tried again by the retry policy."""


class Place(NamedTuple):
    """Where a program is, and the addresses that may be connected to for that."""

    url: str
    reach: Reach
    socket: str | None


def place_of(settings: ServiceSettings, root: Path) -> Place:
    """Return where the program of a service is.

    Raises InvalidEvent, with the field ``$.url``, for an address that may not be posted to.
    """
    url = settings.url or ""
    socket = None
    if url.startswith("unix:"):
        _, file, path = url.split(":", 2)
        socket, url = str(root / file), f"http://localhost{path}"
    here, plain = not is_remote(url), url.startswith("http:")
    networks = [*map(str, settings.bridge.allow), *(_HERE if here else ())]
    port = urlsplit(url).port  # any, as it is the operator's own URL
    ports = [] if port is None else [port]
    reach = Reach(networks, ports, http=plain, public=not here and not plain)
    reach.target(url)
    return Place(url, reach, socket)


class _Posted(msgspec.Struct):
    """An event that waits for its answer."""

    envelope: Envelope
    key: str
    """Its idempotency key."""
    attempt: int
    done: asyncio.Future[list[Announced]]


class Sink:
    """The program; an asynchronous context manager that closes the connections to it."""

    def __init__(self, settings: ServiceSettings, place: Place, publishing: Publishing) -> None:
        bridge = settings.bridge
        self._url = place.url
        self._publishing = publishing
        self._form = bridge.form or ("structured" if bridge.secret else "binary")
        self._token = "" if bridge.token is None else f"Bearer {bridge.token.text}"
        self._secrets = [each.text for each in bridge.secret]
        self._concurrency = bridge.concurrency
        self._client = Client(place.reach, seconds=bridge.timeout, socket=place.socket)
        self._waiting: deque[_Posted] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Sink:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        await self._client.__aexit__(kind, error, stack)

    async def post(self, context: Context) -> list[Announced]:
        """Post the event of a call; return what the program announced with its answer.

        Raises InvalidEvent for one that can't be posted, Undeliverable for one that it refused, and
        RetryLater and Failed for one to be tried again.
        """
        envelope = context.envelope
        if not envelope.datacontenttype.isascii():
            raise InvalidEvent("datacontenttype", "holds what is not ASCII")
        if is_json(envelope.datacontenttype):
            try:
                _valid(envelope.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise InvalidEvent("data", f"is not JSON: {error}") from error
        done: asyncio.Future[list[Announced]] = asyncio.get_running_loop().create_future()
        each = _Posted(envelope, context.idempotency_key, context.attempt, done)
        if self._form != "batch" or each.attempt > 1:
            return await self._alone(each)
        self._waiting.append(each)
        if len(self._workers) < self._concurrency:
            worker = asyncio.create_task(self._work(), name="bridge, posting")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await done

    def announce(self, announced: Sequence[Announced], after: After) -> None:
        """Queue what was announced for the commit that settles the event. Raises Failed."""
        try:
            for each in announced:
                after.publish(each.event, key=each.key)
        except InvalidEvent as error:
            raise Failed(f"it answered with an event that can't be published: {error}") from error

    # -- one event in a POST -----------------------------------------------------------------------

    async def _alone(self, each: _Posted) -> list[Announced]:
        headers = {"oyez-attempt": f"{each.attempt}", "idempotency-key": each.key}
        trace = each.envelope.traceparent
        if trace is not None and trace.isascii() and trace.isprintable():
            headers["traceparent"] = trace
        if self._form == "binary":
            headers |= binary(each.envelope)
            body = each.envelope.data
        elif self._form == "batch":
            headers["content-type"] = f"{BATCHED}; charset=utf-8"
            body = b"[%s]" % _structured(each)
        else:
            headers["content-type"] = f"{STRUCTURED}; charset=utf-8"
            body = each.envelope.structured()
        return self._settle(await self._send(each.key, headers, body))

    async def _send(self, message: str, headers: dict[str, str], body: bytes) -> Answer:
        headers["user-agent"] = "oyez-bridge"
        if self._token:
            headers["authorization"] = self._token
        if self._secrets:
            now = int(time.time())
            headers["webhook-id"] = message
            headers["webhook-timestamp"] = f"{now}"
            headers["webhook-signature"] = sign(self._secrets, message, now, body)
        return await self._client.post(self._url, headers, body, most=MAX_BODY)

    def _settle(self, answer: Answer) -> list[Announced]:
        """Return what an answer announces. Raises Failed, RetryLater and Undeliverable."""
        status = answer.status
        if status is None:
            raise Failed(answer.error)
        if 200 <= status < 300:
            return self._announced(answer)
        said = f"{answer.error}{_text(answer)}"
        if status in (429, 503) and answer.later is not None:
            raise RetryLater(said, seconds=answer.later)
        if status in LATER or not 400 <= status < 500:
            raise Failed(said)
        raise Undeliverable(said)

    def _announced(self, answer: Answer) -> list[Announced]:
        if answer.body == b"" and b"ce-id" not in answer.fields:
            return []
        if not are_events(answer.fields):
            return []
        if answer.body is None:
            raise Failed(f"its answer broke off, or is more than {MAX_BODY} bytes")
        try:
            return self._publishing.read(answer.fields, answer.body)
        except (NotEvents, InvalidEvent) as error:
            raise Failed(f"it answered with what can't be published: {error}") from error

    # -- many events in a POST ---------------------------------------------------------------------

    async def _work(self) -> None:
        taken: list[_Posted] = []
        try:
            while taken := self._take():
                await self._together(taken)
        except BaseException:
            for each in taken:
                each.done.cancel()
            raise

    def _take(self) -> list[_Posted]:
        """Return what goes in the next POST: no two events of one id."""
        taken: dict[str, _Posted] = {}
        size = 0
        while self._waiting and len(taken) < BATCH:
            each = self._waiting[0]
            if each.done.done():  # its handler was cancelled
                self._waiting.popleft()
                continue
            size += len(each.envelope.data)
            if each.envelope.id in taken or (taken and size > BATCH_BYTES):
                break
            taken[each.envelope.id] = self._waiting.popleft()
        return list(taken.values())

    async def _together(self, taken: Sequence[_Posted]) -> None:
        # Another attempt is at other events: they have their keys inside, and share none.
        headers = {"content-type": f"{BATCHED}; charset=utf-8", "oyez-attempt": "1"}
        message = str(uuid5(NAMESPACE_URL, " ".join(each.key for each in taken)))
        body = b"[%s]" % b",".join(map(_structured, taken))
        try:
            found = self._settle(await self._send(message, headers, body))
            shares = _shares(found, taken)
        except Undeliverable as error:
            if len(taken) == 1:
                _fail(taken, error)
            else:  # so that those alone are refused that deserve it
                await asyncio.gather(*map(self._again, taken))
        except (Failed, RetryLater) as error:
            _fail(taken, error)
        else:
            for each in taken:
                if not each.done.done():
                    each.done.set_result(shares[each.envelope.id])

    async def _again(self, each: _Posted) -> None:
        try:
            found = await self._alone(each)
        except (Failed, RetryLater, Undeliverable) as error:
            _fail([each], error)
        else:
            if not each.done.done():
                each.done.set_result(found)


def _fail(taken: Sequence[_Posted], error: Exception) -> None:
    for each in taken:
        if not each.done.done():
            each.done.set_exception(error)


def _structured(each: _Posted) -> bytes:
    extensions = {**each.envelope.extensions, "idempotencykey": each.key}
    return msgspec.structs.replace(each.envelope, extensions=extensions).structured()


def _shares(found: Sequence[Announced], taken: Sequence[_Posted]) -> dict[str, list[Announced]]:
    """Return what was announced, by the id of the event that caused it. Raises Failed."""
    shares: dict[str, list[Announced]] = {each.envelope.id: [] for each in taken}
    for each in found:
        cause = each.cause if len(taken) > 1 else taken[0].envelope.id
        if cause not in shares:
            raise Failed(
                "it answered a batch with an event whose causationid is none of those in the batch"
            )
        shares[cause].append(each)
    return shares


def _text(answer: Answer) -> str:
    """Return the beginning of what an answer says, for people."""
    text = (answer.body or b"")[: 4 * SHOWN].decode("utf-8", "replace")
    shown = "".join(char if char.isprintable() else " " for char in text)[:SHOWN].strip()
    return f": {shown}" if shown else ""
