"""The default broker: all streams of a system in one SQLite file, used by many processes at once.

An append is durable when `publish` returns; appends of one process that arrive while another is
being flushed share the next commit, and processes queue for the file by its lock. Readers go by
position; a committer wakes them with a datagram (see `oyez.sqlite`), and a slow poll is the
safety net where that can't reach. Old records are deleted by age and by size.

::

    broker.py   the face, `oyez.ports.Broker`, and what wakes readers
    options.py  how it behaves
    log.py      the tables in the file, and what is done to them on its threads
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
