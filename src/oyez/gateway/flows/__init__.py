"""Flows: a request whose work goes on after its answer, until an event ends it.

::

    request ─► begin.py   the step: an id of its own, 202 and a link, or the end if it comes in time
               ident.py   the id: who may read it is sealed in it, for any replica to judge
               prefer.py  how long a client would wait (RFC 7240)
    brokers ─► index.py   which events each flow has had; what is not in memory is looked up
               status.py  what is told of a flow: its state, its events, its end
               flows.py   GET /flows/{id}: as JSON, as server-sent events, or by WebSocket
               watch.py   one watcher's messages, over either
"""

from __future__ import annotations

from oyez.gateway.flows.flows import Flows
from oyez.gateway.flows.index import Records

__all__ = ["Flows", "Records"]
