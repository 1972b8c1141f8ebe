"""Windows: what happened to one sensor, account or user within a span of event time.

::

    class Minute(Window, key="sensor_id", size=60, late=10):
        count: int = 0
        highest: float = float("-inf")

        def add(self, event: Reading) -> None:
            self.count += 1
            self.highest = max(self.highest, event.celsius)

        def close(self) -> MinuteMeasured:
            return MinuteMeasured(sensor_id=self.key, highest=self.highest)

    service.window(Minute, Reading, time="measured_at")

Each key has a *watermark*, the time of its newest event less ``late``. A window closes once, when
the watermark reaches its end. An event of a closed window is late: it is counted and passed to
``late`` instead of ``add``. So events may come in any order within ``late``, and the windows of one
key never depend on the events of another.

The watermark moves with the events alone, so that a backlog closes no window early, however long it
waited. For a key without further events a timer moves it, by the time that has passed since the
newest event was handled.

One row of ``oyez_state`` holds the open windows of a key, its watermark and its counts. Times are
whole microseconds since 1970 here, so that they add up exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
)

import msgspec

from oyez.envelope import Envelope, parse_time
from oyez.errors import DeclarationError, InvalidEvent, StateMismatch
from oyez.event import MAX_DATA, describe, is_event
from oyez.handler import Handler, Retry, compile_fold, published_types
from oyez.parameters import Context, FoldedParameter
from oyez.ports import Kept
from oyez.state import By, Correlation, StateMeta, StateType, correlate
from oyez.timers import Timer, arm
from oyez.transaction import Transaction

MAX_OPEN = 64
"""The number of open windows of a key. One more closes the oldest, and is counted."""
LONGEST = 366 * 86_400
"""The longest window, gap and lateness, in seconds."""
FORGET = 7 * 86_400_000_000
"""After so long without an open window a key is forgotten; a later event begins anew."""
SLACK = 500_000
"""The timer fires so much later than it could: an event that comes in time saves it."""

_ATTRIBUTE = "__oyez_window__"
_RESERVED = ("start", "end", "counts")
_DAY = 86_400
_MICROS = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MONDAY = date(1970, 1, 5).toordinal()
_NEVER = -(1 << 62)
_FIRST, _LAST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_FIRST_SECOND, _LAST_SECOND = _FIRST.timestamp(), _LAST.timestamp()

W = TypeVar("W", bound="Window")

Span = tuple[int, int]
"""The start of a window, and its end, which is not part of it."""


class Counts(msgspec.Struct, kw_only=True):
    """What happened to the events of a key besides being added."""

    late: int = 0
    """Windows that an event missed because they had closed."""
    clamped: int = 0
    """Events more than ``late`` ahead of the clock, which were added as if only so far ahead."""
    forced: int = 0
    """Windows that were closed early because `MAX_OPEN` others were open."""


class Shape(Protocol):
    """How windows lie in time."""

    joins: bool
    """Whether windows that overlap become one."""

    def spans(self, at: int) -> Sequence[Span]:
        """Return the spans of the windows that an event at this time belongs to, by start."""
        ...


class Steps(msgspec.Struct, frozen=True):
    """Windows of one length, one after each step since 1970 in UTC."""

    size: int
    step: int
    joins = False

    def spans(self, at: int) -> Sequence[Span]:
        """See `Shape.spans`."""
        last = at - at % self.step
        first = last - (self.size - 1 - at % self.step) // self.step * self.step
        return [(start, start + self.size) for start in range(first, last + 1, self.step)]


class Days(msgspec.Struct, frozen=True):
    """Windows of whole days of a time zone, from midnight to midnight, whatever their length.

    They are aligned to Monday, so that seven days are a week.
    """

    size: int
    """In days."""
    step: int
    zone: tzinfo
    joins = False

    def spans(self, at: int) -> Sequence[Span]:
        """See `Shape.spans`."""
        day = moment(at).astimezone(self.zone).toordinal() - _MONDAY
        last = day - day % self.step
        first = last - (self.size - 1 - day % self.step) // self.step * self.step
        return [
            (self._midnight(start), self._midnight(start + self.size))
            for start in range(first, last + 1, self.step)
        ]

    def _midnight(self, day: int) -> int:
        # Where the clock skips midnight or shows it twice, this is the first moment of the day.
        found = date.fromordinal(day + _MONDAY)
        return micros(datetime(found.year, found.month, found.day, tzinfo=self.zone))


class Gap(msgspec.Struct, frozen=True):
    """Sessions: a window ends when no event has come for so long."""

    gap: int
    joins = True

    def spans(self, at: int) -> Sequence[Span]:
        """See `Shape.spans`."""
        return [(at, at + self.gap)]


class WindowMeta(StateMeta):
    """The metaclass that reads the class keywords of a `Window`."""

    attribute = _ATTRIBUTE

    def __new__(  # noqa: D102
        mcls,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        size: float | None = None,
        step: float | None = None,
        gap: float | None = None,
        late: float | None = None,
        tz: str | None = None,
        **options: Any,
    ) -> Any:
        cls = super().__new__(mcls, cls_name, bases, namespace, **options)
        state: StateType | None = vars(cls).get(_ATTRIBUTE)
        if state is not None:
            place = f"{cls.__module__}.{cls.__qualname__}"
            shape = _shape(place, size, step, gap, tz)
            lateness = _lateness(place, late)
            _check_methods(place, cls, shape)
            setattr(cls, _ATTRIBUTE, WindowType(state, shape, lateness))
        return cls


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Window(msgspec.Struct, metaclass=WindowMeta, kw_only=True, dict=True):
    """The base class of windows; its fields are what one window of one key remembers.

    ``size`` is the length of a window in seconds, ``step`` the seconds from one to the next, if
    they overlap. They are aligned to 1970 in UTC; with ``tz``, the name of a time zone, they are
    whole days of that zone, and weeks begin on Monday. ``gap``, instead, makes sessions: a window
    ends when no event of its key has come for so many seconds, and windows between which an event
    falls are joined. ``late`` is how many seconds an event may come after newer ones of its key.

    ``key``, ``version`` and ``name`` are those of a `State`. All fields need a default. The methods
    have to depend on the window and the event alone; what ``close``, ``early`` and ``late`` return,
    an event, several or None, is published.
    """

    if TYPE_CHECKING:

        @property
        def key(self) -> str:
            """The key of this window."""
            ...

        @property
        def counts(self) -> Counts:
            """What was late, clamped or forced of this key until now."""
            ...

        def __init_subclass__(
            cls,
            *,
            key: str | None = None,
            size: float | None = None,
            step: float | None = None,
            gap: float | None = None,
            late: float | None = None,
            tz: str | None = None,
            version: int = 1,
            name: str | None = None,
        ) -> None: ...

    @property
    def start(self) -> datetime:
        """Its start, in UTC or the zone of ``tz``. A session starts with its first event."""
        start, _, zone = vars(self)["span"]
        return moment(start).astimezone(zone)

    @property
    def end(self) -> datetime:
        """Its end, which is not part of it. A session ends one gap after its last event."""
        _, end, zone = vars(self)["span"]
        return moment(end).astimezone(zone)

    @classmethod
    def keyed(cls: type[W], key: str, at: datetime | float, **fields: Any) -> W:
        """Return the newest window of a key that holds a time, with these fields.

        It is what a test calls the methods of. ``at`` has an offset from UTC, or is in seconds
        since 1970.
        """
        kind: WindowType = vars(cls)[_ATTRIBUTE]
        time = at if isinstance(at, datetime) else _EPOCH + timedelta(seconds=at)
        start, end = kind.shape.spans(micros(time))[-1]
        window: W = Windows(kind, key).frame(kind.state.new(key, **fields), start, end).window
        return window

    def add(self, event: Any) -> None:
        """Add an event of this window."""

    def close(self) -> Any:
        """Return what is to be published when the window closes, which happens once."""

    def early(self) -> Any:
        """Return what is to be published before the end; called after each event."""
        return ()

    def late(self, event: Any) -> Any:
        """Return what is to be published of an event whose window has closed.

        It is called on a new, empty window of the same start and end, which is not kept.
        """
        return ()

    def join(self, other: Any) -> None:
        """Take over what a later session holds, which is one with this one now."""


class _Stored(msgspec.Struct, array_like=True):
    start: int
    end: int
    data: msgspec.Raw


class _Row(msgspec.Struct, array_like=True):
    newest: int
    handled: int
    watermark: int
    armed: int
    awaited: int
    late: int
    clamped: int
    forced: int
    windows: list[_Stored]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Row).decode


class WindowType(msgspec.Struct, frozen=True, eq=False):
    """The description of a `Window` class; a `oyez.state.Keyed` whose objects are `Windows`."""

    state: StateType
    """How a single window is encoded, decoded and migrated."""
    shape: Shape
    late: int
    tally: Counts = msgspec.field(default_factory=Counts)
    """What happened in this process, for its metrics; what was rolled back is counted too."""

    @property
    def name(self) -> str:
        """The kind of its rows."""
        return self.state.name

    @property
    def cls(self) -> type[Any]:
        """The class."""
        return self.state.cls

    @property
    def version(self) -> int:
        """The version of its fields."""
        return self.state.version

    def open(self, row: Kept) -> Windows:
        """See `oyez.state.Keyed.open`."""
        windows = Windows(self, row.key)
        if row.data is None:
            return windows
        try:
            found = _decode(row.data)
        except msgspec.MsgspecError as error:
            raise StateMismatch(
                f"{self.name} {row.key} holds no windows: {error}: was it another kind of state "
                "before? Give this class another name"
            ) from error
        windows.newest, windows.handled = found.newest, found.handled
        windows.watermark = found.watermark
        windows.armed, windows.awaited = found.armed, found.awaited
        windows.counts.late, windows.counts.clamped = found.late, found.clamped
        windows.counts.forced = found.forced
        for each in found.windows:
            data = bytes(each.data)
            one = self.state.open(Kept(kind=row.kind, key=row.key, shape=row.shape, data=data))
            windows.opened.append(windows.frame(one, each.start, each.end))
        return windows

    def close(self, value: Windows, row: Kept) -> Kept | None:
        """See `oyez.state.Keyed.close`."""
        if value.forgotten:
            return Kept(kind=row.kind, key=row.key, version=row.version) if row.version else None
        try:
            stored = [
                _Stored(each.start, each.end, msgspec.Raw(self.state.encode(each.window)))
                for each in value.opened
            ]
        except (TypeError, ValueError, OverflowError) as error:
            raise StateMismatch(f"{self.name} {row.key} can't be stored: {error}") from error
        counts = value.counts
        data = _encode(
            _Row(
                value.newest,
                value.handled,
                value.watermark,
                value.armed,
                value.awaited,
                counts.late,
                counts.clamped,
                counts.forced,
                stored,
            )
        )
        version = self.state.version
        if data == row.data and row.shape == version:
            return None
        if len(data) > MAX_DATA:
            raise StateMismatch(
                f"{self.name} {row.key} is {len(data)} bytes in {len(stored)} open windows; at "
                f"most {MAX_DATA} are allowed"
            )
        return Kept(kind=row.kind, key=row.key, version=row.version, shape=version, data=data)


class _Open(msgspec.Struct):
    """An open window with its span."""

    start: int
    end: int
    window: Any


class Windows:
    """The open windows of one key. What its methods do depends on their arguments alone."""

    def __init__(self, kind: WindowType, key: str) -> None:
        self.kind = kind
        self.key = key
        self.newest = _NEVER
        """The time of the newest event."""
        self.handled = 0
        """When it was handled."""
        self.watermark = _NEVER
        """All windows that end by this time have closed."""
        self.armed = _NEVER
        """The time for which the timer was set last."""
        self.awaited = _NEVER
        """The start of the window that it was set for."""
        self.counts = Counts()
        self.opened: list[_Open] = []
        """By start; none ends before an earlier one."""
        self.forgotten = False

    def fold(self, event: object, at: int, now: int) -> list[object]:
        """Add an event of time ``at`` that is handled at ``now``; return what is to be published.

        It closes the windows that the event shows to be complete.
        """
        kind = self.kind
        self.forgotten = False
        self.handled = min(self.handled, now)
        if at > now + kind.late:
            at = now + kind.late
            self.counts.clamped += 1
        if at > self.newest:
            self.newest, self.handled = at, now
        found = self._advance(self.newest - kind.late)
        for start, end in kind.shape.spans(at):
            opened = self._join(start, end) if kind.shape.joins else self._find(start, end)
            if opened is not None:
                opened.window.add(event)
                found += _events(opened.window.early)
            elif end <= self.watermark:
                self.counts.late += 1
                missed = self.frame(kind.state.new(self.key), start, end)
                found += _events(missed.window.late, event)
            else:
                opened = self.frame(kind.state.new(self.key), start, end)
                opened.window.add(event)
                found += _events(opened.window.early)
                self._insert(opened)
                if len(self.opened) > MAX_OPEN:
                    self.counts.forced += 1
                    found += self._advance(self.opened[0].end)
        return found

    def close(self, now: int, *, due: int | None = None) -> list[object]:
        """Close the windows that are complete at ``now`` without another event; as `fold`.

        ``due`` is the time of the timer that fired: what became complete since then has one of its
        own, which may have to wait for a backlog.
        """
        self.handled = min(self.handled, now)  # a clock that was set back waits anew
        by = now if due is None else min(now, due)
        if not self.opened:
            self.forgotten = self.newest != _NEVER and by >= self.handled + FORGET
            return []
        return self._advance(self.newest - self.kind.late + by - self.handled)

    def due(self) -> int | None:
        """Return when `close` has something to do if no event comes; None for a new key."""
        if self.newest == _NEVER or self.forgotten:
            return None
        if not self.opened:
            return self.handled + FORGET
        return self.handled + self.opened[0].end - self.newest + self.kind.late

    def arm(self, *, fired: bool) -> int | None:
        """Return the time to set the timer for; None to leave it. ``fired``: it is not set.

        A timer that is early finds nothing to do and is set anew. So it is left early for a window
        that grows, and set early for events from a backlog, each of which brings the end nearer:
        otherwise every event would set it.
        """
        due = self.due()
        if due is None:
            return None
        awaited = self.opened[0].start if self.opened else _NEVER
        if not fired and awaited == self.awaited and self.armed <= due + 2 * SLACK:
            return None
        if not fired and self.opened and self.newest + self.kind.late < self.handled:
            due = min(due, max(self.handled, self.opened[0].end))
        self.armed, self.awaited = due + SLACK, awaited
        return self.armed

    def frame(self, window: Any, start: int, end: int) -> _Open:
        """Return a window of the class with its span."""
        opened = _Open(start, end, window)
        vars(window)["counts"] = self.counts
        return self._span(opened, start, end)

    def _span(self, opened: _Open, start: int, end: int) -> _Open:
        opened.start, opened.end = start, end
        shape = self.kind.shape
        zone = shape.zone if isinstance(shape, Days) else UTC
        vars(opened.window)["span"] = (start, end, zone)
        return opened

    def _advance(self, to: int) -> list[object]:
        """Move the watermark forward, and close the windows that end by it."""
        found: list[object] = []
        if to > self.watermark:
            self.watermark = to
            while self.opened and self.opened[0].end <= to:
                found += _events(self.opened.pop(0).window.close)
        return found

    def _find(self, start: int, end: int) -> _Open | None:
        for each in reversed(self.opened):
            if each.start == start and each.end == end:
                return each
        return None

    def _join(self, start: int, end: int) -> _Open | None:
        """Return the session that an event of this span belongs to, made one of all it connects."""
        touched = [each for each in self.opened if each.start < end and start < each.end]
        if not touched:
            return None
        first = touched[0]
        for other in touched[1:]:
            first.window.join(other.window)
            self.opened.remove(other)
        return self._span(first, min(start, first.start), max(end, *(each.end for each in touched)))

    def _insert(self, opened: _Open) -> None:
        self.opened.append(opened)
        self.opened.sort(key=lambda each: (each.end, each.start))


def window_type(cls: type) -> WindowType:
    """Return the `WindowType` of a class. Raises DeclarationError for any other class."""
    found: WindowType | None = vars(cls).get(_ATTRIBUTE)
    if found is None:
        raise DeclarationError(
            f"{cls.__module__}.{cls.__qualname__} is not a window: subclass oyez.Window with "
            "size=… or gap=…, and late=…"
        )
    return found


def event_time(value: object, field: str) -> int:
    """Return the time of an event: a datetime with an offset, or seconds since 1970.

    Raises InvalidEvent naming the field.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if _FIRST_SECOND <= value < _LAST_SECOND:
            return round(value * _MICROS)
    elif not isinstance(value, datetime):
        raise InvalidEvent(field, "expected a time: a datetime, or a number of seconds since 1970")
    elif value.tzinfo is None:
        raise InvalidEvent(field, 'expected a time with its offset from UTC, or "Z"')
    if not isinstance(value, datetime) or not _FIRST <= value < _LAST:
        raise InvalidEvent(
            field, "expected a time in the years 1000 to 8999, in seconds if a number"
        )
    return micros(value)


