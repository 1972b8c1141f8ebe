"""The oracle: what must be true of the evidence of a run, one rule each.

A rule is a function from the evidence to what breaks it, in words. Each belongs to one of the kinds
of harm, which are the columns of the table in docs/reliability.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Literal

import msgspec
from evidence import POISON, WITNESS, WITNESSED, Evidence, Fact

from books import balance

Harm = Literal["lost", "doubled", "reordered", "stuck", "unbalanced", "grown"]
HARMS: tuple[Harm, ...] = ("lost", "doubled", "reordered", "stuck", "unbalanced", "grown")

DRAINS = 60.0
"""Seconds after the last fault within which everything has to be settled."""
SHOWN = 5
"""Cases of one problem that are spelt out."""
LONG_LIVED = 60
"""Samples of a process that tell whether it grows."""
GROWTH = {"rss": (1.2, 16 * 2**20), "descriptors": (1.0, 24), "threads": (1.0, 8)}
"""What a process may grow by from its second third to its last: a factor, and so much more.

A client's pool of 20 idle connections, which the first backlog opens, is no leak.
"""


class Problem(msgspec.Struct, frozen=True):
    """Something that must not be."""

    harm: Harm
    rule: str
    what: str
    count: int
    """How many orders, events or processes it is about."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence shows."""

    problems: list[Problem]
    void: list[str]
    """Why the run shows nothing, if it does not."""
    recoveries: list[float]
    """Seconds from the end of each fault until an order placed after it was settled."""

    def harmed(self, harm: Harm) -> int:
        """Return how many cases of a kind of harm there are."""
        return sum(problem.count for problem in self.problems if problem.harm == harm)


Rule = Callable[[Evidence], Iterator[str]]
RULES: dict[str, tuple[Harm, Rule]] = {}
"""Every rule by its name, with the harm that it looks for."""


def rule(harm: Harm) -> Callable[[Rule], Rule]:
    """Make a function a rule; what it yields are cases, each by its name."""

    def add(function: Rule) -> Rule:
        RULES[function.__name__] = (harm, function)
        return function

    return add


def judge(evidence: Evidence, required: Sequence[str] = ()) -> Verdict:
    """Hold the evidence to every rule.

    ``required`` are the faults that must have fired, and ``duplicates`` and ``inside`` where events
    must have come twice and kills landed in transactions.
    """
    problems = []
    for name, (harm, function) in RULES.items():
        cases = list(function(evidence))
        if cases:
            words = (function.__doc__ or "").strip().rstrip(".")
            more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
            what = f"{len(cases)} against: {words}: {', '.join(cases[:SHOWN])}{more}"
            problems.append(Problem(harm, name, what, len(cases)))
    return Verdict(
        problems=problems,
        void=list(_void(evidence, required)),
        recoveries=list(_recoveries(evidence)),
    )


# -- lost ------------------------------------------------------------------------------------------


@rule("lost")
def accepted_orders_are_there(evidence: Evidence) -> Iterator[str]:
    """Every order that a 202 named is in the shop's store."""
    for orders in evidence.accepted.values():
        yield from (order for order in orders if order not in evidence.inside.orders)


@rule("lost")
def orders_are_announced(evidence: Evidence) -> Iterator[str]:
    """Every order of the store has its first event on the broker."""
    if evidence.records is not None:
        told = {each.key for each in evidence.records if each.type == "shop.order.placed"}
        yield from (order for order in evidence.inside.orders if order not in told)


@rule("lost")
def events_are_handled(evidence: Evidence) -> Iterator[str]:
    """Every fact on the broker was handled by the witness."""
    seen = {(each.source, each.event_id) for each in evidence.witnessed}
    for source, event_id in _first_places(evidence):
        if (source, event_id) not in seen:
            yield f"{event_id} of {source}"


@rule("lost")
def steps_are_announced(evidence: Evidence) -> Iterator[str]:
    """What the store says of an order was announced: paid, reserved, confirmed, ended."""
    if evidence.records is None:
        return
    told = {(each.key, each.type) for each in evidence.records}
    for order_id, order in evidence.inside.orders.items():
        for stage, kind in _STAGES.items():
            if stage in order["history"] and (order_id, kind) not in told:
                yield f"{order_id} {stage}"


@rule("lost")
def damage_is_found(evidence: Evidence) -> Iterator[str]:
    """Damage of an embedded file is refused by the file's name, or has changed nothing."""
    for line in evidence.of("damage"):
        if line["became"] not in ("refused", "harmless"):
            yield f"{line['what']}: {line['became']}"


