"""What Warehouse reads, asks of itself, and announces."""

from __future__ import annotations

from oyez import Command, Event


class RoundBooked(Event, type="logistics.round.booked", key="round_id"):
    """The parcels that leave one depot together; only their number counts here."""

    round_id: str
    depot: str
    stops: list[object]


class ParcelMoved(Event, type="logistics.parcel.moved", key="parcel_id"):
    """A parcel is in another place."""

    parcel_id: str
    round_id: str
    stage: str


class TaskAssigned(Event, type="logistics.task.assigned", key="round_id"):
    """A worker shall pick, pack or load a parcel: ``task_id`` is ``PARCEL/KIND``."""

    task_id: str
    round_id: str
    worker: str


class TaskDone(Event, type="logistics.task.done", key="round_id"):
    """The worker has done it."""

    task_id: str
    round_id: str


class RoundPacked(Event, type="logistics.round.packed", key="round_id"):
    """All parcels of a round wait for a dock, for the first time or again."""

    round_id: str
    depot: str
    attempt: int


class WantDock(Command, type="logistics.dock.want", key="round_id", to="warehouse"):
    """A round needs a dock."""

    round_id: str
    depot: str


class DockGiven(Event, type="logistics.dock.given", key="round_id"):
    """The round has it until it is freed."""

    round_id: str
    dock: int


class FreeDock(Command, type="logistics.dock.free", key="round_id", to="warehouse"):
    """The round needs no dock any more."""

    round_id: str
    depot: str


class DockFreed(Event, type="logistics.dock.freed", key="round_id"):
    """The round has none, and waits for none."""

    round_id: str


class LoadVans(Command, type="logistics.vans.load", key="round_id", to="warehouse"):
    """Load the parcels of the round."""

    round_id: str
    attempt: int


class VansLoaded(Event, type="logistics.vans.loaded", key="round_id"):
    """All parcels of the round are in the vans."""

    round_id: str


class RoundLoaded(Event, type="logistics.round.loaded", key="round_id"):
    """The vans may leave."""

    round_id: str
    depot: str
