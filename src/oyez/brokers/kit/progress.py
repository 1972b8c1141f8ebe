"""Showing a broker's own tools what is handled, a little later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from oyez.brokers.kit.streams import Place
from oyez.errors import BrokerUnavailable
from oyez.ports import Position


class Progress:
    """The positions that are handled and not shown yet."""

    def __init__(self, show: Callable[[Mapping[Place, Position]], Awaitable[None]]) -> None:
        """Create it empty; ``show`` tells the broker and raises BrokerError where it can't."""
        self.handled: dict[Place, Position] = {}
        """The last position of each partition that moved since `show`."""
        self._show = show

    async def show(self) -> None:
        """Show what has moved.

        Raises BrokerError; what could not be shown while the broker was out of reach is kept.
        """
        moved, self.handled = self.handled, {}
        if not moved:
            return
        try:
            await self._show(moved)
        except BrokerUnavailable:
            self.handled = {**moved, **self.handled}
            raise
