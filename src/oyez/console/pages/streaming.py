"""Parts of pages that are kept up to date, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from oyez.console.desk import Desk, desk
from oyez.console.live import STREAMS, Snapshot


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
                yield "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"

    return StreamingResponse(parts(), media_type="text/event-stream")
