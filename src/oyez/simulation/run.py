"""One run: a seed, a system, a scenario; first with faults, then healed, then judged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

import msgspec

from oyez.errors import ConfigurationError, OyezError
from oyez.ports import Record
from oyez.runtime.process import ProcessSettings, ServiceProcess
from oyez.service import Service
from oyez.signals import Signals
from oyez.simulation.broker import KINDS, Kind, Log, SimBroker
from oyez.simulation.checks import fault_of, name_of, said
from oyez.simulation.invariants import Invariants
from oyez.simulation.loop import NotSimulated, SimLoop, Stuck, actor
from oyez.simulation.outside import Calls, Outside, Proxy
from oyez.simulation.sim import Sim
from oyez.simulation.stage import Plan
from oyez.simulation.store import Database, SimStore, Template
from oyez.simulation.tape import Choices, Tape
from oyez.simulation.variables import Globals
from oyez.simulation.world import (
    BUSY,
    CRASHES,
    START,
    Node,
    Profile,
    SimAmbient,
    Told,
    World,
)
from oyez.testing.inline import Inline

T = TypeVar("T")

PARTITIONS = 2
"""Of each stream: the least at which partitions overtake one another."""
STEPS = 400_000
"""Steps of the loop after which a run is given up."""
SCENARIO = 3_600.0
"""Virtual seconds that a scenario may take."""


class Result(msgspec.Struct, kw_only=True):
    """How a run has ended."""

    seed: int
    failures: list[str]
    """What did not hold; empty if all did."""
    story: list[Told]
    tape: Tape
    reached: set[str]
    expected: set[str]
    """The names of what must be reached by some seed."""
    steps: int
    virtual: float
    """Virtual seconds."""
    trace: str
    """A digest of all that happened, which is the same for a run that is repeated."""


class Fate(msgspec.Struct):
    """What a seed, or a tape of it, decides before a run begins."""

    seed: int
    choices: Choices
    faults: Profile
    priorities: bool
    """Whether nodes go by priority rather than by equal chances."""

    @classmethod
    def of(cls, plan: Plan, seed: int, given: Mapping[str, Sequence[int]] | None = None) -> Fate:
        """Return the fate of a seed; ``given`` is a tape to repeat."""
        choices = Choices(seed, given)
        faults = Profile.drawn(choices, plan.faults, _brokers(plan))
        return cls(seed, choices, faults, choices.draw(3, "mode") == 1)

    @property
    def kind(self) -> Kind:
        """The kind of broker."""
        return KINDS[self.faults.broker]


def _brokers(plan: Plan) -> list[str]:
    """Return the kinds of brokers that the services can run on: views need the history."""
    history = any(each.views for each in plan.services)
    found = [name for name in plan.brokers if KINDS[name].history or not history]
    if not found:
        raise ConfigurationError(
            f"views need a broker that keeps history, unlike {', '.join(plan.brokers)}"
        )
    return found


class Run:
    """A run: begun once, and gone through with the fate of one seed."""

    def __init__(self, plan: Plan, kind: Kind) -> None:
        """Nothing is started. ``kind`` is that of the broker, as far as its history goes."""
        self.plan = plan
        self.seed = 0
        self.choices = Choices(0, {})
        self.loop = loop = SimLoop()
        self.world = World(loop)
        self.ambient = SimAmbient(self.world, None)
        self.log = Log(self.ambient, partitions=PARTITIONS, kind=kind)
        for each in plan.services:
            if each.publishes:  # or each would ring at each replica that starts
                self.log.add(f"{plan.system}.{each.name}")
        self.databases = {
            each.name: Database(each.name, _templates.get(id(each)), self.world)
            for each in plan.services
        }
        self.calls = Calls()
        self.fakes: dict[type, Any] = {}
        self.nodes: dict[str, Node] = {}
        """The present life of each replica, by its name."""
        self.sim = Sim(self)
        self.invariants = Invariants(self, self.sim.allowed, self.sim.always_checks)
        self._begun: set[str] = set()
        self._broken = ""
        """Why a replica can't start, although nothing goes wrong."""
        self._bound = {
            each.name: cast(ServiceProcess, _Bound(self, each.name)) for each in plan.services
        }
        self._variables = Globals([plan.root.resolve()], plan.leave)
        loop.set_exception_handler(lambda loop, context: None)
        self.world.died = self._revive

    def begin(self) -> None:
        """Start all replicas, with nothing going wrong: the same for each seed."""
        with _virtual(self):
            self._through(self._start_all)

    def pause(self) -> bool:
        """Put it aside until `go`, so that others can run before; return whether it can be."""
        changed = bool(self._variables.changed())
        paused = [database.pause() for database in self.databases.values()]
        self._leave()
        return all(paused) and not changed and not self.invariants.failures

    def go(self, fate: Fate) -> Result:
        """Run, and judge. Raises nothing that the services do."""
        for database in self.databases.values():
            database.resume()
        for service in self.plan.services:
            service.attach(self._bound[service.name])
        self._follow(fate)
        with _virtual(self):
            if not self.invariants.failures:
                self._through(self._main)
            self.invariants.at_end(self._variables)
        self._leave()
        return Result(
            seed=self.seed,
            failures=list(dict.fromkeys(self.invariants.failures)),
            story=self.world.story,
            tape=dict(self.choices.tape),
            reached=self.sim.reached,
            expected=set(self.sim.sometimes_checks),
            steps=self.loop.steps,
            virtual=self.loop.time(),
            trace=hashlib.sha256(
                "\n".join(f"{t.time:.6f} {t.node} {t.what}" for t in self.world.story).encode()
            ).hexdigest(),
        )

    def close(self) -> None:
        """Drop what the nodes have left: it is ended as by a process that ends."""
        hook = sys.unraisablehook
        sys.unraisablehook = lambda told: None  # some of it waits while it is closed
        asyncio._set_running_loop(self.loop)  # some of it asks for the loop
        try:
            with _virtual(self):
                while self.loop.tasks:
                    task = self.loop.tasks.pop()
                    if not task.done():
                        with contextlib.suppress(BaseException):
                            task.get_coro().close()
        finally:
            asyncio._set_running_loop(None)
            self.loop.close()
            sys.unraisablehook = hook
            self._leave()

    def _through(self, phase: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self.loop.run_until_complete(phase())
        except (Stuck, NotSimulated) as error:
            self.invariants.failures.append(str(error))

    def _follow(self, fate: Fate) -> None:
        """Let the fate decide from now on."""
        world = self.world
        self.seed = world.seed = fate.seed
        self.choices = world.choices = fate.choices
        world.faults = fate.faults
        self.log.kind = fate.kind
        self.loop.choose(fate.choices, priorities=fate.priorities)
        self.ambient.begin(fate.seed)
        self.sim.random.seed(fate.seed)
        for node in self.nodes.values():
            node.ambient.begin(fate.seed)
        for cls, value in self.plan.provide.items():
            self.fakes[cls] = value.make() if isinstance(value, Outside) else value

    def _leave(self) -> None:
        """Leave the services and the variables as they were."""
        for service in self.plan.services:
            service.detach(self._bound[service.name])
        self._variables.restore()

    # -- for the scenario --------------------------------------------------------------------------

    def publish(self, record: Record) -> None:
        """Append a record that comes from outside."""
        self.log.append([record])
        self.world.tell("outside", f"publish {record.headers['type']} {record.key or ''}".rstrip())
        self.world.moved = self.loop.time()

    def serving(self, service: str) -> Node | None:
        """Return one of the replicas that answer requests; None if there is none."""
        alive = [
            node
            for node in self.nodes.values()
            if node.service == service and not node.dead and node.name in self._begun
        ]
        if not alive:
            return None
        return alive[self.choices.draw(len(alive), "replica") if len(alive) > 1 else 0]

    async def within(
        self, node: Node, work: Coroutine[Any, Any, T], lost: Callable[[], Exception]
    ) -> T:
        """Return the result of work on a node; raise ``lost`` if that dies meanwhile."""
        answer: asyncio.Future[T] = self.loop.create_future()

        def died() -> None:
            if not answer.done():
                answer.set_exception(lost())

        def done(task: asyncio.Task[T]) -> None:
            if answer.done():
                return
            error = task.exception()
            if error is None:
                answer.set_result(task.result())
            else:
                answer.set_exception(error)

        node.on_death.append(died)
        node.run(work).add_done_callback(done, context=self.world.context)
        return await answer

    # -- the phases --------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        for service in self.plan.services:
            for number in range(1, self.plan.replicas + 1):
                self._start(service, f"{service.name}#{number}", 1)
        while len(self._begun) < len(self.nodes):
            await asyncio.sleep(0.01)
            self._check_steps()
        await asyncio.sleep(0.1)

    async def _main(self) -> None:
        world, sim = self.world, self.sim
        world.faulty = True
        chaos = self.loop.create_task(self._chaos(), context=world.context)
        failed = ""
        try:
            async with asyncio.timeout(SCENARIO):
                await self.plan.scenario(sim)
                await asyncio.sleep(0.25 * 4 ** self.choices.draw(4, "faults for"))
        except NotSimulated:
            raise
        except TimeoutError:
            failed = f"the scenario did not end within {SCENARIO:.0f} virtual seconds"
        except Exception as error:  # noqa: BLE001 - a scenario may raise anything
            failed = f"the scenario raised {said(error)}"
        if failed:
            self.invariants.failures.append(failed)
        chaos.cancel()
        world.faulty = False
        world.tell("everyone", "nothing goes wrong any more", fault=True)
        self.log.set_down(False)
        world.wake()
        await self._settle()

    async def _chaos(self) -> None:
        """Let nodes die at any time, and stop in order, as long as anything goes wrong."""
        world, choices = self.world, self.choices
        while True:
            await asyncio.sleep(0.05 * 2 ** choices.draw(9, "chaos"))
            fate = choices.pick((world.faults.crash * 5, world.faults.crash * 3), "chaos fate")
            alive = [node for node in self.nodes.values() if not node.dead]
            if not fate or not alive or world.crashes >= CRASHES:
                continue
            node = alive[choices.draw(len(alive), "chaos")]
            if fate == 1:
                world.crash(node, "crashed")
            elif node.name in self._begun:
                self._stop_in_order(node)

    def _stop_in_order(self, node: Node) -> None:
        """Let a replica drain, and end as a process does after it, also if no fault follows."""
        world, process = self.world, node.process
        assert process is not None
        if process.draining:
            return

        def drained(task: asyncio.Task[None]) -> None:
            error = task.exception()
            if isinstance(error, Exception):
                self._broken = f"{node.name} does not stop: {said(error)}"
            elif not node.dead:
                node.die()
                world.shake(node.service)
                self._revive(node)

        world.crashes += 1
        world.tell(node.name, "is stopped in order", fault=True)
        node.run(process.drain()).add_done_callback(drained, context=world.context)

    async def _settle(self) -> None:
        loop, world, sim = self.loop, self.world, self.sim
        healed = loop.time()
        eventual = list(sim.eventual_checks)
        pause = 0.5
        while True:
            await asyncio.sleep(pause)
            self._check_steps()
            since = loop.time() - healed
            for each in list(eventual):
                if await fault_of(each[1]) == "":
                    eventual.remove(each)
                elif since >= each[0]:
                    eventual.remove(each)
                    self.invariants.failures.append(
                        f"{name_of(each[1])} does not hold {each[0]:g} s after the last fault"
                    )
            if loop.time() - world.moved < BUSY:
                pause = 0.5
                continue
            busy, later = self.invariants.busy()
            if not busy and not later and not eventual and self._all_run():
                break
            if since > sim.patience:
                if busy:
                    self.invariants.failures.append(
                        f"not settled {sim.patience:g} s after the last fault: {busy}"
                    )
                break
            pause = min(pause * 2, 60.0)
        if not self.invariants.failures:
            self.invariants.at_rest()
            for check in sim.rest_checks:
                if why := await fault_of(check):
                    self.invariants.failures.append(why)
            for name, check in sim.sometimes_checks.items():
                if await fault_of(check) == "":
                    sim.reached.add(name)

    def _check_steps(self) -> None:
        if self._broken:
            raise Stuck(self._broken)
        if self.loop.steps > STEPS:
            raise Stuck(f"more than {STEPS} steps: something goes round in circles")

    # -- nodes -------------------------------------------------------------------------------------

    def _all_run(self) -> bool:
        """Whether all replicas have started, and none is about to end."""
        return len(self._begun) >= len(self.nodes) and not any(
            node.process is not None and node.process.draining for node in self.nodes.values()
        )

    def _start(self, service: Service, name: str, life: int) -> None:
        node = self.nodes[name] = Node(self.world, service.name, name, life)
        self._begun.discard(name)

        def booted(task: asyncio.Task[None]) -> None:
            error = task.exception()
            if isinstance(error, Exception):
                self._broken = f"{name} does not start: {said(error)}"

        node.run(self._boot(service, node)).add_done_callback(booted, context=self.world.context)

    async def _boot(self, service: Service, node: Node) -> None:
        plan, database = self.plan, self.databases[service.name]
        database.committed = self.invariants.committed
        provide = {
            cls: Proxy(node, partial(self.fakes.__getitem__, cls), value, self.calls)
            if isinstance(value, Outside)
            else value
            for cls, value in plan.provide.items()
        }
        group = f"{plan.system}.{service.name}"
        node.process = process = ServiceProcess(
            service,
            ProcessSettings(system=plan.system, partitions=PARTITIONS, root=plan.root),
            broker=SimBroker(self.log, group, node),
            store=SimStore(database, node),
            ambient=node.ambient,
            signals=Signals(),
            provide=provide,
            threads=Inline(),
        )
        try:
            await process.start()
        except OyezError as error:
            if not self.world.faulty:
                raise
            self.world.tell(node.name, f"did not start: {error}")
            node.die()
            self._revive(node)
            return
        service.attach(self._bound[service.name])
        if id(service) not in _templates:
            _templates[id(service)] = Template(database.image(), database.migrated)
            _kept.append(service)
        self._begun.add(node.name)
        self.world.shake(service.name)

    def _revive(self, node: Node) -> None:
        """Start a replica again some time after its death."""
        self._begun.discard(node.name)
        service = next(each for each in self.plan.services if each.name == node.service)
        wait = 0.05 * 4 ** self.choices.draw(5, "restart")
        self._variables.restore()

        def again() -> None:
            self.world.tell(node.name, "starts again")
            self._start(service, node.name, node.life + 1)

        self.loop.call_later(wait, again, context=self.world.context)


class _Bound:
    """The process of whichever node asks, for a service that runs in several."""

    def __init__(self, run: Run, service: str) -> None:
        self._run = run
        self._service = service

    def __getattr__(self, name: str) -> Any:
        node = actor.get()
        if not isinstance(node, Node) or node.service != self._service:
            node = self._run.serving(self._service)
        if node is None:
            raise OyezError(f"no replica of {self._service} runs")
        return getattr(node.process, name)


_templates: dict[int, Template] = {}
"""The new store of each service with its migrations made, so that each run begins with that."""
_kept: list[Service] = []
"""The services of these, so that no other one has the id of one of them."""


@contextlib.contextmanager
def _virtual(run: Run) -> Iterator[None]:
    """Give all code the run's clock, random numbers and process, in place of the machine's."""
    chance = random.Random(run.seed)  # noqa: S311 - repeatable on purpose
    state = random.getstate()
    loop, world = run.loop, run.world
    real = (time.time, time.time_ns, time.monotonic, time.sleep, os.urandom, os.getpid)

    def wall() -> float:
        return START + loop.time() + world.clock

    def blocking(seconds: float) -> None:
        raise NotSimulated("time.sleep stops the whole process: use asyncio.sleep")

    random.seed(run.seed)
    time.time = wall
    time.time_ns = lambda: int(wall() * 1e9)
    time.monotonic = loop.time
    time.sleep = blocking  # type: ignore[assignment]
    os.urandom = chance.randbytes
    os.getpid = lambda: 1
    try:
        yield
    finally:
        time.time, time.time_ns, time.monotonic, time.sleep, os.urandom, os.getpid = real
        random.setstate(state)


def run(
    plan: Plan,
    seed: int,
    given: Mapping[str, Sequence[int]] | None = None,
    *,
    closes: bool = True,
) -> Result:
    """Run one seed, or repeat a tape of it, and return how it ended.

    Without ``closes`` what the nodes have left is kept, for a process that ends soon.
    """
    if asyncio._get_running_loop() is not None:
        with ThreadPoolExecutor(1) as thread:  # a thread has one loop at a time
            return thread.submit(run, plan, seed, given).result()
    fate = Fate.of(plan, seed, given)
    if any(id(each) not in _templates for each in plan.services):
        for each in plan.services:
            _templates.pop(id(each), None)
        first = Run(plan, fate.kind)
        first.begin()  # makes the stores that all others begin with
        first.close()
    gc.disable()  # it would run at times of its own, and take a fifth of the time
    ahead = _ahead.get(fate.kind.history)
    begun = ahead.pop() if ahead and ahead[-1].plan is plan else Run(plan, fate.kind)
    try:
        if not begun.nodes:
            begun.begin()
        return begun.go(fate)
    finally:
        if closes:
            begun.close()
            gc.enable()
        else:
            _left.append(begun)
        for database in begun.databases.values():
            database.leave()


def begin_ahead(plan: Plan, count: int) -> None:
    """Begin runs for processes that are forked from this one: each has them as they are now.

    They have run a seed before, so the stores are there. ``count`` is the number of seeds that each
    process runs.
    """
    for history in {KINDS[name].history for name in _brokers(plan)}:
        ahead = _ahead[history] = []
        for _ in range(count if history else count // 2):
            begun = Run(plan, next(kind for kind in KINDS.values() if kind.history == history))
            begun.begin()
            if not begun.pause():
                begun.close()
                return
            ahead.append(begun)


def drop_ahead() -> None:
    """Drop the runs that have begun and were not used."""
    for ahead in _ahead.values():
        while ahead:
            ahead.pop().close()


_ahead: dict[bool, list[Run]] = {}
"""Runs that have begun, by whether their broker keeps history."""
_left: list[Run] = []
"""What must not be cleaned up: it would run what a process that died does not run."""
