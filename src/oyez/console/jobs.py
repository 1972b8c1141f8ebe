"""Many dead letters, settled inside the service's process, which goes on when nobody looks."""

from __future__ import annotations

import asyncio

from oyez.console.answers import Job, Many
from oyez.errors import NotRedriven, OyezError
from oyez.runtime.audit import Actor, require_reason
from oyez.runtime.process import ServiceProcess
from oyez.runtime.redrive import (
    MAX_REFUSED,
    Refused,
    Step,
    discard_letters,
    handlers_of,
    redrive_letters,
)

AT_ONCE = 3
"""The most jobs that are under way in one process."""
KEPT = 20
"""Ended jobs that are remembered, the newest."""


class Jobs:
    """The jobs of one process. They end with it: what they have not settled stays dead."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._jobs: dict[str, _Work] = {}

    def start(self, asked: Many) -> Job:
        """Begin a job. Raises NotRedriven when too many are under way, and InvalidEvent."""
        by = asked.actor()
        if asked.act == "discard":
            require_reason(by, "they may be discarded")
        running = [work for work in self._jobs.values() if work.ended is None]
        if len(running) >= AT_ONCE:
            raise NotRedriven(f"{AT_ONCE} jobs are under way: stop one, or wait until it has ended")
        ended = [work for work in self._jobs.values() if work.ended is not None]
        for work in ended[: max(0, len(ended) - KEPT + 1)]:
            del self._jobs[work.id]
        work = _Work(self._process, asked, by)
        self._jobs[work.id] = work
        return work.job()

    def known(self) -> tuple[Job, ...]:
        """Return all jobs, the newest first."""
        return tuple(work.job() for work in reversed(self._jobs.values()))

    def job(self, name: str) -> Job:
        """Return a job. Raises NotRedriven when there is none of that name."""
        return self._find(name).job()

    def stop(self, name: str) -> Job:
        """Have a job end before its next letter. Safe for one that has ended. Raises as `job`."""
        work = self._find(name)
        work.stop.set()
        return work.job()

    def _find(self, name: str) -> _Work:
        if name not in self._jobs:
            raise NotRedriven("no such job is known: its process has ended since, or forgot it")
        return self._jobs[name]


class _Work:
    """One job, under way from the start."""

    def __init__(self, process: ServiceProcess, asked: Many, by: Actor) -> None:
        self.id = f"{process.ambient.bits(64):016x}"
        self.stop = asyncio.Event()
        self.ended: float | None = None
        self._process = process
        self._asked = asked
        self._by = by
        self._started = process.ambient.now()
        self._total = self._done = self._refusals = 0
        self._refused: list[Refused] = []
        self._failed = ""
        self._task = asyncio.create_task(self._run(), name=f"{asked.act} dead letters")

    def job(self) -> Job:
        """Return it as it stands."""
        asked = self._asked
        return Job(
            id=self.id,
            act=asked.act,
            wanted=asked.wanted,
            who=asked.who,
            why=asked.why,
            handler=asked.handler,
            rate=asked.rate,
            started=self._started,
            ended=self.ended,
            total=self._total,
            done=self._done,
            refusals=self._refusals,
            refused=tuple(self._refused),
            stopped=self.stop.is_set(),
            failed=self._failed,
        )

    async def _run(self) -> None:
        try:
            await self._settle()
        except OyezError as error:
            self._failed = str(error)
        finally:
            self.ended = self._process.ambient.now()

    async def _settle(self) -> None:
        asked, process = self._asked, self._process
        if asked.act == "discard":
            await discard_letters(
                process.store,
                asked.wanted,
                process.ambient,
                by=self._by,
                told=self._told,
                stopped=self.stop,
            )
            return
        await redrive_letters(
            process.store,
            asked.wanted,
            process.ambient,
            by=self._by,
            handler=asked.handler,
            handlers=handlers_of(process.service),
            old=asked.old,
            rate=asked.rate,
            told=self._told,
            stopped=self.stop,
        )

    def _told(self, step: Step) -> None:
        self._total = step.total
        if step.refused is None:
            self._done += 1
        else:
            self._refusals += 1
            if len(self._refused) < MAX_REFUSED:
                self._refused.append(step.refused)
        if self._process.stopping:
            self.stop.set()
