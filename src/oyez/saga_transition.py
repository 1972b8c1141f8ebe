"""What an event does to an instance of a saga: a pure function, without I/O, clock or chance.

- An event before the one that starts the instance waits in it, and is handled right after the
  start. When none comes in time, each of them becomes a dead letter.
- A step is asked once the steps before it are done. Its answer may come even before that.
- When a step fails, or does not answer in time, or its command becomes a dead letter, everything
  that was asked and did not answer that it failed is undone: also what may not have been done at
  all, in reverse order, each after the answer of the former. What comes for it later is only noted.
- An undo without an answer is asked again, with growing pauses, and in the end the instance is
  stuck. So is a pivot, and every step once a pivot is done: they are never undone by themselves.
- What needs a step that the class no longer declares is stuck.
- An event after the end is only noted. A timer never starts an instance.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from oyez.contract import decode
from oyez.envelope import Envelope, open_record
from oyez.errors import EventError, InvalidEvent, OyezError
from oyez.event import describe, is_event
from oyez.saga import (
    Answer,
    Asked,
    CommandDied,
    Early,
    Entry,
    Failed,
    Function,
    Output,
    Outputs,
    Progress,
    Saga,
    SagaType,
    Stage,
    Status,
    Step,
    Turn,
    Undelivered,
)
from oyez.timers import Timer

START = "oyez:start"
"""The timer of an instance that waits for its start."""
STEP = "oyez:step:"
"""The timer of the answer to a step, before the step's name."""

EARLY_EVENTS = 100
"""The limit of events that wait for the start of an instance."""
EARLY_BYTES = 262_144
"""The limit of their headers and data in bytes."""
AGAIN = 20
"""How often an undo or a pivot without an answer is asked again."""
FIRST, LONGEST_PAUSE = 60.0, 3_600.0
"""The shortest and the longest pause between two of them, in seconds."""


def transition(
    kind: SagaType, instance: Saga, event: object, now: float, envelope: Envelope
) -> Outputs:
    """Change the instance by an event with its envelope; return the effects.

    Raises what the saga's methods raise, and
    InvalidEvent for what they return that can't be published.
    """
    step = _Transition(kind, instance, now)
    step.receive(event, envelope)
    return step.outputs


def retry(kind: SagaType, instance: Saga, now: float) -> Outputs:
    """Ask again what the instance waits for; if it was stuck, it goes on. Raises OyezError."""
    step = _Transition(kind, instance, now)
    step.retry()
    return step.outputs


def abort(kind: SagaType, instance: Saga, why: str, now: float) -> Outputs:
    """Undo the instance. Raises OyezError when that is impossible."""
    step = _Transition(kind, instance, now)
    step.abort(why)
    return step.outputs


def resolve(
    kind: SagaType, instance: Saga, step: str, *, done: bool, why: str, now: float
) -> Outputs:
    """Take a step for done, or else for not done or undone, as a person has found it to be.

    Raises OyezError when the instance does not wait for that.
    """
    work = _Transition(kind, instance, now)
    work.resolve(step, done, why)
    return work.outputs


def pause(tries: int) -> float:
    """Return the seconds between the ask of this number and the next one."""
    return min(FIRST * 2.0 ** (tries - 1), LONGEST_PAUSE)


