"""Heads that were received of late: what is the same byte for byte is not read again.

A client repeats the headers of its requests, and a service those of its answers. What came of them
is remembered for a few seconds, with all else that follows from the bytes alone: which headers pass
on, and in which bytes. What a request depends on besides, such as the time or a key that may have
been withdrawn, is looked at for each.
"""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

SECONDS: Final = 5.0
"""A head that is not received again is forgotten after so many seconds, or twice as many."""
MOST: Final = 256
"""Heads that are remembered as new ones; as many again are, that were received before these."""
LONGEST: Final = 4096
"""Bytes of a head that is remembered."""
MOST_FOUND: Final = 8
"""What is left with one head at the most."""
_WORTH: Final = MOST // 8
"""Heads of `MOST` that have to be received again for it to be worth it to remember any."""


class Known:
    """What is known of the bytes of a head; it may be shared by all messages that begin with them.

    Whoever works on such a message may leave here what it found, for the next one. That has to
    follow from these bytes and the configuration, or be compared with what it depends on besides.
    """

    def __init__(self) -> None:
        self._found: dict[object, object] | None = None

    def remembered(self) -> None:
        """Begin to keep what is left here."""
        self._found = {}

    def found(self, finder: object) -> object:
        """Return what a finder has left; None if that is nothing."""
        found = self._found
        return None if found is None else found.get(finder)

    def leave(self, finder: object, found: object) -> None:
        """Leave what a finder has found; nothing is kept for bytes that are not remembered."""
        if self._found is None:
            return
        if len(self._found) >= MOST_FOUND:
            self._found.clear()
        self._found[finder] = found


K = TypeVar("K", bound=Known)


class Heads(Generic[K]):
    """The heads that were received of late, by their bytes.

    As these may hold keys and cookies, they stay for seconds alone. Where hardly any is received
    again, none are remembered until the next look at them.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._new: dict[bytes, K] = {}
        self._before: dict[bytes, K] = {}
        self._again = 0
        self._resting = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._new) + len(self._before)

    def known(self, head: bytes) -> K | None:
        """Return what is known of a head; None if that is nothing."""
        found = self._new.get(head)
        if found is None:
            found = self._before.get(head)
            if found is None:
                return None
            del self._before[head]
            self._add(head, found)
        self._again += 1
        return found

    def remember(self, head: bytes, known: K) -> None:
        """Remember what is known of a head, unless that is long."""
        if self._resting or len(head) > LONGEST:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._turn)
        known.remembered()
        self._add(head, known)

    def close(self) -> None:
        """Forget all."""
        self._new, self._before, self._resting = {}, {}, True
        if self._timer is not None:
            self._timer.cancel()

    def _add(self, head: bytes, known: K) -> None:
        if len(self._new) >= MOST:
            if self._again < _WORTH:
                self._new, self._before, self._resting = {}, {}, True
                return
            self._new, self._before, self._again = {}, self._new, 0
        self._new[head] = known

    def _turn(self) -> None:
        self._new, self._before, self._again, self._resting = {}, self._new, 0, False
        self._timer = None
        if self._before:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._turn)
