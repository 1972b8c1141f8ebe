"""The faces between the runtime and what it runs on: a broker and a store.

An adapter implements one of these protocols and imports nothing but this module, the value modules
and its driver. `oyez.testing` has the suites that certify it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

Position = int
"""Where a record stands in its partition. Grows strictly; only the broker knows by how much."""
BEGINNING: Position = 0
"""Before the first record."""

Row = dict[str, Any]
"""One row of a query, by column name."""
Parameters = Mapping[str, Any]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker carries: headers under their plain names (see `oyez.envelope`) and data.

    ``partition``, ``position`` and ``time`` (seconds since 1970) are set by the broker that read
    it. The event's own id is in ``headers``, where the publisher gave one.
    """

    stream: str
    key: str | None
    headers: dict[str, str]
    data: bytes | None
    partition: int = -1
    position: Position = BEGINNING
    time: float = 0.0


def weigh(headers: Mapping[str, str], data: bytes | None) -> int:
    """The bytes of headers and data together, which ``Capabilities.max_bytes`` limits."""
    text = "".join((*headers, *headers.values()))
    return len(text.encode(errors="surrogatepass")) + len(data or b"")


class Batch(msgspec.Struct, frozen=True):
    """Records of one partition, in order, at least one.

    ``missed`` counts the records between the position asked for and the first one here that
    retention has deleted already (1 where the broker can't tell how many).

    ``restarted``: the stream was deleted and made anew, so that the position asked for means
    nothing any more; this batch is the first of the new one, and positions may have gone back.
    """

    records: list[Record]
    missed: int = 0
    restarted: bool = False


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do; the conformance suite holds it to that."""

    durability: str
    """``power-loss``, ``process-crash`` or ``volatile``: what an acknowledged record survives."""
    history: bool
    """Records can be read again from any position."""
    processes: bool
    """Several processes can use the broker at once."""
    max_bytes: int = 0
    """The largest record, headers and data together, that it takes; 0 stands for no limit."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What `inspect` found: a way in which events get lost, doubled or stuck, and its remedy."""

    grave: bool
    """Acknowledged events can be lost or doubled; otherwise it is slow, or hard to run."""
    what: str
    remedy: str


class Broker(Protocol):
    """Ordered, partitioned streams that several processes append to and read.

    A record with a key goes to ``partition_of(key, P)``. Every call ends within the adapter's
    deadline or raises BrokerUnavailable; what was out of reach is connected to again by itself.
    """

    capabilities: Capabilities
    """Final once `open` has returned: some of it is asked of the server."""

    async def open(self) -> None:
        """Connect. Raises BrokerRefused when that is impossible as configured.

        Raises BrokerUnavailable when the broker is out of reach; it is open all the same, and later
        calls connect.
        """
        ...

    async def close(self) -> None:
        """Let go of everything. Safe when never opened and when called twice."""
        ...

    async def publish(self, records: Sequence[Record]) -> None:
        """Return when every record is as durable as ``capabilities`` says.

        Records of one partition keep their order. When it raises, any of them may be there.
        """
        ...

    def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """What stands behind ``after`` and what arrives, for ever, 1 to 256 records at a time.

        Never waits to fill a batch; holds no more than a bounded number of bytes that the caller
        has not taken. Reading a stream that does not exist yet, or a broker that is out of reach,
        waits for it. Raises BrokerError when reading can't go on from here; a new call may.
        """
        ...

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """Everything up to ``position`` is handled and committed by the consumer group.

        Never waits. A queue deletes its messages by it; a log shows it to the broker's own tools,
        a little later. It never decides where reading goes on.
        """
        ...

    async def streams(self) -> Mapping[str, int]:
        """The streams there are, each with its number of partitions."""
        ...

    async def create(self, stream: str, partitions: int) -> None:
        """Make the stream; one that exists with as many partitions is left as it is.

        Raises BrokerRefused when it exists with another number of partitions.
        """
        ...

    async def ends(self, stream: str) -> Sequence[Position]:
        """The position of each partition's last record (BEGINNING when it never had one).

        Empty for a stream that does not exist.
        """
        ...

    async def starts(self, stream: str) -> Sequence[Position]:
        """Of each partition, the position behind which everything is still kept.

        Where retention has deleted nothing that is BEGINNING; where it has deleted all, the end.
        """
        ...

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """How many records stand behind each partition's given position.

        Exact at 0; beyond it an estimate where the broker does not count. A partition that does not
        exist is left out.
        """
        ...

    async def inspect(self) -> Sequence[Finding]:
        """What is wrong with how the broker is set up, with the remedy; empty when all is well."""
        ...

    def on_streams(self, callback: Callable[[], None]) -> None:
        """Call back (on the event loop) whenever a stream may have been added."""
        ...


class Parked(msgspec.Struct, kw_only=True):
    """An event that waits in a store for one handler: for its retry, or behind another event.

    ``chain`` is what orders it: events of one chain run one after the other; None stands alone.
    ``due`` is when its next attempt may start (seconds since 1970; 0.0 for at once, whatever the
    clock says), ``attempt`` counts the attempts made, ``history`` holds what became of each.
    ``seq`` is the store's own number for it.
    """

    event_id: str
    source: str
    handler: str
    stream: str
    partition: int
    position: Position
    chain: str | None
    due: float
    attempt: int
    history: list[dict[str, Any]]
    key: str | None
    headers: dict[str, str]
    data: bytes | None
    seq: int = 0
    reader: str = ""


