"""Sagas: what spans several services and may have to be undone, as one class.

::

    class Fulfilment(Saga, key="order_id", ends=("shipped", "cancelled")):
        order_id: str = ""
        cents: int = 0

        @starts
        def placed(self, event: OrderPlaced) -> None:
            self.take(event)

        @step(done=StockReserved, failed=StockRejected, within=60)
        def reserve(self) -> Reserve:
            return self.make(Reserve)

        @reserve.undo(done=StockReleased, within=60)
        def release(self) -> Release:
            return self.make(Release)

        @step(done=PaymentProcessed, failed=PaymentFailed, within=900, pivot=True)
        def charge(self) -> Charge:
            return self.make(Charge)

        @end("shipped")
        def shipped(self) -> OrderShipped: ...

        @end("cancelled")
        def cancelled(self, why: Failed) -> OrderCancelled: ...

Steps are asked in the order of their declaration, unless ``after`` names others. When one fails,
or does not answer in time, every step that was asked and did not answer that it failed is undone,
in reverse order. Where an instance stands is stored in its row and never computed again from its
history, so a new version of the class does not disturb what has begun.

The rules are in `oyez.saga_transition`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, get_args, get_type_hints

import msgspec

from oyez.errors import DeclarationError, InvalidEvent, StateMismatch
from oyez.event import Event, EventType, describe, is_event
from oyez.ports import Kept
from oyez.state import By, Correlation, State, StateMeta, StateType, correlate, kind_of, redefine
from oyez.timers import Timer

LONGEST = 366 * 86_400.0
"""The longest ``within``, ``wait`` and timer, in seconds."""

_TIMER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")

T = TypeVar("T")
Function = Callable[..., Any]
Classes = type | tuple[type, ...]


class CommandDied(Event, type="oyez.command.died", key="key"):
    """What the service that sent a command gets when the command became a dead letter."""

    command_id: str
    type: str
    key: str
    reason: str


class Failed(msgspec.Struct, frozen=True):
    """Why a saga is undone: the step that failed, empty where it was asked to end, and a reason."""

    step: str
    reason: str


class Status(StrEnum):
    """Where an instance of a saga stands."""

    NEW = ""
    """Not stored: no event of it has come."""
    WAITING = "waiting"
    """Events of it have come, but none that starts it."""
    RUNNING = "running"
    UNDOING = "undoing"
    ENDED = "ended"
    STUCK = "stuck"
    """It needs a person: ``oyez saga show``, then ``retry``, ``abort`` or ``resolve``."""


class Stage(StrEnum):
    """Where a step of an instance stands."""

    ASKED = "asked"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Asked, and given up without an answer."""
    UNDOING = "undoing"
    UNDONE = "undone"


class Asked(msgspec.Struct):
    """A step of an instance, from when it was asked. Times are in seconds since 1970."""

    stage: Stage
    at: float
    """When it, or what undoes it, was asked first."""
    tries: int = 0
    """How often it, or what undoes it, was asked."""
    due: float = 0.0
    """When it is taken for unanswered."""
    timer: str = ""
    """The timer that fires then."""
    command: str = ""
    """The id of the event that asked it last."""


class Early(msgspec.Struct):
    """An event that came before the one that starts its saga."""

    headers: dict[str, str]
    data: bytes
    at: float


