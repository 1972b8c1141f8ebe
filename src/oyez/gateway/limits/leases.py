"""The buckets of one limit that replicas share, as one replica has them.

Tokens come from the store alone, so all replicas together never take more than there are. To save
round trips a replica takes some in advance: one at first, twice as many whenever it used those that
it had in time, and never more than a twentieth of a bucket. Those that it does not use in time are
lost, so that they can't be added much later to what the store has given since.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from oyez.config import Limit
from oyez.gateway.limits.buckets import MOST, SECOND, Buckets, every
from oyez.gateway.limits.ledger import Ledger
from oyez.gateway.limits.store import Ask, Grant

UNKNOWN = -1
"""Instead of a time to wait: the store has to be asked."""

_IN_TIME = SECOND // 4
_PAUSE = SECOND // 100
"""Nanoseconds for which an empty bucket is not asked for again, at the least: more tokens come at a
time, and none is lost."""
_SHARE = 20


class Lease:
    """The tokens of one bucket that this replica holds, and what it knows of the others."""

    __slots__ = ("_asking", "_bucket", "_every", "_now", "_size", "_until", "_want", "held", "left",
                 "shut")  # fmt: skip

    def __init__(self, bucket: str, size: int, every: int, now: Callable[[], int]) -> None:
        self.held = 0
        """The tokens that may still be taken."""
        self.left = size
        """Those that the store had after its last answer."""
        self.shut = 0
        """The time before which the store has none."""
        self._bucket = bucket
        self._size = size
        self._every = every
        self._now = now
        self._until = 0
        self._want = 1
        self._asking = 0

    def wait(self, now: int) -> int:
        """Return the nanoseconds until a token is there: 0 if one is, or UNKNOWN."""
        if self.held and now < self._until:
            return 0
        return self.shut - now if now < self.shut else UNKNOWN

    def joined(self) -> None:
        """Count one more request that waits for the store's answer."""
        self._asking += 1

    def ask(self) -> Ask:
        """See :class:`oyez.gateway.limits.ledger.Asking`."""
        if self._now() >= self._until:
            self.held, self._want = 0, 1
        elif self.held < self._asking:
            self._want = min(self._want * 2, max(self._size // _SHARE, 1))
        want = min(max(self._want, self._asking), self._size) - self.held
        self._asking = 0
        return Ask(self._bucket, self._every, self._size, max(want, 0))

    def granted(self, ask: Ask, grant: Grant) -> None:
        """See :class:`oyez.gateway.limits.ledger.Asking`."""
        now = self._now()
        self.held += grant.tokens
        self._until = now + _IN_TIME
        self.left = max(self._size - -(-grant.ahead // self._every), 0)
        if grant.tokens < ask.want:
            short = grant.ahead + self._every - self._size * self._every
            self.shut = now + max(short, _PAUSE)


class Leases:
    """The buckets of one limit; alone, as :class:`Buckets`, while the store is away."""

    def __init__(
        self, limit: Limit, prefix: str, ledger: Ledger, now: Callable[[], int], most: int = MOST
    ) -> None:
        """``prefix`` is what the names of its buckets in the store begin with."""
        self._limit = limit
        self._prefix = prefix
        self._ledger = ledger
        self._now = now
        self._most = most
        self._every = every(limit)
        self._leases: dict[str, Lease] = {}
        self._alone = Buckets(limit, most)

    def wait(self, who: str, now: int) -> int:
        """Return the nanoseconds until a token is there: 0 if one is, or UNKNOWN."""
        if not self._ledger.shared:
            return self._alone.wait(who, now)
        lease = self._leases.get(who)
        return UNKNOWN if lease is None else lease.wait(now)

    def take(self, who: str, now: int) -> None:
        """Take a token, which must be there."""
        if self._ledger.shared:
            self._leases[who].held -= 1
        else:
            self._alone.take(who, now)

    def left(self, who: str, now: int) -> int:
        """Return how many tokens are there, as far as this replica knows."""
        if not self._ledger.shared:
            return self._alone.left(who, now)
        lease = self._leases.get(who)
        return self._limit.size if lease is None else lease.left + lease.held

    def joining(self, who: str) -> Lease:
        """Return the lease of a request that asks the store for it."""
        lease = self._leases.pop(who, None) or self._lease(who)
        self._leases[who] = lease
        lease.joined()
        return lease

    def _lease(self, who: str) -> Lease:
        if len(self._leases) >= self._most:
            del self._leases[next(iter(self._leases))]
        # Who it is stays here, and names are short, whatever an issuer calls its users.
        digest = blake2b(who.encode(), digest_size=16).hexdigest()
        name = f"{self._prefix}:{self._limit.name}:{digest}"
        return Lease(name, self._limit.size, self._every, self._now)
