"""The HTTP bridge: a service whose program, in any language, takes and sends events over HTTP.

::

    [services.loyalty]
    url = "http://127.0.0.1:9100/events"
    handles = ["shop.payment.processed"]
    publishes = ["shop.points.earned"]

Each event is a POST to the program. What it answers with is published in the transaction that
settles the event. It is an ordinary service, whose one handler is made here and runs outside of a
transaction: retries, order per key and dead letters are those of any handler.
"""

from oyez.http_bridge.offer import bridged

__all__ = ["bridged"]
