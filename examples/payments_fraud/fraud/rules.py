"""What speaks for fraud, as pure functions: the same facts always give the same decision."""

from __future__ import annotations

from math import asin, cos, log, radians, sin, sqrt

from msgspec import field
from msgspec.structs import asdict

from fraud.events import Case, TransferCounted
from fraud.model import Model
from oyez import State

LIMIT = 0.6
"""A transfer with this score, or a higher one, is refused."""

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
    devices: dict[str, float] = field(default_factory=dict)
    """When each device was seen first, in seconds since 1970."""
    place: tuple[float, float] = (0.0, 0.0)
    at: float = 0.0
    """The time of the newest one, in seconds since 1970, that the place is of."""

    def decide(self, event: TransferCounted, model: Model) -> Case:
        """Return the decision on a transfer, and remember it."""
        facts = self.facts(event)
        score, reason = judge(facts, model.suspicion(facts))
        self.seen += 1
        if score < LIMIT:
            self.learn(event)
        told = {"number": self.seen, "facts": facts, "reason": reason, "score": score}
        return Case(**{**asdict(event), **told, "model": model.version})

    def facts(self, event: TransferCounted) -> dict[str, float]:
        """Return what is unusual about a transfer; each fact is 0 where nothing is."""
        now = event.at.timestamp()
        facts = {"burst": log(event.burst, 2), "sharing": event.sharing - 1.0}
        facts.update(speed=0.0, amount=0.0, device=0.0)
        if self.cleared:
            hours = max(abs(now - self.at) / 3600, 1 / 60)
            facts["speed"] = _distance(self.place, event.place) / hours / _AIRLINER
            strange = now - _DAY < self.devices.get(event.device, now) <= now
            facts["device"] = float(strange and min(self.devices.values()) <= now - _DAY)
        if self.cleared > 2:
            facts["amount"] = max(log(event.cents / self.mean, 2), 0.0)
        return {name: round(min(fact, 10.0), 6) for name, fact in facts.items()}

    def learn(self, event: TransferCounted) -> None:
        """Remember a transfer that was cleared."""
        now = event.at.timestamp()
        self.cleared += 1
        self.mean += (event.cents - self.mean) / self.cleared
        self.devices[event.device] = min(now, self.devices.get(event.device, now))
        if len(self.devices) > 5:
            del self.devices[min(self.devices, key=self.devices.__getitem__)]
        if now >= self.at:
            self.at, self.place = now, event.place


def judge(facts: dict[str, float], suspicion: float) -> tuple[float, str]:
    """Return a score, and the words for what it is made of, the weightiest first.

    ``suspicion`` is the model's probability of fraud, 0 without a model.
    """
    found = [
        (0.5, "faster than an airliner", facts["speed"] > 1),
        (0.5, "a device of many accounts", facts["sharing"] > 1),
        (0.4, "many transfers in a row", facts["burst"] >= 2),
        (0.3, "four times the usual amount", facts["amount"] > 2),
        (0.3, "a device of less than a day", facts["device"] > 0),
        # What the model alone can add.
        (0.4 * suspicion, f"like {suspicion:.0%} of known fraud", suspicion > 0.1),
    ]
    signs = sorted((sign for sign in found if sign[2]), reverse=True)
    return round(sum((sign[0] for sign in signs), 0.0), 6), "; ".join(sign[1] for sign in signs)


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the kilometres between two places, by the haversine formula."""
    (a, b), (c, d) = (map(radians, place) for place in (one, other))
    half = sin((c - a) / 2) ** 2 + cos(a) * cos(c) * sin((d - b) / 2) ** 2
    return 12_742 * asin(sqrt(half))
