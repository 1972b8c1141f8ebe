"""The world of one run: its nodes, what goes wrong in it, and what has happened so far.

A *node* is one replica of a service, in one of its lives. It reaches everything else through its
ports, and each call of a port may be where it dies. A dead node raises nothing and returns nothing:
its steps are not run any more, so no ``finally`` and no ``except`` of it is either.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from math import inf
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from oyez.ambient import Timeout, Uuid7
from oyez.errors import BrokerUnavailable, StoreUnavailable
from oyez.runtime.process import ServiceProcess
from oyez.simulation.loop import SimLoop, actor
from oyez.simulation.tape import Choices

T = TypeVar("T")

START = 1_800_000_000.0
"""The wall-clock time, in seconds since 1970, at which each run begins."""
BUSY = 1.2
"""Seconds after the last event during which every part looks as often as it does in production."""
LOOK = 0.5
"""Seconds within which a replica looks at the others after these have changed, as in production."""
LAZY = 120.0
"""How many times less often it looks afterwards, at first; what happens then wakes all of them."""
CRASHES = 4
"""The limit of crashes in one run."""
FAULTS = (
    "crash",
    "unavailable",
    "lost",
    "slow",
    "duplicate",
    "split",
    "down",
    "freeze",
    "lapse",
    "clock",
)
"""What may go wrong, by the names that ``--faults`` takes."""


class Told(msgspec.Struct, frozen=True):
    """One thing that happened: when (virtual seconds), to whom, and what; ``fault``: it was one."""

    time: float
    node: str
    what: str
    fault: bool = False


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How likely what goes wrong is, in one run: a rate for each call of a port.

    A run has a random part of the faults (swarm testing, Groce et al., 2012): what is always on
    hides what would happen without it.
    """

    crash: float = 0.0
    unavailable: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    duplicate: float = 0.0
    split: float = 0.0
    down: float = 0.0
    freeze: float = 0.0
    lapse: float = 0.0
    clock: float = 0.0
    broker: str = "embedded"
    """The kind of broker."""
    buried: bool = True
    """Whether the store knows at once that a process died, rather than when its lease ends."""

    @classmethod
    def drawn(cls, choices: Choices, allowed: Sequence[str], brokers: Sequence[str]) -> Profile:
        """Return the profile of a run on one of the ``brokers``."""
        usual = {
            "crash": 0.02,
            "unavailable": 0.03,
            "lost": 0.03,
            "slow": 0.2,
            "duplicate": 0.05,
            "split": 0.3,
            "down": 0.004,
            "freeze": 0.008,
            "lapse": 0.004,
            "clock": 0.003,
        }
        rates = {
            name: rate * (0.3, 1.0, 3.0)[choices.draw(3, "rate")]
            for name, rate in usual.items()
            if choices.draw(2, "swarm") and name in allowed
        }
        broker = brokers[choices.draw(len(brokers), "broker")]
        return cls(broker=broker, buried=choices.draw(2, "buried") == 0, **rates)