class Progress(msgspec.Struct):
    """Where an instance stands; stored with its fields. Times are in seconds since 1970."""

    phase: Status = Status.NEW
    """Its status, apart from being stuck."""
    started: float | None = None
    ended: float | None = None
    end: str = ""
    """The name of the end that it reached."""
    wanted: str = ""
    """The name of the end that it was told to reach."""
    failure: Failed | None = None
    steps: dict[str, Asked] = {}
    """The steps that were asked, in this order."""
    timers: dict[str, str] = {}
    """The saga's own timers that are set, each with its name of now; see `named`."""
    early: list[Early] = []
    stuck: str = ""
    """Why it is stuck, if it is."""
    stuck_on: str = ""
    """The step that it is stuck on."""
    correlationid: str | None = None
    traceparent: str | None = None
    """The span that announced what it began with."""
    transitions: int = 0

    @property
    def status(self) -> Status:
        """Where it stands."""
        return Status.STUCK if self.stuck else self.phase

    @property
    def waits_for(self) -> str:
        """The steps whose answer, or whose undoing's answer, it waits for, with commas."""
        open_ = (Stage.ASKED, Stage.UNDOING)
        return ", ".join(name for name, asked in self.steps.items() if asked.stage in open_)

    def named(self, timer: str) -> str:
        """Return a timer's name with the number of this transition.

        So one that fired before it was set anew is told from the new one, whatever the clock.
        """
        return f"{timer}#{self.transitions}"


class Output(msgspec.Struct, frozen=True):
    """An event that a transition publishes."""

    event: object
    step: str = ""
    """The step that it asks or undoes, if it does."""
    expires: float | None = None
    """When a command is no longer to be done, in seconds since 1970."""


class Entry(msgspec.Struct, frozen=True):
    """One transition of an instance, for its log."""

    number: int
    at: float
    event_id: str
    type: str
    step: str
    """The step that the event belongs to, if it does."""
    effects: list[str]


class Undelivered(msgspec.Struct, frozen=True):
    """An event that becomes a dead letter."""

    early: Early
    reason: str


class Outputs(msgspec.Struct):
    """All effects of a transition apart from the instance itself."""

    events: list[Output] = []
    timers: dict[str, float | None] = {}
    """The timers to set, by name with their times; None disarms one."""
    disarm: bool = False
    """Whether every timer of the instance is disarmed."""
    log: list[Entry] = []
    dead: list[Undelivered] = []


class Step:
    """A step as it is declared; see `step`."""

    name: str = ""

    def __init__(
        self,
        function: Function,
        done: Classes | None,
        failed: Classes,
        within: float | None,
        after: Iterable[Step | str] | None,
        pivot: bool,
        changes: bool = True,
    ) -> None:
        self.function = function
        self.changes = changes
        """Whether what it asks changes anything that could have to be undone."""
        self.done = _classes(done)
        self.failed = _classes(failed)
        self.within = within or 0.0
        self.after = after
        self.pivot = pivot
        self.behind: tuple[str, ...] = ()
        """The names of the steps that have to be done before."""
        self.undone_by: Undo | None = None

    def undo(
        self, *, done: Classes | None = None, within: float | None = None
    ) -> Callable[[Function], Undo]:
        """Declare how this step is undone: the method returns the event that asks for it, or None.

        ``done`` are the answers. It is asked again when there is none ``within`` seconds. It may
        come for a step that was never done, since its command or its answer was lost, and has to
        be answered then, too.
        """

        def declare(function: Function) -> Undo:
            self.undone_by = Undo(function, _classes(done), within or 0.0)
            return self.undone_by

        return declare


class Undo:
    """What undoes a step, as it is declared; see `Step.undo`."""

    name: str = ""

    def __init__(self, function: Function, done: tuple[type, ...], within: float) -> None:
        self.function = function
        self.done = done
        self.within = within


class Reaction(msgspec.Struct, frozen=True):
    """A method that is called for an event, a timer or an end, as it is declared."""

    role: str
    function: Function
    classes: tuple[type, ...] = ()
    name: str = ""
    """That of the timer or end."""


def starts(function: Function) -> Reaction:
    """Declare the method that starts an instance, by the event that its parameter is annotated."""
    return Reaction("starts", function)


def on(*events: type) -> Callable[[Function], Reaction]:
    """Declare a method for events of these classes, while the saga runs.

    It may change fields, and return events. An answer to a step is passed to it before the step is
    taken for answered; the answer to an undo, while the saga is undone.
    """
    return lambda function: Reaction("on", function, events)


def timer(name: str) -> Callable[[Function], Reaction]:
    """Declare a method for the timer that `Saga.after` sets; it may return events."""
    return lambda function: Reaction("timer", function, name=name)