def micros(when: datetime) -> int:
    """Return a time as microseconds since 1970."""
    return (when - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC."""
    return _EPOCH + timedelta(microseconds=at)


class Turn(msgspec.Struct, frozen=True):
    """What the handler of a window has besides the event."""

    windows: Windows
    tx: Transaction
    envelope: Envelope


class TurnParameter(FoldedParameter):
    """The second parameter of the handler of a window: a `Turn`."""

    word = "window"
    contextual = True

    def given(self, value: Any, tx: Transaction, context: Context | None) -> Turn:
        """Return the windows with the call's transaction and envelope."""
        assert context is not None  # it is contextual
        return Turn(value, tx, context.envelope)


def compile_window(
    cls: type[Window],
    events: Sequence[type],
    *,
    service: str,
    time: str | None = None,
    by: By | None = None,
    retry: Retry | None = None,
    stream: str | None = None,
    allow: Mapping[str, str] | None = None,
) -> Handler:
    """Return the handler that adds events to a window. Raises DeclarationError with the remedy."""
    kind = window_type(cls)
    place = f"{cls.__module__}.{cls.__qualname__}"

    def error(problem: str) -> DeclarationError:
        return DeclarationError(f"{place}: {problem}")

    if not events:
        raise error("service.window() needs at least one event class after it")
    streams = {stream} if stream is not None else {describe(each).stream for each in events}
    if len(streams) > 1:
        raise error("its events name different streams: choose one with stream=…")
    own = correlate(kind, by if by is not None else kind.state.key_field, events, error)
    correlation = Correlation(
        kind,
        lambda event, key: event.key if type(event) is Timer else own.key_of(event, key),
        own.by,
    )
    return compile_fold(
        _fold(_time_of(time, events, error)),
        [*(describe(each) for each in events), describe(Timer)],
        TurnParameter,
        correlation,
        declared_by=cls,
        service=service,
        publishes=_published(place, cls),
        retry=retry,
        stream=streams.pop(),
        allow=allow,
        waits=True,
    )


def _fold(time_of: Callable[[Any, Envelope], int]) -> Callable[[Any, Turn], Any]:
    async def fold(event: Any, turn: Turn) -> list[object]:
        windows, tx = turn.windows, turn.tx
        clock = tx.unit.changes.time
        now = round(clock * _MICROS)
        fired = type(event) is Timer
        if fired:
            found = windows.close(now, due=round(event.due * _MICROS))
        else:
            before = windows.counts.late
            found = windows.fold(event, time_of(event, turn.envelope), now)
            windows.kind.tally.late += windows.counts.late - before
        if found:
            tx.disown()
        due = windows.arm(fired=fired)
        if due is not None:
            writes = arm(
                windows.kind.name,
                windows.key,
                "close",
                due / _MICROS,
                clock,
                traceparent=tx.traceparent,
                tracestate=tx.tracestate,
            )
            for sql, rows in writes:
                for row in rows:
                    tx.execute(sql, **row)
        return found

    return fold


def _time_of(
    field: str | None, events: Sequence[type], error: Callable[[str], DeclarationError]
) -> Callable[[Any, Envelope], int]:
    if field is None:
        return _sent
    for each in events:
        if field not in describe(each).fields:
            raise error(
                f"{each.__qualname__} has no field {field}, the time of its events: add it, name "
                "another one with time=…, or leave out time=… for the time of publishing"
            )
        annotation = _hints(each, error).get(field)
        if not {datetime, int, float} & {annotation, *get_args(annotation)}:
            raise error(
                f"{each.__qualname__}.{field} is the time of its events: declare it as a datetime, "
                "or as an int or float of seconds since 1970"
            )
    get = attrgetter(field)
    return lambda event, envelope: event_time(get(event), f"$.{field}")


def _sent(event: object, envelope: Envelope) -> int:
    if envelope.time is None:
        raise InvalidEvent("time", "is missing, and its window is found by it")
    return event_time(parse_time(envelope.time), "time")


def _published(place: str, cls: type[Window]) -> tuple[Any, ...]:
    def error(problem: str) -> DeclarationError:
        return DeclarationError(f"{place}: {problem}")

    found = [
        kind
        for method in (cls.close, cls.early, cls.late)
        for kind in published_types(_hints(method, error).get("return"))
    ]
    return tuple(dict.fromkeys(found))


def _hints(declared: Any, error: Callable[[str], DeclarationError]) -> dict[str, Any]:
    try:
        return get_type_hints(declared)
    except NameError as missing:
        raise error(
            f"the annotations of {declared.__qualname__} can't be resolved ({missing}): import the "
            "types at the top of the module"
        ) from missing


def _events(method: Callable[..., Any], *event: object) -> Sequence[object]:
    """Return what a method of a window returned, as a sequence of events."""
    answer = method(*event)
    if answer is None or answer == ():
        return ()
    if is_event(type(answer)):
        return (answer,)
    if isinstance(answer, Iterable):
        found = [each for each in answer if each is not None]
        if all(is_event(type(each)) for each in found):
            return found
    raise TypeError(
        f"{method.__qualname__} returned {type(answer).__name__}: expected an event, several "
        "events or None"
    )


def _shape(
    place: str, size: float | None, step: float | None, gap: float | None, tz: str | None
) -> Shape:
    if (size is None) == (gap is None):
        raise DeclarationError(
            f"{place}: declare either size=…, the length of its windows in seconds, or gap=…, the "
            "seconds without an event that end a session"
        )
    if gap is not None:
        if step is not None or tz is not None:
            word = "step" if step is not None else "tz"
            raise DeclarationError(f"{place}: {word}: is for windows of a size; leave it out")
        return Gap(_duration(place, "gap", gap))
    assert size is not None
    length = _duration(place, "size", size)
    stride = length if step is None else _duration(place, "step", step)
    if stride > length:
        raise DeclarationError(
            f"{place}: step={step}: is more than size={size}, so some events would be in no window"
        )
    if -(-length // stride) > MAX_OPEN:
        raise DeclarationError(
            f"{place}: step={step}: each event would be in {-(-length // stride)} windows of "
            f"size={size}; at most {MAX_OPEN} are allowed: use a longer step"
        )
    if tz is None:
        return Steps(length, stride)
    from zoneinfo import ZoneInfo  # reads the build's settings when it is imported

    try:
        zone = ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as error:
        raise DeclarationError(
            f'{place}: tz={tz!r}: expected the name of a time zone, such as "Europe/Berlin" '
            "(pip install tzdata, where the system has none)"
        ) from error
    day = _DAY * _MICROS
    if length % day or stride % day:
        word = "size" if length % day else "step"
        raise DeclarationError(
            f"{place}: {word}: with tz windows are whole days: expected a multiple of {_DAY}"
        )
    return Days(length // day, stride // day, zone)


def _duration(place: str, word: str, seconds: float) -> int:
    if not 0.001 <= seconds <= LONGEST:
        raise DeclarationError(
            f"{place}: {word}={seconds}: expected 0.001 to {LONGEST} seconds (366 days)"
        )
    return round(seconds * _MICROS)


def _lateness(place: str, late: float | None) -> int:
    if late is None:
        raise DeclarationError(
            f"{place}: add late=…, how many seconds an event may come after newer ones of its key; "
            "a window stays open for so long"
        )
    if not 0 <= late <= LONGEST:
        raise DeclarationError(f"{place}: late={late}: expected 0 to {LONGEST} seconds (366 days)")
    return round(late * _MICROS)


def _check_methods(place: str, cls: type[Any], shape: Shape) -> None:
    for field in msgspec.structs.fields(cls):
        if field.name in _RESERVED:
            raise DeclarationError(f"{place}: field {field.name}: Oyez uses this name itself")
    methods: list[tuple[Callable[..., Any], Callable[..., Any], str]] = [
        (cls.add, Window.add, "add(self, event), which adds an event to a window"),
        (cls.close, Window.close, "close(self), which returns what a closed window announces"),
    ]
    if shape.joins:
        methods.append(
            (
                cls.join,
                Window.join,
                "join(self, other), which adds a session that became part of it",
            )
        )
    for own, inherited, remedy in methods:
        if own is inherited:
            raise DeclarationError(f"{place}: define {remedy}")
