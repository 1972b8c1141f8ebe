"""Tests of sagas as a table: given this, when that happens, then these are asked.

::

    given(Fulfilment).when(OrderPlaced(...), StockRejected(...)).then(asks=[Reserve], ends="...")
    given(Fulfilment, done=["reserve"], asked=["charge"]).after(900).then(asks=[Refund])

Nothing runs but the saga: no process, no store. Steps may be named, or be those of the class
(``Fulfilment.reserve``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from oyez.contract import decode, encode
from oyez.envelope import Envelope
from oyez.event import describe
from oyez.handler import published_types
from oyez.inspection.sagas import Happened, History
from oyez.saga import (
    Asked,
    CommandDied,
    Outputs,
    Saga,
    SagaType,
    Stage,
    Status,
    Step,
    Undelivered,
    correlation,
    saga_kind,
)
from oyez.saga_transition import STEP, transition
from oyez.timers import Timer

BEGIN = 1_000_000.0
"""When a table begins, in seconds since 1970."""


def given(
    cls: type[Saga],
    *,
    key: str | None = None,
    done: Sequence[Step | str] = (),
    asked: Sequence[Step | str] = (),
    **fields: Any,
) -> Instance:
    """Return an instance to test: a new one, or one that has come as far as stated.

    ``done`` and ``asked`` are the steps that are done, and that wait for their answers since now;
    with either it has started. ``key`` is by default that of the first event, or ``"1"``.
    """
    return Instance(saga_kind(cls), key, [_name(each) for each in done], map(_name, asked), fields)


def assert_replays(cls: type[Saga], file: Path) -> None:
    """Check that the saga still does what it did: a file that ``oyez saga export KEY`` wrote.

    So a change of the class can be tested against instances that were in flight before it.
    """
    past = msgspec.json.decode(file.read_bytes(), type=History)
    instance = Instance(saga_kind(cls), past.key, [], [], {})
    for number, each in enumerate(past.events, 1):
        found = instance.replay(each)
        if found != each.effects:
            raise AssertionError(
                f"{past.saga} {past.key} does something else at event {number}, {each.type}:\n"
                f"  then: {'; '.join(each.effects) or 'nothing'}\n"
                f"  now:  {'; '.join(found) or 'nothing'}"
            )


class Instance:
    """An instance of a saga under test, with what it did; made by `given`."""

    def __init__(
        self, kind: SagaType, key: str | None, done: Sequence[str], asked: Any, fields: Any
    ) -> None:
        self.now = BEGIN
        self.timers: dict[str, float] = {}
        """The timers that are set, with their times."""
        self._kind = kind
        self._key_of = correlation(kind).key_of
        self._key = key
        self._fields = fields
        self._saga: Saga | None = None
        self._happened: list[str] = []
        self._effects: list[str] = []
        """Those of the last event."""
        self._asks: list[object] = []
        self._says: list[object] = []
        self._dead: list[Undelivered] = []
        self._commands: dict[str, str] = {}
        """The types of the commands that it asked, by their ids."""
        waiting = set(asked)
        unknown = (waiting | {*done}) - kind.steps.keys()
        if unknown:
            raise AssertionError(
                f"{kind.name} has no step {', '.join(sorted(unknown))}; it has: "
                f"{', '.join(kind.steps)}"
            )
        if waiting or done or fields:
            progress = self.saga.progress
            progress.phase = Status.RUNNING
            progress.started = self.now
            for name, step in kind.steps.items():
                if name in done:
                    progress.steps[name] = Asked(Stage.DONE, self.now, 1)
                if name in waiting:
                    timer = progress.named(STEP + name)
                    due = self.timers[timer] = self.now + step.within
                    progress.steps[name] = Asked(Stage.ASKED, self.now, 1, due, timer, name)
                    for each in published_types(get_type_hints(step.function).get("return")):
                        self._commands[name] = each.name

    @property
    def saga(self) -> Any:
        """The instance itself, an object of the saga's class."""
        if self._saga is None:
            self._key = self._key or "1"
            self._saga = self._kind.new(self._key, **self._fields)
        return self._saga

    def when(self, *events: object) -> Instance:
        """Let these events arrive, in this order."""
        for event in events:
            key = self._key_of(event, describe(type(event)).key(event))
            if self._key is None:
                self._key = key
            if key != self._key:
                raise AssertionError(
                    f"{type(event).__name__} is of {key}, and this {self._kind.name} of {self._key}"
                )
            self._apply(event, type(event).__name__)
        return self

    def after(self, seconds: float) -> Instance:
        """Let this time pass, with the timers that fire meanwhile."""
        end = self.now + seconds
        while True:
            due = sorted((due, name) for name, due in self.timers.items() if due <= end)
            if not due:
                break
            self.now, name = due[0]
            del self.timers[name]
            event = Timer(kind=self._kind.name, key=self.saga.key, name=name, due=self.now)
            self._apply(event, f"timer {name}")
        self.now = end
        return self

    def died(self, command: type, reason: str = "died") -> Instance:
        """Let the last command of this class become a dead letter of the service it asks."""
        ids = [asked.command for asked in self.saga.progress.steps.values() if asked.command]
        kind = describe(command).name
        found = [each for each in ids if self._commands.get(each) == kind]
        if not found:
            raise AssertionError(f"{self._kind.name} waits for no {command.__name__}")
        self._died(found[-1], kind, reason)
        return self

    def _died(self, command_id: str, kind: str, reason: str) -> None:
        event = CommandDied(command_id=command_id, type=kind, key=self.saga.key, reason=reason)
        self._apply(event, f"death of {kind}")

    def then(
        self,
        *,
        asks: Sequence[object] | None = None,
        says: Sequence[object] | None = None,
        status: str | None = None,
        ends: str | None = None,
        stuck: str | None = None,
        dead: Sequence[str] | None = None,
        **fields: object,
    ) -> Instance:
        """Check what it did since `given` or the last `then`, and where it stands now.

        ``asks`` are what its steps and undos asked and ``says`` what it published besides, as
        classes or whole events; ``ends`` is the end it reached; ``stuck`` is part of the reason why
        it is stuck; ``dead`` are the types of the events that became dead letters; ``fields`` are
        the saga's own.
        """
        progress = self.saga.progress
        self._check("asked", self._asks, asks)
        self._check("said", self._says, says)
        if status is not None and progress.status != status:
            self._fail(f"is {progress.status.value or 'not there'}, not {status}")
        if ends is not None and progress.end != ends:
            self._fail(f"ended as {progress.end or 'nothing yet'}, not {ends}")
        if stuck is not None and stuck not in progress.stuck:
            self._fail(f"is stuck for {progress.stuck or 'nothing'!r}, not {stuck!r}")
        if dead is not None:
            found = [each.early.headers["type"] for each in self._dead]
            if found != list(dead):
                self._fail(f"gave up {found}, not {list(dead)}")
        for name, value in fields.items():
            if getattr(self.saga, name) != value:
                self._fail(f"has {name}={getattr(self.saga, name)!r}, not {value!r}")
        self._asks, self._says, self._dead = [], [], []
        return self

    def replay(self, past: Happened) -> list[str]:
        """Let an event of the past happen again; return what it leads to now."""
        own = [describe(Timer), describe(CommandDied)]
        kinds = {**self._kind.events, **{kind.name: kind for kind in own}}
        if past.type not in kinds:
            raise AssertionError(f"{self._kind.name} does not listen to {past.type} any more")
        event = decode(kinds[past.type], bytes(past.data))
        self.now = past.at
        if isinstance(event, CommandDied):
            same = [each for each, kind in self._commands.items() if kind == event.type]
            self._died(same[-1] if same else "", event.type, event.reason)
        else:
            self._apply(event, type(event).__name__)
        return self._effects

    def _apply(self, event: object, what: str) -> None:
        kind = describe(type(event))
        envelope = Envelope(
            id=f"e{len(self._happened) + 1}",
            source="/test/outside",
            type=kind.name,
            data=encode(kind, event),
            subject=self.saga.key,
        )
        outputs = transition(self._kind, self.saga, event, self.now, envelope)
        self._take(outputs, what)

    def _take(self, outputs: Outputs, what: str) -> None:
        if outputs.disarm:
            self.timers.clear()
        for name, due in outputs.timers.items():
            if due is None:
                self.timers.pop(name, None)
            else:
                self.timers[name] = due
        for each in outputs.events:
            if each.step:
                self._asks.append(each.event)
                asked = self.saga.progress.steps[each.step]
                asked.command = f"{each.step}-{asked.stage.value}-{asked.tries}"
                self._commands[asked.command] = describe(type(each.event)).name
            else:
                self._says.append(each.event)
        self._dead.extend(outputs.dead)
        self._effects = [effect for entry in outputs.log for effect in entry.effects]
        self._happened.append(f"  {what}: {'; '.join(self._effects) or 'nothing'}")

    def _check(self, verb: str, found: list[object], expected: Sequence[object] | None) -> None:
        if expected is None:
            return
        same = len(found) == len(expected) and all(
            type(one) is other if isinstance(other, type) else one == other
            for one, other in zip(found, expected, strict=True)
        )
        if not same:
            self._fail(f"{verb} {_names(found, expected)}, not {_names(expected, expected)}")

    def _fail(self, problem: str) -> None:
        history = "\n".join(self._happened) or "  nothing"
        raise AssertionError(
            f"{self._kind.name} {self.saga.key} {problem}; what happened:\n{history}"
        )


def _name(step: Step | str) -> str:
    return step if isinstance(step, str) else step.name


def _names(found: Sequence[object], expected: Sequence[object]) -> str:
    """Return events by their classes, or whole where whole ones are expected."""
    if any(not isinstance(each, type) for each in expected):
        return repr(list(found))
    names = [each.__name__ if isinstance(each, type) else type(each).__name__ for each in found]
    return f"[{', '.join(names)}]"
