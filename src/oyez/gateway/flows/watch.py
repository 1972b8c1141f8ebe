"""One watcher of a flow: what it has been told, and what is to be told next.

The id of a message says which events were told so far. So a client that comes back with the last
id, to whichever replica, misses none and is told none twice, though replicas may read the events
of a flow in different orders.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

import msgspec

from oyez.gateway.flows.index import FlowEvent
from oyez.gateway.flows.status import Status

_LONGEST = 2_048
"""Characters of an id; a longer one is no id of a message here."""
_DIGEST = 3
_OVER = bytes(_DIGEST)
"""Stands for the end among them."""


class Message(NamedTuple):
    """What a watcher is told: an event of the flow, or its end with the whole status."""

    name: str
    """``progress`` or ``end``."""
    id: str
    data: dict[str, Any]

    def as_event(self) -> bytes:
        """Return it as a server-sent event."""
        data = msgspec.json.encode(self.data)
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self.name.encode(), data)

    def as_text(self) -> bytes:
        """Return it as the text of a WebSocket."""
        return msgspec.json.encode({"event": self.name, "id": self.id, "data": self.data})


class Told:
    """The events that a watcher has been told."""

    def __init__(self, last_id: str) -> None:
        """``last_id``: that of the last message the client has; anything else is as none."""
        self._digests = _digests(last_id)
        self._all = set(self._digests)

    @property
    def over(self) -> bool:
        """Whether it has been told the end."""
        return _OVER in self._all

    def next(self, status: Status) -> list[Message]:
        """Return what is to be told now."""
        messages = [
            Message("progress", self._note(event.digest), status.told([event])[0])
            for event in self._new(status.events)
        ]
        if status.over and not self.over:
            messages.append(Message("end", self._note(_OVER), status.document()))
        return messages

    def _new(self, events: list[FlowEvent]) -> list[FlowEvent]:
        return [event for event in events if event.digest not in self._all]

    def _note(self, digest: bytes) -> str:
        self._digests.append(digest)
        self._all.add(digest)
        return base64.urlsafe_b64encode(b"".join(self._digests)).decode()


def _digests(given: str) -> list[bytes]:
    if len(given) > _LONGEST:
        return []
    try:
        told = base64.b64decode(given, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return []
    return [told[at : at + _DIGEST] for at in range(0, len(told) - len(told) % _DIGEST, _DIGEST)]
