"""What Warehouse reads, asks of itself, and announces.

What is told of docks has the depot as its key: so it comes in the order in which it was done.
"""

from __future__ import annotations

from oyez import Command, Event


class OfRound(Event, key="round_id"):
    """The base of what is of a round."""

    round_id: str


class RoundBooked(OfRound, type="logistics.round.booked"):
    """The parcels that leave one depot together; only their number counts here."""

    depot: str
    stops: dict[str, object]


class ParcelMoved(OfRound, type="logistics.parcel.moved", key="parcel_id"):
    """A parcel is in another place."""

    parcel_id: str
    stage: str


class OfTask(OfRound):
    """The base of what is of a task: to pick, pack or load a parcel."""

    parcel_id: str
    kind: str


class TaskAssigned(OfTask, type="logistics.task.assigned"):
    """This worker shall do it."""

    worker: str


class TaskDone(OfTask, type="logistics.task.done"):
    """It is done."""


class OfDepot(OfRound):
    """The base of what is of a round at its depot."""

    depot: str


class RoundPacked(OfDepot, type="logistics.round.packed"):
    """All parcels of a round wait for a dock, for the first time or again."""


class WantDock(OfDepot, Command, type="logistics.dock.want", to="warehouse"):
    """A round needs a dock."""


class DockGiven(OfDepot, type="logistics.dock.given", key="depot"):
    """The round has one until it is freed."""


class FreeDock(OfDepot, Command, type="logistics.dock.free", to="warehouse"):
    """The round needs no dock any more."""


class DockFreed(OfDepot, type="logistics.dock.freed", key="depot"):
    """The round has none, and waits for none."""


class LoadVans(OfRound, Command, type="logistics.vans.load", to="warehouse"):
    """Load the parcels of the round."""


class VansLoaded(OfRound, type="logistics.vans.loaded"):
    """All parcels of the round are in the vans."""


class RoundLoaded(OfDepot, type="logistics.round.loaded"):
    """The vans may leave."""
