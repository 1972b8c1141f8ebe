"""A client of HTTP for processes on uvloop."""

from __future__ import annotations

from typing import Any

import httpx

from oyez.reset import was_reset


class Client(httpx.AsyncClient):
    """As ``httpx.AsyncClient``, but a connection that was reset is a ``ConnectError`` on uvloop."""

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """See ``httpx.AsyncClient.send``."""
        try:
            return await super().send(request, **options)
        except AttributeError as error:
            if not was_reset(error):
                raise
            raise httpx.ConnectError("the connection was reset", request=request) from error
