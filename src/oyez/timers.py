"""Timers: what is to happen at a time to a saga, a window or a schedule, by kind, key and name.

A timer is a row of ``oyez_timer``, written with the commit of whoever sets it, so it is set exactly
if the rest of that commit happened. When its time comes, one commit deletes the row and leaves a
`Timer` event for the handler of its kind, which runs like any parked event: with retries, and in
the end as a dead letter. So a timer that was disarmed or set anew before it fired never arrives.
"""

from __future__ import annotations

from oyez import tables
from oyez.event import Event
from oyez.partitioning import partition_of
from oyez.ports import Writes
from oyez.tables import PLACES

MADE_HERE = frozenset({"oyez.timer", "oyez.tick"})
"""The event types that a service makes for itself, and so ignores in every stream."""


class Timer(Event, type="oyez.timer", key="key"):
    """The event of a timer that fired; ``due`` is its time, in seconds since 1970.

    It comes from the service itself: a record of this type in a stream is ignored.
    """

    kind: str
    key: str
    name: str
    due: float


def arm(
    kind: str,
    key: str,
    name: str,
    due: float,
    now: float,
    *,
    traceparent: str | None = None,
    tracestate: str | None = None,
    authid: str | None = None,
    authtype: str | None = None,
) -> Writes:
    """Return the writes that set a timer of this name, in place of an earlier one.

    It fires at ``due`` (seconds since 1970), or at once if that is past. If the clock is set back
    behind ``now``, it fires ``due - now`` seconds after that. Its event is in the trace of
    ``traceparent``, and says ``authid`` and ``authtype`` of who began it.
    """
    row = {
        "kind": kind,
        "key": key,
        "name": name,
        "due": max(due, 0.0),
        "part": partition_of(key, PLACES),
        "armed": now,
        "traceparent": traceparent,
        "tracestate": tracestate,
        "authid": authid,
        "authtype": authtype,
    }
    return [(tables.ARM, [row])]


def disarm(kind: str, key: str, name: str) -> Writes:
    """Return the writes that delete the timer of this name, if it has not fired yet."""
    return [(tables.DISARM, [{"kind": kind, "key": key, "name": name}])]


def disarm_all(kind: str, key: str) -> Writes:
    """Return the writes that delete every timer of a kind and key that has not fired yet."""
    return [(tables.DISARM_ALL, [{"kind": kind, "key": key}])]
