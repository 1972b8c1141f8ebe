"""A whole answer, as it is kept and given again."""

from __future__ import annotations

import msgspec

from oyez.gateway.exchange import Exchange
from oyez.gateway.http1 import Headers

_WITHOUT_BODY = (204, 304)


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes

    async def send(self, exchange: Exchange, *more: tuple[bytes, bytes]) -> None:
        """Respond with it, and with further headers; raises :class:`ClientGone`."""
        headers = [*self.headers, *more]
        if self.status not in _WITHOUT_BODY and b"content-length" not in dict(headers):
            headers.append((b"content-length", b"%d" % len(self.body)))
        exchange.start(self.status, headers)
        await exchange.end(self.body)
