"""Who holds a journey up now, and why: the first question about an order that is late."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from oyez import tables
from oyez.inspection.form import span
from oyez.inspection.journey import Journey, JourneyEvent
from oyez.inspection.reach import Gap, ask_stores, imported
from oyez.inspection.reactions import Reaction
from oyez.inspection.sagas import InstanceSeen, saga_kinds, sagas_of
from oyez.ports import Store
from oyez.project import Project

UNSEEN = 2.0
"""Seconds after something was handled for which its effects may not have been seen yet."""
_KEYS = 100
"""The keys that a store is asked for at once."""


class Cure(msgspec.Struct, frozen=True, kw_only=True):
    """Where something can be done about it."""

    kind: Literal["letter", "saga", "service", "key"]
    service: str = ""
    letter: int = 0
    saga: str = ""
    key: str = ""

    @property
    def command(self) -> str:
        """The command that shows it."""
        match self.kind:
            case "letter":
                return f"oyez dead show {self.service} {self.letter}"
            case "saga":
                return f"oyez saga show {shlex.quote(self.key)} --service {self.service}"
            case "key":
                return f"oyez flow {shlex.quote(self.key)}"
            case "service":
                return "oyez lag"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """What a journey waits for. Text of events in it is as it came."""

    level: Literal["bad", "warn", "good"]
    """``bad`` needs somebody, ``warn`` may pass by itself, ``good`` is as it should be."""
    what: str
    """One sentence without its full stop."""
    why: str = ""
    """The error, if there is one."""
    cure: Cure | None = None
    over: bool = False
    """Whether nothing more is to come."""


def holder(
    journey: Journey,
    sagas: Iterable[InstanceSeen],
    now: float,
    silent: Collection[str] = (),
    blind: Collection[str] = (),
) -> Holder:
    """Return who holds a journey up: whoever needs a person first, then the first by time.

    ``sagas`` are those of the journey, ``silent`` the parts of the system that did not answer,
    ``blind`` the brokers without history.
    """
    found: list[tuple[int, float, Holder]] = []
    events = list(walk(journey.events))
    for event in events:
        found += _announced(event, now)
        for reaction in event.reactions:
            found += _reacting(event, reaction, now)
    for each in sagas:
        found += _saga(each, now)
    if found:
        return min(found, key=lambda each: each[:2])[2]
    if silent:
        names, do = ", ".join(silent), "does" if len(silent) == 1 else "do"
        what = f"Nobody who answers, but {names} {do} not, so it may wait there"
        return Holder(level="warn", what=what)
    if blind:
        names, keep = ", ".join(blind), "keeps" if len(blind) == 1 else "keep"
        what = f"Nobody that is known: {names} {keep} no history, so what is unread is not seen"
        return Holder(level="warn", what=what)
    last = max(_last(event) for event in events)
    count = "its only event is" if len(events) == 1 else f"all {len(events)} events are"
    return Holder(
        level="good",
        what=f"Nobody: {count} settled, {span(max(0.0, last - journey.began))} after it began",
        over=now - last >= UNSEEN,
    )


async def holders(
    project: Project, journeys: Sequence[Journey], missing: Iterable[Gap]
) -> list[Holder]:
    """Return who holds each journey up, with the sagas that the stores of the services have.

    ``missing`` are the gaps of the journeys. A store out of reach counts as silent.
    """
    gaps = list(missing)
    services, failed = imported(project, (), ", so its sagas are unknown")
    gaps += failed
    keys = [_keys(each) for each in journeys]
    asked = list(dict.fromkeys(key for some in keys for key in some))
    found: list[InstanceSeen] = []
    for name, service in services.items():
        kinds = saga_kinds(service)
        if not kinds:
            continue

        async def ask(store: Store, name: str = name, kinds: list[str] = kinds) -> None:
            for part in range(0, len(asked), _KEYS):
                found.extend(await sagas_of(name, store, kinds, asked[part : part + _KEYS]))

        await ask_stores(project, [name], ask, gaps)
    silent = sorted({each.name for each in gaps})
    now = project.ambient.now()
    return [
        holder(journey, [each for each in found if each.instance.key in own], now, silent)
        for journey, own in zip(journeys, keys, strict=True)
    ]


def as_value(found: Holder) -> dict[str, Any]:
    """Return it as a value for JSON."""
    return {
        "level": found.level,
        "what": found.what,
        "why": found.why,
        "cure": None if found.cure is None else found.cure.command,
        "over": found.over,
    }


def _keys(journey: Journey) -> set[str]:
    return {event.key for event in walk(journey.events) if event.key is not None}


def walk(events: Iterable[JourneyEvent]) -> Iterator[JourneyEvent]:
    """Yield events and those that they caused, each cause first."""
    for event in events:
        yield event
        yield from walk(event.events)


def _last(event: JourneyEvent) -> float:
    return max([event.time, *(each.seen for each in event.reactions if each.seen is not None)])


def _announced(event: JourneyEvent, now: float) -> Iterator[tuple[int, float, Holder]]:
    service = event.source.rpartition("/")[2]
    here = Cure(kind="service", service=service)
    match event.state:
        case "refused":
            refused = [each for each in event.reactions if each.handler == tables.OUTBOX]
            if not any(each.state == "dead" for each in refused):
                yield (
                    0,
                    event.time,
                    Holder(
                        level="bad", what=f"The broker refused {event.type} of {service}", cure=here
                    ),
                )
        case "held":
            yield (
                5,
                event.time,
                Holder(
                    level="bad",
                    what=f"{service} keeps {event.type} back: the broker refused an earlier event "
                    "of its key",
                    cure=None if event.key is None else Cure(kind="key", key=event.key),
                ),
            )
        case "outbox":
            yield (
                6,
                event.time,
                Holder(
                    level="warn",
                    what=f"{service} has not published {event.type} yet, which it announced "
                    f"{_ago(event.time, now)}",
                    cure=here,
                ),
            )
        case "delayed":
            yield (
                8,
                event.due or 0.0,
                Holder(
                    level="good",
                    what=f"{service} announced {event.type} for later: it is due "
                    f"{_until(event.due, now)}",
                    cure=here,
                ),
            )


def _reacting(
    event: JourneyEvent, reaction: Reaction, now: float
) -> Iterator[tuple[int, float, Holder]]:
    told = _TOLD.get(reaction.state)
    if told is not None:
        rank, tell = told
        yield rank, reaction.seen or event.time, tell(event, reaction, now)


def _dead(event: JourneyEvent, reaction: Reaction, _: float) -> Holder:
    times = "1 attempt" if reaction.attempts == 1 else f"{reaction.attempts} attempts"
    if reaction.handler == tables.OUTBOX:
        what = f"The broker refused {event.type} of {reaction.service}"
    else:
        what = f"{_name(reaction)} gave up on {event.type} after {times}"
    return Holder(
        level="bad",
        what=what,
        why=reaction.error or "",
        cure=Cure(kind="letter", service=reaction.service, letter=reaction.letter or 0),
    )


def _retrying(event: JourneyEvent, reaction: Reaction, now: float) -> Holder:
    times = "once" if reaction.attempts == 1 else f"{reaction.attempts} times"
    return Holder(
        level="warn",
        what=f"{_name(reaction)} has failed {times} on {event.type} and tries again "
        f"{_until(reaction.due, now)}",
        why=reaction.error or "",
        cure=Cure(kind="service", service=reaction.service),
    )


def _waiting(event: JourneyEvent, reaction: Reaction, _: float) -> Holder:
    return Holder(
        level="warn",
        what=f"{_name(reaction)} keeps {event.type} parked behind an earlier event of its key",
        cure=None if event.key is None else Cure(kind="key", key=event.key),
    )


def _due(event: JourneyEvent, reaction: Reaction, _: float) -> Holder:
    return Holder(
        level="warn",
        what=f"{_name(reaction)} is about to handle {event.type}",
        cure=Cure(kind="service", service=reaction.service),
    )


def _pending(event: JourneyEvent, reaction: Reaction, now: float) -> Holder:
    since = _ago(event.places[-1].time if event.places else event.time, now)
    if reaction.bridge is not None:
        what = f"Bridge {reaction.bridge} has not copied {event.type} yet, published {since}"
        return Holder(level="warn", what=what, cure=Cure(kind="service", service=reaction.bridge))
    return Holder(
        level="warn",
        what=f"{_name(reaction)} has not read {event.type} yet, published {since}",
        cure=Cure(kind="service", service=reaction.service),
    )


_TOLD: dict[str, tuple[int, Callable[[JourneyEvent, Reaction, float], Holder]]] = {
    "dead": (0, _dead),
    "retrying": (2, _retrying),
    "due": (3, _due),
    "waiting": (4, _waiting),
    "pending": (7, _pending),
}


def _saga(each: InstanceSeen, now: float) -> Iterator[tuple[int, float, Holder]]:
    of = each.instance
    cure = Cure(kind="saga", service=of.service, saga=of.saga, key=of.key)
    name = f"{of.saga} {of.key} of {of.service}"
    if each.stuck:
        on = f" on {each.stuck_on}" if each.stuck_on else ""
        yield (
            1,
            of.changed,
            Holder(level="bad", what=f"The saga {name} is stuck{on}", why=each.stuck, cure=cure),
        )
    elif of.ended is None and of.status != "ended":
        what = f"for {of.step}" if of.step else "for an event"
        yield (
            9,
            of.changed,
            Holder(
                level="warn",
                what=f"The saga {name} waits {what}, last changed {_ago(of.changed, now)}",
                cure=cure,
            ),
        )


def _name(reaction: Reaction) -> str:
    return f"{reaction.service}.{reaction.handler}" if reaction.handler else reaction.service


def _ago(then: float, now: float) -> str:
    return f"{span(max(0.0, now - then))} ago"


def _until(due: float | None, now: float) -> str:
    if due is None or due <= now:
        return "now"
    return f"in {span(due - now)}"
