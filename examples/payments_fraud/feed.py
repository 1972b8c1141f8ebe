"""Five days of a bank, made up from a seed, with culprits that are known because they are planted.

No data set of card fraud comes inside a package, and labels of real ones are guesses. Here it is
known who did it, so recall and precision can be measured. *Rings*: five accounts pass money round
from one device. *Stolen cards*: ten payments in a few minutes by a device that the customer never
had, mostly from far away. To be mistaken for them, honest customers travel, buy new phones, make
large payments and share a device in the family.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from math import exp
from typing import Any

import msgspec

DAYS = 5
RING, HOPS = 5, 30
"""Accounts of a ring, and its transfers."""
STOLEN = 10
"""Payments with one stolen card."""
REVIEWED, REPORTED = 0.1, 0.7
"""The shares of honest transfers and of planted ones that a customer is asked about."""

_HOUR = 3600.0
_CITIES = {
    "NL": (52.37, 4.90), "DE": (52.52, 13.41), "FR": (48.86, 2.35), "ES": (40.42, -3.70),
    "IT": (41.90, 12.50), "PL": (52.23, 21.01), "US": (40.71, -74.01), "BR": (-23.55, -46.63),
    "IN": (19.08, 72.88), "JP": (35.68, 139.69), "AU": (-33.87, 151.21), "ZA": (-33.92, 18.42),
}  # fmt: skip
_FAR = {"US", "BR", "IN", "JP", "AU", "ZA"}


Item = tuple[str, dict[str, Any]]
"""The type of an event, and its data."""


class Customer(msgspec.Struct):
    """An account with the habits of its owner; times are seconds from the beginning."""

    account: str
    home: str
    usual: float
    devices: tuple[str, str]
    changes: float
    """When the second device takes the place of the first."""
    away: tuple[float, float] | None
    abroad: str
    cents: int
    overdraft: int


class Plan(msgspec.Struct):
    """What is to be sent, in the order of time, and who the culprits are."""

    accounts: list[dict[str, Any]]
    items: list[Item]
    culprits: dict[str, str]
    """Planted transfers, each with what it is part of."""

    @property
    def transfers(self) -> int:
        """How many of the items are transfers."""
        return sum(kind == "bank.transfer.requested" for kind, _ in self.items)


def plan(count: int, seed: int, end: datetime) -> Plan:
    """Return so many transfers of the five days before ``end``: the same ones for a seed."""
    chance = random.Random(seed)
    customers = [_customer(chance, number) for number in range(max(60, count // 25))]
    rich = [each for each in customers if each.cents > 100_000]
    planted: list[tuple[float, str, dict[str, Any]]] = []
    for number in range(max(1, count // 2_500)):
        planted += _ring(chance, f"ring {number}", rich)
    for number in range(max(2, count * 3 // 5_000)):
        planted += _stolen(chance, f"card {number}", chance.choice(rich), customers)
    planted = planted[: count // 2]
    found = [*planted]
    while len(found) < count:
        found.append(_honest(chance, customers))
    found.sort(key=lambda each: each[0])
    items: list[tuple[float, str, dict[str, Any]]] = []
    culprits: dict[str, str] = {}
    begin = end - timedelta(days=DAYS)
    for number, (at, culprit, data) in enumerate(found):
        name = f"T{number:06d}"
        when = begin + timedelta(seconds=at)
        sent = {**data, "transfer_id": name, "at": when.isoformat()}
        items.append((at, "bank.transfer.requested", sent))
        if culprit:
            culprits[name] = culprit
        if chance.random() < (REPORTED if culprit else REVIEWED):
            said = {"transfer_id": name, "fraud": bool(culprit)}
            items.append((at + 3 * _HOUR, "bank.transfer.reviewed", said))
    items.sort(key=lambda each: each[0])
    return Plan(
        [
            {"account": each.account, "cents": each.cents, "overdraft": each.overdraft}
            for each in customers
        ],
        [(kind, data) for _, kind, data in items],
        culprits,
    )


def _customer(chance: random.Random, number: int) -> Customer:
    home = chance.choice(list(_CITIES))
    leaves = chance.uniform(0.5, DAYS - 1) * 24 * _HOUR
    own = f"phone {number - 1 if number % 20 == 1 else number}"  # some couples share one
    return Customer(
        account=f"A{number:05d}",
        home=home,
        usual=exp(chance.gauss(8.3, 0.6)),
        devices=(own, f"phone {number} new"),
        changes=chance.uniform(0, DAYS) * 24 * _HOUR if chance.random() < 0.05 else 1e9,
        away=(leaves, leaves + 48 * _HOUR) if chance.random() < 0.05 else None,
        abroad=chance.choice(list(_CITIES)),
        cents=5_000 if chance.random() < 0.02 else 2_000_000,
        overdraft=chance.choice((0, 50_000)),
    )


def _honest(chance: random.Random, customers: list[Customer]) -> tuple[float, str, dict[str, Any]]:
    at = (chance.randrange(DAYS) * 24 + min(max(chance.gauss(14, 4), 0), 24)) * _HOUR
    who = chance.choice(customers)
    while who.away and min(abs(at - when) for when in who.away) < 24 * _HOUR:
        who = chance.choice(customers)  # nobody pays on the aeroplane
    abroad = who.away is not None and who.away[0] < at < who.away[1]
    large = 5.0 if chance.random() < 0.03 else 1.0
    other = chance.choice(customers)
    while other is who:
        other = chance.choice(customers)
    cents = who.usual * exp(chance.gauss(0, 0.5)) * large
    device = who.devices[at > who.changes]
    return at, "", _transfer(who, other, cents, device, who.abroad if abroad else who.home)


def _ring(
    chance: random.Random, name: str, rich: list[Customer]
) -> list[tuple[float, str, dict[str, Any]]]:
    members = chance.sample(rich, RING)
    at = chance.uniform(1.2, DAYS - 0.3) * 24 * _HOUR
    amount = 6 * sum(each.usual for each in members) / RING
    found = []
    for hop in range(HOPS):
        at += chance.uniform(20, 120)
        who, other = members[hop % RING], members[(hop + 1) % RING]
        cents = amount * chance.uniform(0.95, 1.05)
        found.append((at, name, _transfer(who, other, cents, f"emulator of {name}", who.home)))
    return found


def _stolen(
    chance: random.Random, name: str, who: Customer, customers: list[Customer]
) -> list[tuple[float, str, dict[str, Any]]]:
    """Return an honest payment at home, and soon after it those of the thief."""
    at = chance.uniform(1.2, DAYS - 0.3) * 24 * _HOUR
    others = [each for each in customers if each is not who]
    honest = _transfer(
        who, chance.choice(others), who.usual, who.devices[at > who.changes], who.home
    )
    found = [(at, "", honest)]
    far = chance.choice(sorted(_FAR - {who.home}))
    where = far if chance.random() < 0.8 else who.home
    drop = chance.choice(others)
    at += chance.uniform(1_800, 3_600)
    for _ in range(STOLEN):
        at += chance.uniform(15, 60)
        cents = who.usual * chance.uniform(2, 8)
        found.append((at, name, _transfer(who, drop, cents, f"device of {name}", where)))
    return found


def _transfer(
    source: Customer, target: Customer, cents: float, device: str, country: str
) -> dict[str, Any]:
    latitude, longitude = _CITIES[country]
    return {
        "source": source.account,
        "target": target.account,
        "cents": max(round(cents), 1),
        "device": device,
        "country": country,
        "latitude": latitude,
        "longitude": longitude,
    }