# -- doubled ---------------------------------------------------------------------------------------


@rule("doubled")
def one_request_is_one_order(evidence: Evidence) -> Iterator[str]:
    """Each idempotency key has one order, the one that every answer named."""
    for key, orders in evidence.accepted.items():
        if len(set(orders)) > 1:
            yield f"{key} was answered with {len(set(orders))} orders"
        if not set(evidence.placements.get(key, [])) <= set(orders):
            yield f"{key} has an order that no answer named"
    for key, kept in evidence.placements.items():
        if len(kept) > 1:
            yield f"{key} has {len(kept)} orders"


@rule("doubled")
def nobody_orders_by_himself(evidence: Evidence) -> Iterator[str]:
    """Every order of the store was asked for in the journal."""
    asked = {line["key"] for line in evidence.of("request")}
    wanted = {
        order for key, orders in evidence.placements.items() if key in asked for order in orders
    }
    yield from (order for order in evidence.inside.orders if order not in wanted)


@rule("doubled")
def orders_end_once(evidence: Evidence) -> Iterator[str]:
    """No order is both shipped and cancelled."""
    for order_id, order in evidence.inside.orders.items():
        if order["shipped"] and order["cancelled"]:
            yield order_id


@rule("doubled")
def events_are_handled_once(evidence: Evidence) -> Iterator[str]:
    """No event was handled twice by the witness."""
    for (source, event_id), count in Counter(
        (each.source, each.event_id) for each in evidence.witnessed
    ).items():
        if count > 1:
            yield f"{event_id} of {source}, {count} times"


@rule("doubled")
def charges_are_made_once(evidence: Evidence) -> Iterator[str]:
    """No order was charged twice."""
    captured = Counter(
        charge["reference"]
        for charge in evidence.outside.ledger["charges"]
        if charge["status"] == "captured"
    )
    yield from (order for order, count in captured.items() if count > 1)


@rule("doubled")
def effects_have_one_key(evidence: Evidence) -> Iterator[str]:
    """Each effect outside has one idempotency key, however often it was asked for."""
    keys: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for order, key in evidence.charge_keys:
        keys["charge", order].add(key)
    for order, stage, key in evidence.mail_keys:
        keys["mail", order, stage].add(key)
    for text, key in evidence.text_keys:
        keys["text", text].add(key)
    yield from (" ".join(effect) for effect, found in keys.items() if len(found) > 1)


# -- reordered -------------------------------------------------------------------------------------


@rule("reordered")
def keys_keep_their_order(evidence: Evidence) -> Iterator[str]:
    """What one service announced under one key was handled in that order."""
    at = _first_places(evidence)
    handled: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for each in evidence.witnessed:
        handled[each.source, each.key].append(each)
    for (source, key), facts in handled.items():
        facts.sort(key=lambda each: each.number)
        places = [at.get((source, each.event_id), -1) for each in facts]
        if -1 not in places and places != sorted(places):
            yield f"{key} of {source}"


@rule("reordered")
def one_at_a_time(evidence: Evidence) -> Iterator[str]:
    """No two events of one key and source were handled at the same time."""
    found = Counter((each.source, each.key, each.number) for each in evidence.witnessed)
    yield from (f"{key} of {source}" for (source, key, _), n in found.items() if n > 1)


# -- stuck -----------------------------------------------------------------------------------------


@rule("stuck")
def accepted_orders_end(evidence: Evidence) -> Iterator[str]:
    """Every order is shipped or cancelled."""
    for order_id, order in evidence.inside.orders.items():
        if not (order["shipped"] or order["cancelled"]):
            yield order_id


@rule("stuck")
def outboxes_are_empty(evidence: Evidence) -> Iterator[str]:
    """Every announced event has left for the broker."""
    for service, counts in evidence.unfinished.items():
        yield from (f"an event of {service}" for _ in range(counts["announced"]))


@rule("stuck")
def nothing_is_parked(evidence: Evidence) -> Iterator[str]:
    """No event waits for another attempt, or behind one that does."""
    for service, counts in evidence.unfinished.items():
        yield from (f"an event of {service}" for _ in range(counts["parked"]))


@rule("stuck")
def sagas_go_on(evidence: Evidence) -> Iterator[str]:
    """No saga is stuck."""
    yield from evidence.stuck_sagas


