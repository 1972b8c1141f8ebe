"""A bridge carries partitions of one broker to another: what it has instead of handlers.

Records go across as they are, broken ones too, and keep their key and their id. The position moves
in the bridge's own store after the other side confirmed, fenced by the claim as a service's is: a
crash in between sends some again, under the ids by which every inbox recognises them.
"""

from __future__ import annotations

from oyez.ports import Batch, Broker, Changes, Record
from oyez.runtime.lane import Lane


class Carrier:
    """Publishes the records of one partition on another broker."""

    def __init__(self, lane: Lane, target: Broker) -> None:
        self._lane = lane
        self._target = target

    async def take(self, batch: Batch) -> int:
        await self._target.publish(
            [
                Record(stream=each.stream, key=each.key, headers=each.headers, data=each.data)
                for each in batch.records
            ]
        )
        lane = self._lane
        await lane.commit(Changes(claim=lane.claim), batch.records[-1].position)
        return len(batch.records)
