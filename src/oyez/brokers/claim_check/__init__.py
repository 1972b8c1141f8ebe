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

from oyez.brokers.claim_check.broker import ClaimCheck, ClaimCheckOptions
from oyez.brokers.claim_check.storage import Storage, open_storage

__all__ = ["ClaimCheck", "ClaimCheckOptions", "Storage", "open_storage"]
