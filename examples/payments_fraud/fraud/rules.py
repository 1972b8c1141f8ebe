"""What speaks for fraud, as pure functions: the same facts always give the same decision."""

from __future__ import annotations

from math import asin, cos, log, radians, sin, sqrt

import msgspec

from fraud.events import TransferCounted
from oyez import State

LIMIT = 0.6
"""A transfer with this score, or a higher one, is refused."""
TRUST = 0.4
"""What the model alone can add to a score."""

_DAY = 86_400.0
_AIRLINER = 900.0
"""Kilometres in an hour: who was faster is not the same person."""


class History(State, key="source"):
    """What is known of the customer of an account; what was refused is not its customer's."""

    seen: int = 0
    """Transfers that were looked at."""
    cleared: int = 0
    mean: float = 0.0
    """In cents, of those that were cleared."""
    devices: dict[str, float] = msgspec.field(default_factory=dict)
    """When each device was seen first, in seconds since 1970."""
    latitude: float = 0.0
    longitude: float = 0.0
    at: float = 0.0
    """The time of the newest one, in seconds since 1970, that latitude and longitude are of."""

    def facts(self, event: TransferCounted) -> dict[str, float]:
        """Return what is unusual about a transfer; each fact is 0 where nothing is."""
        transfer = event.transfer
        facts = {"burst": log(event.burst, 2), "sharing": event.sharing - 1.0}
        facts.update(speed=0.0, amount=0.0, device=0.0)
        if self.cleared:
            hours = max(abs(transfer.at.timestamp() - self.at) / 3600, 1 / 60)
            here = (transfer.latitude, transfer.longitude)
            facts["speed"] = _distance((self.latitude, self.longitude), here) / hours / _AIRLINER
            now = transfer.at.timestamp()
            strange = now - _DAY < self.devices.get(transfer.device, now) <= now
            facts["device"] = float(strange and min(self.devices.values()) <= now - _DAY)
        if self.cleared > 2:
            facts["amount"] = max(log(transfer.cents / self.mean, 2), 0.0)
        return {name: round(min(fact, 10.0), 6) for name, fact in facts.items()}

    def learn(self, event: TransferCounted) -> None:
        """Remember a transfer that was cleared."""
        transfer = event.transfer
        self.cleared += 1
        self.mean += (transfer.cents - self.mean) / self.cleared
        first = self.devices.get(transfer.device, transfer.at.timestamp())
        self.devices[transfer.device] = min(first, transfer.at.timestamp())
        if len(self.devices) > 5:
            del self.devices[min(self.devices, key=self.devices.__getitem__)]
        if transfer.at.timestamp() >= self.at:
            self.at = transfer.at.timestamp()
            self.latitude, self.longitude = transfer.latitude, transfer.longitude


def judge(facts: dict[str, float], suspicion: float) -> tuple[float, list[str]]:
    """Return a score, and what it is made of, the weightiest first.

    ``suspicion`` is the model's probability of fraud, 0 without a model.
    """
    found = [
        (0.5, "faster than an airliner", facts["speed"] > 1),
        (0.5, "a device of many accounts", facts["sharing"] > 1),
        (0.4, "many transfers in a row", facts["burst"] >= 2),
        (0.3, "four times the usual amount", facts["amount"] > 2),
        (0.3, "a device of less than a day", facts["device"] > 0),
        (TRUST * suspicion, f"like {suspicion:.0%} of known fraud", suspicion > 0.1),
    ]
    signs = sorted((sign for sign in found if sign[2]), reverse=True)
    return round(sum(points for points, _, _ in signs), 6), [words for _, words, _ in signs]


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the kilometres between two places, by the haversine formula."""
    (a, b), (c, d) = (map(radians, place) for place in (one, other))
    half = sin((c - a) / 2) ** 2 + cos(a) * cos(c) * sin((d - b) / 2) ** 2
    return 12_742 * asin(sqrt(half))