class DeadLetter(msgspec.Struct, kw_only=True):
    """An event that a service gave up on, with all that is needed to see why and to redrive it.

    ``handler`` is empty when the event could not even be decoded, and `oyez.tables.OUTBOX` when it
    is an event of the outbox that the broker refused; ``position`` is its outbox row then.
    """

    event_id: str
    source: str
    type: str
    handler: str
    stream: str
    partition: int
    position: Position
    key: str | None
    reason: str
    traceback: str
    attempts: int
    history: list[dict[str, Any]]
    headers: dict[str, str]
    data: bytes | None
    time: float
    reader: str = ""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the outbox. ``due`` is 0.0 for now, else seconds since 1970."""

    stream: str
    key: str | None
    headers: dict[str, str]
    data: bytes
    due: float = 0.0
    seq: int = 0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right of one process incarnation, ``owner``, to move a partition's position.

    Every commit names the claim; one that another owner or a newer epoch has replaced is fenced.
    ``reader`` is empty for the service itself; another reader of the stream, such as a view that is
    rebuilt, keeps a position and an inbox of its own.
    """

    stream: str
    partition: int
    owner: str
    epoch: int
    reader: str = ""


Writes = list[tuple[str, list[Parameters]]]
"""Statements in the order in which they run, each with the parameter sets it runs for."""


class Changes(msgspec.Struct, kw_only=True):
    """All that one transaction leaves behind besides reads: the service's writes and ours."""

    writes: Writes = []
    handled: list[tuple[str, str, str]] = []
    """(event id, source, handler), to know a duplicate by; of the claim's reader."""
    parked: list[Parked] = []
    settled: list[Parked] = []
    """Parked events that are done or dead: their row stays for deduplication only."""
    retried: list[Parked] = []
    """Parked events with a new attempt count, history and due time."""
    dead: list[DeadLetter] = []
    announced: list[Announcement] = []
    sent: list[int] = []
    """Outbox rows that the broker confirmed."""
    claim: Claim | None = None
    """Checked before anything is written."""
    position: Position | None = None
    """Where the claim's partition has been handled up to; None leaves it."""
    time: float = 0.0
    """Now, in seconds since 1970."""
    ring: bool = False
    """Tell every process that outbox or parked events changed, though nothing above says so."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What `StoreTransaction.run` gives."""

    columns: Sequence[tuple[str, Any]]
    """Each column's name, and the database's own code for its type; none where rows can't be."""
    rows: Sequence[Sequence[Any]]
    changed: int
    """How many rows were inserted, updated or deleted; -1 where the database does not tell."""


class StoreTransaction(Protocol):
    """One transaction of a service's store. It holds nothing until the first ``fetch``."""

    dialect: str
    """Whose SQL it speaks: ``sqlite`` or ``postgresql``."""

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        """Run the writes, then the statement, and return its rows (``:name`` parameters).

        From here on no other transaction that could conflict runs until this one ends. When it
        raises, the transaction can only be rolled back: ``commit`` raises the same error.
        """
        ...

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        """As `fetch`, in the database's own words: for layers that write SQL by themselves.

        ``sql`` has the database's own placeholders (``?`` or ``$1``) and runs once for each set of
        parameters; with more than one it gives no rows.
        """
        ...

    async def rollback_to(self, savepoint: str) -> None:
        """Undo what came after a savepoint, also that a statement raised. `run` makes savepoints.

        Raises what a statement raised that is no fault of its own: StoreUnavailable and the like.
        """
        ...

    async def commit(self, changes: Changes) -> None:
        """Make everything durable together, or nothing.

        Raises Fenced when ``changes.claim`` no longer holds, Superseded when an event to settle or
        retry is no longer parked, ConstraintViolated, StoreUnavailable.
        """
        ...

    async def rollback(self) -> None:
        """Undo everything. Safe at any time, also after ``commit``."""
        ...


class Store(Protocol):
    """A service's private database with Oyez's tables in it, shared by the service's replicas."""

    capabilities: Capabilities
    """Final once `open` has returned: some of it is asked of the server."""

    async def open(self, *, create: bool = True) -> None:
        """Connect, and create or migrate Oyez's own tables.

        Without ``create`` nothing is made, and StoreMissing raised where there is none. Raises
        StoreError.
        """
        ...

    async def close(self) -> None:
        """Let go of everything. Safe when never opened and when called twice."""
        ...

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        """Run each (name, SQL) that is not recorded yet, once and in order; return their names.

        Each runs in a transaction of its own together with its record. Raises StoreRefused when
        one that ran before has changed since.
        """
        ...

    def begin(self) -> StoreTransaction:
        """A transaction."""
        ...

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        """A query on a snapshot of what is committed; holds up no one."""
        ...

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        """Which of these (event id, source, handler) are in the inbox of that reader."""
        ...

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        """What is due and not confirmed, in commit order, behind outbox row ``after``.

        Delayed events come in the order of their time; an eighth of ``limit`` is theirs before
        others, so that a backlog does not hold them up for ever.
        """
        ...

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        """Parked events of the owner's partitions whose attempt may start.

        Half of ``limit`` is for those that wait for no time, in their order, and half for those
        whose time has come, longest due first; what one half leaves free is the other's.
        """
        ...

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        """Record that ``owner`` is alive, and go on doing so until ``leave`` or its death.

        The renewal does not depend on the event loop, so a handler that blocks it keeps its lease.
        ``note`` is where its admin port listens.
        """
        ...

    async def bury(self) -> None:
        """End the leases of owners whose process is known to have died, before they run out.

        A store that can't know leaves it at the lease.
        """
        ...

    async def leave(self, owner: str) -> None:
        """Give up the owner's lease and all its claims."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """What is wrong with how the store is set up, with the remedy; empty when all is well."""
        ...

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back (on the event loop) when any process may have added to outbox or parked."""
        ...
