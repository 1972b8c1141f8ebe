"""The referee: trials of a subject by its broker and by what it shows.

Each trial has names (keys) of its own, so that what one finds says nothing about another. A trial
ends with the first rule that it finds broken; the others go on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from oyez import brokers
from oyez.ambient import SystemAmbient
from oyez.envelope import STRUCTURED, Envelope, format_time, open_record
from oyez.errors import ConfigurationError, InvalidEvent, OyezError
from oyez.partitioning import partition_of
from oyez.ports import BEGINNING, Record
from oyez.testing.conformance.subject import Row, Shown, Subject, SubjectFailed
from oyez.testing.conformance.verdict import Judgement, Outcome, Verdict
from oyez.testing.proxy import Proxy
from oyez.wire import RULES, Level, vectors

PARTITIONS = 6
"""Of both streams: not the default, so that a subject that takes it for granted is found."""
TICK, TOCK = "conformance.tick", "conformance.tock"
TAKES_OVER = 15.0
"""Seconds in which another replica has all partitions of one that is dead or stands still."""
STOPS = 15.0
"""Seconds in which a process ends after SIGTERM."""
_WATCHED = 2.0
"""Seconds in which a replica that wakes up would store its old position."""
_GRACE = 0.4
"""Seconds in which a relay would send what it must not forget."""
_LOOK = 0.04
_GLANCE = 0.005
_AHEAD = 300
"""Events that a replica is behind when it wakes up."""
_SHOWN = 6
"""Examples that are told, at most."""
_PROXIED = ("nats", "redis", "amqp", "postgresql")
"""Schemes of brokers whose clients stay at the address that they are given."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the referee."""

    level: Level
    broker: str
    start: Sequence[str]
    """The command of the subject."""
    check: Sequence[str] = ()
    """The command that prints what it has; else by HTTP, or by its output."""
    seed: int = 0
    kills: int = 5
    """How often it is killed under load."""
    names: int = 12
    patience: float = 15.0
    """Seconds without progress after which what has not come is lost."""
    proxy: tuple[str, int, int] | None = None
    """Host and port of a server, and the port at which the proxy before it listens: for a broker
    that tells its clients where to connect."""


class Broken(Exception):
    """A rule is broken."""

    def __init__(self, rule: str, why: str) -> None:
        self.rule = rule
        self.why = why


class _NotTried(Exception):
    """A trial is not possible here, or looked at all of its rules but these."""

    def __init__(self, why: str, *rules: str) -> None:
        super().__init__(why)
        self.rules = rules


class _Trial(NamedTuple):
    name: str
    rules: tuple[str, ...]
    run: Callable[[], Awaitable[None]]


