"""Webhooks: a service that delivers a system's events to the endpoints of others.

::

    from oyez.webhooks import webhooks

    service = webhooks("hooks", events=[OrderPlaced, OrderShipped])

Partners subscribe over its HTTP side. An event that matches a subscription is handed over in the
transaction that handles it, and posted, signed as Standard Webhooks asks, until the endpoint takes
it. It is an ordinary service: retries, order per key and dead letters are those of any handler.
"""

from oyez.webhooks.deliveries import WebhookDisabled
from oyez.webhooks.offer import webhooks

__all__ = ["WebhookDisabled", "webhooks"]
