"""Where large data is kept: the face of every storage, and which one a URL names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from oyez.ambient import Ambient
from oyez.endpoint import Endpoint, redact
from oyez.errors import ConfigurationError
from oyez.ports import Finding

CONCURRENT = 8
"""What is stored or fetched at once, at most."""
MARGIN = 86_400.0
"""Seconds for which data is kept beyond the records that name it, for clocks and slow relays."""


class Storage(Protocol):
    """Bytes under names; several processes put and get at once.

    It connects by itself when it is first asked. Whoever calls sets the deadline. Every call raises
    BrokerUnavailable where the storage is out of reach and BrokerRefused where it says no.
    """

    where: str
    """The storage, for people."""
    prefix: str
    """A name behind it is the address of what is stored under that name."""

    async def put(self, name: str, data: bytes) -> None:
        """Return when the data is durable under the name, as new as if it had never been there."""
        ...

    async def get(self, name: str, most: int) -> bytes | None:
        """What is stored under the name, of something longer ``most`` + 1 bytes; None for nothing.

        Nothing is what was never stored or is deleted, not what can't be seen for the moment.
        """
        ...

    async def sweep(self) -> None:
        """Delete what is older than the retention and `MARGIN`, if nothing else does that here."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """What is wrong with how the storage is set up; empty when all is well."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe at any time; what is asked for later connects again."""
        ...


def open_storage(url: str, ambient: Ambient, *, root: Path, retention: float) -> Storage:
    """The storage that a URL names; nothing is connected yet.

    ``root`` is what a relative folder is relative to, ``retention`` the seconds for which the
    broker keeps records. Raises ConfigurationError.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "folder" and rest.strip("/"):
        from oyez.brokers.claim_check.folder import Folder

        return Folder(Path(os.path.abspath(root / rest)), ambient, retention)
    try:
        if scheme == "s3":
            from oyez.brokers.claim_check.s3 import S3, S3Options

            bucket = Endpoint(url, port=443)
            return S3(bucket, bucket.options(S3Options), retention)
        if scheme == "postgresql":
            from oyez.brokers.claim_check.postgres import PostgresOptions, Table

            server = Endpoint(url, port=5432)
            return Table(server, ambient, server.options(PostgresOptions), retention)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"system.claim_check: {scheme} needs the package {error.name}: "
            f"pip install 'oyez[{scheme}]'"
        ) from error
    raise ConfigurationError(
        "system.claim_check: expected folder:PATH, s3://BUCKET/PREFIX or "
        f"postgresql://HOST/DATABASE, found {redact(url)!r}"
    )