class Referee:
    """One run of a plan."""

    def __init__(self, plan: Plan, told: Callable[[str], None] = lambda line: None) -> None:
        """``told`` is called with each trial's name and time when it is over."""
        self._plan = plan
        self._told = told
        self._chance = random.Random(plan.seed)  # noqa: S311 - to be repeated, not secret
        self._ambient = SystemAmbient()
        self._system = f"conformance-{self._ambient.new_id()[-12:]}"
        self._in, self._out = f"{self._system}.clock", f"{self._system}.counter"
        self._proxy: Proxy | None = None
        self._next: dict[str, int] = {}
        self._sent: dict[tuple[str, int], Record] = {}
        self._tocks = _Tocks(f"/{self._system}/counter", self._sent)
        self._blamed: dict[str, Judgement] = {}
        self._covered: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._trial = ""

    async def judge(self) -> Verdict:
        """Run every trial of the level. Raises OyezError when the broker itself is out of reach."""
        began = time.monotonic()
        async with self._opened():
            for trial in self._trials():
                await self._try(trial)
        wanted = [rule for rule, each in RULES.items() if self._plan.level in each.levels]
        return Verdict(
            subject=" ".join(self._plan.start),
            level=self._plan.level,
            broker=self._plan.broker.partition(":")[0],
            seed=self._plan.seed,
            seconds=time.monotonic() - began,
            judgements=[self._judgement(rule) for rule in wanted],
        )

    def _judgement(self, rule: str) -> Judgement:
        if rule in self._blamed:
            return self._blamed[rule]
        if rule in self._covered:
            return Judgement(rule=rule, outcome=Outcome.KEPT, trial=self._covered[rule])
        why = self._skipped.get(rule, "no trial of this level looks at it")
        return Judgement(rule=rule, outcome=Outcome.NOT_TRIED, why=why)

    # -- the course of a run -----------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        plan = self._plan
        group = f"{self._system}.referee"
        root = Path.cwd()
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
            self._broker = brokers.connect(plan.broker, self._ambient, root=root, group=group)
            stack.push_async_callback(self._broker.close)
            await self._broker.open()
            for stream in (self._in, self._out):
                await self._broker.create(stream, PARTITIONS)
            data = folder / "data"
            data.mkdir()
            self._hold, self._fail = folder / "hold", folder / "fail"
            self._subject = Subject(
                plan.start,
                {
                    "CONFORMANCE_LEVEL": plan.level,
                    "CONFORMANCE_BROKER": await self._way(stack),
                    "CONFORMANCE_SYSTEM": self._system,
                    "CONFORMANCE_IN": self._in,
                    "CONFORMANCE_OUT": self._out,
                    "CONFORMANCE_PARTITIONS": str(PARTITIONS),
                    "CONFORMANCE_GROUP": self._out,
                    "CONFORMANCE_SOURCE": f"/{self._system}/counter",
                    "CONFORMANCE_DATA": str(data),
                    "CONFORMANCE_HOLD": str(self._hold),
                    "CONFORMANCE_FAIL": str(self._fail),
                },
                folder,
                check=plan.check,
                by_output=plan.level is not Level.SERVICE,
            )
            stack.callback(self._subject.close)
            readers = [asyncio.create_task(self._hear(number)) for number in range(PARTITIONS)]
            stack.push_async_callback(_cancel, readers)
            yield

    async def _way(self, stack: AsyncExitStack) -> str:
        """The URL of the broker for the subject: by the proxy, where there can be one."""
        url, given = self._plan.broker, self._plan.proxy
        parts = urlsplit(url)
        if given is not None:
            host, port, listen = given
            proxy = Proxy(host, port, listen=listen)
        elif parts.scheme in _PROXIED and parts.hostname and parts.port:
            proxy = Proxy(parts.hostname, parts.port)
        else:
            name, colon, path = url.partition(":")
            return f"{name}:{Path(path).resolve()}" if name == "embedded" and colon else url
        self._proxy = await stack.enter_async_context(proxy)
        return proxy.through(url)

    async def _hear(self, partition: int) -> None:
        async for batch in self._broker.read(self._out, partition, BEGINNING):
            for record in batch.records:
                self._tocks.hear(record)
            self._broker.handled(self._out, partition, batch.records[-1].position)

    async def _try(self, trial: _Trial) -> None:
        self._trial, began = trial.name, time.monotonic()
        try:
            if self._plan.level is not Level.PRODUCER and not self._subject.runs:
                await self._subject.start()
            await trial.run()
        except Broken as broken:
            self._blame(broken.rule, broken.why)
        except SubjectFailed as failed:
            self._blame(trial.rules[0], str(failed))
        except _NotTried as reason:
            untried = reason.rules or trial.rules
            self._skip(untried, str(reason))
            self._cover(trial, untried)
        else:
            self._cover(trial)
        finally:
            self._hold.unlink(missing_ok=True)
            self._fail.unlink(missing_ok=True)
        self._skip(trial.rules, f"the trial {trial.name!r} ended before")
        for rule, why in self._tocks.blamed.items():
            self._blame(rule, why)
        self._told(f"{trial.name}, {time.monotonic() - began:.1f} s")

    def _skip(self, rules: Iterable[str], why: str) -> None:
        for rule in rules:
            self._skipped.setdefault(rule, why)

    def _cover(self, trial: _Trial, untried: Sequence[str] = ()) -> None:
        for rule in trial.rules:
            if rule not in untried:
                self._covered.setdefault(rule, trial.name)

    def _blame(self, rule: str, why: str) -> None:
        judgement = Judgement(
            rule=rule, outcome=Outcome.BROKEN, trial=self._trial, why=f"{self._trial}: {why}"
        )
        self._blamed.setdefault(rule, judgement)

    def _trials(self) -> list[_Trial]:
        event = ("W1", "W2", "W3", "W4", "W5", "W6", "W8", "W9")
        if self._plan.level is Level.PRODUCER:
            return [
                _Trial("announces", (*event, "W7", "W11", "W13"), self._announces),
                _Trial("announces through a cut", ("W12", "W13"), self._announces_through_a_cut),
            ]
        reads = [
            _Trial("reads", ("W14", "W15", "W2", "W5", "W6", "W8", "W19"), self._reads),
            _Trial("commands", ("W20",), self._commands),
            _Trial("refuses", ("W16", "W1", "W2", "W3", "W4", "W8", "W9", "W17", "W18"),
                   self._refuses),
        ]  # fmt: skip
        if self._plan.level is Level.CONSUMER:
            return [
                *reads,
                _Trial("killed in a handler", ("W14",), self._killed_in_a_handler),
                _Trial("killed under load", ("W14", "W15"), self._killed_under_load),
                _Trial("cut", ("W14", "W15"), self._cut),
            ]
        written = ("W7", "W10", "W11", "W13")
        return [
            *reads,
            _Trial("announces", (*written, "W25", "W26", "W3", "W4", "W9"), self._reads),
            _Trial("copies", ("W24", "W5"), self._copies),
            _Trial("parks", ("W28",), self._parks),
            _Trial("killed in a handler", ("W21", "W23", "W25"), self._killed_in_a_handler),
            _Trial("killed under load", ("W21", "W23", "W25", "W26", "W27"),
                   self._killed_under_load),
            _Trial("cut", ("W12", "W21", "W26"), self._cut),
            _Trial("killed while cut off", ("W27", "W12"), self._killed_while_cut_off),
            _Trial("two replicas", ("W22", "W29"), self._two_replicas),
            _Trial("stops", ("W30",), self._stops),
        ]  # fmt: skip

    # -- trials of readers -------------------------------------------------------------------------

    async def _reads(self) -> None:
        """Ticks in both modes, keys of all kinds, some told by partitionkey, orders mixed."""
        texts = [each["key"] for each in vectors("keys") if each["key"].strip()]
        names = [*self._names("r"), *(f"{text} {self._trial}" for text in texts)]
        records = []
        for number in range(4):
            for index, name in enumerate(names):
                mode = "structured" if (number + index) % 2 else "binary"
                more = {"region": "eu", "correlationid": f"c-{index}-{number}"}
                if index % 3 == 0:
                    more |= {"partitionkey": name, "subject": f"order-{index}"}
                records.append(self._tick(name, mode=mode, **more))
        stranger = self._event(f"stranger-{self._trial}", "conformance.other", b'{"any":[1]}')
        await self._publish([stranger, *self._mixed(records)])
        await self._settle(names, doubled="W24", lost="W14", order="W15")

    async def _commands(self) -> None:
        (name,) = self._names("command", 1)
        data = self._data(name, 1)
        away = self._event(f"{name}-away", TICK, data, subject=name, recipient="another")
        late = self._event(
            f"{name}-late", TICK, data, subject=name, recipient="counter",
            expires="2020-01-01T00:00:00Z",
        )  # fmt: skip
        ours = self._tick(name, recipient="counter", expires="2999-01-01T00:00:00Z")
        await self._publish([away, late, ours])
        await self._settle([name], doubled="W20", lost="W20", order="W20")

    async def _refuses(self) -> None:
        """The vectors of bad events, and good ones behind them on the same partitions."""
        scheme = self._plan.broker.partition(":")[0]
        bad = {
            each["name"]: each
            for each in vectors("refused")
            if scheme in each.get("brokers", (scheme,))
        }
        records = {name: self._bad(each) for name, each in bad.items()}
        names = [*self._names("beside"), "bad"]
        await self._publish([*records.values(), *(self._tick(name) for name in names)])
        await self._settle(names, doubled="W24", lost="W16", order="W16")

        missing = dict(bad)

        async def kept() -> bool:
            shown = await self._look()
            for row in shown.rows:
                if row.name.startswith("bad-"):
                    each = bad.get(row.name[4:])
                    raise Broken(
                        "W16" if each is None else each["rule"],
                        f"{row.name!r} was handled; it is to be refused",
                    )
            for name, each in list(missing.items()):
                if _keeps(shown, each, records[name]):
                    del missing[name]
            return not missing

        if not await self._until(kept):
            raise Broken("W17", f"refused, and not kept: {_some(missing)}")

    async def _copies(self) -> None:
        """An event sent again, to another partition too; and others with its id, or its source."""
        names = self._names("copied")
        records = [self._tick(name) for name in names]
        strangers = []
        for name, record in zip(names, records, strict=True):
            other = self._tick(name)
            headers = {**other.headers, "id": record.headers["id"], "source": "/conformance/other"}
            strangers.append(self._resent(name, msgspec.structs.replace(other, headers=headers)))
        await self._publish([*records, *self._mixed(records)])
        await self._publish(records)
        await self._publish([msgspec.structs.replace(each, key="elsewhere") for each in records])
        await self._publish(strangers)
        await self._publish([self._tick(name) for name in names])
        await self._settle(names, doubled="W24", lost="W24", order="W15")

    async def _parks(self) -> None:
        """While an event fails, its key waits and the others of its partition go on."""
        self._fail.touch()
        place = partition_of("poison", PARTITIONS)
        beside = [
            name for name in self._names("beside-poison", 40)
            if partition_of(name, PARTITIONS) == place
        ][:3]  # fmt: skip
        for _ in range(3):
            await self._publish([self._tick("poison"), *(self._tick(name) for name in beside)])
        await self._settle(beside, doubled="W28", lost="W28", order="W28")
        await asyncio.sleep(_GRACE)
        early = [row.number for row in (await self._look()).rows if row.name == "poison"]
        if early:
            raise Broken("W28", f"poison {early} handled, while poison 1 fails")
        self._fail.unlink()
        await self._settle(["poison"], doubled="W28", lost="W28", order="W28")

    # -- trials of what survives -------------------------------------------------------------------

    async def _killed_in_a_handler(self) -> None:
        """``kill -9`` between reading an event and the commit of its effects."""
        await self._held(self._subject.start)
        self._subject.kill()
        if self._next["slow"] in self._tocks.numbers("slow"):
            raise Broken("W25", f"the tock of slow {self._next['slow']} came before its row")
        self._hold.unlink()
        await self._subject.start()
        await self._publish([self._tick("slow")])
        await self._settle(["slow"], doubled="W23", lost="", order="W15")

    async def _killed_under_load(self) -> None:
        """``kill -9`` at drawn moments, while ticks arrive and tocks leave."""
        names = self._names("killed")
        batch = 4 * len(names)
        for _ in range(self._plan.kills):
            before = self._tocks.count
            await self._publish(self._mixed([self._tick(name) for name in names for _ in range(4)]))
            wanted = before + self._chance.randrange(1, batch)
            rows = len((await self._look()).rows) + self._chance.randrange(1, batch)

            async def reached(wanted: int = wanted, rows: int = rows) -> bool:
                if self._plan.level is Level.SERVICE:
                    return self._tocks.count >= wanted
                return len((await self._look()).rows) >= rows

            await self._until(reached)
            await asyncio.sleep(self._chance.random() * 0.02)
            self._subject.kill()
            await self._subject.start()
        await self._publish([self._tick(name) for name in names])
        await self._settle(names, doubled="W23", lost="", order="W15")

    async def _cut(self) -> None:
        """The connection breaks, and comes back."""
        proxy = self._cutter()
        self._keeps_what_it_holds()
        names = self._names("cut")
        for _ in range(2):
            await self._publish([self._tick(name) for name in names for _ in range(3)])
            proxy.cut()
            await asyncio.sleep(_GRACE)
            await self._publish([self._tick(name) for name in names])
            proxy.restore()
        lost = "W14" if self._plan.level is Level.CONSUMER else "W12"
        await self._settle(names, doubled="W23", lost=lost, order="W15")

    async def _killed_while_cut_off(self) -> None:
        """What was committed is announced later, though no byte of it reached the broker."""
        proxy = self._cutter()
        self._keeps_what_it_holds()
        await self._held(self._subject.start)
        number = self._next["slow"]
        proxy.stall()
        try:
            self._hold.unlink()

            async def written() -> bool:
                return Row("slow", number) in (await self._look()).rows

            if not await self._until(written):
                raise Broken("W25", f"slow {number} is not committed while the broker is away")
            await asyncio.sleep(_GRACE)
            self._subject.kill()
            proxy.cut()  # with the bytes that it holds: they would speak for a dead process
        finally:
            proxy.restore()
        await self._subject.start()
        await self._settle(["slow"], doubled="W23", lost="", order="W15")

    async def _two_replicas(self) -> None:
        """One stands still in a handler, another takes over, and the first wakes up."""
        self._keeps_what_it_holds()
        await self._held(self._subject.start)
        started = Path(f"{self._hold}.started")
        self._subject.send(signal.SIGSTOP)
        try:
            started.unlink()
            await self._subject.start(2)
            if not await self._until(_exists(started), TAKES_OVER):
                raise Broken("W29", f"nobody takes over from it within {TAKES_OVER:.0f} s")
            self._hold.unlink()
            # So many that the first one, if it reads on from its old place, is seen on its way.
            await self._publish([self._tick("slow") for _ in range(_AHEAD)])
            await self._settle(["slow"], doubled="W22", lost="W29", order="W15", replica=2)
            before = (await self._look(2)).positions
        finally:
            self._subject.send(signal.SIGCONT)
        await self._watch(before)
        names = self._names("handed")
        await self._publish([self._tick(name) for name in names])
        await self._settle(names, doubled="W22", lost="W22", order="W22", replica=2)
        self._subject.kill(2)
        await self._publish([self._tick(name) for name in ("slow", *names)])
        await self._settle(
            ["slow", *names], doubled="W22", lost="W29", order="W22", seconds=TAKES_OVER
        )
        if not before:
            raise _NotTried("the subject shows no position: the broker has to guard it", "W22")

    async def _watch(self, before: Mapping[int, int]) -> None:
        """Look at positions while the first replica wakes up, and a while longer."""
        awake = asyncio.create_task(self._subject.shown())  # an answer, or none in time
        end: float | None = None
        try:
            while end is None or time.monotonic() < end:
                self._moved(before, (await self._look(2)).positions)
                if end is None and awake.done():
                    end = time.monotonic() + _WATCHED
                await asyncio.sleep(_GLANCE)
            await awake
        finally:
            awake.cancel()

    @staticmethod
    def _moved(before: Mapping[int, int], after: Mapping[int, int]) -> None:
        for partition, position in before.items():
            found = after.get(partition, position)
            if found < position:
                raise Broken(
                    "W22",
                    f"a replica that another had replaced woke up and set the position of "
                    f"partition {partition} from {position} back to {found}",
                )

    async def _stops(self) -> None:
        names = self._names("stopped")
        await self._publish([self._tick(name) for name in names for _ in range(4)])
        self._subject.send(signal.SIGTERM)
        code = await self._subject.stopped(STOPS)
        if code is None:
            self._subject.kill()
            raise Broken("W30", f"it goes on {STOPS:.0f} s after SIGTERM")
        if code != 0:
            raise Broken("W30", f"exit code {code} after SIGTERM")
        await self._subject.start()
        await self._settle(names, doubled="W30", lost="W30", order="W30")

    async def _held(self, start: Callable[[], Awaitable[None]]) -> None:
        """Return when the handler holds the next tick of `slow`."""
        started = Path(f"{self._hold}.started")
        started.unlink(missing_ok=True)
        self._hold.touch()
        await self._publish([self._tick("slow")])
        if not await self._until(_exists(started)):
            raise Broken("W14", "the counter does not hold the tick slow; see the page on the kit")

    def _keeps_what_it_holds(self) -> None:
        """What loses an event in a handler would break every rule of a trial that begins so."""
        found = self._blamed.keys() & {"W21", "W23"}
        if found:
            raise _NotTried(f"an event in a handler is lost: mend {', '.join(sorted(found))} first")

    def _cutter(self) -> Proxy:
        if self._proxy is None:
            raise _NotTried(
                "the connection can't be cut: the broker tells its clients where to connect, or "
                "has none; give --proxy"
            )
        return self._proxy

    # -- trials of producers -----------------------------------------------------------------------

    async def _announces(self) -> None:
        texts = [each["key"] for each in vectors("keys") if each["key"].strip()]
        names = [*self._names("p"), *texts]
        self._subject.launch(stdin=subprocess.PIPE)
        self._feed([(name, number) for number in range(1, 5) for name in names])
        await self._fed(names, 4)

    async def _announces_through_a_cut(self) -> None:
        proxy = self._cutter()
        names = self._names("p-cut")
        self._subject.launch(stdin=subprocess.PIPE)
        self._feed([(name, number) for number in range(1, 4) for name in names], close=False)

        async def connected() -> bool:
            return bool(self._tocks.numbers(names[0]))

        if not await self._until(connected):
            raise Broken("W12", "it sends nothing before the end of its input")
        proxy.cut()
        await asyncio.sleep(_GRACE)
        self._feed([(name, number) for number in range(4, 7) for name in names], close=False)
        proxy.restore()
        self._feed([(name, number) for number in range(7, 10) for name in names])
        await self._fed(names, 9)

    def _feed(self, ticks: Iterable[tuple[str, int]], *, close: bool = True) -> None:
        pipe = self._subject.process().stdin
        assert pipe is not None
        try:
            for name, number in ticks:
                pipe.write(self._data(name, number) + b"\n")
            pipe.flush()
            if close:
                pipe.close()
        except BrokenPipeError as error:
            raise Broken("W12", "it ends before the end of its input") from error

    async def _fed(self, names: Sequence[str], count: int) -> None:
        code = await self._subject.stopped(2 * self._plan.patience)
        if code is None:
            self._subject.kill()
        if code != 0:
            raise Broken("W12", "it does not end" if code is None else f"its exit code is {code}")
        for name in names:
            self._next[name] = count
        await self._announced(names, lost="W12", order="W13")

    # -- what was sent, and what came of it --------------------------------------------------------

    def _names(self, what: str, count: int = 0) -> list[str]:
        return [f"{what}-{number}" for number in range(count or self._plan.names)]

    @staticmethod
    def _data(name: str, number: int) -> bytes:
        return json.dumps({"name": name, "number": number}, ensure_ascii=False).encode()

    def _tick(self, name: str, *, mode: str = "binary", **attributes: str) -> Record:
        """The next tick of a name."""
        number = self._next[name] = self._next.get(name, 0) + 1
        attributes.setdefault("subject", name)
        id_ = f"tick-{len(self._sent)}"
        record = self._event(id_, TICK, self._data(name, number), mode, **attributes)
        self._sent[name, number] = record
        return record

    def _resent(self, name: str, record: Record) -> Record:
        """The record, as the newest tick of its name."""
        self._sent[name, self._next[name]] = record
        return record

    def _event(
        self, id_: str, kind: str, data: bytes, mode: str = "binary", **attributes: Any
    ) -> Record:
        extensions = {"region": attributes.pop("region")} if "region" in attributes else {}
        event = Envelope(
            id=id_,
            source=f"/{self._system}/clock",
            type=kind,
            data=data,
            time=format_time(self._ambient.now()),
            extensions=extensions,
            **attributes,
        )
        if mode == "structured":
            headers, data = {"datacontenttype": STRUCTURED}, event.structured()
        else:
            headers = event.headers()
        return Record(stream=self._in, key=event.key, headers=headers, data=data)

    def _bad(self, vector: Mapping[str, Any]) -> Record:
        return Record(
            stream=self._in,
            key=vector["key"],
            headers=vector["headers"],
            data=_bytes(vector),
        )

    def _mixed(self, records: Sequence[Record]) -> list[Record]:
        """The records in a drawn order that keeps that of each key."""
        by_key: dict[str | None, list[Record]] = {}
        for record in records:
            by_key.setdefault(record.key, []).append(record)
        keys = [record.key for record in records]
        self._chance.shuffle(keys)
        turns = {key: iter(found) for key, found in by_key.items()}
        return [next(turns[key]) for key in keys]

    async def _publish(self, records: Sequence[Record]) -> None:
        await self._broker.publish(records)

    async def _look(self, replica: int = 1) -> Shown:
        """What the subject shows, as soon as it can be read."""
        end = time.monotonic() + self._plan.patience
        while True:
            shown = await self._subject.shown(replica)
            if shown is not None:
                return shown
            self._subject.alive()
            if time.monotonic() > end:
                raise SubjectFailed(f"GET /rows has no answer in {self._plan.patience:.0f} s")
            await asyncio.sleep(_LOOK)

    async def _until(
        self, condition: Callable[[], Awaitable[bool]], seconds: float | None = None
    ) -> bool:
        """Whether the condition holds in time."""
        end = time.monotonic() + (self._plan.patience if seconds is None else seconds)
        while not await condition():
            self._subject.alive()
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def _settle(
        self,
        names: Sequence[str],
        *,
        doubled: str,
        lost: str,
        order: str,
        replica: int = 1,
        seconds: float | None = None,
    ) -> None:
        """Return when each tick of the names has its row once and in order, and its tock.

        Raises Broken with the rule given for what is doubled, lost or out of order; with an empty
        ``lost``, by what becomes of a copy that is sent then.
        """
        if self._plan.level is Level.CONSUMER:
            doubled, order = "", order if order in ("W15", "W16", "W20") else "W15"
            lost = lost if lost in ("W16", "W20") else "W14"
        wanted = {name: list(range(1, self._next[name] + 1)) for name in names}
        patience = self._plan.patience if seconds is None else seconds
        best, since = -1, time.monotonic()
        while True:
            found = self._rows(await self._look(replica), names, doubled)
            if all(set(found[name]) == set(wanted[name]) for name in names):
                break
            count = sum(map(len, found.values()))
            if count > best:
                best, since = count, time.monotonic()
            self._subject.alive()
            if time.monotonic() - since > patience:
                absent = {
                    (name, number)
                    for name in names
                    for number in wanted[name]
                    if number not in found[name]
                }
                await self._lost(absent, lost, replica)
            await asyncio.sleep(_LOOK)
        for name, numbers in found.items():
            if numbers != wanted[name]:
                raise Broken(order, f"{name}: rows in the order {_some(numbers)}")
        if self._plan.level is Level.SERVICE:
            await self._announced(names, lost="W27", order="W26")

    def _rows(self, shown: Shown, names: Sequence[str], doubled: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {name: [] for name in names}
        for row in shown.rows:
            numbers = found.get(row.name)
            if numbers is None:
                continue
            if row.number not in numbers:
                numbers.append(row.number)
            elif doubled:
                raise Broken(doubled, f"{row.name} {row.number} has two rows")
        return found

    async def _lost(self, absent: set[tuple[str, int]], rule: str, replica: int) -> None:
        """Raise Broken for ticks without a row."""
        told = f"no row of {_some(f'{name} {number}' for name, number in sorted(absent))}"
        if rule:
            raise Broken(rule, told)
        copies = [self._sent[each] for each in sorted(absent)]
        await self._publish(copies)

        async def handled() -> bool:
            rows = {(row.name, row.number) for row in (await self._look(replica)).rows}
            return not absent.isdisjoint(rows)

        if await self._until(handled):
            raise Broken("W21", f"{told}, until it was sent again: its position was committed")
        raise Broken("W23", f"{told}, though it was sent again: its inbox row was committed")

    async def _announced(self, names: Sequence[str], *, lost: str, order: str) -> None:
        """Return when each row of the names has its tock. Raises Broken."""
        wanted = {name: list(range(1, self._next[name] + 1)) for name in names}

        def absent() -> list[str]:
            return [
                f"{name} {number}"
                for name in names
                for number in wanted[name]
                if number not in self._tocks.numbers(name)
            ]

        best, since = -1, time.monotonic()
        while missing := absent():
            if self._plan.level is not Level.PRODUCER:
                self._subject.alive()
            if self._tocks.count > best:
                best, since = self._tocks.count, time.monotonic()
            if time.monotonic() - since > self._plan.patience:
                raise Broken(lost, f"no tock of {_some(missing)}, though its row is committed")
            await asyncio.sleep(_LOOK)
        for name in names:
            numbers = self._tocks.numbers(name)
            if numbers != wanted[name]:
                raise Broken(order, f"{name}: tocks in the order {_some(numbers)}")


class _Tocks:
    """What the subject announced, each judged by itself when it comes."""

    def __init__(self, source: str, sent: Mapping[tuple[str, int], Record]) -> None:
        self.count = 0
        """Of different tocks."""
        self.blamed: dict[str, str] = {}
        """What is wrong with one of them, by rule."""
        self._source = source
        self._sent = sent
        self._heard: dict[tuple[str, int], tuple[str, bytes]] = {}
        self._ids: dict[str, tuple[str, int]] = {}
        self._numbers: dict[str, list[int]] = {}

    def numbers(self, name: str) -> list[int]:
        """Of a name's tocks, in the order in which each first came."""
        return self._numbers.get(name, [])

    def hear(self, record: Record) -> None:
        """Take in a record of the stream of tocks."""
        try:
            event = open_record(record.headers, record.data)
        except InvalidEvent as error:
            rule = {"time": "W4", "$": "W2", "data": "W2", "data_base64": "W2"}.get(error.field)
            known = ("id", "source", "type", "specversion")
            self._blame(rule or ("W1" if error.field in known else "W3"), f"a tock: {error}")
            return
        if event.type != TOCK:
            return  # a service may announce more than the counter does
        try:
            row = msgspec.json.decode(event.data, type=Row)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._blame("W8", f"the data of tock {event.id}: {error}")
            return
        self._judge(record, event, row)
        key = (row.name, row.number)
        known_as = self._heard.setdefault(key, (event.id, event.data))
        if known_as != (event.id, event.data):
            self._blame("W12", f"tock {row.name} {row.number} came twice, and not the same")
        if self._ids.setdefault(event.id, key) != key:
            self._blame("W5", f"two tocks have the id {event.id}")
        numbers = self._numbers.setdefault(row.name, [])
        if row.number not in numbers:
            numbers.append(row.number)
            self.count += 1

    def _judge(self, record: Record, event: Envelope, row: Row) -> None:
        told = f"tock {row.name} {row.number}"
        if event.source != self._source:
            self._blame("W11", f"{told} has source {event.source!r}, not {self._source!r}")
        if event.key != row.name:
            self._blame("W6", f"{told} has key {event.key!r}")
        elif record.partition != partition_of(row.name, PARTITIONS):
            right = partition_of(row.name, PARTITIONS)
            self._blame("W7", f"{told} is in partition {record.partition}, not {right}")
        if event.dataschema not in (None, f"urn:oyez:{TOCK}:1"):
            self._blame("W9", f"{told} has dataschema {event.dataschema!r}")
        tick = self._sent.get((row.name, row.number))
        if tick is None:
            return
        cause = open_record(tick.headers, tick.data)
        if event.causationid != cause.id:
            self._blame("W10", f"{told} has causationid {event.causationid!r}, not {cause.id!r}")
        correlation = cause.correlationid or cause.id
        if event.correlationid != correlation:
            self._blame(
                "W10", f"{told} has correlationid {event.correlationid!r}, not {correlation!r}"
            )

    def _blame(self, rule: str, why: str) -> None:
        self.blamed.setdefault(rule, why)


def _keeps(shown: Shown, vector: Mapping[str, Any], record: Record) -> bool:
    """Whether a bad event is kept. Raises Broken for one without its bytes or a reason."""
    headers = record.headers
    id_ = headers.get("id") or f"bad-{vector['name']}"
    for letter in shown.dead:
        data = letter.bytes()
        if letter.id != id_ and data != record.data:
            continue
        if data == record.data or (STRUCTURED in headers.values() and _inner(record) == data):
            if not letter.reason:
                raise Broken("W17", f"{id_!r} is kept without a reason")
            return True
        raise Broken("W17", f"{id_!r} is kept with {data!r}, not with {record.data!r}")
    return False


def _inner(record: Record) -> bytes | None:
    try:
        return open_record(record.headers, record.data).data
    except (InvalidEvent, OyezError):
        return None


def _bytes(vector: Mapping[str, Any]) -> bytes | None:
    """The data of a vector."""
    if "data_base64" in vector:
        return base64.b64decode(vector["data_base64"])
    data: str | None = vector["data"]
    return None if data is None else data.encode()


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return path.exists()

    return found


def _some(values: Iterable[object]) -> str:
    found = [str(value) for value in values]
    rest = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def proxy_of(text: str) -> tuple[str, int, int]:
    """Return what ``HOST:PORT=LISTEN`` says. Raises ConfigurationError."""
    server, equals, listen = text.partition("=")
    host, colon, port = server.rpartition(":")
    if not (host and equals and colon and port.isdigit() and listen.isdigit()):
        raise ConfigurationError(f"--proxy: expected HOST:PORT=PORT, found {text!r}")
    return host, int(port), int(listen)
