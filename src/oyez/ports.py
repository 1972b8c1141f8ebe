"""The ports of the runtime: the protocols of a broker and of a store.

An adapter implements one of these protocols and imports nothing but this module, the value modules
and its driver. `oyez.testing` has the suites that certify it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from oyez.spans import Span

Position = int
"""The position (offset) of a record in its partition. Strictly increasing, not always by 1."""
BEGINNING: Position = 0
"""The position before the first record."""

Row = dict[str, Any]
"""One row of a query, by column name."""
Parameters = Mapping[str, Any]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record of a broker: headers under their plain names (see `oyez.envelope`) and data.

    ``partition``, ``position`` and ``time`` (seconds since 1970) are set by the broker when it is
    read. The event's id is one of the ``headers``, if its publisher set one.
    """

    stream: str
    key: str | None
    headers: dict[str, str]
    data: bytes | None
    partition: int = -1
    position: Position = BEGINNING
    time: float = 0.0


def weigh(headers: Mapping[str, str], data: bytes | None) -> int:
    """Return the bytes of headers and data together, which ``Capabilities.max_bytes`` limits."""
    text = "".join((*headers, *headers.values()))
    return len(text.encode(errors="surrogatepass")) + len(data or b"")


class Batch(msgspec.Struct, frozen=True):
    """Records of one partition, in order, at least one.

    ``missed`` is the number of records after the requested position that retention deleted before
    they were read (1 where the broker does not know the number).

    ``restarted``: the stream was deleted and created again, so that the requested position is
    meaningless; this is the first batch of the new stream, and its positions may be lower.
    """

    records: list[Record]
    missed: int = 0
    restarted: bool = False


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The capabilities of a broker or store; the conformance suite checks them."""

    durability: str
    """The failure that acknowledged records survive: ``power-loss`` or ``process-crash``, or
    ``volatile`` for none."""
    history: bool
    """Whether records can be read again from any position."""
    processes: bool
    """Whether several processes can use it at once."""
    max_bytes: int = 0
    """The size limit of a record, headers and data together; 0 stands for no limit."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A finding of `inspect`: a cause of lost, duplicate or stuck events, and its remedy."""

    grave: bool
    """Whether acknowledged events can be lost or duplicated; else it is slow or hard to operate."""
    what: str
    remedy: str


