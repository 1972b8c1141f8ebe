"""Sagas under whatever may happen: 10,000 sequences, each of which has to end with the books right.

Answers come in any order between services, late, twice, or never; commands die; the clock runs
ahead; the process dies before any commit or after it. An instance lives from one event to the next
only as the row that its store would hold. Each service does what the guide asks of it: a command
that it has done is answered again and not done twice, and an undo is always answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
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
from oyez.ports import Kept
from oyez.saga import CommandDied, Outputs, Saga, Stage, Status, end, on, saga_kind, starts, step
from oyez.saga_transition import AGAIN, transition
from oyez.timers import Timer

DIES, TWICE, LATE = "dies before the commit", "is announced twice", "an old timer fires after it"
ACCIDENTS = ("", "", "", DIES, DIES, TWICE, LATE, "")
"""What may befall the delivery of an event. A process that dies after the commit leaves what every
delivery leaves here: the row, and an inbox that knows the event."""


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
    """The row of an instance, its timers, and the services it asks."""

    def __init__(self, cls: type[Saga], accidents: bytes) -> None:
        """``accidents`` are what befalls one event after the other, by `ACCIDENTS`."""
        self.kind = saga_kind(cls)
        self.row = Kept(kind=self.kind.name, key="1")
        self.accidents = deque(accidents)
        self.now = 1_000.0
        self.timers: dict[str, float] = {}
        self.old: list[Timer] = []
        """Timers that were disarmed, or set anew, before they fired."""
        self.services = {
            "inventory": Service(Reserved(), Rejected(), Released()),
            "payments": Service(Paid(), Declined(), Refunded()),
            "shipping": Service(Shipped(), Lost(), None),
        }
        self.outside: deque[object] = deque()
        self.sent = 0

    @property
    def saga(self) -> Any:
        """The instance, as a process that starts now would find it."""
        return self.kind.open(self.row)

    def arrive(self, event: object) -> None:
        """Deliver an event or a timer until it is committed, whatever befalls the process."""
        kind = describe(type(event))
        if kind.name not in self.kind.events and not isinstance(event, Timer | CommandDied):
            return
        accident = ACCIDENTS[self.accidents.popleft() % 8] if self.accidents else ""
        self.sent += 1
        envelope = Envelope(
            id=f"e{self.sent}", source="/shop/x", type=kind.name, data=encode(kind, event)
        )
        if accident == DIES:
            self.react(event, envelope)
        self.commit(*self.react(event, envelope))
        if accident == TWICE and not isinstance(event, Timer):
            self.sent += 1
            self.commit(*self.react(event, msgspec.structs.replace(envelope, id=f"e{self.sent}")))

        if accident == LATE and self.old:
            before = self.row
            self.commit(*self.react(self.old[0], envelope))
            assert self.row is before, "a reminder acts late"

    def react(self, event: object, envelope: Envelope) -> tuple[Saga, Outputs]:
        """Make the transition in memory, where it is lost if the process dies."""
        saga = self.saga
        outputs = transition(self.kind, saga, event, self.now, envelope)
        assert outputs.dead == []
        return saga, outputs

    def commit(self, saga: Saga, outputs: Outputs) -> None:
        """Make its effects last: the row, the timers and the commands, in one commit."""
        for name in [*self.timers] if outputs.disarm else outputs.timers:
            if name in self.timers:
                due = self.timers.pop(name)
                self.old.append(Timer(kind=self.kind.name, key="1", name=name, due=due))
        self.timers |= {name: due for name, due in outputs.timers.items() if due is not None}
        for each in outputs.events:
            to = describe(type(each.event)).to
            if to is not None:
                self.sent += 1
                command_id = f"e{self.sent}"
                if each.step:
                    saga.progress.steps[each.step].command = command_id
                self.services[to].commands.append((command_id, each.event, each.expires))
        closed = self.kind.close(saga, self.row)
        if closed is not None:
            closed.version += 1
            self.row = closed

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
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    data=st.binary(max_size=60),
    accidents=st.binary(max_size=60),
    outside=st.sampled_from([(), (Cancel(),), (Asked(), Cancel()), (Asked(), Asked())]),
    early=st.booleans(),
)
def test_every_sequence_ends_complete_or_undone_and_the_books_are_right(
    cls: type[Saga], data: bytes, accidents: bytes, outside: tuple[object, ...], early: bool
) -> None:
    world = World(cls, accidents)
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
