"""A ferry carries one partition of a stream to another broker: what a bridge has instead of lanes.

Records go across as they are, broken ones too, and keep their key and their id. The position moves
in the bridge's own store after the other side confirmed, fenced by the claim as a lane's is: a
crash in between sends some again, under the ids by which every inbox knows them.
"""

from __future__ import annotations

from typing import Any

from oyez.ports import Batch, Broker, Changes, Record
from oyez.runtime.lane import Lane


class Ferry(Lane):
    """A lane whose only handler publishes on the broker ``target``."""

    def __init__(self, *given: Any, target: Broker, **named: Any) -> None:
        super().__init__(*given, **named)
        self._target = target

    async def _handle(self, batch: Batch) -> None:
        bench = self._bench
        start = bench.ambient.monotonic()
        self._look_for_gaps(batch)
        await self._target.publish(
            [
                Record(stream=each.stream, key=each.key, headers=each.headers, data=each.data)
                for each in batch.records
            ]
        )
        last = batch.records[-1].position
        await bench.leave(Changes(claim=self.claim, position=last))
        self._has_saved(last)
        self.moved = bench.ambient.monotonic()
        self._tell_handled(len(batch.records), self.moved - start)
