"""The default broker: all streams of a system in one SQLite file, used by many processes at once.

An append is durable when `publish` returns; what it adds to one partition is a batch, one row of
the file. Appends of one process during a flush share the next commit, and processes wait for the
file by its lock. Readers go by position; a process that commits wakes them with a datagram (see
`oyez.sqlite`), and they poll slowly in case it is lost. Old batches are deleted by age and size.

::

    broker.py   the `oyez.ports.Broker`, and what it knows of the streams and their ends
    options.py  the options of the URL
    waiting.py  the readers that wait for their partition to grow
    log.py      the statements on the tables, on the file's threads
    schema.py   the tables, step by step
    wire.py     a batch as it lies in the file
"""

from __future__ import annotations

from pathlib import Path

from oyez.ambient import Ambient
from oyez.endpoint import located
from oyez.ports import Broker


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker in a URL's file, not opened yet; see `oyez.brokers.Connect`."""
    from oyez.brokers.embedded.broker import EmbeddedBroker
    from oyez.brokers.embedded.options import EmbeddedOptions

    options = EmbeddedOptions(partitions=partitions, retention=retention)
    return EmbeddedBroker(root / url.partition(":")[2], ambient, options)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its file; see `oyez.sites.Site`."""
    return f"embedded:{located(url, root)}"
