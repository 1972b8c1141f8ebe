"""The overview: what is wrong now, then the topology, then the services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oyez.console.answers import Replica, Trouble
from oyez.console.desk import Desk, Screen, desk
from oyez.console.live import Snapshot
from oyez.console.pages.streaming import live
from oyez.console.rates import Rate, Rates
from oyez.console.safe import brief
from oyez.console.system import Answer
from oyez.inspection.drawing import Note, Notes, svg
from oyez.inspection.form import span
from oyez.inspection.lag import ServiceLag
from oyez.inspection.topology import Flow, Topology
from oyez.runtime.dead import Group

OLD = 30.0
"""Seconds after which an event that waits is something wrong."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong now."""

    what: str
    why: str
    href: str
    """Where it is cured."""
    level: Literal["bad", "warn"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A service in the table; None stands for an unknown value."""

    service: str
    replicas: int
    silent: tuple[str, ...]
    """What was asked and did not answer, as text."""
    reasons: tuple[str, ...]
    rate: Rate | None
    line: list[float]
    lag: ServiceLag | None


def alerts(snapshot: Snapshot) -> list[Alert]:
    """Return what is wrong, the worst first."""
    found: list[Alert] = []
    for answer in snapshot.replicas:
        here = f"#service-{answer.service}"
        if answer.gap is not None:
            what = f"{answer.service} does not answer"
            why = f"{answer.at}: {answer.gap.reason}" if answer.at else answer.gap.reason
            found.append(Alert(what=what, why=why, href=here, level="bad"))
        if answer.value is not None:
            found += [
                Alert(what=f"{answer.service} is not ready", why=each, href=here, level="bad")
                for each in answer.value.reasons
            ]
    groups = [(service, group) for service, each in _troubles(snapshot) for group in each.groups]
    groups.sort(key=lambda pair: (-pair[1].letters, pair[1].oldest))
    found += [_dead(service, group) for service, group in groups]
    for service, trouble in _troubles(snapshot):
        found += [
            Alert(
                what=f"{each.count} {each.saga} {'is' if each.count == 1 else 'are'} stuck",
                why=f"sagas of {service} that need a person, such as {each.example}",
                href=f"/sagas/{quote(service, safe='')}/{quote(each.saga, safe='')}?status=stuck",
                level="bad",
            )
            for each in trouble.stuck
        ]
    told = {service for service, _ in groups}
    for lag in (answer.value for answer in snapshot.lags if answer.value is not None):
        here = f"#service-{lag.service}"
        if lag.dead and lag.service not in told:
            what = f"{lag.dead} dead letters in {lag.service}"
            href = f"/dead?service={quote(lag.service)}"
            found.append(Alert(what=what, why="their causes are not known", href=href, level="bad"))
        if lag.oldest is not None and snapshot.at - lag.oldest > OLD:
            what = f"{lag.service} is {span(snapshot.at - lag.oldest)} behind"
            why = f"its oldest unhandled event waits; {lag.parked} events are parked"
            found.append(Alert(what=what, why=why, href=here, level="warn"))
        if lag.outbox_oldest is not None and snapshot.at - lag.outbox_oldest > OLD:
            what = f"the outbox of {lag.service} does not move"
            why = f"{lag.outbox} events wait since {span(snapshot.at - lag.outbox_oldest)}"
            found.append(Alert(what=what, why=why, href=here, level="bad"))
    return sorted(found, key=lambda alert: alert.level != "bad")


def rows(snapshot: Snapshot, services: Iterable[str], rates: Rates) -> list[Row]:
    """Return the services in the order of oyez.toml."""
    lags = {answer.service: answer.value for answer in snapshot.lags}
    replicas: dict[str, list[Answer[Replica]]] = {}
    for answer in snapshot.replicas:
        replicas.setdefault(answer.service, []).append(answer)
    return [
        Row(
            service=name,
            replicas=sum(each.value is not None for each in replicas.get(name, ())),
            silent=tuple(str(each.gap) for each in replicas.get(name, ()) if each.gap is not None),
            reasons=tuple(
                reason
                for each in replicas.get(name, ())
                if each.value is not None
                for reason in (*each.value.reasons, *each.value.warnings)
            ),
            rate=rates.now(name),
            line=rates.handled(name),
            lag=lags.get(name),
        )
        for name in services
    ]


def topology(system: str, services: Iterable[str], replicas: Iterable[Replica]) -> Topology:
    """Return the topology that the replicas tell of."""
    published: dict[str, list[str]] = {}
    handled: dict[str, list[tuple[str, str]]] = {}
    for name, replica in sorted({each.service: each for each in replicas}.items()):
        for kind in replica.publishes:
            published.setdefault(kind, []).append(name)
        for handler, kinds in replica.handlers.items():
            for kind in kinds:
                if not kind.startswith("oyez."):
                    handled.setdefault(kind, []).append((name, handler))
    flows = tuple(
        Flow(
            type=kind,
            publishers=tuple(published.get(kind, ())),
            handlers=tuple(handled.get(kind, ())),
        )
        for kind in sorted({*published, *handled})
    )
    return Topology(system=system, services=tuple(services), flows=flows, gaps=())


def notes(snapshot: Snapshot, table: Iterable[Row]) -> Notes:
    """Return what the picture says beside each name: rates, lag, failures."""
    publishers: dict[str, Note] = {}
    services: dict[str, Note] = {}
    for row in table:
        if row.rate is not None:
            publishers[row.service] = Note(text=f"{row.rate.published:.1f}/s")
        parts = [] if row.rate is None else [f"{row.rate.handled:.1f}/s"]
        if row.lag is not None and row.lag.lag is not None:
            parts.append(f"lag {row.lag.lag}")
        elif row.lag is not None:
            parts.append("lag unknown")
        services[row.service] = Note(
            text=" · ".join(parts), trouble=bool(row.reasons or row.silent)
        )
    dead: dict[tuple[str, str], int] = {}
    partly = set()
    for service, trouble in _troubles(snapshot):
        if trouble.more:
            partly.add(service)
        for group in trouble.groups:
            place = (service, group.handler)
            dead[place] = dead.get(place, 0) + group.letters
    handlers = {
        place: Note(text=f"{count}{'+' * (place[0] in partly)} dead", trouble=True)
        for place, count in dead.items()
    }
    return Notes(publishers=publishers, services=services, handlers=handlers, link="#service-")


def _troubles(snapshot: Snapshot) -> Iterable[tuple[str, Trouble]]:
    return [(each.service, each.value) for each in snapshot.troubles if each.value is not None]


def _dead(service: str, group: Group) -> Alert:
    where = f"{service}.{group.handler}" if group.handler else service
    what = f"{group.letters} dead letters of {where}"
    href = f"/dead/{quote(service)}?{urlencode({'group': group.group})}"
    if group.letters == 1:
        what = f"1 dead letter of {where}"
        href = f"/dead/{quote(service)}/{group.example}"
    return Alert(what=what, why=brief(group.cause), href=href, level="bad")


def _part(shared: Desk, snapshot: Snapshot) -> Markup:
    table = rows(snapshot, shared.system.services, shared.live.rates)
    answered = [answer.value for answer in snapshot.replicas if answer.value is not None]
    drawn = topology(shared.system.name, shared.system.services, answered)
    picture = Markup(svg(drawn, notes(snapshot, table)))  # noqa: S704 - svg() escapes all names
    return shared.part(
        "overview-live.html",
        alerts=alerts(snapshot),
        rows=table,
        picture=picture if drawn.flows else None,
        at=snapshot.at,
    )


async def _overview(request: Request) -> Response:
    shared = desk(request)
    part = _part(shared, await shared.live.look())
    return shared.page(request, "overview.html", live=part)


async def _live(request: Request) -> Response:
    return live(request, _part)


OVERVIEW = Screen(
    title="Overview",
    path="/",
    key="o",
    routes=(Route("/", _overview), Route("/live/overview", _live)),
)
