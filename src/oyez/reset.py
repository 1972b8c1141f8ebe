"""What uvloop says of a connection that was reset, where asyncio says ``OSError``."""

from __future__ import annotations


def was_reset(error: AttributeError) -> bool:
    """Whether it stands for a connection that the server reset before it was used.

    So does a server that dies with connections that it has not accepted. On uvloop such a
    connection has no socket any more, whose peer anyio asks for: httpx and httpcore pass that on.
    """
    return error.obj is None and error.name == "getpeername"
