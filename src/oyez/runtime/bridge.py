"""The consumer of a bridge, which copies partitions of one broker to another.

Records are copied unchanged, invalid ones too, with their key and id. The position moves in the
bridge's own store after the target acknowledged them, fenced by the claim as a service's is. A
crash in between publishes some of them again, with the same ids, so every inbox drops them.
"""

from __future__ import annotations

from oyez.ambient import Ambient
from oyez.ports import Batch, Broker, Changes, Record
from oyez.runtime.lane import Lane
from oyez.runtime.relay import publish
from oyez.runtime.reports import Reports


class Carrier:
    """A consumer that publishes the records of one partition to another broker."""

    def __init__(self, lane: Lane, target: Broker, reports: Reports, ambient: Ambient) -> None:
        self._lane = lane
        self._target = target
        self._reports = reports
        self._ambient = ambient

    async def take(self, batch: Batch) -> int:
        copies = [
            Record(stream=each.stream, key=each.key, headers=each.headers, data=each.data)
            for each in batch.records
        ]
        await publish(self._target, copies, self._reports, self._ambient)
        lane = self._lane
        await lane.commit(Changes(claim=lane.claim), batch.records[-1].position)
        return len(batch.records)
