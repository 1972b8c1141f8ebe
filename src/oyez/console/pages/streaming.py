"""Parts of pages that are kept up to date, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from oyez.console.desk import Desk, desk
from oyez.console.live import EVERY, STREAMS, Snapshot


def live(request: Request, part: Callable[[Desk, Snapshot], str]) -> Response:
    """Return a stream of the part as it is after each look, until its reader's session ends."""
    shared = desk(request)
    if shared.live.viewers >= STREAMS:
        return PlainTextResponse("too many pages are kept up to date", 503)

    async def parts() -> AsyncIterator[str]:
        last = ""
        async with aclosing(shared.live.snapshots()) as snapshots:
            async for snapshot in snapshots:
                if shared.access.session(request) is None or shared.live.closed:
                    return
                text = part(shared, snapshot)
                if text == last:
                    yield ": the same\n\n"
                    continue
                last = text
                yield _message(text)

    return StreamingResponse(parts(), media_type="text/event-stream")


def follow(request: Request, look: Callable[[], Awaitable[tuple[str, bool]]]) -> Response:
    """Return a stream of what ``look`` returns from time to time: a part, and whether it is final.

    It ends with its reader's session, and after a final part, of which its reader is told.
    """
    shared = desk(request)
    if shared.live.viewers >= STREAMS:
        return PlainTextResponse("too many pages are kept up to date", 503)

    async def parts() -> AsyncIterator[str]:
        shared.live.viewers += 1
        try:
            last = ""
            while shared.access.session(request) is not None and not shared.live.closed:
                text, final = await look()
                yield ": the same\n\n" if text == last else _message(text)
                last = text
                if final:
                    yield "event: over\ndata:\n\n"
                    return
                await shared.ambient.sleep(EVERY)
        finally:
            shared.live.viewers -= 1

    return StreamingResponse(parts(), media_type="text/event-stream")


def _message(text: str) -> str:
    return "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
