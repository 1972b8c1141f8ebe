"""The parts of the campaign: which faults, one after the other, under which load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import campaign
import damage
from evidence import JOURNAL, WITNESS, Evidence, gather
from faults import (
    ClockMoved,
    Delay,
    DiskFull,
    DownInRecovery,
    Duplicate,
    Errors,
    Exhausted,
    Fault,
    Freeze,
    HalfOpen,
    JoinAndLeave,
    Kill,
    KillAtSystemCalls,
    LostReply,
    Overload,
    Partition,
    Poison,
    PowerLost,
    Reset,
    ServerDown,
    ServerKilled,
    Terminate,
    Weather,
)
from grounds import Ground
from journal import Journal

DUPLICATES_EACH = 10
"""Faults after which events are delivered again."""


@dataclass(frozen=True)
class Part:
    """One part: its faults are fired in turn, so many as are asked for."""

    about: str
    faults: Callable[[Ground], Sequence[Fault]]
    needs: tuple[str, ...] = ()
    """``disk``, ``links`` and ``clock`` of its own; ``servers`` or the ``embedded`` broker;
    ``strace`` on the machine."""
    shows: tuple[str, ...] = ("duplicates",)
    """What must have happened besides the faults: ``duplicates``, and kills ``inside``."""
    count: int = 20
    """The number of faults that is fired if none is asked for."""
    pause: float = 0.4
    """Seconds between two faults of a lane."""
    at_once: int = 1
    """Lanes: faults that are under way at the same time, each at something else."""
    pace: float = 8.0
    """Orders a second."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    damages: int = 0
    """How often the broker's file is damaged when all is over, for each fault."""


def _links(ground: Ground) -> list[Fault]:
    # Link by link within a kind, so that lanes are at different ones.
    kinds = (Partition, HalfOpen, Reset, Delay, LostReply)
    return [kind(link) for kind in kinds for link in ground.links]


def _disks(ground: Ground) -> list[Fault]:
    # Where the stores are servers, the services write no files.
    return [DiskFull(), *(() if ground.servers.names else (Errors("EIO"), Errors("ENOSPC")))]


def _servers(ground: Ground) -> list[Fault]:
    kinds = (ServerKilled, ServerDown, DownInRecovery)
    return [kind(server) for kind in kinds for server in ground.servers.names]


_TWICE = ("inventory", "payments", WITNESS)
"""Services that run twice where members come, go and freeze."""

PARTS = {
    "kills": Part(
        "kill -9 of every process, at random and inside transactions",
        lambda _: [Kill()],
        shows=("duplicates", "inside"),
        pause=0.0,
        at_once=3,
        pace=40.0,
        replicas=dict.fromkeys((*_TWICE, "notifications"), 2),
    ),
    "calls": Part(
        "kill -9 at each system call of one order that changes something",
        lambda _: [KillAtSystemCalls()],
        needs=("strace",),
        shows=("inside",),
        count=1_000_000,
        pause=0.0,
        pace=0.0,
    ),
    "servers": Part(
        "the server of the broker or the stores is killed, is away, dies again in recovery",
        _servers,
        needs=("servers",),
        pause=6.0,
        at_once=2,
    ),
    "power": Part(
        "the file system of everything embedded, or of the servers, is shut down unflushed",
        lambda _: [PowerLost()],
        needs=("disk",),
        pause=1.5,
    ),
    "links": Part(
        "the way to broker, store or provider is cut, silent, reset, slow, or loses the replies",
        _links,
        needs=("links",),
        pause=0.5,
        at_once=3,
    ),
    "disk": Part(
        "no space on the disk, and writes that fail, in every service",
        _disks,
        needs=("disk", "strace"),
        pause=1.0,
    ),
    "bytes": Part(
        "flipped bytes and a lost end of the embedded broker's file",
        lambda _: [Kill()],
        needs=("embedded",),
        shows=("duplicates", "inside"),
        count=5,
        damages=40,
    ),
    "clock": Part(
        "the wall clock goes 2 hours back and 3 hours on, and processes die meanwhile",
        lambda _: [ClockMoved(-2), Kill(), ClockMoved(3), Kill()],
        needs=("clock",),
        pause=1.0,
    ),
    "members": Part(
        "replicas join, leave, are told to end, freeze past their lease, and die",
        lambda _: [JoinAndLeave(), Terminate(), Freeze(_TWICE), Kill()],
        shows=("duplicates", "inside"),
        replicas=dict.fromkeys(_TWICE, 2),
    ),
    "events": Part(
        "poison that raises, hangs, exits and takes all memory; overload; a slow consumer",
        lambda _: [
            Poison("raise"),
            Overload(),
            Poison("hang"),
            Weather(),
            Poison("exit"),
            Duplicate(),
            Poison("exhaust"),
        ],
    ),
    "soak": Part(
        "an hour of trade with a fault each ten seconds",
        lambda _: [Kill(), Weather(), Terminate(), JoinAndLeave(), Duplicate(), Poison("raise")],
        shows=("duplicates", "inside"),
        count=360,
        pause=10.0,
        pace=40.0,
    ),
}


async def play(part: Part, ground: Ground, *, seed: int, count: int) -> tuple[Evidence, list[str]]:
    """Run a part on its ground; the evidence, and what must have happened."""
    async with campaign.running(ground, seed=seed, replicas=part.replicas) as run:
        if part.pace:
            run.trade(part.pace)
        faults = part.faults(ground)
        turns = enumerate(islice(cycle(faults), count), 1)

        async def lane() -> None:
            for number, fault in turns:
                await asyncio.sleep(part.pause)
                try:
                    await run.fire(fault)
                except Exhausted:
                    return
                if part.pace and number % DUPLICATES_EACH == 1:
                    await run.fire(Duplicate())

        async with asyncio.TaskGroup() as lanes:
            for _ in range(part.at_once):
                lanes.create_task(lane())
        if part.pace:
            await run.fire(Duplicate())  # the first ones may have found nothing yet
        evidence = await run.drain()
    if part.damages:
        with Journal(ground.folder / JOURNAL) as journal:
            root, scratch = run.shop.root, ground.folder / "damaged"
            await damage.inflict(root, scratch, journal, seed, part.damages * count)
        evidence = await gather(ground.folder, run.project)
    fired = [fault.name for fault in faults[:count]]
    return evidence, [*fired, *part.shows]
