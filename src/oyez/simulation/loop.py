"""An event loop whose time is virtual, and whose next step the tape chooses among the nodes.

Steps of one node run in the order in which they became ready, as on any event loop: code may rely
on that. Which node goes next, and how long each call of a port takes, is chosen. Nothing is ever
waited for: when no step is ready, the clock moves to the next timer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

from oyez.simulation.tape import Choices

T = TypeVar("T")

CHANGES = 3
"""The number of times at which a run by priorities (PCT) lowers that of the node which runs."""
STEPS = 4_000
"""The steps among which those times are chosen."""


class NotSimulated(Exception):
    """Code asked the event loop for something of the real world; the message says what instead."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, so nothing would ever happen again."""


class Actor(Protocol):
    """Whose steps the loop runs."""

    dead: bool
    """Whether none of its steps will ever run again."""
    frozen: bool
    """Whether its steps wait until it is thawed."""


actor: ContextVar[Actor | None] = ContextVar("oyez_simulation_actor", default=None)
"""The node that runs here; None for the world around the nodes, which never dies."""


class _Step(asyncio.Handle):
    """A step, made without what is for debugging."""

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None


class _Ready:
    """The steps that are ready, by actor; what `asyncio` takes for its queue."""

    def __init__(self) -> None:
        self.lines: dict[Actor | None, deque[asyncio.Handle]] = {}
        self.active: list[Actor | None] = []
        """The actors that have steps, the one that has waited longest first."""
        self.held: dict[Actor, list[asyncio.Handle]] = {}
        """The steps of those that stand still."""

    def append(self, handle: asyncio.Handle) -> None:
        """Add a step of the actor in whose context it runs."""
        who = handle._context.get(actor)  # type: ignore[attr-defined]
        if who is not None and (who.dead or who.frozen):
            if not who.dead:
                self.held.setdefault(who, []).append(handle)
            return
        line = self.lines.get(who)
        if line is None:
            line = self.lines[who] = deque()
        if not line:
            self.active.append(who)
        line.append(handle)

    def clear(self) -> None:
        """Forget all steps."""
        self.lines.clear()
        self.active.clear()
        self.held.clear()

    def __len__(self) -> int:
        return len(self.active)


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one run."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        """The number of steps so far."""
        self.tasks: list[asyncio.Task[Any]] = []
        """Every task so far: what a dead node left is never resumed, and not cleaned up either."""
        self.created: Callable[[asyncio.Task[Any]], None] = lambda task: None
        """Called with each new task."""
        self._clock = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._choices: Choices | None = None
        self._steps = self._ready = _Ready()
        self._ranks: dict[Actor | None, int] | None = None
        self._lower: set[int] = set()

    def choose(self, choices: Choices, *, priorities: bool = False) -> None:
        """Choose the next node from now on; until then the one goes that has waited longest.

        With ``priorities`` the node of the highest runs, until one of `CHANGES` moments. That finds
        deep orders which equal chances do not (Burckhardt et al., "A Randomized Scheduler with
        Probabilistic Guarantees of Finding Bugs", 2010).
        """
        self._choices = choices
        self.steps = 0
        if priorities:
            self._ranks = {}
            self._lower = {choices.draw(STEPS, "lower") for _ in range(CHANGES)}

    def time(self) -> float:
        """Return the virtual seconds since the run began."""
        return self._clock

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:
        """Create a task, and remember it."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        self.created(task)
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Add a step, as any loop does; without the checks of others, since all runs here."""
        handle = _Step(callback, args, self, context)
        self._steps.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Add a step for so many seconds later."""
        return self.call_at(self._clock + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Add a step for later; those of one time run in the order in which they were added."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def thaw(self, who: Actor) -> None:
        """Let an actor go on that stood still."""
        for handle in self._steps.held.pop(who, ()):
            self._steps.append(handle)

    def drop(self, who: Actor) -> None:
        """Forget the steps of an actor that has died."""
        self._steps.held.pop(who, None)
        line = self._steps.lines.pop(who, None)
        if line:
            self._steps.active.remove(who)

    def _run_once(self) -> None:
        """Run steps until the loop is stopped: there is nothing else to do between two of them."""
        steps = self._steps
        active, lines = steps.active, steps.lines
        while not self._stopping:  # type: ignore[attr-defined]
            while not active:
                self._advance()
            if len(active) == 1:
                who = active.pop()
            else:
                who = self._choose(active)
                active.remove(who)
            line = lines[who]
            if who is not None and who.frozen:
                steps.held.setdefault(who, []).extend(line)
                line.clear()
                continue
            handle = line.popleft()
            if line:
                active.append(who)
            self.steps += 1
            if not handle._cancelled:
                handle._run()

    def _choose(self, active: list[Actor | None]) -> Actor | None:
        choices, ranks = self._choices, self._ranks
        if choices is None:
            return active[0]
        if ranks is None:
            return active[choices.draw(len(active), "next")]
        for each in active:
            if each not in ranks:
                ranks[each] = choices.draw(1_000, "rank")
        first = max(active, key=lambda each: ranks[each])
        if self.steps in self._lower:
            ranks[first] = -self.steps
        if self.steps % 64 == 0:  # else one that never waits would keep all others out for ever
            return active[0]
        return first

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing is ready and no timer is set")
        self._clock = max(self._clock, timers[0][0])
        while timers and timers[0][0] <= self._clock:
            _, _, timer = heapq.heappop(timers)
            if not timer._cancelled:
                self._steps.append(timer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is dropped when its time comes

    def _write_to_self(self) -> None:
        pass  # there is nothing to wake

    def _process_events(self, event_list: Any) -> None:
        pass

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        pass  # for the next one nothing need be known of it

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        pass  # what a dead node left open stays open: a crash runs no cleanup

    # -- what is not simulated ---------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a call on an executor that runs it at once. Raises NotSimulated for real threads."""
        if executor is None:
            raise NotSimulated(
                "a thread was asked for (asyncio.to_thread, or name resolution): put what needs it "
                "behind a provider, and give the simulation a fake of it by `outside`"
            )
        return super().run_in_executor(executor, func, *args)

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        """Raise NotSimulated."""
        raise _refused("a network connection")

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """Raise NotSimulated."""
        raise _refused("a listening socket")

    async def create_datagram_endpoint(self, *args: Any, **options: Any) -> Any:
        """Raise NotSimulated."""
        raise _refused("a datagram socket")

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        """Raise NotSimulated."""
        raise _refused("a child process")

    async def subprocess_shell(self, *args: Any, **options: Any) -> Any:
        """Raise NotSimulated."""
        raise _refused("a child process")


def _refused(what: str) -> NotSimulated:
    return NotSimulated(
        f"{what} was asked for: put what needs it behind a provider, and give the simulation a "
        "fake of it by `outside`"
    )