class Broker(Protocol):
    """The port of a broker: ordered, partitioned streams that several processes append to and read.

    A record with a key goes to ``partition_of(key, P)``. Every call ends within the adapter's
    deadline or raises BrokerUnavailable. A lost connection is established again by the adapter.
    """

    capabilities: Capabilities
    """Final once `open` has returned: some of it is asked of the server."""

    async def open(self) -> None:
        """Connect. Raises BrokerRefused when the configuration makes that impossible.

        Raises BrokerUnavailable when the broker is out of reach. It is open nevertheless: later
        calls connect.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Safe when never opened and when called twice."""
        ...

    async def publish(self, records: Sequence[Record]) -> None:
        """Publish records; return when all are as durable as ``capabilities`` states.

        Records of one partition keep their order. When it raises, any of them may be published.
        """
        ...

    def read(self, stream: str, partition: int, after: Position) -> AsyncIterator[Batch]:
        """Read the records after position ``after`` and those to come, in batches of 1 to 256.

        ``after`` may be any number from the stream's start to its end, whether a record has it as
        its position or not: what looks at the newest records begins before the end by some.

        It never waits to fill a batch, and prefetches no more than a bounded number of bytes. It
        waits for a stream that does not exist yet and for a broker that is out of reach. Raises
        BrokerError when it can't continue; a new call may succeed.
        """
        ...

    def handled(self, stream: str, partition: int, position: Position) -> None:
        """Acknowledge all records up to ``position`` for the consumer group, after their commit.

        Never waits. A queue deletes these messages; a log reports the position to the broker's own
        tools, somewhat later. It never determines from where a partition is read.
        """
        ...

    async def streams(self) -> Mapping[str, int]:
        """Return the existing streams, each with its number of partitions."""
        ...

    async def create(self, stream: str, partitions: int) -> None:
        """Create the stream; one that exists with that number of partitions is left unchanged.

        Raises BrokerRefused when it exists with another number of partitions.
        """
        ...

    async def ends(self, stream: str) -> Sequence[Position]:
        """Return the position of each partition's last record (BEGINNING if it never had one).

        Empty for a stream that does not exist.
        """
        ...

    async def starts(self, stream: str) -> Sequence[Position]:
        """Return, for each partition, the position after which all records are retained.

        It is BEGINNING where retention has deleted nothing, and the end where it has deleted all.
        """
        ...

    async def lag(self, stream: str, positions: Mapping[int, Position]) -> Mapping[int, int]:
        """Return the lag of each partition: the number of records after the given position.

        0 is exact; more is an estimate where the broker does not count. Partitions that do not
        exist are left out.
        """
        ...

    async def inspect(self) -> Sequence[Finding]:
        """Return the faults of the broker's configuration, with their remedies."""
        ...

    def on_streams(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop whenever a stream may have been added."""
        ...


class Parked(msgspec.Struct, kw_only=True):
    """An event that waits in the store for one handler: for its retry, or after another event.

    ``chain`` orders it: events of one chain run one after the other; None stands for no order.
    ``due`` is the earliest time of its next attempt (seconds since 1970; 0.0 for at once, whatever
    the clock), ``attempt`` the number of attempts made, ``history`` the outcome of each. ``seq`` is
    its row number in the store.
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


def rounds(settled: Sequence[Parked]) -> list[list[Parked]]:
    """Return rounds with one event of a chain each: settling the first releases the second."""
    found: list[list[Parked]] = []
    reached: dict[tuple[str, int, str, str], int] = {}
    for parked in settled:
        number = 0
        if parked.chain is not None:
            chain = (parked.stream, parked.partition, parked.chain, parked.reader)
            number = reached.get(chain, 0)
            reached[chain] = number + 1
        if number == len(found):
            found.append([])
        found[number].append(parked)
    return found


class DeadLetter(msgspec.Struct, kw_only=True):
    """An event that a service gave up on, with its reason and all that a redrive needs.

    ``handler`` is empty for an event that could not be decoded, and `oyez.tables.OUTBOX` for an
    event of the outbox that the broker refused, whose ``position`` is its outbox row.
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
    """An event in the outbox. ``due`` is 0.0 for at once, else seconds since 1970.

    An event of a later time has its id as ``event_id``, and perhaps a ``name``: it takes the place
    of one in the outbox that has the name. Neither is read back. ``span`` is for the runtime alone:
    the span of its announcement, which ends with the commit.
    """

    stream: str
    key: str | None
    headers: dict[str, str]
    data: bytes
    due: float = 0.0
    seq: int = 0
    event_id: str | None = None
    name: str | None = None
    span: Span | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The exclusive right of one process, ``owner``, to move a partition's position.

    Every commit names its claim, and is fenced when the partition has another owner or a newer
    epoch. ``reader`` is empty for the service itself; another reader of the stream, such as a view
    that is rebuilt, has a position and an inbox of its own.
    """

    stream: str
    partition: int
    owner: str
    epoch: int
    reader: str = ""


class Kept(msgspec.Struct, kw_only=True):
    """A row of keyed state, by kind and key; see `oyez.state`.

    ``version`` counts its changes, and is 0 for a row that does not exist; ``shape`` is the version
    of the class that encoded ``data``. The other fields are those of a saga, None for other state.
    Times are in seconds since 1970.
    """

    kind: str
    key: str
    version: int = 0
    shape: int = 0
    data: bytes | None = None
    """None for a row that does not exist, or is to be deleted."""
    status: str | None = None
    step: str | None = None
    started: float | None = None
    ended: float | None = None
    correlationid: str | None = None


Writes = list[tuple[str, list[Parameters]]]
"""Statements in the order of execution, each with its parameter sets."""


class Changes(msgspec.Struct, kw_only=True):
    """All writes of one transaction: the service's own and those to Oyez's tables."""

    writes: Writes = []
    handled: list[tuple[str, str, str]] = []
    """The new inbox entries of the claim's reader: (event id, source, handler)."""
    parked: list[Parked] = []
    settled: list[Parked] = []
    """Parked events that are done or dead; their rows remain for deduplication only."""
    retried: list[Parked] = []
    """Parked events with a new attempt count, history and due time."""
    dead: list[DeadLetter] = []
    kept: list[Kept] = []
    """Changed rows of keyed state, each loaded by this transaction and with the version loaded."""
    announced: list[Announcement] = []
    stored: int | None = None
    """Set by the commit: the outbox row of the first of ``announced``; each other has the next.

    Only where all of them are due at once, and rows are committed in the order of their numbers;
    else None. A store may leave it so: then the relay reads the outbox.
    """
    told: bool = False
    """Whether the committer tells the relay of ``stored``, so that for ``announced`` a store that
    sets it need not call this process's `Store.on_commit`."""
    sent: list[int] = []
    """Outbox rows that the broker acknowledged, by ``seq``."""
    claim: Claim | None = None
    """The claim that the commit depends on; checked before anything is written."""
    position: Position | None = None
    """The new position of the claim's partition; None keeps the old one."""
    time: float = 0.0
    """The time of the commit, in seconds since 1970."""
    seconds: float = 0.0
    """Set by who commits a unit of work: how long that took."""
    ring: bool = False
    """Whether to notify every process of new work (outbox, inbox, timers) that no field shows."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `StoreTransaction.run`."""

    columns: Sequence[tuple[str, Any]]
    """Each column's name and the database's type code; empty for a statement without rows."""
    rows: Sequence[Sequence[Any]]
    changed: int
    """The number of rows inserted, updated or deleted; -1 where the database does not report it."""


class StoreTransaction(Protocol):
    """A transaction of a service's store. It takes no lock until the first ``fetch``."""

    dialect: str
    """The SQL dialect: ``sqlite`` or ``postgresql``."""

    async def fetch(self, sql: str, parameters: Parameters, before: Writes) -> list[Row]:
        """Run the writes, then the statement, and return its rows (``:name`` parameters).

        Until this transaction ends, no other one that could conflict runs. When it raises, the
        transaction can only be rolled back: ``commit`` raises the same error.
        """
        ...

    async def load(self, keys: Sequence[tuple[str, str]], *, alone: bool) -> list[Kept]:
        """Return the rows of keyed state of these (kind, key), each once and in any order.

        Until this transaction ends no other one changes them, nor adds one that is missing. With
        ``alone`` it may ``fetch`` as well; without, transactions that load other keys run at the
        same time. It is called once, before any ``fetch`` unless ``alone``. Raises StateConflict
        when it would have to wait too long for another transaction.
        """
        ...

    async def run(self, sql: str, sets: Sequence[Sequence[Any]], before: Writes) -> Answer:
        """Run a statement in the database's own dialect, for layers that generate SQL; as `fetch`.

        ``sql`` has the database's own placeholders (``?`` or ``$1``) and runs once for each set of
        parameters; with more than one set it returns no rows.
        """
        ...

    async def rollback_to(self, savepoint: str) -> None:
        """Undo everything after a savepoint, including the failure of a statement.

        Savepoints are made with `run`. Raises the error again if the failure was not the
        statement's own, such as StoreUnavailable.
        """
        ...

    async def commit(self, changes: Changes) -> None:
        """Commit all changes together, or nothing.

        Raises Fenced when ``changes.claim`` no longer holds, Superseded when an event to settle or
        retry is no longer parked, ConstraintViolated, StateConflict, StoreUnavailable.
        """
        ...

    async def rollback(self) -> None:
        """Undo everything. Safe at any time, also after ``commit``."""
        ...


class Store(Protocol):
    """The port of a store: a service's own database with Oyez's tables, shared by its replicas."""

    capabilities: Capabilities
    """Final once `open` has returned: some of it is asked of the server."""

    async def open(self, *, create: bool = True) -> None:
        """Connect, and create or migrate Oyez's own tables.

        Without ``create`` it changes nothing: it raises StoreMissing when there is no store, and
        StoreOutdated when the tables are those of an older version. Raises StoreError.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Safe when never opened and when called twice."""
        ...

    async def migrate(self, scripts: Sequence[tuple[str, str]]) -> list[str]:
        """Run each script (name, SQL) that has not run yet, in order; return the names of those.

        Each runs in a transaction of its own, which also records it. Raises StoreRefused when a
        script has changed after it ran.
        """
        ...

    def begin(self, *, claims: bool = False) -> StoreTransaction:
        """Return a new transaction.

        One that ``claims`` partitions, and does nothing else, reads once and needs not wait for
        others that read: rows of claims are guarded by their epochs.
        """
        ...

    async def fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        """Query a snapshot of the committed data; blocks no other transaction."""
        ...

    async def seen(
        self, events: Sequence[tuple[str, str, str]], reader: str = ""
    ) -> set[tuple[str, str, str]]:
        """Return those of (event id, source, handler) that are in the inbox of the reader."""
        ...

    async def outbox(self, after: int, now: float, limit: int) -> list[Announcement]:
        """Return due events of the outbox after row ``after``, in commit order.

        Delayed events are in the order of their time; an eighth of ``limit`` is reserved for them,
        so that a backlog does not delay them for ever.
        """
        ...

    async def due(self, owner: str, handler: str, now: float, limit: int) -> list[Parked]:
        """Return parked events of the owner's partitions that are due.

        Half of ``limit`` is for events without a due time, in their order, and half for those whose
        time has come, longest due first; each half may use what the other leaves free.
        """
        ...

    async def keep(self, owner: str, seconds: float, note: str) -> None:
        """Take a lease for ``owner``, and renew it until ``leave`` or the end of the process.

        Renewal does not depend on the event loop, so a process whose handler blocks the loop keeps
        its lease. ``note`` is the address of its admin port.
        """
        ...

    async def bury(self) -> None:
        """End the leases of owners whose process is known to have died, before they expire.

        A store that can't know this does nothing: their leases expire.
        """
        ...

    async def leave(self, owner: str) -> None:
        """Give up the owner's lease and all its claims."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """Return the faults of the store's configuration, with their remedies."""
        ...

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop when a process may have added to outbox or inbox."""
        ...

    def on_leave(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the event loop when another process has left, as `leave` does.

        A store that can't tell does nothing: who looks at the claims finds out.
        """
        ...
