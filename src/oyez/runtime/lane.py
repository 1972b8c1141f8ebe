"""A lane is a partition owned by this process: its claim, its position, its parked events.

`oyez.runtime.reading` reads its records, `oyez.runtime.batches` handles them, and
`oyez.runtime.parked` runs the parked events concurrently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from oyez.ambient import Ambient
from oyez.errors import Fenced, StateConflict, StoreError, StoreUnavailable
from oyez.ports import BEGINNING, Broker, Changes, Claim, Position
from oyez.runtime.commits import Commits
from oyez.runtime.loop import Bell
from oyez.runtime.reports import Reports
from oyez.runtime.sharing import SharedCommits
from oyez.signals import ClaimLost
from oyez.transaction import UnitOfWork


class Chains:
    """The number of parked events of one partition, in total and for each chain.

    The events of a chain, mostly a key, run in order: while one of them is parked, later ones are
    parked after it.
    """

    def __init__(self, parked: Mapping[str | None, int], ambient: Ambient) -> None:
        """``parked``: the number of parked events of each chain, and of None for no chain."""
        self.total = sum(parked.values())
        self.freed = ambient.monotonic()
        """The time of the last settled event, on the monotonic clock."""
        self._loose = parked.get(None, 0)
        """How many of them are of no chain."""
        self._blocked = {chain: count for chain, count in parked.items() if chain is not None}
        self._room = Bell(ambient)
        self._ambient = ambient

    def __contains__(self, chain: str) -> bool:
        return chain in self._blocked

    def add(self, chain: str | None) -> None:
        """Count an event that is about to be parked.

        Call it before the commit, so that no later event of the chain overtakes it. Counting it a
        moment too long only delays the chain.
        """
        self.total += 1
        if chain is None:
            self._loose += 1
        else:
            self._blocked[chain] = self._blocked.get(chain, 0) + 1

    def remove(self, chain: str | None) -> None:
        """Count an event as settled, or as not parked after all.

        One that was not counted changes nothing: a redrive parks its event from another process.
        """
        self.freed = self._ambient.monotonic()
        self._room.ring()
        counted = self._loose if chain is None else self._blocked.get(chain, 0)
        if not counted:
            return
        self.total -= 1
        if chain is None:
            self._loose -= 1
        elif counted > 1:
            self._blocked[chain] = counted - 1
        else:
            del self._blocked[chain]

    async def wait(self, seconds: float) -> None:
        """Wait until an event is settled, at most that many seconds."""
        await self._room.wait(seconds)


class Lane:
    """The state of a partition that this process owns."""

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
        """The position of the last record that was passed, perhaps not stored yet."""
        self.chains = chains
        self.suspects = suspects or careful
        """Whether each attempt at a parked event is recorded first: it may kill the process."""
        self.careful = careful
        """Whether the next batch is parked without being handled, since it may kill the process."""
        self.idle = False
        """Whether it waits for records."""
        self.fenced = False
        """Whether another process owns the partition now."""
        self.doubtful = False
        """Whether the store may hold parked events that ``chains`` lacks; then it is claimed anew.

        The answer to a commit may be lost, and the commit itself may be still under way: only a
        new claim waits for that, and counts what the store holds then.
        """
        self.leaving = False
        """Whether the partition is about to be released."""
        self.saved_at = self._moved = ambient.monotonic()
        """The time at which the position was last stored, on the monotonic clock."""
        self.reached = 0.0
        """The time of the oldest record of the batch in hand, else of the last one that was passed;
        in seconds since 1970, 0 before any."""
        self.in_hand = False
        """Whether a batch is in hand."""
        self._broker = broker
        self._commits = commits
        self._ambient = ambient
        self._reports = reports
        self._work = work
        self._saved = position
        self._shared = SharedCommits(lambda: commits.unit(claim))

    @property
    def name(self) -> str:
        """The reader, if it is not the service, stream and partition, for messages."""
        claim = self.claim
        reader = f"{claim.reader} of " if claim.reader else ""
        return f"{reader}{claim.stream}[{claim.partition}]"

    @property
    def moved(self) -> float:
        """The time of its last progress, on the monotonic clock."""
        return max(self._moved, self.chains.freed)

    @property
    def takes_no_more(self) -> bool:
        """Whether it is fenced, to be claimed anew or about to be released."""
        return self.fenced or self.doubtful or self.leaving

    def progress(self) -> None:
        """Record progress."""
        self._moved = self._ambient.monotonic()

    def restart(self) -> None:
        """Restart at the beginning of a stream that was deleted and created again."""
        self.position = self._saved = BEGINNING

    def lose(self) -> None:
        """Record that another process owns the partition."""
        self.fenced = True
        claim = self.claim
        self._reports.emit(
            ClaimLost(
                service=self._reports.service,
                stream=claim.stream,
                partition=claim.partition,
                epoch=claim.epoch,
            )
        )

    async def commit(self, work: UnitOfWork | Changes, position: Position | None) -> None:
        """Commit a unit of work or changes together with the position; None keeps the old one.

        Raises what `StoreTransaction.commit` raises.
        """
        changes = work.changes if isinstance(work, UnitOfWork) else work
        changes.position = position
        try:
            if isinstance(work, UnitOfWork):
                await work.commit()
            else:
                await self._commits.save(changes)
        except StateConflict:
            raise
        except StoreUnavailable:
            self.doubtful |= bool(changes.parked)
            raise
        if position is not None:
            self._has_saved(position)
        if changes.parked:
            self._work.ring()

    def share(self, work: UnitOfWork | Changes) -> Awaitable[None]:
        """Commit the outcome of a parked event, in one transaction with others that wait for it.

        What has read in a transaction of its own is committed alone. Awaited, it raises what
        `StoreTransaction.commit` raises for this work alone.
        """
        if isinstance(work, UnitOfWork):
            if work.begun:
                return self.commit(work, None)
            work = work.seal()
        return self._shared.commit(work)

    async def shared(self) -> None:
        """Wait for the end of a commit that `share` has begun, whoever still waits for it."""
        await self._shared.end()

    async def advance(self, position: Position | None) -> None:
        """Commit the position, unless it is None or committed already."""
        if position is not None and position > self._saved:
            await self.commit(Changes(claim=self.claim), position)

    @property
    def unsaved(self) -> bool:
        """Whether its position has moved without a commit, and may be stored."""
        return self.position != self._saved and not self.fenced

    async def save(self) -> None:
        """Store a position that moved without a commit. Errors are reported."""
        if not self.unsaved:
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
        if not self.claim.reader:  # the broker's own tools show the service alone
            self._broker.handled(self.claim.stream, self.claim.partition, position)
        self.saved_at = self._ambient.monotonic()
