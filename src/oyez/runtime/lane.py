"""A lane is one partition in the hands of this process: its claim, its position, what is parked.

`oyez.runtime.reading` moves it on through the stream, `oyez.runtime.batches` handles what has
arrived, and `oyez.runtime.parked` runs what was parked, beside both.
"""

from __future__ import annotations

from collections.abc import Mapping

from oyez.ambient import Ambient
from oyez.errors import Fenced, StoreError
from oyez.ports import BEGINNING, Broker, Changes, Claim, Position
from oyez.runtime.commits import Commits
from oyez.runtime.loop import Bell
from oyez.runtime.reports import Reports
from oyez.signals import Fenced as FencedSignal
from oyez.transaction import UnitOfWork


class Chains:
    """Counts the parked events of one partition, all of them and those of each chain.

    A chain, mostly an event's key, runs in order: while one of its events is parked, later ones
    are parked behind it.
    """

    def __init__(self, parked: Mapping[str | None, int], ambient: Ambient) -> None:
        """``parked``: the number of parked events of each chain; None counts those without one."""
        self.total = sum(parked.values())
        self.freed = ambient.monotonic()
        """On the monotonic clock, when an event was last settled."""
        self._blocked = {chain: count for chain, count in parked.items() if chain is not None}
        self._room = Bell(ambient)
        self._ambient = ambient

    def __contains__(self, chain: str) -> bool:
        return chain in self._blocked

    def add(self, chain: str | None) -> None:
        """Count an event that is about to be parked.

        Call it before the commit: no later event of the chain may slip past. One that is counted a
        moment too long is only slower.
        """
        self.total += 1
        if chain is not None:
            self._blocked[chain] = self._blocked.get(chain, 0) + 1

    def remove(self, chain: str | None) -> None:
        """Count an event as settled, or as not parked after all."""
        self.total -= 1
        self.freed = self._ambient.monotonic()
        self._room.ring()
        if chain is None:
            return
        left = self._blocked.get(chain, 0) - 1
        if left > 0:
            self._blocked[chain] = left
        else:
            self._blocked.pop(chain, None)

    async def wait(self, seconds: float) -> None:
        """Return when an event is settled, or after so many seconds."""
        await self._room.wait(seconds)


class Lane:
    """The state of one partition that this process owns."""

    def __init__(
        self,
        claim: Claim,
        position: Position,
        chains: Chains,
        *,
        broker: Broker,
        commits: Commits,
        ambient: Ambient,
        reports: Reports,
        work: Bell,
        suspects: bool = False,
        careful: bool = False,
    ) -> None:
        """``suspects``: the last owner died. ``careful``: the last two died at this position.

        ``work`` wakes what runs parked events.
        """
        self.claim = claim
        self.position = position
        """Up to which the records have passed, though perhaps not in the store yet."""
        self.chains = chains
        self.suspects = suspects or careful
        """Parked events record that an attempt begins, since it may end the process."""
        self.careful = careful
        """The next batch is parked unseen, since it may end the process."""
        self.idle = False
        """Whether it waits for records."""
        self.fenced = False
        """Whether another process owns the partition now."""
        self.leaving = False
        """Whether the partition is about to be given up."""
        self.saved_at = self._moved = ambient.monotonic()
        """On the monotonic clock, when the position was last stored."""
        self._broker = broker
        self._commits = commits
        self._ambient = ambient
        self._reports = reports
        self._work = work
        self._saved = position

    @property
    def name(self) -> str:
        """The stream and partition, for people."""
        return f"{self.claim.stream}[{self.claim.partition}]"

    @property
    def moved(self) -> float:
        """On the monotonic clock, when it last made progress."""
        return max(self._moved, self.chains.freed)

    @property
    def takes_no_more(self) -> bool:
        """Whether it is lost, or about to be given up."""
        return self.fenced or self.leaving

    def progress(self) -> None:
        """Record that it made progress now."""
        self._moved = self._ambient.monotonic()

    def restart(self) -> None:
        """Begin anew in a stream that was deleted and made again."""
        self.position = self._saved = BEGINNING

    def lose(self) -> None:
        """Record that another process owns the partition."""
        self.fenced = True
        claim = self.claim
        self._reports.emit(
            FencedSignal(
                service=self._reports.service,
                stream=claim.stream,
                partition=claim.partition,
                epoch=claim.epoch,
            )
        )

    async def commit(self, work: UnitOfWork | Changes, position: Position | None) -> None:
        """Commit a unit of work or changes together with the position, which None leaves.

        Raises what `StoreTransaction.commit` raises.
        """
        if isinstance(work, UnitOfWork):
            changes = work.changes
            changes.position = position
            await work.commit()
        else:
            changes = work
            changes.position = position
            await self._commits.save(changes)
        if position is not None:
            self._has_saved(position)
        if changes.parked:
            self._work.ring()

    async def advance(self, position: Position | None) -> None:
        """Commit that all up to ``position`` has passed; None and what is committed are ignored."""
        if position is not None and position > self._saved:
            await self.commit(Changes(claim=self.claim), position)

    async def save(self) -> None:
        """Store a position that moved without a commit of its own. Errors are reported."""
        if self.position == self._saved or self.fenced:
            return
        try:
            await self.commit(Changes(claim=self.claim), self.position)
        except Fenced:
            self.lose()
        except StoreError as error:
            self._reports.trouble("position", error)

    def _has_saved(self, position: Position) -> None:
        self.position = max(self.position, position)
        self._saved = position
        self._broker.handled(self.claim.stream, self.claim.partition, position)
        self.saved_at = self._ambient.monotonic()