def end(name: str) -> Callable[[Function], Reaction]:
    """Declare a method for an end of the saga, which returns the events that tell of it, or None.

    One with a parameter, a `Failed`, is for the end after all was undone; one without, for the end
    after all steps are done.
    """
    return lambda function: Reaction("end", function, name=name)


def step(
    *,
    done: Classes | None = None,
    failed: Classes = (),
    within: float | None = None,
    after: Iterable[Step | str] | None = None,
    pivot: bool = False,
    changes: bool = True,
) -> Callable[[Function], Step]:
    """Declare a step: the method returns the command that asks it, or None where nobody is asked.

    ``done`` and ``failed`` are the classes of its answers. Without one ``within`` seconds, the
    saga is undone. ``after`` are the steps that have to be done before, by default the one
    declared before. A ``pivot`` can't be undone: unanswered it is asked again, and once it is done,
    so are the others. One that ``changes`` nothing, a question, needs no undo and can have none.
    """
    return lambda function: Step(function, done, failed, within, after, pivot, changes)


class Answer(msgspec.Struct, frozen=True):
    """What an event says of a step."""

    step: Step
    stage: Stage


class SagaType(StateType, frozen=True):
    """The description of a `Saga` class; a `Keyed`."""

    starters: Mapping[str, Function]
    """By the type of the event, as are the next two."""
    reactions: Mapping[str, Function]
    answers: Mapping[str, Answer]
    steps: Mapping[str, Step]
    timers: Mapping[str, Function]
    ends: Mapping[str, Function | None]
    """By name, in order; None for an end without a method."""
    complete: str
    """The end after all steps are done; empty without steps."""
    undone: str
    """The end after all was undone; empty where there is none."""
    explained: frozenset[str]
    """The ends whose methods take a `Failed`."""
    events: Mapping[str, EventType]
    """Every event that it listens to, by type."""
    publishes: tuple[EventType, ...]
    by: By | None
    wait: float
    restart: bool

    def undoes(self, end: str) -> bool:
        """Return whether this end is reached by undoing what was done."""
        return end in self.explained or end == self.undone

    def new(self, key: str, **fields: Any) -> Any:
        """Return an instance of a key that has none yet, with these fields."""
        value = StateType.new(self, key, **fields)
        value.__dict__["progress"] = Progress()
        return value

    def open(self, row: Kept) -> Any:
        """See `Keyed.open`."""
        if row.data is None:
            return self.new(row.key)
        try:
            stored = _decode(row.data)
        except msgspec.MsgspecError as error:
            raise StateMismatch(f"{self.name} {row.key} can't be read: {error}") from error
        value = StateType.open(self, msgspec.structs.replace(row, data=bytes(stored.fields)))
        value.__dict__["progress"] = stored.progress
        return value

    def close(self, value: Any, row: Kept) -> Kept | None:
        """See `Keyed.close`."""
        bare = Kept(kind=row.kind, key=row.key, version=row.version)
        closed = StateType.close(self, value, bare)
        if closed is None or closed.data is None:  # deleted
            return closed
        progress: Progress = value.progress
        if progress.phase is Status.NEW:
            return None
        closed.data = _encode(_Stored(progress, msgspec.Raw(closed.data)))
        if closed.data == row.data and row.shape == self.version:
            return None
        closed.status = progress.status.value
        closed.step = progress.waits_for
        closed.started = progress.started
        closed.ended = progress.ended
        closed.correlationid = progress.correlationid
        return closed


class _Stored(msgspec.Struct, array_like=True):
    progress: Progress
    fields: msgspec.Raw


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


