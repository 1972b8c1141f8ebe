"""Sagas under whatever may happen: 10,000 sequences, each of which has to end with the books right.

Answers come in any order between services, late, or never; commands die; the clock runs ahead. Each
service does what the guide asks of it: a command that it has done is answered again and not done
twice, and an undo is always answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_saga import (
    Asked,
    Cancel,
    Charge,
    Declined,
    Fulfilment,
    Lost,
    OrderPlaced,
    Paid,
    Refund,
    Refunded,
    Rejected,
    Release,
    Released,
    Reserve,
    Reserved,
    Shipped,
)

from oyez.contract import encode
from oyez.envelope import Envelope
from oyez.event import describe
from oyez.saga import CommandDied, Saga, Stage, Status, end, on, saga_kind, starts, step
from oyez.saga_transition import AGAIN, transition
from oyez.timers import Timer


class OneByOne(Saga, key="order", ends=("done", "undone")):
    """Steps in a row, none of them a pivot."""

    order: str = ""
    cents: int = 0
    payment: str = ""

    @starts
    def placed(self, event: OrderPlaced) -> None:
        self.take(event)

    @step(done=Paid, failed=Declined, within=100)
    def charge(self) -> Charge:
        return self.make(Charge)

    @charge.undo(done=Refunded, within=50)
    def refund(self) -> Refund:
        return self.make(Refund)

    @step(done=Reserved, failed=Rejected, within=50)
    def reserve(self) -> Reserve:
        return self.make(Reserve)

    @reserve.undo(done=Released, within=2000)
    def release(self) -> Release:
        return self.make(Release)

    @on(Cancel)
    def stop(self, event: Cancel) -> None:
        self.ending("undone")

    @end("done")
    def done(self) -> None:
        """Nobody is told."""


class Service:
    """A service that does or undoes one thing for the order; done, it is 1, else 0."""

    def __init__(self, done: object, failed: object, undone: object | None) -> None:
        self.commands: deque[tuple[str, object, float | None]] = deque()
        self.answers: deque[object] = deque()
        self.amount = 0
        self.times = 0
        """How often it was done."""
        self._done = done
        self._failed = failed
        self._undone = undone
        self._refused = False

    def handle(self, now: float, chance: int) -> None:
        """Handle the next command: well, in vain, without an answer that arrives, or not at all."""
        if not self.commands:
            return
        command_id, command, expires = self.commands.popleft()
        late = expires is not None and expires < now
        if late or chance % 8 == 7:
            kind = describe(type(command)).name
            self.answers.append(CommandDied(command_id=command_id, type=kind, key="1", reason="x"))
            return
        if isinstance(command, Release | Refund):
            self.amount = 0
            answer = self._undone
        elif not self.amount and (self._refused or chance % 8 == 6):
            self._refused = True
            answer = self._failed
        else:
            self.times += not self.amount
            self.amount = 1
            answer = self._done
        if chance % 8 != 5:  # else it is lost
            self.answers.append(answer)


class World:
    """An instance, its timers, and the services it asks."""

    def __init__(self, cls: type[Saga]) -> None:
        self.kind = saga_kind(cls)
        self.saga = self.kind.new("1")
        self.now = 1_000.0
        self.timers: dict[str, float] = {}
        self.services = {
            "inventory": Service(Reserved(), Rejected(), Released()),
            "payments": Service(Paid(), Declined(), Refunded()),
            "shipping": Service(Shipped(), Lost(), None),
        }
        self.outside: deque[object] = deque()
        self.sent = 0

    def arrive(self, event: object) -> None:
        kind = describe(type(event))
        if kind.name not in self.kind.events and not isinstance(event, Timer | CommandDied):
            return
        self.sent += 1
        envelope = Envelope(
            id=f"e{self.sent}", source="/shop/x", type=kind.name, data=encode(kind, event)
        )
        outputs = transition(self.kind, self.saga, event, self.now, envelope)
        assert outputs.dead == []
        if outputs.disarm:
            self.timers.clear()
        for name, due in outputs.timers.items():
            if due is None:
                self.timers.pop(name, None)
            else:
                self.timers[name] = due
        for each in outputs.events:
            to = describe(type(each.event)).to
            if to is not None:
                self.sent += 1
                command_id = f"e{self.sent}"
                if each.step:
                    self.saga.progress.steps[each.step].command = command_id
                self.services[to].commands.append((command_id, each.event, each.expires))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [(due, name) for name, due in self.timers.items() if due <= end]:
            self.now, name = min(due)
            del self.timers[name]
            self.arrive(Timer(kind=self.kind.name, key="1", name=name, due=self.now))
        self.now = end

    def happen(self, action: int, chance: int) -> None:
        """Let one thing happen."""
        services = list(self.services.values())
        if action < 3:
            services[action].handle(self.now, chance)
        elif action < 6:
            if services[action - 3].answers:
                self.arrive(services[action - 3].answers.popleft())
        elif action == 6:
            if self.outside:
                self.arrive(self.outside.popleft())
        else:
            self.advance((1.0, 40.0, 200.0, 1_000.0, 4_000.0)[chance % 5])

    def finish(self) -> None:
        """Let everything arrive from now on."""
        for _ in range(200):
            while self.outside:
                self.arrive(self.outside.popleft())
            for each in self.services.values():
                while each.commands:
                    each.handle(self.now, 0)
                while each.answers:
                    self.arrive(each.answers.popleft())
            if not any(each.commands for each in self.services.values()):
                if self.saga.progress.status in (Status.ENDED, Status.STUCK):
                    return
                self.advance(min(self.timers.values()) - self.now)


def script(data: bytes) -> Iterator[tuple[int, int]]:
    for byte in data:
        yield byte % 8, byte // 8


@pytest.mark.parametrize("cls", [Fulfilment, OneByOne])
@settings(
    max_examples=5_000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    data=st.binary(max_size=60),
    outside=st.sampled_from([(), (Cancel(),), (Asked(), Cancel()), (Asked(), Asked())]),
    early=st.booleans(),
)
def test_every_sequence_ends_complete_or_undone_and_the_books_are_right(
    cls: type[Saga], data: bytes, outside: tuple[object, ...], early: bool
) -> None:
    world = World(cls)
    world.outside.extend((*outside, OrderPlaced()) if early else (OrderPlaced(), *outside))
    for action, chance in script(data):
        world.happen(action, chance)
    world.finish()
    progress = world.saga.progress
    stages = {name: asked.stage for name, asked in progress.steps.items()}
    amounts = {name: each.amount for name, each in world.services.items()}
    if progress.status is Status.STUCK:
        # Nothing came of 21 asks, since each answer was lost or each command died.
        assert progress.steps[progress.stuck_on].tries > AGAIN
        return
    assert progress.status is Status.ENDED
    assert world.timers == {}
    if progress.end == world.kind.complete:
        assert set(stages) == set(world.kind.steps)
        assert set(stages.values()) == {Stage.DONE}
        assert amounts == {"inventory": 1, "payments": 1, "shipping": "ship" in stages}
    else:
        assert progress.end == world.kind.undone
        assert set(stages.values()) <= {Stage.FAILED, Stage.UNDONE}
        assert amounts == {"inventory": 0, "payments": 0, "shipping": 0}
    assert all(each.times <= 1 for each in world.services.values())
