"""Every error that Oyez raises, as one tree.

::

    OyezError
    ├── ConfigurationError    permanent   oyez.toml, environment or command line (exit code 2)
    │   ├── MigrationsDue                 a store lacks what its service needs
    │   └── ReplayRefused                 a handler, or its history, can't be replayed
    ├── DeclarationError      permanent   an event, a handler or a service is declared wrongly
    ├── EventError            permanent   an event or envelope breaks the contract
    │   ├── InvalidEvent                  its data or an attribute is invalid; names the field
    │   │   └── BadJson                   its data is not JSON at all
    │   ├── NotEvents                     what came over HTTP is no form of CloudEvents
    │   ├── Expired                       a command was to be done by a time that has passed
    │   └── UnknownVersion                its contract version is newer than the handler knows
    ├── StoreError
    │   ├── StoreUnavailable  transient   locked, disk full, connection lost
    │   │   └── StateConflict             another transaction holds the same keyed state
    │   ├── NewerState        transient   keyed state was written by a newer version of the service
    │   ├── StateMismatch     permanent   keyed state does not fit its class, or can't be stored
    │   ├── StoreMissing      permanent   it does not exist yet
    │   ├── StoreCorrupt      permanent   the file is damaged; nothing more is written to it
    │   ├── StoreRefused      permanent   unsupported place or version of a store, impossible SQL
    │   │   ├── SchemaMissing permanent   there is no such schema, table or function
    │   │   └── StoreOutdated permanent   Oyez's tables in it are those of an older version
    │   ├── ConstraintViolated transient  a statement broke a constraint of the schema
    │   ├── TransactionExpired transient  it blocked all other writers for too long
    │   ├── Superseded        permanent   a parked event was settled in the meantime
    │   └── Fenced            permanent   another replica owns the partition now
    ├── BrokerError
    │   ├── BrokerUnavailable transient   no answer within the deadline
    │   ├── BrokerCorrupt     permanent   a record on disk fails its checksum
    │   └── BrokerRefused     permanent   the broker can't do the request, e.g. partition count
    │       └── RecordRefused             it does not accept this one record
    ├── HistoryMissing        permanent   records that a view is made of have been deleted
    ├── BackfillFailed        permanent   the function of a backfill can't be walked
    ├── Stale                 transient   a view does not have what its reader has seen yet
    ├── HandlerTimeout        transient   a handler ran longer than its timeout
    ├── RetryLater            transient   a handler knows when its event is to be tried again
    ├── Undeliverable         permanent   an endpoint gets no further attempt
    ├── TransactionClosed     permanent   something was added to a transaction that has ended
    ├── NotRedriven           permanent   a dead letter can't be redriven or discarded
    ├── NotThere              permanent   a stream has no such partition or event, or no longer
    ├── LoginFailed           permanent   a login does not end in a session
    │   └── LoginDenied                   the provider did not let the person in
    ├── Unproven              permanent   who sends a request is not proven, or can't be told
    └── NotCreated            permanent   what a command reads does not exist yet

*Transient* errors may go away by themselves: the default retry policy tries again. *Permanent*
ones will not: the event becomes a dead letter at once. Any other exception that a handler raises
counts as transient.
"""

from __future__ import annotations

from typing import ClassVar


class OyezError(Exception):
    """The root of all errors. ``transient``: whether a retry can succeed."""

    transient: ClassVar[bool] = False


class ConfigurationError(OyezError):
    """A setting is missing, unknown or impossible. The message is one line: place, key, remedy."""


class MigrationsDue(ConfigurationError):
    """A process that may change no tables finds that its store lacks some."""


class DeclarationError(OyezError):
    """The declaration of an event class, a handler or a service can't work."""


class EventError(OyezError):
    """An event or its envelope breaks the contract."""


class InvalidEvent(EventError):
    """A field or attribute is invalid.

    ``field`` is its path (``$.lines[0].quantity`` or ``subject``), ``problem`` states what is wrong
    and what is allowed. As a text it is one line, whatever a stranger has named the field.
    """

    def __init__(self, field: str, problem: str) -> None:
        text = f"{field}: {problem}"
        if not text.isprintable():
            text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
        super().__init__(text)
        self.field = field
        self.problem = problem


class BadJson(InvalidEvent):
    """The bytes are not one JSON value in UTF-8 (status 400 over HTTP, not 422)."""


class NotEvents(EventError):
    """What came over HTTP is no form of CloudEvents.

    ``status`` is that of the answer, ``code`` for programs, ``detail`` for people.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class Expired(EventError):
    """A command was to be done by a time that has passed, and was not done."""


class UnknownVersion(EventError):
    """The event carries a newer major contract version than any handler here declares."""


class StoreError(OyezError):
    """An operation of the service's store failed."""


