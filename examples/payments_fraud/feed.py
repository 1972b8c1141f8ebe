"""Five days of a bank, made up from a seed, with culprits that are known because they are planted.

No data set of card fraud comes inside a package, and labels of real ones are guesses. Here it is
known who did it, so recall and precision can be measured. *Rings*: five accounts pass money round
from one device. *Stolen cards*: ten payments in a few minutes by a device that the customer never
had, mostly from far away. To be mistaken for them, honest customers buy new phones, make large
payments and share a device in the family.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import cycle, islice, pairwise, repeat
from math import exp
from operator import itemgetter
from typing import Any

import msgspec

DAYS = 5
RING, HOPS = 5, 30
"""Accounts of a ring, and its transfers."""
STOLEN = 10
"""Payments with one stolen card."""
REVIEWED, REPORTED = 0.1, 0.7
"""The shares of honest transfers and of planted ones that a customer is asked about."""

_HOUR, _DAY = 3_600.0, 86_400.0
_CITIES = {
    "NL": (52.37, 4.90), "DE": (52.52, 13.41), "FR": (48.86, 2.35), "ES": (40.42, -3.70),
    "IT": (41.90, 12.50), "PL": (52.23, 21.01), "US": (40.71, -74.01), "BR": (-23.55, -46.63),
    "IN": (19.08, 72.88), "JP": (35.68, 139.69), "AU": (-33.87, 151.21), "ZA": (-33.92, 18.42),
}  # fmt: skip
_FAR = {"US", "BR", "IN", "JP", "AU", "ZA"}

Item = tuple[str, str, dict[str, Any]]
"""The type of an event, its id and its data."""
Paid = tuple[float, bool, dict[str, Any]]
"""A transfer: when, in seconds from the beginning, whether it is planted, and its data."""


class Plan(msgspec.Struct):
    """What is to be sent, and who the culprits are."""

    accounts: list[Item] = []
    items: list[Item] = []
    """Transfers and reviews in the order of time."""
    transfers: dict[str, dict[str, Any]] = {}
    culprits: set[str] = set()
    """Planted transfers."""


class Customer:
    """An account with the habits of its owner; times are seconds from the beginning."""

    def __init__(self, chance: random.Random, number: int) -> None:
        self.account = f"A{number:05d}"
        self.home = chance.choice(list(_CITIES))
        self.usual = exp(chance.gauss(8.3, 0.6))
        self.opened = {"account": self.account, "cents": 2_000_000 if number % 50 else 5_000}
        self._phone = f"phone {number - (number % 20 == 1)}"  # some couples share one
        self._changes = chance.uniform(0, DAYS if chance.random() < 0.05 else 100 * DAYS) * _DAY

    def pay(self, at: float, to: Customer, cents: float, where: str = "", thief: str = "") -> Paid:
        """Return a transfer, by default from home; ``thief`` is the device of somebody else."""
        own, country = self._phone + " new" * (at > self._changes), where or self.home
        sent = {"source": self.account, "target": to.account, "cents": max(round(cents), 1)}
        place = {"device": thief or own, "country": country, "place": _CITIES[country]}
        return at, bool(thief), sent | place


Pairs = Iterable[tuple[Customer, Customer]]
"""Who pays whom."""


def plan(count: int, seed: int, end: datetime) -> Plan:
    """Return so many transfers of the five days before ``end``: the same ones for a seed."""
    chance = random.Random(seed)
    customers = [Customer(chance, number) for number in range(max(60, count // 25))]
    rich = [each for number, each in enumerate(customers) if number % 50]
    paid: list[Paid] = []
    for number in range(max(1, count // 2_500)):
        ring = cycle(chance.sample(rich, RING))
        paid += _planted(chance, f"emulator {number}", islice(pairwise(ring), HOPS))
    for number in range(max(2, count * 3 // 5_000)):
        who, other = chance.sample(rich, 2)
        where = chance.choice(sorted(_FAR - {who.home})) if chance.random() < 0.8 else who.home
        paid += _planted(chance, f"burner {number}", repeat((who, other), STOLEN), where)
    del paid[count // 2 :]
    paid += [_honest(chance, customers) for _ in range(count - len(paid))]
    made, begin = Plan(), end - timedelta(days=DAYS)
    made.accounts = [("bank.account.opened", each.account, each.opened) for each in customers]
    items: list[tuple[float, Item]] = []
    for number, (at, planted, data) in enumerate(sorted(paid, key=itemgetter(0))):
        name, when = f"T{number:06d}", begin + timedelta(seconds=at)
        sent = made.transfers[name] = {**data, "transfer_id": name, "at": when.isoformat()}
        items.append((at, ("bank.transfer.requested", name, sent)))
        if planted:
            made.culprits.add(name)
        if chance.random() < (REPORTED if planted else REVIEWED):
            said = {"transfer_id": name, "fraud": planted}
            items.append((at + 3 * _HOUR, ("bank.transfer.reviewed", f"review of {name}", said)))
    made.items = [item for _, item in sorted(items, key=itemgetter(0))]
    return made


def _honest(chance: random.Random, customers: list[Customer]) -> Paid:
    at = chance.randrange(DAYS) * _DAY + min(max(chance.gauss(14, 4), 0), 24) * _HOUR
    who, other = chance.sample(customers, 2)
    large = 5.0 if chance.random() < 0.03 else 1.0
    return who.pay(at, other, who.usual * exp(chance.gauss(0, 0.5)) * large)


def _planted(chance: random.Random, device: str, pairs: Pairs, where: str = "") -> Iterator[Paid]:
    """Yield an honest payment, and half an hour after it those from the device of a thief."""
    at = chance.uniform(2, DAYS - 0.3) * _DAY
    for number, (who, other) in enumerate(pairs):
        if number == 0:
            yield who.pay(at, other, who.usual)
            at += chance.uniform(1_800, 3_600)
        at += chance.uniform(15, 90)
        yield who.pay(at, other, who.usual * chance.uniform(4, 8), where, device)
