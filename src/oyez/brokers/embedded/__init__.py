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

from oyez.brokers.embedded.broker import EmbeddedBroker
from oyez.brokers.embedded.options import EmbeddedOptions

__all__ = ["EmbeddedBroker", "EmbeddedOptions"]
