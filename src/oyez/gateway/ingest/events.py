"""``POST /events``: CloudEvents of others, checked and published."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from oyez.ambient import Ambient
from oyez.cloudevents import FORMS, open_arrived, read_forms
from oyez.errors import BadJson, InvalidEvent, NotEvents
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.ingest.acceptance import accept
from oyez.gateway.ingest.admission import Admission, NotAllowed, Pass
from oyez.gateway.ingest.publisher import Publisher
from oyez.gateway.ingest.quota import Quota
from oyez.ports import Record

ERRORS = 20
"""The limit of errors that a refusal lists."""
_TURN = 64
"""So many events are read before other requests have their turn."""


class _Wrong(NamedTuple):
    """An event that is refused: its place in the request, from 0, and why."""

    place: int
    error: InvalidEvent | NotAllowed


class Events:
    """It takes events from those who may send them.

    All events of a request are published, or none: a client that has no 202 sends the same request
    again, and need not find out which of them are missing.
    """

    def __init__(
        self, admission: Admission, publisher: Publisher, ambient: Ambient, timeout: float
    ) -> None:
        """``timeout`` is the time, in seconds, that the broker has."""
        self._admission = admission
        self._publisher = publisher
        self._ambient = ambient
        self._timeout = timeout

    async def __call__(self, exchange: Exchange) -> None:
        """Respond to one request; raises :class:`Refusal`."""
        principal = exchange.principal
        admitted = None if principal is None else self._admission.of(principal)
        if admitted is None:
            raise Refusal(403, "sender_not_allowed", "you may not send events")
        body = await exchange.body()
        records = await self._records(exchange, admitted, body)
        _use(records, admitted)
        await accept(exchange, records, self._publisher, self._timeout)

    async def _records(self, exchange: Exchange, admitted: Pass, body: bytes) -> list[Record]:
        try:
            arrived = read_forms(exchange.fields, body)
        except NotEvents as error:
            headers = [(b"accept-post", FORMS.encode())] if error.code == "not_an_event" else ()
            raise Refusal(error.status, error.code, error.detail, headers) from None
        except InvalidEvent as error:
            raise _refusal([_Wrong(0, error)]) from None
        records: list[Record] = []
        wrong: list[_Wrong] = []
        for index, each in enumerate(arrived, 1):
            if index % _TURN == 0:
                await self._ambient.sleep(0)
            try:
                record = admitted.record(open_arrived(each), exchange.traceparent)
                self._publisher.check(record)
                records.append(record)
            except (InvalidEvent, NotAllowed) as error:
                wrong.append(_Wrong(index - 1, error))
                if len(wrong) == ERRORS:
                    break
        if wrong:
            raise _refusal(wrong)
        return records


def _use(records: Sequence[Record], admitted: Pass) -> None:
    """Count events for the quotas; raises :class:`Refusal` (429) if one is used up."""
    used: dict[Quota, Counter[str]] = {}
    for record in records:
        allowed = admitted.allowed(record.headers["type"])
        if allowed is not None and allowed.quota is not None:
            counts = used.setdefault(allowed.quota, Counter())
            counts["events"] += 1
            counts["bytes"] += len(record.data or b"")
    wait = max((quota.wait() for quota in used), default=0.0)
    if wait:
        headers = [(b"retry-after", b"%d" % math.ceil(wait))]
        raise Refusal(429, "quota_used_up", "you have sent as much as you may for now", headers)
    for quota, counts in used.items():
        quota.use(counts["events"], counts["bytes"])


def _refusal(wrong: Sequence[_Wrong]) -> Refusal:
    errors = [
        {"index": place, "field": error.field, "detail": error.problem} for place, error in wrong
    ]
    if any(isinstance(each.error, BadJson) for each in wrong):
        status, code = 400, "bad_json"
    elif any(isinstance(each.error, NotAllowed) for each in wrong):
        status, code = 403, "event_not_allowed"
    else:
        status, code = 422, "invalid_event"
    detail = f"event {wrong[0].place}: {wrong[0].error}; nothing was published"
    return Refusal(status, code, detail, errors=errors)
