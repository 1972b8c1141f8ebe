"""The Python interpreter's settings for a process that handles events."""

from __future__ import annotations

import gc
import sys

SWITCH = 0.0005
"""Seconds after which a thread that waits for the interpreter's lock is given it.

The loop exchanges work with the writer threads thousands of times a second; with Python's default
of 5 ms it would often wait that long.
"""
YOUNG = 50_000
"""Containers, net of those that were freed, from one look for circles among them to the next.

A batch has thousands of them on their way at any time, and frees them without the collector's
help; with Python's default of 700 it looks at them several times a batch, for nothing.
"""
_DEFAULT = (700, 10, 10)


def tune() -> None:
    """Set up this process's interpreter; thresholds of the collector that were set stay."""
    sys.setswitchinterval(SWITCH)
    if gc.get_threshold() == _DEFAULT:
        gc.set_threshold(YOUNG, 10, 10)


def settle() -> None:
    """Take what exists now, such as modules, out of all later collections, which pause the loop."""
    gc.collect()
    gc.freeze()