class SagaMeta(StateMeta):
    """The metaclass that collects what a saga declares, and checks it."""

    def __new__(  # noqa: D102
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        ends: tuple[str, ...] | None = None,
        by: By | None = None,
        wait: float = 86_400.0,
        restart: bool = False,
        **options: Any,
    ) -> Any:
        cls = super().__new__(mcls, cls_name, bases, namespace, **options)
        if any(isinstance(base, SagaMeta) for base in bases):
            own = {name: value for name, value in namespace.items() if not name.startswith("__")}
            kind = _Declaration(cls, own).kind(ends, by, wait, restart)
            redefine(cls, kind)
            correlation(kind)
        return cls


class Turn(msgspec.Struct):
    """The transition that an instance is in, as its methods use it."""

    now: float
    kind: SagaType
    outputs: Outputs


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Saga(State, metaclass=SagaMeta):
    """The base class of sagas.

    ``key``, ``version`` and ``name`` are those of `State`; ``by``, a field's name or a function of
    the event, finds the key where ``key`` does not. ``ends`` are the names of its ends: the first
    one is that of a saga whose steps are done, and the one whose method takes a `Failed`, else the
    last, that of one that was undone. Events that come before one that starts an instance wait for
    that ``wait`` seconds. An instance that has ended starts anew only with ``restart``.
    """

    if TYPE_CHECKING:

        @property
        def progress(self) -> Progress:
            """Where it stands."""
            ...

        def __init_subclass__(
            cls,
            *,
            key: str | None = None,
            version: int = 1,
            name: str | None = None,
            ends: tuple[str, ...] | None = None,
            by: By | None = None,
            wait: float = 86_400.0,
            restart: bool = False,
        ) -> None: ...

    def take(self, event: object) -> None:
        """Set the fields that the event has, too. Raises DeclarationError if there are none."""
        own = type(self).__struct_fields__
        shared = [name for name in describe(type(event)).fields if name in own]
        if not shared:
            raise DeclarationError(
                f"{_place(type(self))}: take({type(event).__qualname__}): it has no field that the "
                "saga has, too"
            )
        for name in shared:
            setattr(self, name, getattr(event, name))

    def make(self, cls: type[T], **values: Any) -> T:
        """Return an event of this class, of the saga's fields of the same names and ``values``.

        Raises InvalidEvent naming a field that is missing.
        """
        own = type(self).__struct_fields__
        kind = describe(cls)
        found = {name: getattr(self, name) for name in kind.fields if name in own}
        if kind.key_field is not None:
            found.setdefault(kind.key_field, self.key)
        found.update(values)
        try:
            return cls(**found)
        except TypeError as error:
            lacking = [name for name in kind.fields if name not in found]
            raise InvalidEvent(
                f"$.{lacking[0]}" if lacking else "$",
                f"{_place(type(self))} can't make {cls.__qualname__} ({error}): add the field to "
                f"the saga, or pass it: make({cls.__qualname__}, …)",
            ) from error

    def after(self, name: str, seconds: float) -> None:
        """Set the timer ``name``, in place of an earlier one of this name."""
        turn = self._turn("after")
        if name not in turn.kind.timers:
            raise DeclarationError(
                f"{_place(type(self))}: after({name!r}): add a method with @timer({name!r})"
            )
        if not 0 <= seconds <= LONGEST:
            raise DeclarationError(
                f"{_place(type(self))}: after({name!r}): expected 0 to {LONGEST:.0f} seconds, "
                f"found {seconds}"
            )
        self.cancel(name)
        full = self.progress.timers[name] = self.progress.named(name)
        turn.outputs.timers[full] = turn.now + seconds

    def cancel(self, name: str) -> None:
        """Cancel the timer ``name``, if it is set."""
        turn = self._turn("cancel")
        full = self.progress.timers.pop(name, None)
        if full is not None:
            turn.outputs.timers[full] = None

    def ending(self, name: str, reason: str = "") -> None:
        """End the saga here, when this method has returned.

        Steps without an answer are left as they are; or, if the end is that of a saga that was
        undone, they and all that is done are undone first, for this ``reason``.
        """
        turn = self._turn("ending")
        if name not in turn.kind.ends:
            raise DeclarationError(
                f"{_place(type(self))}: ending({name!r}): its ends are "
                f"{', '.join(turn.kind.ends)}: add it to ends=(…)"
            )
        self.progress.wanted = name
        if turn.kind.undoes(name):
            self.progress.failure = Failed("", reason)

    def _turn(self, method: str) -> Turn:
        turn: Turn | None = vars(self).get("turn")
        if turn is None:
            raise DeclarationError(
                f"{_place(type(self))}: {method}() can be called in a method that the saga runs"
            )
        return turn


