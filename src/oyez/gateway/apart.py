"""A request that is answered apart from its client: its answer is kept until it is whole."""

from __future__ import annotations

import asyncio

from oyez.gateway.exchange import ClientGone, Exchange, Refusal
from oyez.gateway.http1 import Headers
from oyez.gateway.reply import Reply
from oyez.gateway.step import Answer

_BROKEN = Refusal(502, "service_broken", "the service disconnected", [(b"retry-after", b"1")])


class Apart(Exchange):
    """The same request, whose work outlives its client.

    The client's leaving does not interrupt it, and its answer is kept instead of sent. An answer
    that is endless, or has more than ``most`` bytes, is not kept: it passes to the client as it
    comes, and from then on ends with it.
    """

    def __init__(self, exchange: Exchange, most: int) -> None:
        self.same(exchange)
        self.passing = False
        """Whether the answer passes to the client."""
        self._outer = exchange
        self._filters = ()  # those of the client's exchange change what it is given
        self._most = most
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._kept = 0
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        exchange._held = 0  # the memory of the body is this one's to release

    async def reply(self, answer: Answer) -> Reply | None:
        """Have the request answered, and return the whole answer; None if it has passed.

        Raises :class:`Refusal`, and :class:`ClientGone` if there is nobody to whom it could pass.
        """
        self._task = task = asyncio.current_task()
        try:
            await answer(self)
        except asyncio.CancelledError:
            if task is None or not isinstance(self.interruption, Refusal):
                raise
            task.uncancel()
            if not self.passing:
                raise self.interruption from None
        finally:
            self.within(None, _BROKEN)
        if self.passing:
            return None
        if not self.complete:
            raise _BROKEN
        return Reply(self.status, self._headers, b"".join(self._parts))

    def within(self, seconds: float | None, late: Refusal) -> None:
        """See :class:`Exchange`: this one's own time, whatever becomes of the client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.interrupt, late)

    def interrupt(self, cause: Refusal | ClientGone) -> None:
        """See :class:`Exchange`: the client's is not interrupted."""
        self._cause = cause
        if self._task is not None:
            self._task.cancel()

    def say(self, name: bytes, value: bytes) -> None:
        """See :class:`Exchange`: it is said to the client alone, and not kept."""
        self._outer.say(name, value)

    def start(self, status: int, headers: Headers) -> None:
        """Begin the answer."""
        for each in self._filters:
            headers = each.head(status, headers)
        self.status, self._headers = status, headers
        if _endless(headers):
            self._pass_on()

    async def write(self, content: bytes) -> None:
        """Keep the next part of the answer's body, or pass it on."""
        for each in self._filters:
            content = each.part(content)
        passing = self._passes(content)
        if passing is not None:
            await self._outer.write(passing)

    async def end(self, content: bytes = b"") -> None:
        """Keep the last part of the answer's body, or pass it on."""
        for each in self._filters:
            content = each.last(content)
        passing = self._passes(content)
        if passing is not None:
            await self._outer.end(passing)
        self.complete = True

    def _passes(self, content: bytes) -> bytes | None:
        """Return what passes to the client with a part of the body; None if that is kept."""
        if not self.passing:
            size = len(content)
            if self._kept + size <= self._most and size <= self._budget.free:
                self._budget.free -= size
                self._held += size
                self._kept += size
                self._parts.append(content)
                return None
            self._pass_on()
            content = b"".join((*self._parts, content))
            self._parts = []
        return content

    def _pass_on(self) -> None:
        if self._outer.interruption is not None:
            raise ClientGone
        self.passing = True
        self._outer.start(self.status, self._headers)


def _endless(headers: Headers) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )
