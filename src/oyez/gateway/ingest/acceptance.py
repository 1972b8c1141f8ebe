"""The answer to what was sent in: 202 once it is durable, or why it is not."""

from __future__ import annotations

from collections.abc import Sequence

from oyez.errors import BrokerError, BrokerUnavailable, RecordRefused
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.http1 import Headers
from oyez.gateway.ingest.publisher import Publisher
from oyez.ports import Record

_JSON: Headers = [(b"content-type", b"application/json")]
_RETRY: Headers = [(b"retry-after", b"1")]
_LATE = Refusal(503, "broker_slow", "the broker did not accept the events in time", _RETRY)
_DOWN = Refusal(503, "broker_unavailable", "the broker can't be reached", _RETRY)
_REFUSED = Refusal(503, "broker_refused", "the broker does not accept events now", _RETRY)
_UNWANTED = Refusal(422, "event_refused", "the broker does not accept one of the events")


async def accept(
    exchange: Exchange, records: Sequence[Record], publisher: Publisher, timeout: float
) -> None:
    """Publish, and respond 202 once all are durable; raises :class:`Refusal` (422, 503).

    After a refusal some of them may be published: a client that sends them again, with the same
    ids, has each handled once. ``timeout`` is in seconds.
    """
    exchange.within(timeout, _LATE)
    try:
        await publisher.publish(records)
    except BrokerUnavailable:
        raise _DOWN from None
    except RecordRefused:
        raise _UNWANTED from None
    except BrokerError:
        raise _REFUSED from None
    await exchange.plain(202, _JSON, b'{"accepted":%d}' % len(records))
