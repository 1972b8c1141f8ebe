"""In from others: events that clients send, and webhooks of providers.

::

    request ─► events.py      POST /events: all events of a request, or none
               forms.py       CloudEvents as HTTP has them: binary, structured, batched, by the line
               admission.py   who may send which events; an event becomes a record
               quota.py       how much of it
               webhook.py     a delivery of a provider becomes an event
               signatures.py  how providers sign
               publisher.py   the records of many requests, on the broker together ─► broker
               acceptance.py  202, once they are durable

The gateway promises nothing that the broker has not acknowledged, and so keeps nothing: while the
broker is out of reach, clients get 503 and keep what they have. Who repeats a request, as its
answer was lost, repeats the ids, by which consumers handle each event once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from oyez.ambient import Ambient
from oyez.config import Config, GatewaySettings
from oyez.gateway.ingest.admission import Admission
from oyez.gateway.ingest.events import Events
from oyez.gateway.ingest.publisher import Publisher
from oyez.gateway.ingest.webhook import Webhook
from oyez.gateway.step import Answer
from oyez.ports import Broker
from oyez.signals import Listener
from oyez.spans import Tracer

__all__ = ["Ingest", "ingest"]


class Ingest(NamedTuple):
    """What takes events from others, at which paths, and the publisher behind it."""

    publisher: Publisher
    events: Mapping[str, Answer]
    """For those with a principal."""
    webhooks: Mapping[str, Answer]
    """For anybody: each delivery has a signature."""


def ingest(
    config: Config,
    settings: GatewaySettings,
    ambient: Ambient,
    *,
    sender: str,
    tell: Listener | None = None,
    tracer: Tracer | None = None,
) -> Ingest | None:
    """Return what takes events from others; None where the settings have none of it.

    ``sender`` is the name under which it tells of what was published. Raises ConfigurationError.
    """
    if settings.ingest is None and not settings.webhooks:
        return None
    broker = _broker(config, ambient)
    publisher = Publisher(broker, ambient, sender=sender, tell=tell, tracer=tracer)
    events: dict[str, Answer] = {}
    if settings.ingest is not None:
        admission = Admission(config, ambient, settings.ingest.senders.values())
        answer = Events(admission, publisher, ambient, settings.timeout)
        events[settings.ingest.path] = answer
    webhooks: dict[str, Answer] = {
        each.at(): Webhook(config, each, publisher, ambient, settings.timeout)
        for each in settings.webhooks.values()
    }
    return Ingest(publisher, events, webhooks)


def _broker(config: Config, ambient: Ambient) -> Broker:
    """Return the system's broker, not open, for no consumer group."""
    # Most gateways have no broker, and then load none of it.
    from oyez import brokers
    from oyez.brokers.claim_check import ClaimCheckOptions
    from oyez.event import MAX_DATA

    system = config.system
    broker = brokers.connect(
        system.broker,
        ambient,
        root=config.root,
        partitions=system.partitions,
        retention=system.retention_days * 86_400,
        claim_check=system.claim_check,
        claims=ClaimCheckOptions(over=system.claim_check_over, most=MAX_DATA),
    )
    if not broker.capabilities.processes:
        expected = "a broker that several processes use, for events that come through the gateway"
        raise config.error("system.broker", expected, "one that no other process can see")
    return broker
