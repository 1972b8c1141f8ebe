"""Flows: what an identity is, and the journey of one correlation id, put together from answers.

Each service tells what its own store has, and for each broker one service tells what its history
has. A part that nobody tells is a gap in the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import msgspec

from oyez.ambient import Ambient
from oyez.console.answers import Hear, TakePart
from oyez.console.live import EVERY
from oyez.console.system import Answer, System
from oyez.inspection.holder import Holder, holder
from oyez.inspection.journey import Collected, Journey, assemble
from oyez.inspection.letters import Letter
from oyez.inspection.reach import Gap
from oyez.inspection.reactions import Bridge, Node, Stand, awaited
from oyez.inspection.sagas import Instance, InstanceSeen
from oyez.inspection.witness import EVENTS, HERE, Heard, Part, Positions, cursors

T = TypeVar("T")

_PATIENCE = 4.0
"""Seconds after which no other process is asked for the history of a broker."""
_KEPT = 32
"""Flows that are remembered, so that the next look reads only what is new."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What an identity may be."""

    flows: tuple[tuple[str, float], ...]
    """Correlation ids with the time of the newest event that was found of each, newest first."""
    letters: tuple[Letter, ...]
    sagas: tuple[Instance, ...]
    gaps: tuple[Gap, ...]
    limits: tuple[str, ...]
    """What was not looked at, as sentences."""
    since: float | None
    """The time before which history was not looked at; None if all was."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A journey with what holds it up, at one time."""

    correlation: str
    at: float
    journey: Journey | None
    """None if nobody knows an event of it."""
    holder: Holder | None
    sagas: tuple[InstanceSeen, ...]
    gaps: tuple[Gap, ...]
    limits: tuple[str, ...]
    """As in `Found`, and so is ``since``."""
    since: float | None

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.holder is not None and self.holder.over


