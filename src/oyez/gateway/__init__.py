"""The gateway: the single entry, which forwards declared requests to services and no others.

::

    client ─► server.py    the process: its socket, draining
              edge.py      connections of clients: limits of time and number
              http1.py     HTTP/1.1 read strictly, on both sides
              app.py       the steps of one request, in order
              exchange.py  one request and its response: limits, ids, headers, refusals
              routing.py   a safe path, and the route it belongs to
              access.py    API keys and signed sessions
              static.py    the storefront's files
              forward.py   to the service and back: headers rewritten
              after.py     a client's last token, for reading its own writes
              upstream.py  connections to services, kept open ─► service
"""

from __future__ import annotations

from oyez.gateway.app import Gateway, gateway
from oyez.gateway.server import serve

__all__ = ["Gateway", "gateway", "serve"]