def saga_kind(cls: type) -> SagaType:
    """Return the `SagaType` of a class. Raises DeclarationError for any other class."""
    kind = kind_of(cls) if isinstance(cls, SagaMeta) else None
    if not isinstance(kind, SagaType):
        raise DeclarationError(f"{_place(cls)} is not a saga: subclass oyez.Saga")
    return kind


def read_progress(data: bytes) -> Progress:
    """Return where the instance of a row stands, without its class. Raises StateMismatch."""
    try:
        return _decode(data).progress
    except msgspec.MsgspecError as error:
        raise StateMismatch(f"the row of a saga can't be read: {error}") from error


def read_fields(data: bytes) -> Any:
    """Return the fields of an instance's row as plain values. Raises StateMismatch."""
    try:
        return msgspec.msgpack.decode(_decode(data).fields)
    except (msgspec.MsgspecError, TypeError) as error:
        raise StateMismatch(f"the row of a saga can't be read: {error}") from error


def correlation(kind: SagaType) -> Correlation:
    """Return how events find their instance. Raises DeclarationError where one can't."""

    def error(problem: str) -> DeclarationError:
        return DeclarationError(f"{_place(kind.cls)}: {problem}")

    by = kind.by if kind.by is not None else kind.key_field
    known = correlate(kind, by, [each.cls for each in kind.events.values()], error)

    def key_of(event: Any, key: str | None) -> str:
        if isinstance(event, Timer | CommandDied):
            return event.key
        return known.key_of(event, key)

    return Correlation(kind, key_of, by)


