"""Makes the service of which `oyez.webhooks` tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path

from oyez.errors import DeclarationError
from oyez.event import describe
from oyez.handler import Retry
from oyez.service import Service
from oyez.webhooks.client import Client
from oyez.webhooks.deliveries import (
    DELIVER,
    Deliveries,
    Due,
    Policy,
    Resumed,
    WebhookDisabled,
)
from oyez.webhooks.http import app
from oyez.webhooks.master import read_master
from oyez.webhooks.reach import Reach

RETRY = Retry(attempts=15, first=5.0, factor=2.5, longest=14_400.0, jitter=0.2)
"""A day: after 5 s, 13 s, 31 s and so on, from the ninth wait on every four hours."""
DAY = 86_400.0
REQUESTS = 256
"""The limit of requests at once, to all endpoints together, in each replica."""


def webhooks(
    name: str,
    *,
    events: Sequence[type],
    allow: Sequence[str] = (),
    ports: Sequence[int] = (),
    plain_http: bool = False,
    retry: Retry = RETRY,
    overlap: float = DAY,
    failing: float = 5 * DAY,
    dead: int = 10,
) -> Service:
    """Return a service that delivers events of these classes to the webhooks of others.

    An endpoint gets the fields that the class declares *here*, and no others. Endpoints are
    reached by https at port 443 and public addresses; ``allow`` names networks besides, such as
    ``10.1.0.0/16``, ``ports`` further ports, and ``plain_http`` allows http, with port 80.
    ``retry`` is for each delivery. A rotated secret signs for ``overlap`` more seconds. A
    subscription is disabled after ``failing`` seconds, or ``dead`` deliveries that were given up,
    without a success between. Raises DeclarationError.
    """
    if not events:
        raise DeclarationError("webhooks: events: expected the classes of those that are offered")
    if overlap < 0 or failing <= 0 or dead < 1:
        raise DeclarationError(
            "webhooks: expected overlap of 0 or more, failing above 0 and dead of 1 or more; found "
            f"{overlap}, {failing}, {dead}"
        )

    class Deliver(Due, type="webhook.deliver", to=name):
        pass

    class Release(Resumed, type="webhook.release", key="subscription", to=name):
        pass

    reach = Reach(allow, ports, http=plain_http)
    master = cache(read_master)
    policy = Policy(retry=retry, failing=failing, dead=dead)
    service = Service(
        name,
        migrations=str(Path(__file__).parent / "migrations"),
        publishes=(Deliver, Release, WebhookDisabled),
    )
    deliveries = Deliveries(service, policy, Deliver, Release, master)
    offered = [describe(each).name for each in events]
    service.http = app(service, deliveries, reach, offered, master, overlap)

    @service.provides
    async def client() -> AsyncIterator[Client]:
        master()  # a key that can't be read is an error of the start, not of a delivery
        async with Client(reach) as made:
            yield made

    service.on(*events, name="offer")(deliveries.offer)
    service.on(Deliver, name=DELIVER, retry=retry, timeout=None, concurrency=REQUESTS)(
        deliveries.deliver
    )
    service.on(Release, name="release")(deliveries.release)
    service.every(seconds=60.0, missed="skip", name="tidy")(deliveries.tidy)
    return service