class StoreUnavailable(StoreError):
    """The store can't be written or read now: locked, full or out of reach."""

    transient = True


class StateConflict(StoreUnavailable):
    """Another transaction holds the same keyed state; this one runs again, as no attempt."""


class NewerState(StoreError):
    """Keyed state was written by a newer version of the service, which is being deployed.

    Its events wait, without an attempt being counted, until this process is replaced.
    """

    transient = True


class StateMismatch(StoreError):
    """Keyed state does not fit its class any more, or holds what can't be stored."""


class StoreMissing(StoreError):
    """The store does not exist yet, and was opened without creating it."""


class StoreCorrupt(StoreError):
    """The store's file is damaged. The message names the file and the remedy."""


class StoreRefused(StoreError):
    """The store can never do this: a network file system, a newer schema, invalid SQL."""


class SchemaMissing(StoreRefused):
    """A PostgreSQL schema, or a table or function in it, does not exist."""


class StoreOutdated(StoreRefused):
    """Oyez's tables are those of an older version, and were opened without upgrading them."""


class ConstraintViolated(StoreError):
    """A statement broke a constraint of the service's own schema."""

    transient = True


class TransactionExpired(StoreError):
    """A transaction that blocked others was open for too long and was rolled back."""

    transient = True


class Superseded(StoreError):
    """Another transaction settled or retried the parked event; this one was rolled back."""


class Fenced(StoreError):
    """The partition has another owner or a newer epoch; the transaction was rolled back."""


class BrokerError(OyezError):
    """An operation of the broker failed."""


class BrokerUnavailable(BrokerError):
    """The broker did not acknowledge within the deadline."""

    transient = True


class BrokerCorrupt(BrokerError):
    """A record of the embedded broker fails its checksum. The message names file and remedy."""


class BrokerRefused(BrokerError):
    """The broker exists but differs from what is configured, or lacks the capability."""


class RecordRefused(BrokerRefused):
    """The broker does not accept this one record, although it accepts others."""


class HistoryMissing(OyezError):
    """A view can't be filled: retention has deleted the beginning of its history."""


class BackfillFailed(OyezError):
    """The function of a backfill raised, returned something else, or never moves forward."""


class ReplayRefused(ConfigurationError):
    """A handler, or the history asked for, can't be replayed; the message names the remedy."""


class Stale(OyezError):
    """A view has not applied an event that its reader knows of; ``seconds`` is how long it waited.

    ``behind`` is the age of that event in seconds. It may be read again soon, or as it is, with
    ``strict=False``.
    """

    transient = True

    def __init__(self, view: str, seconds: float, behind: float) -> None:
        super().__init__(
            f"view {view} has not applied the event to read after within {seconds:.1f} s: read "
            "again soon, or with strict=False"
        )
        self.seconds = seconds
        self.behind = behind


class HandlerTimeout(OyezError):
    """A handler did not finish within its timeout (seconds) and was cancelled."""

    transient = True


class RetryLater(OyezError):
    """Raised by a handler that knows when its event is to be tried again: in ``seconds``.

    That is the wait before the next attempt, in place of the retry policy's, up to the policy's
    ``longest``. With ``counts=False`` it is no failed attempt: the event only waits for its turn,
    as often as that is raised.
    """

    transient = True

    def __init__(self, message: str, *, seconds: float, counts: bool = True) -> None:
        if not seconds >= 0:
            raise ValueError(f"RetryLater: seconds: expected 0 or more, found {seconds}")
        super().__init__(message)
        self.seconds = seconds
        self.counts = counts


class Undeliverable(OyezError):
    """An event can't be delivered over HTTP: a sink refused it, or its webhook is disabled."""


class TransactionClosed(OyezError):
    """The transaction has ended; later writes and events were not recorded."""


class NotRedriven(OyezError):
    """The dead letter can't be redriven or discarded; the message names reason and remedy.

    ``cause`` is for faces that have a remedy of their own: ``old``, ``expired``, ``unpublished``,
    ``unreadable`` or ``renamed`` (see `oyez.runtime.dead.refuse`); else empty.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class LoginFailed(OyezError):
    """A login does not end in a session.

    ``code`` is for programs, the message for people. ``ours``: whether the provider or the
    configuration is at fault, not who logs in.
    """

    def __init__(self, code: str, detail: str, *, ours: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.ours = ours


class LoginDenied(LoginFailed):
    """The provider did not let the person in, or the person went back."""


class Unproven(OyezError):
    """Who sends a request is not proven, or can't be told; the message quotes nothing of it."""


class NotThere(OyezError):
    """A broker has no such stream, or the stream no such partition or event, or no longer."""


class NotCreated(OyezError):
    """A file or database that a command reads does not exist yet; the message names its creator."""