class _Transition:
    def __init__(self, kind: SagaType, instance: Saga, now: float) -> None:
        self.outputs = Outputs()
        self._kind = kind
        self._instance = instance
        self._now = now
        self._effects: list[str] = []

    @property
    def _progress(self) -> Progress:
        return self._instance.progress

    @property
    def _name(self) -> str:
        return f"{self._kind.name} {self._instance.key}"

    # -- what happens ------------------------------------------------------------------------------

    def receive(self, event: object, envelope: Envelope) -> None:
        kind = describe(type(event))
        progress = self._progress
        step = ""
        if isinstance(event, Timer):
            if not self._is_set(event):
                return
            step = self._fire(event)
        elif isinstance(event, CommandDied):
            found = self._asked_by(event)
            if found is None:
                return
            step = found.name
            self._died(found, event)
        elif progress.phase is Status.ENDED and not (
            self._kind.restart and kind.name in self._kind.starters
        ):
            self._note(f"too late: it has ended as {progress.end}")
        elif kind.name in self._kind.starters and progress.phase not in (
            Status.RUNNING,
            Status.UNDOING,
        ):
            self._start(event, envelope)
        elif kind.name in self._kind.starters:
            self._note("it has started already")
        elif progress.phase in (Status.NEW, Status.WAITING):
            self._keep(envelope)
        else:
            step = self._fold(kind.name, event)
        self._advance()
        self._log(envelope.id, envelope.type, step)

    def retry(self) -> None:
        progress = self._live()
        if not progress.waits_for and not progress.stuck:
            raise OyezError(f"{self._name} waits for nothing that can be asked again")
        self._free()
        for name, asked in progress.steps.items():
            step = self._kind.steps.get(name)
            if step is None:
                continue
            if (
                progress.phase is Status.RUNNING
                and asked.stage in (Stage.FAILED, Stage.UNKNOWN)
                and self._pivot(Stage.DONE) is not None
            ):
                progress.failure = None
                asked.stage = Stage.ASKED
            if asked.stage in (Stage.ASKED, Stage.UNDOING):
                asked.tries = 0
                self._ask(step)
        self._advance()
        self._log("", "retry", "")

    def abort(self, why: str) -> None:
        progress = self._live()
        if progress.phase is Status.UNDOING:
            raise OyezError(f"{self._name} is being undone already: `oyez saga retry` asks again")
        pivot = self._pivot(Stage.ASKED, Stage.DONE)
        if pivot is not None:
            raise OyezError(
                f"{self._name} can't be undone: {pivot} was asked, which is its pivot; "
                "`oyez saga resolve` it if you know how it ended"
            )
        self._free()
        progress.failure = Failed("", why)
        self._advance()
        self._log("", "abort", "")

    def resolve(self, name: str, done: bool, why: str) -> None:
        progress = self._live()
        asked = progress.steps.get(name)
        if asked is None:
            known = ", ".join(progress.steps) or "none"
            raise OyezError(f"{self._name} has not asked {name}; it has asked: {known}")
        undoing = progress.phase is Status.UNDOING
        if done and undoing:
            raise OyezError(f"{self._name} is being undone: resolve {name} as undone")
        stage = Stage.DONE if done else Stage.UNDONE if undoing else Stage.FAILED
        if asked.stage is stage:
            raise OyezError(f"{self._name}: {name} is {stage.value} already")
        self._settle(name, asked, stage)
        if stage is Stage.FAILED and progress.failure is None:
            progress.failure = Failed(name, why)
        self._note(f"{name} is {asked.stage.value}: {why}")
        self._advance()
        self._log("", "resolve", name)

    # -- before the start --------------------------------------------------------------------------

    def _keep(self, envelope: Envelope) -> None:
        progress = self._progress
        early = Early(envelope.headers(), envelope.data, self._now)
        size = sum(_weigh(each) for each in (*progress.early, early))
        if len(progress.early) >= EARLY_EVENTS or size > EARLY_BYTES:
            reason = (
                f"more than {EARLY_EVENTS} events or {EARLY_BYTES} bytes wait for the start of "
                f"{self._name}"
            )
            self.outputs.dead.append(Undelivered(early, reason))
            self._note(reason)
            return
        if progress.phase is Status.NEW:
            progress.phase = Status.WAITING
            self.outputs.timers[START] = self._now + self._kind.wait
        progress.early.append(early)
        self._note("kept until it starts")

    def _start(self, event: object, envelope: Envelope) -> None:
        progress = self._progress
        if progress.phase is Status.ENDED:
            self._renew()
            progress = self._progress
        elif progress.phase is Status.WAITING:
            self.outputs.timers[START] = None
        progress.phase = Status.RUNNING
        progress.started = self._now
        progress.correlationid = envelope.correlationid or envelope.id or None
        progress.traceparent = envelope.traceparent
        self._note("starts")
        self._call(self._kind.starters[describe(type(event)).name], event)
        early, progress.early = progress.early, []
        for each in early:
            self._fold_early(each)

    def _fold_early(self, early: Early) -> None:
        try:
            envelope = open_record(early.headers, early.data)
            kind = self._kind.events.get(envelope.type)
            if kind is None:
                raise InvalidEvent("type", f"{self._kind.name} does not listen to it any more")
            event = decode(kind, envelope.data, envelope.dataschema)
        except EventError as error:
            self.outputs.dead.append(Undelivered(early, str(error)))
            return
        self._note(f"handles {envelope.type}, which came before")
        self._fold(envelope.type, event)

    def _renew(self) -> None:
        """Make it a new instance, but for the count of its transitions."""
        fresh = self._kind.new(self._instance.key)
        for name in type(self._instance).__struct_fields__:
            setattr(self._instance, name, getattr(fresh, name))
        fresh.progress.transitions = self._progress.transitions
        vars(self._instance)["progress"] = fresh.progress

    def _give_up(self) -> None:
        reason = f"no {self._kind.name} was started for {self._instance.key}"
        self.outputs.dead.extend(Undelivered(each, reason) for each in self._progress.early)
        self._instance.delete()

    # -- events ------------------------------------------------------------------------------------

    def _fold(self, name: str, event: object) -> str:
        """Handle an event of a started instance; return the step it belongs to, if it does."""
        phase = self._progress.phase
        answer = self._kind.answers.get(name)
        reaction = self._kind.reactions.get(name)
        of_undo = answer is not None and answer.stage is Stage.UNDONE
        if reaction is not None:
            if (phase is Status.UNDOING) is of_undo:
                self._call(reaction, event)
            elif answer is None:
                self._note(f"only noted: it is {phase.value}")
        if answer is not None:
            self._answered(answer, event)
            return answer.step.name
        return ""

    def _answered(self, answer: Answer, event: object) -> None:
        progress, name = self._progress, answer.step.name
        asked = progress.steps.get(name)
        running = progress.phase is Status.RUNNING
        if asked is None and running and answer.stage is not Stage.UNDONE:
            # Where nobody is asked, the answers of different services come in any order.
            asked = progress.steps[name] = Asked(Stage.ASKED, self._now)
        stage = Stage.UNDONE if asked is None else asked.stage
        match answer.stage:
            case Stage.DONE:
                counts = stage in (Stage.ASKED, Stage.UNKNOWN) and running
            case Stage.FAILED:
                counts = stage in (Stage.ASKED, Stage.UNKNOWN)
            case _:
                counts = not running and stage not in (Stage.FAILED, Stage.UNDONE)
        if asked is None or not counts:
            self._note(f"only noted: {name} is {asked.stage.value if asked else 'not asked'}")
            return
        self._settle(name, asked, answer.stage)
        self._note(f"{name} is {answer.stage.value}")
        if answer.stage is Stage.FAILED and running and progress.failure is None:
            reason = getattr(event, "reason", None)
            progress.failure = Failed(
                name, reason if isinstance(reason, str) else describe(type(event)).name
            )

    # -- time-outs ---------------------------------------------------------------------------------

    def _is_set(self, event: Timer) -> bool:
        """Return whether the timer counts: it was not set anew or disarmed after it fired."""
        progress = self._progress
        if event.name == START:
            return progress.phase is Status.WAITING
        if progress.phase not in (Status.RUNNING, Status.UNDOING):
            return False
        if event.name.startswith(STEP):
            asked = progress.steps.get(_base(event.name).removeprefix(STEP))
            return asked is not None and asked.timer == event.name
        return progress.timers.get(_base(event.name)) == event.name

    def _fire(self, event: Timer) -> str:
        """Handle a timer; return the step it belongs to, if it does."""
        if event.name == START:
            self._give_up()
            return ""
        name = _base(event.name)
        if not name.startswith(STEP):
            del self._progress.timers[name]
            function = self._kind.timers.get(name)
            if function is not None and self._progress.phase is Status.RUNNING:
                self._call(function)
            else:
                self._note(f"only noted: timer {name}")
            return ""
        name = name.removeprefix(STEP)
        step = self._kind.steps.get(name)
        if step is not None:  # else it is stuck in a moment
            asked = self._progress.steps[name]
            if asked.stage is Stage.UNDOING or self._is_forward(step):
                self._again(step, asked)
            else:
                self._give_up_on(step, asked, f"no answer within {step.within:g} s")
        return name

    def _asked_by(self, event: CommandDied) -> Step | None:
        """Return the step that waits for the answer to that command."""
        if self._progress.phase not in (Status.RUNNING, Status.UNDOING):
            return None
        for name, asked in self._progress.steps.items():
            if asked.stage in (Stage.ASKED, Stage.UNDOING) and asked.command == event.command_id:
                return self._kind.steps.get(name)
        return None

    def _died(self, step: Step, event: CommandDied) -> None:
        asked = self._progress.steps[step.name]
        reason = f"{event.type} became a dead letter: {event.reason}"
        if asked.stage is Stage.UNDOING or self._is_forward(step):
            self._note(reason)
            self._arm(step.name, asked, pause(asked.tries))
        else:
            self._give_up_on(step, asked, reason)

    def _give_up_on(self, step: Step, asked: Asked, reason: str) -> None:
        self._settle(step.name, asked, Stage.UNKNOWN)
        self._note(f"{step.name} is unknown: {reason}")
        if self._progress.failure is None:
            self._progress.failure = Failed(step.name, reason)

    def _again(self, step: Step, asked: Asked) -> None:
        if asked.tries <= AGAIN:
            self._ask(step)
            return
        what = step.name
        if asked.stage is Stage.UNDOING and step.undone_by is not None:
            what = step.undone_by.name
        self._stick(step.name, f"{what} was asked {asked.tries} times without an answer")

    # -- what follows ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Ask, undo or end, as the progress now demands."""
        progress = self._progress
        if progress.phase not in (Status.RUNNING, Status.UNDOING) or progress.stuck:
            return
        if progress.phase is Status.RUNNING:
            if progress.wanted and not self._kind.undoes(progress.wanted):
                self._end(progress.wanted)
                return
            if progress.failure is None:
                self._go_on()
                return
            pivot, failure = self._pivot(Stage.DONE), progress.failure
            if pivot is not None and not failure.step:
                self._note(f"goes on: {pivot} is done, which can't be undone")
                progress.failure, progress.wanted = None, ""
                self._go_on()
                return
            if pivot is not None:
                why = (
                    f"{failure.step} failed ({failure.reason}) after {pivot}, which can't be undone"
                )
                self._stick(failure.step, why)
                return
            if self._pivot(Stage.ASKED) is not None:
                return  # its answer decides whether the rest can be undone
            progress.phase = Status.UNDOING
            self._note_unasked()
            for name, asked in progress.steps.items():
                if asked.stage is Stage.ASKED:
                    self._settle(name, asked, Stage.UNKNOWN)
        self._undo()

    def _go_on(self) -> None:
        progress, steps = self._progress, self._kind.steps
        if self._is_lost(Stage.ASKED):
            return
        done = {name for name, asked in progress.steps.items() if asked.stage is Stage.DONE}
        for name, step in steps.items():
            if name not in progress.steps and done.issuperset(step.behind):
                progress.steps[name] = Asked(Stage.ASKED, self._now)
                self._ask(step)
        if steps and done.issuperset(steps):
            self._end(self._kind.complete)

    def _note_unasked(self) -> None:
        """Count steps that nobody is asked for as asked, if their time has come.

        They are under way all the same, and not yet counted where the failure came before the
        start.
        """
        progress = self._progress
        done = {name for name, asked in progress.steps.items() if asked.stage is Stage.DONE}
        for name, step in self._kind.steps.items():
            ready = name not in progress.steps and done.issuperset(step.behind)
            if ready and self._run(step.function) is None:
                progress.steps[name] = Asked(Stage.ASKED, self._now)

    def _undo(self) -> None:
        progress = self._progress
        if self._is_lost(Stage.DONE, Stage.UNKNOWN, Stage.UNDOING):
            return
        for name, asked in reversed(progress.steps.items()):
            if asked.stage is Stage.UNDOING:
                return  # the answer to it comes first
            step = self._kind.steps.get(name)
            if asked.stage in (Stage.FAILED, Stage.UNDONE) or step is None:
                continue
            if step.undone_by is not None:
                progress.steps[name] = Asked(Stage.UNDOING, self._now)
                self._ask(step)
                return
        self._end(progress.wanted or self._kind.undone)

    def _ask(self, step: Step) -> None:
        """Ask a step, or its undoing, for the first time or again."""
        asked = self._progress.steps[step.name]
        undoing = asked.stage is Stage.UNDOING
        what = step.undone_by if undoing else step
        assert what is not None  # it is asked only if declared
        event = self._run(what.function)
        asked.tries += 1
        within = what.within
        if asked.tries > 1:
            within = max(within, pause(asked.tries - 1))
        self._arm(step.name, asked, within)
        asked.command = ""
        if event is None:
            return
        if not is_event(type(event)):
            raise TypeError(
                f"{self._kind.name}.{what.name} returned {type(event).__name__}: expected one "
                "event, or None"
            )
        # An undo does not expire: it has to be done, however late.
        expires = asked.due if describe(type(event)).to is not None and not undoing else None
        self._publish(event, step.name, expires)

    def _end(self, name: str) -> None:
        progress = self._progress
        progress.phase = Status.ENDED
        progress.end = name
        progress.ended = self._now
        progress.timers = {}
        self._note(f"ends as {name}")
        function = self._kind.ends[name]
        if function is not None:
            why = progress.failure or Failed("", "")
            self._call(function, *([why] if name in self._kind.explained else []))
        self.outputs.timers = {}
        self.outputs.disarm = True

    # -- parts -------------------------------------------------------------------------------------

    def _is_forward(self, step: Step) -> bool:
        """Return whether there is only one way for this step: to be asked until it is done."""
        return step.pivot or self._pivot(Stage.DONE) is not None

    def _pivot(self, *stages: Stage) -> str | None:
        """Return the name of a pivot in one of these stages."""
        for name, asked in self._progress.steps.items():
            step = self._kind.steps.get(name)
            if step is not None and step.pivot and asked.stage in stages:
                return name
        return None

    def _is_lost(self, *stages: Stage) -> bool:
        """Return whether a step in one of these stages is no longer declared: it is stuck then."""
        for name, asked in self._progress.steps.items():
            if name not in self._kind.steps and asked.stage in stages:
                self._stick(
                    name,
                    f"{self._kind.name} does not declare the step {name} any more: declare it, "
                    f"then `oyez saga retry`, or `oyez saga resolve` it",
                )
                return True
        return False

    def _settle(self, name: str, asked: Asked, stage: Stage) -> None:
        progress = self._progress
        asked.stage = stage
        self._disarm(asked)
        if progress.stuck_on == name:
            self._free()
        failure = progress.failure
        if stage is Stage.DONE and failure is not None and failure.step == name:
            progress.failure = None

    def _arm(self, name: str, asked: Asked, seconds: float) -> None:
        self._disarm(asked)
        asked.timer = self._progress.named(STEP + name)
        asked.due = self.outputs.timers[asked.timer] = self._now + seconds

    def _disarm(self, asked: Asked) -> None:
        if asked.timer:
            self.outputs.timers[asked.timer] = None
            asked.timer = ""

    def _stick(self, name: str, why: str) -> None:
        self._progress.stuck = why
        self._progress.stuck_on = name
        self._note(f"is stuck: {why}")

    def _free(self) -> None:
        self._progress.stuck = self._progress.stuck_on = ""

    def _live(self) -> Progress:
        progress = self._progress
        if progress.phase not in (Status.RUNNING, Status.UNDOING):
            where = progress.phase.value or "not there"
            raise OyezError(f"{self._name} is {where}: there is nothing to do")
        return progress

    def _call(self, function: Function, *arguments: object) -> None:
        """Call a method of the saga and publish what it returns."""
        answer = self._run(function, *arguments)
        if answer is None:
            return
        if is_event(type(answer)):
            self._publish(answer)
            return
        if isinstance(answer, Iterable) and not isinstance(answer, str | bytes | dict):
            for each in answer:
                if each is not None:
                    self._publish(each)
            return
        raise TypeError(
            f"{self._kind.name}.{function.__name__} returned {type(answer).__name__}: expected an "
            "event, several events or None"
        )

    def _run(self, function: Function, *arguments: object) -> object:
        inside = vars(self._instance)
        inside["turn"] = Turn(self._now, self._kind, self.outputs)
        try:
            return function(self._instance, *arguments)
        finally:
            del inside["turn"]

    def _publish(self, event: object, step: str = "", expires: float | None = None) -> None:
        kind = describe(type(event))
        key = self._instance.key
        if kind.to is not None and kind.key(event) != key:
            raise InvalidEvent(
                f"$.{kind.key_field or 'key'}",
                f"{kind.name} is asked by {self._name}, so it needs the key {key!r}: otherwise an "
                "undo could overtake what it undoes",
            )
        self.outputs.events.append(Output(event, step, expires))
        self._note(f"{'asks' if kind.to is not None else 'says'} {kind.name}")

    def _note(self, effect: str) -> None:
        self._effects.append(effect)

    def _log(self, event_id: str, kind: str, step: str) -> None:
        progress = self._progress
        progress.transitions += 1
        self.outputs.log.append(
            Entry(progress.transitions, self._now, event_id, kind, step, self._effects)
        )


def _base(timer: str) -> str:
    """Return the name of a timer without the number of the transition that set it."""
    return timer.rpartition("#")[0]


def _weigh(early: Early) -> int:
    return len(msgspec.msgpack.encode(early))