class _Declaration:
    """The body of a saga's class, on its way to a `SagaType`."""

    def __init__(self, cls: type, namespace: Mapping[str, object]) -> None:
        self._cls = cls
        self._steps: dict[str, Step] = {}
        self._reactions: list[tuple[str, Reaction]] = []
        for name, value in namespace.items():
            if isinstance(value, Step | Undo):
                value.name = name
            if isinstance(value, Step):
                self._steps[name] = value
            if isinstance(value, Reaction):
                self._reactions.append((name, value))
        self._events: dict[str, EventType] = {}
        self._publishes: dict[str, EventType] = {}

    def kind(
        self, ends: tuple[str, ...] | None, by: By | None, wait: float, restart: bool
    ) -> SagaType:
        """Return the description. Raises DeclarationError."""
        cls = self._cls
        if cls.__bases__ != (Saga,):
            raise self._error("", "a saga is no base of another: subclass oyez.Saga itself, alone")
        state = kind_of(cls)
        for field in state.cls.__struct_fields__:
            if field in _OWN:
                raise self._error("", f"field {field}: Oyez uses this name itself")
        if not 0 < wait <= LONGEST:
            raise self._error("", f"wait={wait}: expected seconds, up to {LONGEST:.0f}")
        starters = self._starters()
        answers = self._answers()
        reactions = self._for_events(starters)
        timers = {each.name: each.function for name, each in self._timers()}
        self._order()
        methods = self._ends(ends)
        names = tuple(methods) if ends is None else ends
        explained = frozenset(name for name, function in methods.items() if _arity(function) > 1)
        complete, undone = self._outcomes(names, explained)
        described = {name: getattr(state, name) for name in StateType.__struct_fields__}
        return SagaType(
            **described,
            starters=starters,
            reactions=reactions,
            answers=answers,
            steps=self._steps,
            timers=timers,
            ends={name: methods.get(name) for name in names},
            complete=complete,
            undone=undone,
            explained=explained,
            events=self._events,
            publishes=tuple(self._publishes.values()),
            by=by,
            wait=wait,
            restart=restart,
        )

    def _starters(self) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for name, each in self._of("starts"):
            parameters = list(inspect.signature(each.function).parameters)
            classes: tuple[type, ...] = ()
            if len(parameters) == 2:
                classes = _members(self._hints(name, each.function).get(parameters[1]))
            if not classes:
                raise self._error(
                    name, "annotate its one parameter with the class of the event that starts it"
                )
            for kind in self._listen(name, classes):
                if kind.name in found:
                    raise self._error(name, f"{kind.name} starts it already: remove one of them")
                found[kind.name] = each.function
        if not found:
            raise self._error(
                "", "nothing starts it: add a method with @starts and the event that does"
            )
        return found

    def _for_events(self, starters: Mapping[str, Function]) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for name, each in self._of("on"):
            for kind in self._listen(name, each.classes):
                if kind.name in starters or kind.name in found:
                    raise self._error(name, f"{kind.name} has a method already: join the two")
                found[kind.name] = each.function
        return found

    def _timers(self) -> list[tuple[str, Reaction]]:
        found = self._of("timer")
        names = [each.name for _, each in found]
        for name, each in found:
            if not _TIMER.fullmatch(each.name):
                raise self._error(
                    name,
                    f"@timer({each.name!r}): expected a letter, then up to 99 letters, digits, "
                    "'_', '.' or '-'",
                )
            if names.count(each.name) > 1:
                raise self._error(name, f"@timer({each.name!r}) is there twice: rename one")
        return found

    def _answers(self) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        for name, each in self._steps.items():
            self._check_asked(name, each.function, each.done, each.within)
            undo = each.undone_by
            if undo is not None:
                if each.pivot:
                    raise self._error(
                        name, "a pivot can't be undone: remove pivot=True, or its undo"
                    )
                if not each.changes:
                    raise self._error(
                        name, "what changes nothing has no undo: remove changes=False, or its undo"
                    )
                self._check_asked(undo.name, undo.function, undo.done, undo.within)
            for stage, classes in (
                (Stage.DONE, each.done),
                (Stage.FAILED, each.failed),
                (Stage.UNDONE, undo.done if undo is not None else ()),
            ):
                for kind in self._listen(name, classes):
                    if kind.to is not None:
                        raise self._error(name, f"{kind.name} is a command, and no answer")
                    if kind.name in found:
                        other = found[kind.name].step.name
                        raise self._error(
                            name,
                            f"{kind.name} answers {other} already: each answer needs an event of "
                            "its own",
                        )
                    found[kind.name] = Answer(each, stage)
        return found

    def _check_asked(
        self, name: str, function: Function, done: tuple[type, ...], within: float
    ) -> None:
        if not done:
            raise self._error(name, "add done=, the event that answers it")
        if not 0 < within <= LONGEST:
            raise self._error(
                name,
                f"add within=, the seconds to wait for its answer: above 0, up to {LONGEST:.0f}",
            )
        if _arity(function) != 1:
            raise self._error(name, "expected no parameter but self")
        for kind in self._returned(name, function):
            if kind.to is not None and kind.key_field is None:
                raise self._error(
                    name,
                    f"{kind.name} has no key: declare it with key=…, so that an undo can't "
                    "overtake what it undoes",
                )

    def _order(self) -> None:
        before: tuple[str, ...] = ()
        for name, each in self._steps.items():
            if each.after is None:
                each.behind = before
            else:
                each.behind = tuple(
                    other.name if isinstance(other, Step) else other for other in each.after
                )
            for other in each.behind:
                if other not in self._steps:
                    raise self._error(
                        name,
                        f"after: there is no step {other!r}: name some of {', '.join(self._steps)}",
                    )
            before = (name,)
        try:
            TopologicalSorter({n: each.behind for n, each in self._steps.items()}).prepare()
        except CycleError as error:
            circle = " after ".join(error.args[1][::-1])
            raise self._error(
                error.args[1][0], f"after: {circle}, so none can begin: remove one of them"
            ) from error

    def _ends(self, ends: tuple[str, ...] | None) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for name, each in self._of("end"):
            if ends is not None and each.name not in ends:
                raise self._error(
                    name, f"@end({each.name!r}): add it to ends={ends}, or correct its name"
                )
            if each.name in found:
                raise self._error(name, f"@end({each.name!r}) is there twice: remove one of them")
            if _arity(each.function) > 2:
                raise self._error(name, "expected self and, after an undo, one Failed")
            self._returned(name, each.function)
            found[each.name] = each.function
        if not found and not ends:
            raise self._error(
                "", 'it has no end: add ends=("done", …), and a method with @end("done") for each'
            )
        return found

    def _outcomes(self, names: tuple[str, ...], explained: frozenset[str]) -> tuple[str, str]:
        """Return the ends after all steps are done, and after all was undone."""
        complete = next((name for name in names if name not in explained), "")
        undone = next((name for name in names if name in explained), "")
        if not undone and len(names) > 1:
            undone = names[-1]
        if self._steps and not complete:
            raise self._error(
                "", 'no end is that of a saga whose steps are done: add @end("done") def done(self)'
            )
        if self._steps and not undone:
            raise self._error(
                "",
                "its steps can fail, and no end is that of a saga that was undone: add "
                '@end("cancelled") def cancelled(self, why: Failed)',
            )
        return complete, undone

    def _of(self, role: str) -> list[tuple[str, Reaction]]:
        found = [(name, each) for name, each in self._reactions if each.role == role]
        for name, each in found:
            if inspect.iscoroutinefunction(each.function):
                raise self._error(name, "a saga waits for nothing: make it a plain def")
            if role != "end" and role != "starts":
                expected = 2 if role == "on" else 1
                if _arity(each.function) != expected:
                    takes = "self and the event" if role == "on" else "no parameter but self"
                    raise self._error(name, f"expected {takes}")
            self._returned(name, each.function)
        return found

    def _returned(self, name: str, function: Function) -> list[EventType]:
        found = _described(self._hints(name, function).get("return"))
        self._publishes.update({kind.name: kind for kind in found})
        return found

    def _listen(self, name: str, classes: Iterable[type]) -> list[EventType]:
        found = []
        for cls in classes:
            if not is_event(cls):
                raise self._error(name, f"{cls!r} is not an event: subclass oyez.Event")
            kind = describe(cls)
            known = self._events.setdefault(kind.name, kind)
            if known is not kind:
                raise self._error(
                    name, f"{kind.name} is there as two classes: use one of them throughout"
                )
            found.append(kind)
        return found

    def _hints(self, name: str, function: Function) -> dict[str, Any]:
        try:
            return get_type_hints(function)
        except NameError as error:
            raise self._error(
                name,
                f"its annotations can't be resolved ({error}): import the types at the top of the "
                "module",
            ) from error

    def _error(self, name: str, problem: str) -> DeclarationError:
        place = _place(self._cls) + (f".{name}" if name else "")
        return DeclarationError(f"{place}: {problem}")


_OWN = frozenset(name for name in (*vars(Saga), "progress", "turn") if not name.startswith("_"))
"""The names of a saga's own methods, which are no names for fields."""


def _classes(given: Classes | None) -> tuple[type, ...]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def _members(annotation: object) -> tuple[type, ...]:
    """Return the event classes of an annotation: one, or those of a union."""
    found = get_args(annotation) or (annotation,)
    return tuple(each for each in found if isinstance(each, type) and is_event(each))


def _described(annotation: object) -> list[EventType]:
    """Return the event types named anywhere in a return annotation."""
    if isinstance(annotation, type) and is_event(annotation):
        return [describe(annotation)]
    return [kind for part in get_args(annotation) for kind in _described(part)]


def _arity(function: Function) -> int:
    return len(inspect.signature(function).parameters)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
