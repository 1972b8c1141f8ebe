"""The gateway: the single entry, which forwards declared requests to services and no others.

::

    client ─► server.py    sockets, strict HTTP/1.1 framing, draining
              app.py       the steps of one request, in order
              exchange.py  one request and its response: limits, ids, headers, refusals
              routing.py   a safe path, and the route it belongs to
              access.py    API keys and signed sessions
              static.py    the storefront's files
              forward.py   to the service and back ─► service
"""

from __future__ import annotations

from oyez.gateway.app import Gateway, gateway
from oyez.gateway.server import serve

__all__ = ["Gateway", "gateway", "serve"]