class Node:
    """One replica of a service, in one of its lives."""

    def __init__(self, world: World, service: str, name: str, life: int) -> None:
        self.world = world
        self.service = service
        self.name = name
        self.life = life
        self.dead = False
        self.frozen = False
        self.process: ServiceProcess | None = None
        """What runs on it."""
        self.context = Context()
        self.context.run(actor.set, self)
        self.ambient = SimAmbient(world, self)
        self.on_death: list[Callable[[], None]] = []
        """Called when it dies: what others notice of it, such as a connection that is closed."""
        self.on_freeze: list[Callable[[float], None]] = []
        """Called with the seconds for which it stands still."""
        self.on_lapse: list[Callable[[float], None]] = []
        """Called with the seconds for which its lease has run out, while it goes on."""

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task of this node."""
        return self.world.loop.create_task(work, context=self.context)

    async def call(
        self,
        port: str,
        what: str,
        work: Callable[[], Awaitable[T]],
        error: Callable[[str], Exception],
        *,
        effect: bool = True,
    ) -> T:
        """Call a port: it may be slow, fail before or after its effect, and be where a node dies.

        ``error`` makes what the caller sees of a failure; ``effect``: the call changes something.
        """
        world = self.world
        if not world.faulty:
            return await work()
        faults = world.faults
        await self._linger(port)
        crash = faults.crash / 2 if effect and world.crashes < CRASHES else 0.0
        lost = faults.lost if effect else 0.0
        fate = world.choices.pick((crash, faults.unavailable, crash, lost), port)
        if fate == 1:
            await self._die(f"crashed before: {what}")
        if fate == 2:
            self.suffer(f"failed before its effect: {what}")
            raise error("simulated: out of reach")
        result = await work()
        if fate == 3:
            await self._die(f"crashed after: {what}")
        if fate == 4:
            self.suffer(f"took effect, and its answer was lost: {what}")
            raise error("simulated: the answer was lost")
        return result

    async def _linger(self, port: str) -> None:
        world = self.world
        faults, choices = world.faults, world.choices
        rates = (faults.slow, faults.freeze, faults.clock, faults.lapse)
        kind = choices.pick(rates, f"{port} time")
        if kind == 1:
            await asyncio.sleep(0.0005 * 4 ** choices.draw(7, "slow"))
        elif kind == 2:
            seconds = 0.5 * 2 ** choices.draw(5, "freeze")
            self.suffer(f"stands still for {seconds:g} s")
            self.freeze(seconds)
            await asyncio.sleep(0)
        elif kind == 3:
            seconds = (0.9, -0.9, 3_600.0, -3_600.0)[choices.draw(4, "clock")]
            world.clock += seconds
            world.tell("everyone", f"the wall clock is set by {seconds:+g} s", fault=True)
            world.wake()
        elif kind == 4:
            seconds = 0.5 * 2 ** choices.draw(5, "lapse")
            self.suffer(f"its lease has run out, for {seconds:g} s")
            for notice in self.on_lapse:
                notice(seconds)

    def suffer(self, what: str) -> None:
        """Tell of a fault that it meets."""
        self.world.tell(self.name, what, fault=True)
        self.world.stir(self.service)

    async def _die(self, what: str) -> None:
        self.world.crash(self, what)
        await asyncio.get_running_loop().create_future()

    def freeze(self, seconds: float) -> None:
        """Stand still: nothing of it runs, while others go on."""
        loop = self.world.loop
        self.frozen = True
        for notice in self.on_freeze:
            notice(seconds)

        def thaw() -> None:
            self.frozen = False
            loop.thaw(self)

        loop.call_later(seconds, thaw, context=self.world.context)

    def die(self) -> None:
        """Be dead from now on."""
        self.dead = True
        self.world.loop.drop(self)
        for notice in self.on_death:
            notice()


class World:
    """What the nodes of one run live in."""

    def __init__(self, loop: SimLoop) -> None:
        self.seed = 0
        self.choices = Choices(0, {})
        self.loop = loop
        self.faults = Profile()
        self.faulty = False
        """Whether anything may go wrong now."""
        self.crashes = 0
        self.clock = 0.0
        """Seconds by which the wall clock was set."""
        self.context = Context()
        """What runs in it belongs to no node."""
        self.story: list[Told] = []
        """What has happened, in order."""
        self.moved = 0.0
        """The time of the last event, commit or fault."""
        self.stirred: dict[str, float] = {}
        """The same for each service."""
        self.bells = Bells()
        """What wakes the parts of each node that look for work."""
        self.alarms = Bells()
        """What wakes those that look at the replicas and the streams."""
        self._awaited: set[Bell] = set()
        """Those of the alarms that are about to ring."""
        self.died: Callable[[Node], None] = lambda node: None
        """Called when a node has died, to start it again."""

    def tell(self, node: str, what: str, *, fault: bool = False) -> None:
        """Note what happened."""
        self.story.append(Told(self.loop.time(), node, what, fault))
        if fault:
            self.moved = self.loop.time()

    def stir(self, service: str) -> None:
        """Note that something happens in a service; after a quiet time, have its parts look."""
        now = self.loop.time()
        before = self.stirred.get(service, 0.0)
        self.moved = self.stirred[service] = now
        if now - before > BUSY:
            self.bells.ring(service)

    def shake(self, service: str) -> None:
        """Note that replicas of a service come or go, and have each of them look, not all at once.

        As long as one has not looked, it may still work on what another has taken over.
        """
        self.stir(service)
        for bell in self.alarms.of(service):
            if bell not in self._awaited:
                self._awaited.add(bell)
                wait = LOOK / 8 * (1 + self.choices.draw(8, "look"))
                self.loop.call_later(wait, self._alarm, bell, context=self.context)

    def _alarm(self, bell: Bell) -> None:
        self._awaited.discard(bell)
        bell.ring()

    def wake(self) -> None:
        """Have every part of every node look."""
        for service in self.bells.services():
            self.shake(service)
            self.bells.ring(service)

    def crash(self, node: Node, what: str) -> None:
        """Let a node die."""
        self.crashes += 1
        self.tell(node.name, what, fault=True)
        node.die()
        self.shake(node.service)
        self.died(node)


class Bell:
    """What wakes a part of a node."""

    def __init__(self, node: Node, wake: Callable[[], None]) -> None:
        self.node = node
        self._wake = wake

    def ring(self) -> None:
        """Wake it, if the node lives."""
        if not self.node.dead:
            self._wake()


class Bells:
    """What wakes parts of the nodes, by service."""

    def __init__(self) -> None:
        self._hung: dict[str, list[Bell]] = {}

    def hang(self, node: Node, wake: Callable[[], None]) -> None:
        """Add a bell of a node."""
        self._hung.setdefault(node.service, []).append(Bell(node, wake))

    def services(self) -> list[str]:
        """Return the services that have any."""
        return list(self._hung)

    def of(self, service: str) -> list[Bell]:
        """Return those of the nodes of a service that live."""
        hung = [each for each in self._hung.get(service, ()) if not each.node.dead]
        self._hung[service] = hung
        return hung

    def ring(self, service: str) -> None:
        """Ring those of the nodes of a service that live."""
        for bell in self.of(service):
            bell.ring()


class SimAmbient:
    """An `oyez.ambient.Ambient` on the loop's virtual time; repeatable for a seed and a node."""

    def __init__(self, world: World, node: Node | None) -> None:
        self._world = world
        self._service = "" if node is None else node.service
        self._name = "" if node is None else f"{node.name} {node.life}"
        self._random = random.Random()  # noqa: S311 - repeatable on purpose
        self._ids = Uuid7(self._random)
        self.begin(world.seed)

    def begin(self, seed: int) -> None:
        """Give the identifiers and the chance of a seed from now on."""
        self._random.seed(f"{seed} {self._name}")

    def now(self) -> float:
        return START + self._world.loop.time() + self._world.clock

    def monotonic(self) -> float:
        return self._world.loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None) -> Timeout:
        return asyncio.timeout(seconds) if seconds is None else _Timeout(self._world.loop, seconds)

    def poll(self, seconds: float, *, due: float = inf, replicas: bool = False) -> float:
        world = self._world
        quiet = world.loop.time() - world.stirred.get(self._service, 0.0)
        if quiet <= BUSY and not replicas:
            return min(seconds, due)
        return min(max(seconds * LAZY, quiet), due)

    def new_id(self) -> str:
        return self._ids.next(self.now())

    def chance(self) -> float:
        return self._random.random()

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)


class _Timeout:
    """As ``asyncio.timeout``, without what need not be checked here: a run has hundreds of them."""

    def __init__(self, loop: SimLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expired = False

    async def __aenter__(self) -> _Timeout:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_later(max(self._seconds, 0.0), self._expire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._expired:
            self._timer.cancel()
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expired(self) -> bool:
        return self._expired

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


def store_error(what: str) -> Exception:
    """Return what a store raises that is out of reach."""
    return StoreUnavailable(what)


def broker_error(what: str) -> Exception:
    """Return what a broker raises that is out of reach."""
    return BrokerUnavailable(what)
