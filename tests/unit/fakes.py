"""A store and a broker in memory that fail, wait or refuse at the call that a test chooses.

`FakeStore` keeps what `oyez.ports.Changes` says in plain rows and answers each statement of
`oyez.tables` by the constant that names it. What a service writes itself is kept as it came, in
``written``; only `ITEM` is understood, as a table whose ids are unique. tests/unit/test_fakes.py
holds it to `oyez.testing.store_suite` and to `SqliteStore`.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from oyez import tables
from oyez.ambient import Ambient
from oyez.brokers.memory.broker import MemoryBroker
from oyez.errors import (
    ConstraintViolated,
    Fenced,
    StateConflict,
    StoreMissing,
    StoreRefused,
    Superseded,
)
from oyez.ports import (
    Announcement,
    Answer,
    Batch,
    Capabilities,
    Changes,
    Claim,
    DeadLetter,
    Finding,
    Kept,
    Parameters,
    Parked,
    Position,
    Record,
    Row,
    Writes,
)
from oyez.tables import Inbox, Letter, Outbox, halves, reserved

ITEM = "insert into item (id) values (:id)"
"""The one statement of a service that can break a constraint: each id only once."""
ONE = "select 1 as one"
"""A read that says nothing."""


class Hold:
    """A call that waits, from ``reached`` on, until ``release`` is set."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()


class Fault(msgspec.Struct):
    """What befalls some of the calls of one name."""

    call: str
    when: Callable[[Any], bool]
    error: BaseException | None
    hold: Hold | None
    times: int
    late: bool


