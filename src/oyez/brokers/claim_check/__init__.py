"""Claim check: data too large for the broker goes to a storage, and the record says where it is.

A record that is larger than the broker takes is published with empty data and the CloudEvents
attribute ``dataref``; whoever reads through `ClaimCheck` finds the data in its place again, and no
``dataref``. The storage keeps it under a name that says what it is::

    STORAGE/3f/9a0c…e1-1048576      the SHA-256 of the data, cut in two, and its length in bytes

So the same data is stored once however often it is sent, and a reader knows before it asks how much
will come and afterwards whether that is what was stored. A consumer in another language resolves
``dataref`` (``file:///PATH/…``, ``s3://BUCKET/PREFIX/…`` or
``postgresql:///DATABASE/SCHEMA/large/…``) with whatever reads such addresses.
"""

from __future__ import annotations

import os
from pathlib import Path

from oyez.ambient import Ambient
from oyez.brokers.claim_check.broker import ClaimCheck
from oyez.brokers.claim_check.options import ClaimCheckOptions
from oyez.brokers.claim_check.storage import Storage
from oyez.endpoint import Endpoint, redact
from oyez.errors import ConfigurationError

__all__ = ["ClaimCheck", "ClaimCheckOptions", "Storage", "open_storage"]


def open_storage(url: str, ambient: Ambient, *, root: Path, retention: float) -> Storage:
    """Return the storage that a URL names; nothing is connected yet.

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
