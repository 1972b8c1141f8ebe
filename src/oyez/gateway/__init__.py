"""The gateway: the single entry, which forwards declared requests to services and no others.

::

    client ─► server.py    the process: its socket, draining
              edge.py      connections of clients: limits of time and number
              http1.py     HTTP/1.1 read strictly, on both sides
              heads.py     heads that were received of late, and what is known of them
              address.py   where a client is
              exchange.py  one request and its response: limits, ids, headers, refusals
              app.py       the steps of one request, in order
              step.py      what a step is: a route pays for those that it uses
              routing.py   a safe path, and what answers there
              cors.py      what pages of other origins may do
              access.py    who sends a request: each way of saying so is tried
              keys.py      by an API key
              keyfile.py   the file of API keys
              tokens.py    by a token that an issuer signed
              keysets.py   the keys of issuers, fetched and kept
              sessions.py  by a session with a signed cookie
              users.py     by a session with a sealed cookie, of who has logged in
              login.py     to the provider of logins and back
              permission.py what it may do: scopes and roles
              challenge.py what a client is told that may not pass
              secret.py    the key that signs sessions
              limits/      rate limits, limits of concurrency, and load that is shed
              idempotency/ requests that are safe to repeat
              apart.py     an answer that is kept until it is whole
              reply.py     such an answer, and how it is given again
              store.py     what the replicas of a gateway share
              identity.py  what its service is told of who sends it, under a signature
              static.py    the storefront's files
              compression.py answers by gzip
              openapi/     what there is, described for programs and people
              forward.py   to the service and back: headers rewritten
              after.py     a client's last token, for reading its own writes
              flows/       requests whose work goes on after the answer, until an event ends it
              websocket.py a WebSocket that the gateway itself speaks
              health.py    whether a service answers, and what is sent once more
              tunnel.py    WebSockets between clients and services
              line.py      a connection whose protocol has changed
              upstream.py  connections to services, kept open ─► service
              ingest/      events of others, and webhooks ─► broker
"""

from __future__ import annotations

from oyez.gateway.app import Gateway, gateway
from oyez.gateway.flows import Records
from oyez.gateway.server import serve

__all__ = ["Gateway", "Records", "gateway", "serve"]