class Faults:
    """What befalls the calls of a fake, in the order in which it was asked for."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def fail(
        self,
        call: str,
        error: BaseException,
        *,
        times: int = 1,
        late: bool = False,
        when: Callable[[Any], bool] = lambda subject: True,
    ) -> None:
        """Let the next ``times`` calls that ``when`` accepts raise; ``late``: after they worked.

        ``when`` is given what the call is about: changes, a statement, records.
        """
        self._faults.append(Fault(call, when, error, None, times, late))

    def hold(
        self, call: str, *, late: bool = False, when: Callable[[Any], bool] = lambda subject: True
    ) -> Hold:
        """Let the next call that ``when`` accepts wait; ``late``: after it worked."""
        hold = Hold()
        self._faults.append(Fault(call, when, None, hold, 1, late))
        return hold

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._faults.clear()

    async def meet(self, call: str, subject: Any, *, late: bool = False) -> None:
        """Wait or raise, if that was asked for."""
        for fault in self._faults:
            if fault.call == call and fault.late == late and fault.when(subject):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                if fault.hold is not None:
                    fault.hold.reached.set()
                    await fault.hold.release.wait()
                if fault.error is not None:
                    raise fault.error
                return


class Contents:
    """All rows of a store."""

    def __init__(self) -> None:
        self.inbox: list[Row] = []
        self.outbox: list[Row] = []
        self.cursors: list[Row] = []
        self.replicas: list[Row] = []
        self.dead: list[Row] = []
        self.state: dict[tuple[str, str], Kept] = {}
        self.marks: dict[str, str] = {}
        self.written: list[tuple[str, Parameters]] = []
        self.acts: list[Parameters] = []
        self.last = 0
        """The last number that a row was given."""

    def number(self) -> int:
        self.last += 1
        return self.last

    def cursor(self, stream: str, partition: int, reader: str) -> Row | None:
        place = (stream, partition, reader)
        return next((row for row in self.cursors if _place(row) == place), None)

    def owned(self, owner: str) -> list[Row]:
        """What is due, now or later, in the owner's partitions."""
        places = {_place(row) for row in self.cursors if row["owner"] == owner}
        return [row for row in self.inbox if row["state"] == Inbox.DUE and _place(row) in places]

    def apply(self, changes: Changes) -> None:
        claim, now = changes.claim, changes.time
        reader = ""
        if claim is not None:
            self._check(claim, changes.position)
            reader = claim.reader
        for event_id, source, handler in changes.handled:
            self._remember(event_id, source, handler, reader, now)
        self.write(changes.writes)
        for row in changes.kept:
            self._keep(row)
        at_once = bool(changes.announced) and not any(one.due for one in changes.announced)
        changes.stored = self.last + 1 if at_once else None
        for announced in changes.announced:
            self.outbox = [
                row for row in self.outbox if row["name"] is None or row["name"] != announced.name
            ]
            self.outbox.append(
                {**msgspec.structs.asdict(announced), "seq": self.number(), "state": Outbox.WAITING}
            )
        self.outbox = [row for row in self.outbox if row["seq"] not in changes.sent]
        for letter in changes.dead:
            self.dead.append(_letter_row(letter, self.number()))
        for parked in changes.settled:
            self._settle(parked, now)
        for parked in changes.retried:
            row = self._still_parked(parked)
            row.update(due=parked.due, attempt=parked.attempt, history=copy.copy(parked.history))
        for parked in changes.parked:
            self._park(parked, now)

    def write(self, writes: Writes) -> None:
        for sql, rows in writes:
            for parameters in rows:
                self.run(sql, parameters)

    def run(self, sql: str, parameters: Parameters) -> list[Row]:
        statement = STATEMENTS.get(sql)
        if statement is not None:
            return statement(self, parameters)
        if sql == ITEM and (sql, parameters) in self.written:
            raise ConstraintViolated(f"item {parameters['id']} is there already")
        self.written.append((sql, dict(parameters)))
        return []

    def _keep(self, row: Kept) -> None:
        place = (row.kind, row.key)
        known = self.state.get(place, Kept(kind=row.kind, key=row.key))
        if known.version != row.version:
            raise StateConflict(f"{place} was changed meanwhile")
        self.state.pop(place, None)
        if row.data is not None:
            self.state[place] = msgspec.structs.replace(row, version=row.version + 1)

    def _check(self, claim: Claim, position: Position | None) -> None:
        cursor = self.cursor(claim.stream, claim.partition, claim.reader)
        if cursor is None or (cursor["owner"], cursor["epoch"]) != (claim.owner, claim.epoch):
            raise Fenced(f"{claim.stream}[{claim.partition}] is no longer owned by {claim.owner}")
        if position is not None:
            cursor["position"] = position

    def _remember(self, event_id: str, source: str, handler: str, reader: str, now: float) -> Row:
        identity = (event_id, source, handler, reader)
        if any(_identity(row) == identity for row in self.inbox):
            raise ConstraintViolated(f"{event_id} of {handler} is in the inbox already")
        row = {
            "seq": self.number(),
            "event_id": event_id,
            "source": source,
            "handler": handler,
            "reader": reader,
            "seen": now,
            "state": Inbox.HANDLED,
            "stream": None,
            "partition": None,
            "chain": None,
        }
        self.inbox.append(row)
        return row

    def _park(self, parked: Parked, now: float) -> None:
        row = self._remember(parked.event_id, parked.source, parked.handler, parked.reader, now)
        fields = msgspec.structs.asdict(parked)
        del fields["seq"]
        behind = parked.chain is not None and bool(self._chain(parked))
        row.update(copy.deepcopy(fields), state=Inbox.BEHIND if behind else Inbox.DUE)

    def _settle(self, parked: Parked, now: float) -> None:
        self._still_parked(parked).update(state=Inbox.HANDLED, seen=now, chain=None)
        if parked.chain is not None:
            for row in self._chain(parked)[:1]:
                if row["state"] == Inbox.BEHIND:
                    row.update(state=Inbox.DUE, due=0.0)

    def _chain(self, parked: Parked) -> list[Row]:
        chain = (parked.stream, parked.partition, parked.reader, parked.chain)
        return [
            row
            for row in self.inbox
            if row["state"] > Inbox.HANDLED and (*_place(row), row["chain"]) == chain
        ]

    def _still_parked(self, parked: Parked) -> Row:
        for row in self.inbox:
            if row["seq"] == parked.seq and row["state"] == Inbox.DUE:
                return row
        raise Superseded(f"event {parked.event_id} of {parked.handler} is settled already")


