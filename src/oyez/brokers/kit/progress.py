"""Reports handled positions to a broker's own tools, somewhat later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from oyez.brokers.kit.streams import Place
from oyez.errors import BrokerUnavailable
from oyez.ports import Position


class Progress:
    """The handled positions that are not reported yet."""

    def __init__(self, show: Callable[[Mapping[Place, Position]], Awaitable[None]]) -> None:
        """Create it empty; ``show`` reports to the broker, and raises BrokerError if that fails."""
        self.handled: dict[Place, Position] = {}
        """The last position of each partition that moved since `show`."""
        self._show = show

    async def show(self) -> None:
        """Report the positions that moved.

        Raises BrokerError; positions not reported while the broker was out of reach are kept.
        """
        moved, self.handled = self.handled, {}
        if not moved:
            return
        try:
            await self._show(moved)
        except BrokerUnavailable:
            self.handled = {**moved, **self.handled}
            raise
