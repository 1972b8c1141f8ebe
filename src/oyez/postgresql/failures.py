"""What the driver's errors mean."""

from __future__ import annotations

import re

import asyncpg
from asyncpg import exceptions as pg

from oyez.endpoint import mistrust
from oyez.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConstraintViolated,
    SchemaMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises; the third when it meets a connection that died while it was idle."""


_MISSING = (pg.UndefinedTableError, pg.UndefinedFunctionError, pg.InvalidSchemaNameError)
_PASSING = (
    pg.PostgresConnectionError,
    pg.InsufficientResourcesError,
    pg.OperatorInterventionError,
    pg.TransactionRollbackError,
    pg.LockNotAvailableError,
    pg.ReadOnlySQLTransactionError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.PostgresSystemError,
    pg.InvalidCachedStatementError,
    pg.OutdatedSchemaCacheError,
    pg.InvalidSQLStatementNameError,
    pg.DuplicatePreparedStatementError,
)
"""What goes away by itself, or on another connection."""


def as_broker_error(error: StoreError) -> BrokerError:
    """Return what a broker raises where its server is a database."""
    if isinstance(error, StoreUnavailable):
        return BrokerUnavailable(str(error))
    return BrokerRefused(str(error))


def explain(name: str, error: Exception) -> StoreError:
    """Return the StoreError that the driver's error on server ``name`` means.

    It holds no values of parameters.
    """
    if isinstance(error, asyncpg.PostgresError):
        told = f"{name}: {error.args[0] if error.args else error}"
        if isinstance(error, pg.DataError):
            # What stands behind the colon is a value; the driver's own errors hold one too.
            what = "a parameter has the wrong type or is out of range"
            if error.severity is not None:
                what = str(error.args[0]).partition(': "')[0]
            return StoreRefused(f"{name}: {what}")
        if isinstance(error, pg.IntegrityConstraintViolationError):
            return ConstraintViolated(told)
        if isinstance(error, pg.InvalidAuthorizationSpecificationError) or (
            # PgBouncer's own refusals have the code of a broken protocol.
            isinstance(error, pg.ProtocolViolationError) and re.search("auth|no such", told)
        ):
            return StoreRefused(f"{told}: check the URL's user, password and sslmode")
        if isinstance(error, pg.InvalidCatalogNameError):
            return StoreRefused(f"{told}: create the database, or correct the URL")
        if isinstance(error, pg.InsufficientPrivilegeError):
            return StoreRefused(f"{told}: grant it to the URL's user")
        if isinstance(error, _PASSING):
            return StoreUnavailable(told)
        if isinstance(error, _MISSING):
            return SchemaMissing(told)
        return StoreRefused(told)
    if isinstance(error, asyncpg.InterfaceError):
        return StoreUnavailable(f"{name}: {error}")
    if distrusted := mistrust(error):
        return StoreRefused(f"{name}: {distrusted}")
    what = "is out of reach" if isinstance(error, OSError) else "has cut the connection"
    return StoreUnavailable(f"{name} {what}: {error}")