class FakeStore:
    """A store in memory; the face is `oyez.ports.Store`.

    ``faults`` knows the calls ``fetch`` (about its statement), ``seen``, ``outbox``, ``due``,
    ``bury``, ``begun`` (a transaction's ``fetch``), ``load`` (about its keys) and ``commit``
    (about its changes).
    """

    def __init__(self) -> None:
        self.capabilities = Capabilities(durability="volatile", history=False, processes=False)
        self.contents = Contents()
        self.faults = Faults()
        self.turn = asyncio.Lock()
        self.commits: list[Changes] = []
        """Every commit that worked."""
        self.loads: list[tuple[int, bool]] = []
        """How many keys each ``load`` was about, and whether it was ``alone``."""
        self._made = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def written(self) -> list[tuple[str, Parameters]]:
        """What services wrote, in order."""
        return self.contents.written

    @property
    def letters(self) -> list[Row]:
        """Dead letters, whatever became of them."""
        return self.contents.dead

    @property
    def acts(self) -> list[Parameters]:
        """The audit."""
        return self.contents.acts

    @property
    def announced(self) -> list[Row]:
        """The rows of the outbox."""
        return self.contents.outbox

    @property
    def waiting(self) -> list[Row]:
        """Parked events in their order."""
        return [row for row in self.contents.inbox if row["state"] > Inbox.HANDLED]

    def position(self, stream: str, partition: int = 0) -> Position:
        """Up to where a partition was handled."""
        cursor = self.contents.cursor(stream, partition, "")
        assert cursor is not None
        return int(cursor["position"])

    async def open(self, *, create: bool = True) -> None:
        """See `Store.open`."""
        if not create and not self._made:
            raise StoreMissing("nobody has opened this store yet")
        self._made = True

    async def close(self) -> None:
        """See `Store.close`."""

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        """See `Store.migrate`; the scripts are remembered, not run."""
        new = [(name, sql) for name, sql in scripts if name not in self.contents.marks]
        self.contents.marks.update(new)
        return [name for name, _ in new]

    def begin(self, *, claims: bool = False) -> FakeTransaction:
        """See `Store.begin`."""
        return FakeTransaction(self)

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        """See `Store.fetch`."""
        await self.faults.meet("fetch", sql)
        return copy.deepcopy(self.contents).run(sql, parameters)

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        """See `Store.seen`."""
        await self.faults.meet("seen", events)
        known = {_identity(row) for row in self.contents.inbox}
        return {event for event in events if (*event, reader) in known}

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        """See `Store.outbox`."""
        await self.faults.meet("outbox", after)
        waiting = [row for row in self.contents.outbox if row["state"] == Outbox.WAITING]
        late = sorted(
            (row for row in waiting if 0 < row["due"] <= now),
            key=lambda row: (row["due"], row["seq"]),
        )
        first = min(len(late), reserved(limit))
        rows = [row for row in waiting if row["due"] == 0 and row["seq"] > after]
        rows = [*rows[: limit - first], *late]
        return [
            Announcement(**{name: row[name] for name in Announcement.__struct_fields__})
            for row in rows[:limit]
        ]

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        """See `Store.due`."""
        await self.faults.meet("due", handler)
        rows = [
            row
            for row in self.contents.owned(owner)
            if row["handler"] == handler and row["due"] <= now
        ]
        rows.sort(key=lambda row: (row["due"], row["seq"]))
        late = [row for row in rows if row["due"] > 0]
        found = [
            Parked(**{name: copy.deepcopy(row[name]) for name in Parked.__struct_fields__})
            for row in halves(rows[: len(rows) - len(late)], late, limit)
        ]
        await self.faults.meet("due", handler, late=True)
        return found

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        """See `Store.keep`; the lease never runs out."""
        self.contents.replicas = [row for row in self.contents.replicas if row["owner"] != owner]
        self.contents.replicas.append({"owner": owner, "until": float("inf"), "note": note})

    async def bury(self) -> None:
        """See `Store.bury`."""
        await self.faults.meet("bury", None)

    async def leave(self, owner: str) -> None:
        """See `Store.leave`."""
        self.contents.replicas = [row for row in self.contents.replicas if row["owner"] != owner]
        for row in self.contents.cursors:
            if row["owner"] == owner:
                row["owner"] = None
        self.ring()

    async def inspect(self) -> Sequence[Finding]:
        """See `Store.inspect`."""
        return []

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Store.on_commit`."""
        self._listeners.append(callback)

    def on_leave(self, callback: Callable[[], None]) -> None:
        """See `Store.on_leave`."""

    def ring(self) -> None:
        """Call back all who asked for it."""
        for callback in self._listeners:
            callback()

    def take_over(self, stream: str, partition: int = 0, owner: str = "another") -> None:
        """Give a partition to another owner: from here on its commits are fenced."""
        cursor = self.contents.cursor(stream, partition, "")
        assert cursor is not None
        cursor.update(owner=owner, epoch=cursor["epoch"] + 1)


class FakeTransaction:
    """A transaction; the face is `oyez.ports.StoreTransaction`."""

    dialect = "sqlite"

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._contents: Contents | None = None
        self._failed: BaseException | None = None

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        """See `StoreTransaction.fetch`."""
        if self._failed is not None:
            raise self._failed
        try:
            await self._store.faults.meet("begun", sql)
            contents = await self._begin()
            contents.write(before)
            return copy.deepcopy(contents.run(sql, parameters))
        except Exception as error:
            self._failed = error
            raise

    async def load(self, keys: Sequence[tuple[str, str]], *, alone: bool) -> list[Kept]:
        """See `StoreTransaction.load`."""
        self._store.loads.append((len(keys), alone))
        await self._store.faults.meet("load", keys)
        state = (await self._begin()).state
        return [copy.copy(state.get(key)) or Kept(kind=key[0], key=key[1]) for key in keys]

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        """See `StoreTransaction.run`; a fake has no words of its own."""
        raise StoreRefused("a fake store speaks no SQL")

    async def rollback_to(self, savepoint: str) -> None:
        """See `StoreTransaction.rollback_to`."""
        raise StoreRefused("a fake store has no savepoints")

    async def commit(self, changes: Changes) -> None:
        """See `StoreTransaction.commit`."""
        store = self._store
        if self._failed is not None:
            raise self._failed
        await asyncio.sleep(0)  # as with a real one, others run meanwhile
        await store.faults.meet("commit", changes)
        try:
            contents = await self._begin()
            contents.apply(changes)
            store.contents = contents
        finally:
            await self.rollback()
        store.commits.append(changes)
        told = changes.told and changes.stored is not None
        if changes.ring or (changes.announced and not told) or changes.parked or changes.retried:
            store.ring()
        await store.faults.meet("commit", changes, late=True)

    async def rollback(self) -> None:
        """See `StoreTransaction.rollback`."""
        if self._contents is not None:
            self._contents = None
            self._store.turn.release()

    async def _begin(self) -> Contents:
        if self._contents is None:
            await self._store.turn.acquire()
            self._contents = copy.deepcopy(self._store.contents)
        return self._contents


class FakeBroker(MemoryBroker):
    """A memory broker whose readings can be scripted.

    ``faults`` knows the calls ``publish`` (about its records), ``read`` (about its place),
    ``streams`` and ``lag`` (about their stream).
    """

    def __init__(self, ambient: Ambient, *, partitions: int = 1, history: bool = True) -> None:
        super().__init__(ambient, partitions=partitions)
        self.capabilities = Capabilities(durability="volatile", history=history, processes=False)
        self.faults = Faults()
        self.script: deque[Batch] = deque()
        """What the next reading gives before it reads on."""
        self.reads: list[tuple[str, int, Position]] = []
        """The place and position of each reading that began."""
        self.told: list[Position] = []
        """The positions that `handled` was called with."""
        self.behind: dict[str, dict[int, int]] = {}
        """The lag of streams where it is not what it would be."""

    async def publish(self, records: Sequence[Record]) -> None:
        """See `Broker.publish`."""
        await self.faults.meet("publish", records)
        await super().publish(records)
        await self.faults.meet("publish", records, late=True)

    async def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """See `Broker.read`."""
        self.reads.append((stream, partition, after))
        await self.faults.meet("read", (stream, partition))
        while self.script:
            batch = self.script.popleft()
            after = batch.records[-1].position
            yield batch
        async for batch in super().read(stream, partition, after):
            yield batch

    async def streams(self) -> Mapping[str, int]:
        """See `Broker.streams`."""
        await self.faults.meet("streams", None)
        return await super().streams()

    async def ends(self, stream: str) -> Sequence[Position]:
        """See `Broker.ends`."""
        await self.faults.meet("ends", stream)
        return await super().ends(stream)

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """See `Broker.lag`."""
        await self.faults.meet("lag", stream)
        if stream in self.behind:
            return self.behind[stream]
        return await super().lag(stream, positions)

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """See `Broker.handled`."""
        self.told.append(position)


# -- the statements of oyez.tables -----------------------------------------------------------------


def _place(row: Row) -> tuple[str, int, str]:
    return row["stream"], row["partition"], row["reader"]


def _identity(row: Row) -> tuple[str, str, str, str]:
    return row["event_id"], row["source"], row["handler"], row["reader"]


def _letter_row(letter: DeadLetter, number: int) -> Row:
    row: Row = msgspec.structs.asdict(letter)
    row["history"] = msgspec.json.encode(letter.history)
    row["headers"] = msgspec.json.encode(letter.headers)
    return {"id": number, **row, "state": Letter.DEAD, "note": ""}


def _least(values: list[float]) -> list[Row]:
    return [{"due": min(values, default=None)}]


def _living(contents: Contents, asked: Parameters) -> list[Row]:
    living = [row["owner"] for row in contents.replicas if row["until"] > asked["now"]]
    return [{"owner": owner} for owner in sorted(living)]


def _forget_replicas(contents: Contents, asked: Parameters) -> list[Row]:
    contents.replicas = [row for row in contents.replicas if row["until"] >= asked["then"]]
    return []


def _cursors(contents: Contents, asked: Parameters) -> list[Row]:
    return [row for row in contents.cursors if row["reader"] == asked["reader"]]


def _add_cursor(contents: Contents, asked: Parameters) -> list[Row]:
    if contents.cursor(*_place(dict(asked))) is None:
        cursor = {name: asked[name] for name in ("stream", "partition", "reader")}
        contents.cursors.append(
            {**cursor, "position": 0, "owner": None, "epoch": 0, "crashes": 0, "crashed_at": -1}
        )
    return []


def _claim(contents: Contents, asked: Parameters) -> list[Row]:
    cursor = contents.cursor(*_place(dict(asked)))
    if cursor is None:
        return []
    mine = cursor["owner"] in (None, asked["owner"])
    if not mine and {"owner": cursor["owner"]} in _living(contents, asked):
        return []
    if mine:
        cursor.update(crashes=0, crashed_at=-1)
    else:
        again = cursor["crashed_at"] == cursor["position"]
        crashes = cursor["crashes"] + 1 if again else 1
        cursor.update(crashes=crashes, crashed_at=cursor["position"])
    cursor.update(owner=asked["owner"], epoch=cursor["epoch"] + 1)
    return [{name: cursor[name] for name in ("position", "epoch", "crashes")}]


def _acquired(contents: Contents, asked: Parameters) -> list[Row]:
    wanted = (asked["reader"], asked["owner"])
    return [dict(row) for row in contents.cursors if (row["reader"], row["owner"]) == wanted]


def _release(contents: Contents, asked: Parameters) -> list[Row]:
    cursor = contents.cursor(*_place(dict(asked)))
    if cursor is not None and (cursor["owner"], cursor["epoch"]) == (
        asked["owner"], asked["epoch"]
    ):  # fmt: skip
        cursor["owner"] = None
    return []


def _blocked(contents: Contents, asked: Parameters) -> list[Row]:
    counts: dict[str | None, int] = {}
    for row in contents.inbox:
        if row["state"] > Inbox.HANDLED and _place(row) == _place(dict(asked)):
            counts[row["chain"]] = counts.get(row["chain"], 0) + 1
    return [{"chain": chain, "parked": count} for chain, count in counts.items()]


def _is_parked(contents: Contents, asked: Parameters) -> list[Row]:
    rows = [row for row in contents.inbox if row["seq"] == asked["seq"]]
    return [{"parked": 1} for row in rows if row["state"] > Inbox.HANDLED]


def _oldest_retry(contents: Contents, asked: Parameters) -> list[Row]:
    return _least([row["due"] or row["seen"] for row in contents.owned(asked["owner"])])


def _parked_handlers(contents: Contents, asked: Parameters) -> list[Row]:
    rows = [row for row in contents.inbox if row["state"] == Inbox.DUE]
    return [{"handler": name} for name in sorted({row["handler"] for row in rows})]


def _parked_times(contents: Contents, asked: Parameters) -> list[Row]:
    found: dict[str, list[float]] = {}
    for row in contents.inbox:
        if row["state"] == Inbox.DUE:
            found.setdefault(row["handler"], []).append(row["due"])
    return [
        {
            "handler": name,
            "earliest": min(times),
            "coming": min((due for due in times if due > asked["now"]), default=None),
        }
        for name, times in sorted(found.items())
    ]


def _hasten(contents: Contents, asked: Parameters) -> list[Row]:
    for row in contents.inbox:
        if (row["state"], row["handler"]) == (Inbox.DUE, asked["handler"]):
            row["due"] = row["due"] if row["due"] <= asked["latest"] else 0.0
    return []


def _outbox_head(contents: Contents, asked: Parameters) -> list[Row]:
    rows = _in_outbox(contents, lambda row: row["due"] <= asked["now"])
    rows.sort(key=lambda row: (row["due"], row["seq"]))
    return [{"seq": row["seq"]} for row in rows[:1]]


def _next_announcement(contents: Contents, asked: Parameters) -> list[Row]:
    rows = _in_outbox(contents, lambda row: row["due"] > asked["now"])
    return _least([row["due"] for row in rows])


def _take(contents: Contents, asked: Parameters) -> list[Row]:
    for row in contents.outbox:
        if row["seq"] == asked["seq"] and row["due"] > 0 and row["state"] != Outbox.REFUSED:
            row.update(due=0.0, event_id=None, name=None)
    return []


def _refuse(contents: Contents, asked: Parameters) -> list[Row]:
    for row in contents.outbox:
        if row["seq"] == asked["seq"]:
            row["state"] = Outbox.REFUSED
    return []


def _hold(contents: Contents, asked: Parameters) -> list[Row]:
    if _refused(contents, asked):
        for row in _of_chain(contents, asked):
            if row["state"] == Outbox.WAITING:
                row["state"] = Outbox.BEHIND
    return []


def _unhold(contents: Contents, asked: Parameters) -> list[Row]:
    if not _refused(contents, asked):
        for row in _of_chain(contents, asked):
            if row["state"] == Outbox.BEHIND:
                row["state"] = Outbox.WAITING
    return []


def _held(contents: Contents, asked: Parameters) -> list[Row]:
    states: dict[tuple[str, str], int] = {}
    for row in contents.outbox:
        if row["state"] > Outbox.WAITING and row["key"] is not None:
            chain = (row["stream"], row["key"])
            states[chain] = max(states.get(chain, 0), row["state"])
    return [{"stream": s, "key": k, "state": state} for (s, k), state in states.items()]


def _refusals(contents: Contents, asked: Parameters) -> list[Row]:
    return [{"events": sum(row["state"] == Outbox.REFUSED for row in contents.outbox)}]


def _announce_again(contents: Contents, asked: Parameters) -> list[Row]:
    for row in contents.outbox:
        if row["seq"] == asked["seq"] and row["state"] == Outbox.REFUSED:
            row.update(state=Outbox.WAITING, due=0.0, data=asked["data"])
            return [{"seq": row["seq"]}]
    return []


def _withdraw(contents: Contents, asked: Parameters) -> list[Row]:
    gone = [
        row
        for row in contents.outbox
        if row["seq"] == asked["seq"] and row["state"] == Outbox.REFUSED
    ]
    contents.outbox = [row for row in contents.outbox if row not in gone]
    return [{"seq": row["seq"]} for row in gone]


def _in_outbox(contents: Contents, when: Callable[[Row], bool]) -> list[Row]:
    return [row for row in contents.outbox if row["state"] == Outbox.WAITING and when(row)]


def _of_chain(contents: Contents, asked: Parameters) -> list[Row]:
    chain = (asked["stream"], asked["key"])
    return [row for row in contents.outbox if (row["stream"], row["key"]) == chain]


def _refused(contents: Contents, asked: Parameters) -> bool:
    return any(row["state"] == Outbox.REFUSED for row in _of_chain(contents, asked))


def _dead_letters(contents: Contents, asked: Parameters) -> list[Row]:
    rows = _all_letters(contents, {**asked, "limit": None})
    return [row for row in rows if row["state"] == Letter.DEAD][: asked["limit"]]


def _all_letters(contents: Contents, asked: Parameters) -> list[Row]:
    left_out = {"source", "traceback", "history", "headers", "data", "reader"}
    return [
        {name: value for name, value in row.items() if name not in left_out}
        for row in contents.dead
        if row["id"] > asked["after"]
    ][: asked["limit"]]


def _letter(contents: Contents, asked: Parameters) -> list[Row]:
    return [row for row in contents.dead if row["id"] == asked["id"]]


def _mark_letter(contents: Contents, asked: Parameters) -> list[Row]:
    for row in _letter(contents, asked):
        if row["state"] == Letter.DEAD:
            row.update(state=asked["state"], note=asked["note"])
            return [{"id": row["id"]}]
    return []


def _park_again(contents: Contents, asked: Parameters) -> list[Row]:
    fields = {
        **asked,
        "state": Inbox.DUE,
        "seen": asked["now"],
        "due": 0.0,
        "chain": None,
        "attempt": 0,
        "history": msgspec.json.decode(asked["history"]),
        "headers": msgspec.json.decode(asked["headers"]),
    }
    del fields["now"]
    for row in contents.inbox:
        if _identity(row) == _identity(fields):
            if row["state"] != Inbox.HANDLED:
                return []
            row.update(fields, seen=row["seen"])
            return [{"seq": row["seq"]}]
    fields["seq"] = contents.number()
    contents.inbox.append(fields)
    return [{"seq": fields["seq"]}]


def _delete_handled(contents: Contents, asked: Parameters) -> list[Row]:
    old = [
        row
        for row in contents.inbox
        if row["state"] == Inbox.HANDLED and row["seen"] < asked["then"]
    ][:1000]
    contents.inbox = [row for row in contents.inbox if row not in old]
    return [{"seq": row["seq"]} for row in old]


def _delete_settled_letters(contents: Contents, asked: Parameters) -> list[Row]:
    old = [
        row for row in contents.dead if row["state"] != Letter.DEAD and row["time"] < asked["then"]
    ][:1000]
    contents.dead = [row for row in contents.dead if row not in old]
    return [{"id": row["id"]} for row in old]


def _state(contents: Contents, asked: Parameters) -> list[Row]:
    row = contents.state.get((asked["kind"], asked["key"]))
    return [] if row is None else [{"version": row.version, "shape": row.shape, "data": row.data}]


def _audit(contents: Contents, asked: Parameters) -> list[Row]:
    contents.acts.append(dict(asked))
    return []


def _delete_audit(contents: Contents, asked: Parameters) -> list[Row]:
    old = [act for act in contents.acts if act["time"] < asked["then"]][:1000]
    contents.acts = [act for act in contents.acts if act not in old]
    return [{"id": n} for n, _ in enumerate(old)]


def _waiting(contents: Contents, asked: Parameters) -> list[Row]:
    parked = [row["seen"] for row in contents.inbox if row["state"] > Inbox.HANDLED]
    due = [
        row["due"]
        for row in contents.outbox
        if row["state"] == Outbox.WAITING and row["due"] <= asked["now"]
    ]
    return [
        {
            "outbox": len(due),
            "late": min(filter(None, due), default=None),
            "refused": sum(row["state"] == Outbox.REFUSED for row in contents.outbox),
            "dead": sum(row["state"] == Letter.DEAD for row in contents.dead),
            "parked": len(parked),
            "oldest": min(parked, default=None),
        }
    ]


def _outbox_first(contents: Contents, asked: Parameters) -> list[Row]:
    rows = [row for row in contents.outbox if row["state"] == Outbox.WAITING and not row["due"]]
    return [{"headers": msgspec.json.encode(row["headers"])} for row in rows[:1]]


STATEMENTS: dict[str, Callable[[Contents, Parameters], list[Row]]] = {
    ONE: lambda contents, asked: [{"one": 1}],
    tables.LIVING: _living,
    tables.FORGET_REPLICAS: _forget_replicas,
    tables.CURSORS: _cursors,
    tables.ADD_CURSOR: _add_cursor,
    tables.CLAIM: _claim,
    tables.ACQUIRE: _claim,
    tables.ACQUIRED: _acquired,
    tables.RELEASE: _release,
    tables.BLOCKED: _blocked,
    tables.IS_PARKED: _is_parked,
    tables.OLDEST_RETRY: _oldest_retry,
    tables.PARKED_HANDLERS: _parked_handlers,
    tables.PARKED_TIMES: _parked_times,
    tables.HASTEN: _hasten,
    tables.DELETE_HANDLED: _delete_handled,
    tables.OUTBOX_HEAD: _outbox_head,
    tables.TAKE: _take,
    tables.NEXT_ANNOUNCEMENT: _next_announcement,
    tables.REFUSE: _refuse,
    tables.HOLD: _hold,
    tables.HELD: _held,
    tables.UNHOLD: _unhold,
    tables.REFUSALS: _refusals,
    tables.ANNOUNCE_AGAIN: _announce_again,
    tables.WITHDRAW: _withdraw,
    tables.DEAD_LETTERS: _dead_letters,
    tables.ALL_LETTERS: _all_letters,
    tables.LETTER: _letter,
    tables.MARK_LETTER: _mark_letter,
    tables.PARK_AGAIN: _park_again,
    tables.DELETE_SETTLED_LETTERS: _delete_settled_letters,
    tables.STATE: _state,
    tables.AUDIT: _audit,
    tables.DELETE_AUDIT: _delete_audit,
    tables.WITHOUT_CAUSE: lambda contents, asked: [],
    tables.WAITING: _waiting,
    tables.OUTBOX_FIRST: _outbox_first,
}
