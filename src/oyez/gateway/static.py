"""The storefront: the files of one folder, and no others, with types and validators."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Scope

from oyez.gateway.exchange import Exchange, Refusal

# The system's table of types differs between machines; a module script needs exactly this one.
_SCRIPT = "text/javascript; charset=utf-8"


class Files:
    """The files below a folder, for GET and HEAD; ``/`` and folders are ``index.html``."""

    def __init__(self, folder: Path) -> None:
        self._files = StaticFiles(directory=folder)

    async def serve(self, exchange: Exchange, path: str) -> None:
        """Respond with the file at a decoded, safe path; raises :class:`Refusal` (404)."""
        segments = path.split("/")[1:]
        if any(segment.startswith(".") for segment in segments):
            raise not_found()
        segments[-1] = segments[-1] or "index.html"
        headers = [(name, value) for name, values in exchange.fields.items() for value in values]
        scope: Scope = {"type": "http", "method": exchange.method, "headers": headers}
        try:
            response = await self._files.get_response("/".join(segments), scope)
        except (HTTPException, OSError):
            raise not_found() from None
        if segments[-1].endswith((".js", ".mjs")) and "content-type" in response.headers:
            response.headers["content-type"] = _SCRIPT
        response.headers["cache-control"] = "no-cache"
        await exchange.body()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.start(message["status"], message["headers"])
            elif message.get("more_body", False):
                await exchange.write(message["body"])
            else:
                await exchange.end(message["body"])

        await response(scope, _never, send)


async def _never() -> Message:
    """Tell of no end of the connection: that interrupts the exchange."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def not_found() -> Refusal:
    """Return the refusal of a path without a file."""
    return Refusal(404, "not_found", "nothing is here")