@rule("stuck")
def dead_letters_are_the_poison(evidence: Evidence) -> Iterator[str]:
    """The dead letters are the poison that was given, each once, and nothing else."""
    given = {line["event"] for line in evidence.of("injected") if line["what"] == POISON}
    found = Counter(
        letter.event_id if letter.service == WITNESS else f"{letter.event_id} in {letter.service}"
        for letter in evidence.letters
    )
    yield from (f"{event} is no dead letter" for event in given if event not in found)
    yield from (f"{event} is one" for event in found if event not in given)
    yield from (f"{event} is {n} of them" for event, n in found.items() if n > 1)


@rule("stuck")
def settled_in_time(evidence: Evidence) -> Iterator[str]:
    """Everything is settled within a minute of the last fault."""
    drained = evidence.of("drained")
    if not drained:
        yield "never"
    yield from (f"{line['seconds']:.0f} s" for line in drained if line["seconds"] > DRAINS)


# -- what does not add up --------------------------------------------------------------------------


@rule("unbalanced")
def the_books_balance(evidence: Evidence) -> Iterator[str]:
    """Money, goods and notices add up, as the shop's own books have it."""
    accepted = [order for orders in evidence.accepted.values() for order in orders]
    yield from balance(evidence.inside, evidence.outside, accepted).problems


@rule("unbalanced")
def stock_is_never_negative(evidence: Evidence) -> Iterator[str]:
    """No article has fewer than none free, reserved or sold."""
    for row in evidence.inside.stock:
        if min(row["free"], row["reserved"], row["shipped"]) < 0:
            yield row["sku"]


@rule("grown")
def processes_stay_flat(evidence: Evidence) -> Iterator[str]:
    """Memory, descriptors and threads of a process that lives on do not grow."""
    lives: dict[tuple[str, int], list[Mapping[str, float]]] = defaultdict(list)
    for line in evidence.of("sample"):
        lives[line["process"], line["pid"]].append(line)
    for (process, pid), samples in lives.items():
        if len(samples) < LONG_LIVED:
            continue
        third = len(samples) // 3
        for what, (factor, more) in GROWTH.items():
            # The first third sees a process that has not yet done everything once. The floor
            # tells a leak from a backlog, which takes connections while it is worked off.
            first = min(sample[what] for sample in samples[third : 2 * third])
            last = min(sample[what] for sample in samples[2 * third :])
            if last > first * factor + more:
                yield f"{what} of {process} ({pid}) from {first:.0f} to {last:.0f}"


# -- what a run is worth ---------------------------------------------------------------------------


def _void(evidence: Evidence, required: Sequence[str]) -> Iterator[str]:
    """Say what did not happen that the run was to survive."""
    fired = Counter(line["name"] for line in evidence.of("fault"))
    for name in required:
        if name == "duplicates":
            if not evidence.duplicates + evidence.effects_repeated:
                yield "no event and no effect came twice"
        elif name == "inside":
            if not any(line.get("inside") for line in evidence.of("fault")):
                yield "no kill landed inside a transaction"
        elif not fired[name]:
            yield f"{name} never fired"
    if not evidence.accepted:
        yield "no order was accepted"


def _recoveries(evidence: Evidence) -> Iterator[float]:
    """Seconds from each fault's end until an order that was placed after it was settled.

    None where a clock was moved: the times of orders are no times then.
    """
    faults = evidence.of("fault")
    if any(line.get("clock") for line in faults):
        return
    orders: list[tuple[float, float]] = []
    for order in evidence.inside.orders.values():
        history = {stage: datetime.fromisoformat(at) for stage, at in order["history"].items()}
        ends = [history[stage] for stage in ("shipped", "cancelled") if stage in history]
        if ends and "placed" in history:
            orders.append((history["placed"].timestamp(), min(ends).timestamp()))
    orders.sort()
    # The first end among this order and all that were placed later.
    first = list(accumulate((end for _, end in reversed(orders)), min))[::-1]
    for line in faults:
        place = bisect_left(orders, (line["ended"],))
        if place < len(first):
            yield max(0.0, first[place] - line["ended"])


def _first_places(evidence: Evidence) -> dict[tuple[str, str], int]:
    """Where each fact came first on the broker, by source and id."""
    found: dict[tuple[str, str], int] = {}
    for place, each in enumerate(evidence.records or ()):
        if each.type in WITNESSED:
            found.setdefault((each.source, each.event_id), place)
    return found


_STAGES = {
    "paid": "shop.payment.processed",
    "reserved": "shop.stock.reserved",
    "confirmed": "shop.order.confirmed",
    "shipped": "shop.shipment.ready",
    "cancelled": "shop.order.cancelled",
}
