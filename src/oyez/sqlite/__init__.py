"""One SQLite file that several processes write: under the embedded broker and the SQLite store.

It promises: a write that returned is on the disk (WAL, ``synchronous=FULL``); writers queue fairly
(before ``BEGIN IMMEDIATE`` they take an advisory lock, which the kernel drops when its process
dies); all writes that wait while one transaction is flushed go into the next one together (group
commit); a write that fails is undone alone; a process that watches the file is woken by a datagram.
SQLite's own calls never run on the event loop, unless ``inline`` asks for that.

`file` is the face. Behind it, `turns` decides on the event loop what is written next, `worker` is
the thread, and `writer` does on it what holds a transaction together.
"""

from apsw import Connection

from oyez.sqlite.connection import OLDEST_SQLITE, Job, Step
from oyez.sqlite.file import SqliteFile
from oyez.sqlite.place import refuse_network_file_system
from oyez.sqlite.statement import answer, bind
from oyez.sqlite.turns import Turn

__all__ = [
    "OLDEST_SQLITE",
    "Connection",
    "Job",
    "SqliteFile",
    "Step",
    "Turn",
    "answer",
    "bind",
    "refuse_network_file_system",
]
