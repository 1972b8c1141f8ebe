"""Every error that Oyez raises, as one tree.

::

    OyezError
    ├── ConfigurationError    permanent   oyez.toml, environment or command line (exit code 2)
    ├── DeclarationError      permanent   an event, a handler or a service is declared wrongly
    ├── EventError            permanent   an event or envelope breaks the contract
    │   ├── InvalidEvent                  its data or an attribute is invalid; names the field
    │   │   └── BadJson                   its data is not JSON at all
    │   └── UnknownVersion                its contract version is newer than the handler knows
    ├── StoreError
    │   ├── StoreUnavailable  transient   locked, disk full, connection lost
    │   ├── StoreMissing      permanent   nobody has made it yet
    │   ├── StoreCorrupt      permanent   the file is damaged; nothing more is written to it
    │   ├── StoreRefused      permanent   unsupported place or version of a store, impossible SQL
    │   │   └── SchemaMissing permanent   PostgreSQL knows no such schema, table or function
    │   ├── ConstraintViolated transient  a statement broke a constraint of the schema
    │   ├── TransactionExpired transient  it held up all other writers for too long
    │   ├── Superseded        permanent   a parked event was settled in the meantime
    │   └── Fenced            permanent   another replica owns the partition now
    ├── BrokerError
    │   ├── BrokerUnavailable transient   no answer within the deadline
    │   ├── BrokerCorrupt     permanent   a record on disk fails its checksum
    │   └── BrokerRefused     permanent   the broker can't do what was asked, e.g. partition count
    │       └── RecordRefused             it does not take this one record
    ├── HandlerTimeout        transient   a handler ran longer than its timeout
    ├── TransactionClosed     permanent   something was added to a transaction that has ended
    ├── NotRedriven           permanent   a dead letter can't be redriven or discarded
    └── NotCreated            permanent   what a command reads does not exist yet

*Transient* errors may go away by themselves: the default retry policy tries again. *Permanent*
ones will not: the event becomes a dead letter at once. Any other exception that a handler raises
counts as transient.
"""

from __future__ import annotations

from typing import ClassVar


class OyezError(Exception):
    """The root. ``transient`` tells a retry policy whether trying again can help."""

    transient: ClassVar[bool] = False


class ConfigurationError(OyezError):
    """A setting is missing, unknown or impossible. The message is one line: place, key, remedy."""


class DeclarationError(OyezError):
    """An event class, a handler or a service is declared in a way that can't work."""


class EventError(OyezError):
    """An event or its envelope breaks the contract."""


class InvalidEvent(EventError):
    """A field or attribute is invalid.

    ``field`` is its path (``$.lines[0].quantity`` or ``subject``), ``problem`` says what is wrong
    and what is allowed.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class BadJson(InvalidEvent):
    """The bytes are not one JSON value in UTF-8 (HTTP faces answer 400, not 422)."""


class UnknownVersion(EventError):
    """The event carries a newer major contract version than any handler here declares."""


class StoreError(OyezError):
    """The service's store could not do what was asked."""


class StoreUnavailable(StoreError):
    """The store can't be written or read now: locked, full or out of reach."""

    transient = True


class StoreMissing(StoreError):
    """The store does not exist yet, and was not to be made."""


class StoreCorrupt(StoreError):
    """The store's file is damaged. The message names the file and the remedy."""


class StoreRefused(StoreError):
    """The store can't do this at all: a network file system, a newer schema, SQL that is wrong."""


class SchemaMissing(StoreRefused):
    """A PostgreSQL schema, or a table or function in it, does not exist."""


class ConstraintViolated(StoreError):
    """A statement broke a constraint of the service's own schema."""

    transient = True


class TransactionExpired(StoreError):
    """A transaction that others waited for was open too long and was rolled back."""

    transient = True


class Superseded(StoreError):
    """A parked event was settled or retried by someone else; the transaction was rolled back."""


class Fenced(StoreError):
    """The partition has another owner or a newer epoch; the transaction was rolled back."""


class BrokerError(OyezError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """The broker gave no durable answer within the deadline."""

    transient = True


class BrokerCorrupt(BrokerError):
    """A record of the embedded broker fails its checksum. The message names file and remedy."""


class BrokerRefused(BrokerError):
    """The broker exists but differs from what is configured, or lacks the capability."""


class RecordRefused(BrokerRefused):
    """The broker does not take this one record, whatever it does with others."""


class HandlerTimeout(OyezError):
    """A handler did not finish within its timeout (seconds) and was cancelled."""

    transient = True


class TransactionClosed(OyezError):
    """The transaction has ended; what came later was not recorded."""


class NotRedriven(OyezError):
    """The dead letter can't be redriven; the message says why and what to do."""


class NotCreated(OyezError):
    """What a command was to read does not exist yet; the message says what makes it."""