class Flows:
    """The flows of a system. Those who look at one flow at once are asked for once."""

    def __init__(self, system: System, ambient: Ambient) -> None:
        self._system = system
        self._ambient = ambient
        self._kept: dict[str, _Kept] = {}
        project = system.project
        self._sites = {
            name: project.site(project.broker_url(name)) for name in project.config.services
        }
        self._readers: dict[str, list[str]] = {}
        """The processes that have a broker open, by its site."""
        for name, site in self._sites.items():
            self._readers.setdefault(site, []).append(name)
        for name, bridge in project.config.bridges.items():
            self._readers.setdefault(project.site(bridge.source), []).append(name)

    async def find(self, identity: str) -> Found:
        """Return what is known of an order id, an event id or its end, a correlation id, a key, or
        the number of a dead letter."""
        known, told = await asyncio.gather(
            self._system.known(identity), self._heard(lambda _: Hear(identity=identity))
        )
        heard, gaps, blind = told
        stores = [answer.value for answer in known if answer.value is not None]
        newest: dict[str, float] = {}
        mentions = [
            *(each.correlations for each in stores),
            *(each.correlations for each in heard.values()),
        ]
        for each in mentions:
            for correlation, time in each.items():
                newest[correlation] = max(time, newest.get(correlation, time))
        return Found(
            flows=tuple(sorted(newest.items(), key=lambda each: -each[1])),
            letters=tuple(letter for each in stores for letter in each.letters),
            sagas=tuple(saga for each in stores for saga in each.sagas),
            gaps=(*_gaps(known), *gaps),
            limits=(*self._unread(heard, blind), *_cut(known, lambda value: value.cut)),
            since=_latest(each.since for each in heard.values()),
        )

    async def look(self, correlation: str) -> Flow:
        """Return a flow as it is now, not older than `EVERY`."""
        kept = self._kept.pop(correlation, None) or _Kept()
        self._kept[correlation] = kept
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        async with kept.turn:
            now = self._ambient.monotonic()
            if kept.flow is None or now - kept.looked >= EVERY:
                kept.flow = await self._look(correlation, kept)
                kept.looked = self._ambient.monotonic()
            return kept.flow

    async def _look(self, correlation: str, kept: _Kept) -> Flow:
        # In this order nothing is missed: a bridge's position, then the outboxes, then what was
        # published, and at last how far its readers are.
        bridges, unbridged = await self._bridges()
        recalled = await self._system.recalled(correlation)
        heard, unheard, blind = await self._heard(
            lambda site: Hear(correlation=correlation, after=kept.ends.get(site, ())),
            [answer.service for answer in recalled if answer.gap is not None],
        )
        kept.add(heard)
        collected = Collected([correlation], EVENTS)
        for answer in recalled:
            for node in () if answer.value is None else answer.value.events:
                collected.take(_at(node, self._sites[answer.service]))
        for site, nodes in kept.events.items():
            for node in nodes.values():
                collected.take(_at(node, site))
        nodes = collected.nodes
        there = [answer.service for answer in recalled if answer.gap is None and nodes]
        parts = await asyncio.gather(
            *(self._part(name, self._sites[name], nodes, bridges) for name in there)
        )
        sagas: list[InstanceSeen] = []
        for part in parts:
            if part.value is None:
                continue
            for identity, source, reactions in part.value.reactions:
                if (identity, source) in nodes:
                    nodes[identity, source].reactions += reactions
            sagas += [
                saga
                for saga in part.value.sagas
                if saga.instance.correlationid in (correlation, None)
            ]
        journey = assemble(self._system.project, correlation, nodes)
        found = [*_gaps(recalled), *_gaps(parts)]
        silent = [*dict.fromkeys(gap.name for gap in found), *(f"broker {g.name}" for g in unheard)]
        now = self._ambient.now()
        limits = self._unread(heard, blind)
        if collected.cut or kept.cut:
            limits.append(f"Only {EVENTS} events of it are shown.")
        return Flow(
            correlation=correlation,
            at=now,
            journey=journey,
            holder=None if journey is None else holder(journey, sagas, now, silent, blind),
            sagas=tuple(sagas),
            gaps=tuple(dict.fromkeys((*found, *unbridged, *unheard))),
            limits=(*limits, *_cut(recalled, lambda value: value.cut)),
            since=_latest(kept.since.values()),
        )

    async def _bridges(self) -> tuple[list[Bridge], list[Gap]]:
        project = self._system.project
        settings = list(project.config.bridges.values())
        answers = await self._system.positions(each.name for each in settings)
        found = [
            Bridge(
                each, project.site(each.source), project.site(each.target), cursors(answer.value)
            )
            for each, answer in zip(settings, answers, strict=True)
            if answer.value is not None
        ]
        return found, _gaps(answers)

    async def _heard(
        self, ask: Callable[[str], Hear], silent: Collection[str] = ()
    ) -> tuple[dict[str, Heard], list[Gap], list[str]]:
        """Return what each broker's history has, by site; the gaps; and the brokers without one."""
        sites = list(self._readers)
        answers = await asyncio.gather(*(self._first(site, ask(site), silent) for site in sites))
        heard: dict[str, Heard] = {}
        gaps: list[Gap] = []
        blind: list[str] = []
        for site, answer in zip(sites, answers, strict=True):
            name = self._system.project.brokers[site].name
            if answer.value is None:
                reason = (
                    "no process that reads it answers" if answer.gap is None else str(answer.gap)
                )
                effect = f"the history of broker {name} is left out"
                gaps.append(
                    Gap(part="broker", name=name, cause="unreachable", effect=effect, reason=reason)
                )
            elif not answer.value.keeps:
                blind.append(name)
            else:
                heard[site] = answer.value
        return heard, gaps, blind

    async def _first(self, site: str, asked: Hear, silent: Collection[str]) -> Answer[Heard]:
        """Ask one process after the other, those last that were silent just now."""
        answer: Answer[Heard] = Answer(service="", at="")
        end = self._ambient.monotonic() + _PATIENCE
        for name in sorted(self._readers[site], key=lambda name: name in silent):
            answer = await self._system.heard(name, asked)
            if answer.value is not None or self._ambient.monotonic() > end:
                break
        return answer

    def _unread(self, heard: Mapping[str, Heard], blind: Iterable[str]) -> list[str]:
        """Return what the histories leave out."""
        names = {site: known.name for site, known in self._system.project.brokers.items()}
        return [
            *(
                f"Broker {name} keeps no history: of its events, only those are known that wait or "
                "failed."
                for name in blind
            ),
            *(
                f"{each.unread} streams of broker {names[site]} were not looked at."
                for site, each in heard.items()
                if each.unread
            ),
        ]

    async def _part(
        self,
        service: str,
        site: str,
        nodes: Mapping[tuple[str, str], Node],
        bridges: list[Bridge],
    ) -> Answer[Part]:
        events: list[Node] = []
        waits: dict[str, str] = {}
        for node in nodes.values():
            place = node.places.get(site)
            events.append(_with(node, {} if place is None else {HERE: place}))
            bridge = awaited(site, bridges, node) if place is None else None
            if bridge is not None:
                waits[node.id] = bridge
        return await self._system.part(service, TakePart(events=tuple(events), awaited=waits))


class _Kept:
    """What earlier looks at a flow have seen."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.flow: Flow | None = None
        self.looked = 0.0
        self.events: dict[str, dict[tuple[str, str], Node]] = {}
        """The published events, by site."""
        self.ends: dict[str, Positions] = {}
        self.since: dict[str, float] = {}
        self.cut = False

    def add(self, heard: Mapping[str, Heard]) -> None:
        """Add what a look has heard."""
        for site, each in heard.items():
            there = self.events.setdefault(site, {})
            for node in each.events:
                if len(there) < EVENTS:
                    there.setdefault((node.id, node.source), node)
            self.ends[site] = each.ends
            self.cut = self.cut or each.cut
            if each.since is not None:
                self.since[site] = max(each.since, self.since.get(site, each.since))


def _at(node: Node, site: str) -> Node:
    """Return a copy of an event whose place is on this site."""
    return _with(node, {site: node.places[HERE]} if HERE in node.places else {})


def _with(node: Node, places: dict[str, Stand]) -> Node:
    return msgspec.structs.replace(node, places=places, reactions=[], children=[])


def _gaps(answers: Iterable[Answer[T]]) -> list[Gap]:
    return [answer.gap for answer in answers if answer.gap is not None]


def _cut(answers: Iterable[Answer[T]], cut: Callable[[T], bool]) -> list[str]:
    return [
        f"Of {answer.service}, only {EVENTS} waiting and {EVENTS} failed events were searched."
        for answer in answers
        if answer.value is not None and cut(answer.value)
    ]


def _latest(times: Iterable[float | None]) -> float | None:
    return max((time for time in times if time is not None), default=None)
