"""From an event to the endpoints of its subscribers, by handlers of the service.

`Deliveries.offer` takes an event and, in its transaction, publishes a command for each subscription
that wants it. `Deliveries.deliver` takes such a command outside of a transaction, and posts. So a
delivery is tried again, is in order with those of its key, and becomes a dead letter, as any event
of any handler.

What the runtime keeps of an endpoint that takes nothing is bounded: while a subscription is not
``active``, its deliveries are rows of ``webhook_held``, which `Deliveries.release` turns into
commands a page at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from oyez.contract import encode
from oyez.envelope import Envelope, parse_time
from oyez.errors import RetryLater, Undeliverable
from oyez.event import Command, Event, describe
from oyez.handler import Retry
from oyez.parameters import Context
from oyez.ports import Row
from oyez.schedule import Tick
from oyez.service import Service
from oyez.transaction import After, Transaction
from oyez.webhooks.client import Answer, Client
from oyez.webhooks.signing import sign
from oyez.webhooks.subscriptions import Subscription, chain, matches
from oyez.webhooks.turns import Turns

DELIVER = "deliver"
"""The name of the handler whose dead letters are the dead deliveries."""
TEST = "webhook.test"
"""The type of a test event, which is tried once."""
PAGE = 200
"""Held deliveries that are released in one transaction."""
PROBES = 4
"""Held deliveries of an endpoint that is behind which are tried each minute."""
BEHIND = 30.0
"""Seconds of backlog at which an endpoint counts as behind."""
FAILURES = 5
"""Failures without a success at which it does."""
PAUSED = 60.0
"""Seconds between two looks of a delivery that was under way at whether its pause has ended."""
ATTEMPTS = 100
"""Attempts of a subscription that are kept."""
WEEK = 7 * 86_400.0
"""Seconds that a message is kept after its last attempt could have been made."""

_OPEN = "select id, types, state, ordering from webhook where state <> 'disabled' order by id"
_MESSAGE = """insert into webhook_message (id, type, body, created)
 values (:id, :type, :body, :created) on conflict (id) do nothing"""
_LOCK = "update webhook set state = state where id = :id returning id, state"
_HOLD = """insert into webhook_held (subscription, id, message, type, chain, created)
 values (:subscription, :id, :message, :type, :chain, :created)"""
_NEXT = """delete from webhook_held where subscription = :id and id in
 (select id from webhook_held where subscription = :id order by id limit :most)
 returning id, message, type, chain"""
_RESUMED = "update webhook set state = 'active' where id = :id"
_FIND = """select s.*, m.body as body from webhook s
 left join webhook_message m on m.id = :message where s.id = :subscription"""
_ATTEMPT = """insert into webhook_attempt
 (subscription, id, message, type, attempt, status, error, ms, created) values
 (:subscription, :id, :message, :type, :attempt, :status, :error, :ms, :created)"""
_FAILED = """update webhook set failing = coalesce(failing, :now), dead = dead + :dead,
 failures = failures + 1, state = case when failures + 1 >= :most
 and state in ('active', 'resuming') then 'behind' else state end
 where id = :id returning failing, dead"""
_SLOW = """update webhook set state = 'behind'
 where id = :id and state in ('active', 'resuming')"""
_WELL = "update webhook set failing = null, failures = 0, dead = 0 where id = :id"
_CATCH_UP = """update webhook set state = 'resuming' where id = :id and state = 'behind'
 returning id"""
_DISABLE = """update webhook set state = 'disabled' where id = :id and state <> 'disabled'
 returning id"""
_WAITING = "select id from webhook where state in ('behind', 'resuming') order by id"
_FORGET_ATTEMPTS = """delete from webhook_attempt where (subscription, id) in
 (select subscription, id from (select subscription, id, row_number()
   over (partition by subscription order by id desc) as place from webhook_attempt) as placed
  where place > :most)"""
_FORGET_HELD = "delete from webhook_held where created < :before"
_FORGET_MESSAGES = "delete from webhook_message where created < :before"


class WebhookDisabled(Event, type="webhook.disabled", key="subscription"):
    """A subscription has been disabled, since its endpoint failed for too long, or is gone."""

    subscription: str
    principal: str
    description: str
    reason: str


class Due(Command):
    """What the command to deliver holds; each service has a command of its own."""

    subscription: str
    message: str
    """The id of a row of ``webhook_message``."""
    type: str


class Resumed(Command):
    """What the command to release what was held holds."""

    subscription: str


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """When a delivery, or a subscription, is given up."""

    retry: Retry
    failing: float
    """Seconds of failures without a success after which a subscription is disabled."""
    dead: int
    """Dead deliveries without a success after which it is."""

    @property
    def keep(self) -> float:
        """Seconds that a message is kept."""
        retry, wait = self.retry, 0.0
        for attempt in range(self.retry.attempts - 1):
            wait += min(retry.first * retry.factor**attempt, retry.longest)
        return wait * (1 + retry.jitter) + WEEK


class Undelivered(Exception):
    """The endpoint did not take a delivery."""


class Deliveries:
    """The handlers that deliver; see `oyez.webhooks.webhooks` for the service."""

    def __init__(
        self,
        service: Service,
        policy: Policy,
        deliver: type[Due],
        resumed: type[Resumed],
        master: Callable[[], bytes],
    ) -> None:
        """``deliver`` and ``resumed`` are the service's own commands.

        ``master`` returns the key that secrets are derived of.
        """
        self._service = service
        self._policy = policy
        self._deliver = deliver
        self._resumed = resumed
        self._master = master
        self._turns = Turns()

    # -- handing over ------------------------------------------------------------------------------

    async def offer(self, event, context: Context, tx: Transaction) -> None:  # type: ignore[no-untyped-def]
        """Hand an event over to each subscription that wants it, unless a replay announced it."""
        if context.replayed:
            return
        envelope = context.envelope
        rows = await tx.fetch(_OPEN)
        wanted = [row for row in rows if matches(row["types"].split(), envelope.type)]
        if not wanted:
            return
        message = str(uuid5(NAMESPACE_URL, f"{envelope.source}|{envelope.id}"))
        self._store(tx, message, envelope.type, _body(event, envelope))
        for row in wanted:
            ordered_by = envelope.key if row["ordering"] == "key" else None
            key = chain(row["id"], ordered_by or message)
            due = self._due(row["id"], message, envelope.type)
            if row["state"] == "active" or not await self._hold(tx, due, key):
                tx.publish(due, key=key)

    def test(self, tx: Transaction, subscription: str) -> str:
        """Hand a test event over to a subscription; return its id."""
        message = tx.new_id()
        about = Envelope(
            id=message,
            source=f"/{self._service.name}",
            type=TEST,
            time=tx.time,
            data=msgspec.json.encode({"subscription": subscription}),
        )
        self._store(tx, message, TEST, about.structured())
        due = self._due(subscription, message, TEST)
        tx.publish(due, key=chain(subscription, message))
        return message

    def resume(self, tx: Transaction, subscription: str) -> None:
        """Release what was held for a subscription, whose row says ``resuming``."""
        tx.publish(self._resumed(subscription=subscription))

    def _store(self, tx: Transaction, message: str, kind: str, body: bytes) -> None:
        created = _seconds(tx.time)
        tx.execute(_MESSAGE, id=message, type=kind, body=body.decode(), created=created)

    async def _hold(self, tx: Transaction, due: Due, key: str) -> bool:
        """Hold a delivery, unless the subscription has become active or was deleted meanwhile."""
        row = await tx.fetch_one(_LOCK, id=due.subscription)
        if row is None or row["state"] == "active":
            return False
        tx.execute(
            _HOLD,
            subscription=due.subscription,
            id=tx.new_id(),
            message=due.message,
            type=due.type,
            chain=key,
            created=_seconds(tx.time),
        )
        return True

    def _due(self, subscription: str, message: str, kind: str) -> Due:
        return self._deliver(subscription=subscription, message=message, type=kind)

    # -- what was held -----------------------------------------------------------------------------

    async def release(self, event, tx: Transaction) -> None:  # type: ignore[no-untyped-def]
        """Release a page of what was held for a subscription, and ask for the next one."""
        state, moved = await self._move(tx, event.subscription, PAGE, ("resuming",))
        if state == "resuming":
            if moved == PAGE:
                self.resume(tx, event.subscription)
            else:
                tx.execute(_RESUMED, id=event.subscription)

    async def tidy(self, tick: Tick, tx: Transaction) -> None:
        """Probe the endpoints that are behind, and forget what is old."""
        for row in await tx.fetch(_WAITING):
            state, moved = await self._move(tx, row["id"], PROBES, ("behind", "resuming"))
            if state == "resuming" and moved < PROBES:
                tx.execute(_RESUMED, id=row["id"])
        before = _seconds(tx.time) - self._policy.keep
        tx.execute(_FORGET_ATTEMPTS, most=ATTEMPTS)
        tx.execute(_FORGET_HELD, before=before)
        tx.execute(_FORGET_MESSAGES, before=before)

    async def _move(
        self, tx: Transaction, subscription: str, most: int, states: Sequence[str]
    ) -> tuple[str, int]:
        """Publish held deliveries of a subscription in one of these states.

        Return the state, empty for none of them, and the number of deliveries. Whoever holds one
        takes the same lock, so none is left behind, and none is overtaken.
        """
        row = await tx.fetch_one(_LOCK, id=subscription)
        if row is None or row["state"] not in states:
            return "", 0
        held = await tx.fetch(_NEXT, id=subscription, most=most)
        for each in sorted(held, key=_place):
            tx.publish(self._due(subscription, each["message"], each["type"]), key=each["chain"])
        return row["state"], len(held)

    # -- delivering --------------------------------------------------------------------------------

    async def deliver(  # type: ignore[no-untyped-def]
        self, event, context: Context, after: After, client: Client
    ) -> None:
        """Post a message to the endpoint of a subscription, and record what came of it."""
        due: Due = event
        rows = await self._service.fetch(_FIND, subscription=due.subscription, message=due.message)
        if not rows:
            self._turns.forget(due.subscription)
            return  # deleted
        found, body = Subscription.of(rows[0]), rows[0]["body"]
        if body is None:
            raise Undeliverable("its message is too old, and has been deleted")
        if found.state == "disabled":
            raise Undeliverable("the subscription is disabled")
        if found.state == "paused" and due.type != TEST:
            raise RetryLater("the subscription is paused", seconds=PAUSED, counts=False)
        try:
            with self._turns.turn(found.id, 1 if found.state == "behind" else found.concurrency):
                now, data = _seconds(after.time), body.encode()
                answer = await client.post(found.url, self._headers(found, due, data, now), data)
        except RetryLater:
            await self._note_backlog(found)
            raise
        attempt = {
            "subscription": found.id,
            "id": after.new_id(),
            "message": due.message,
            "type": due.type,
            "attempt": context.attempt,
            "status": answer.status,
            "error": answer.error,
            "ms": round(answer.seconds * 1000),
            "created": now,
        }
        if due.type == TEST:
            after.execute(_ATTEMPT, **attempt)
            return
        if answer.error:
            await self._failed(found, answer, attempt, last=context.last_attempt)
        after.execute(_ATTEMPT, **attempt)
        if found.failing is not None or found.state == "behind":
            await self._recover(found)

    def _headers(self, found: Subscription, due: Due, body: bytes, now: float) -> dict[str, str]:
        # One message has one id for all attempts, and another for each subscription.
        message = str(uuid5(NAMESPACE_URL, f"{found.id}|{due.message}"))
        secrets = found.signing(self._master(), now)
        return {
            "content-type": "application/cloudevents+json; charset=utf-8",
            "user-agent": "oyez-webhooks",
            "webhook-id": message,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": sign(secrets, message, int(now), body),
        }

    async def _failed(
        self, found: Subscription, answer: Answer, attempt: dict[str, Any], *, last: bool
    ) -> None:
        """Record a failure, disable the subscription if it is one too many, and raise it."""
        gone = answer.status == 410
        async with self._service.transaction() as tx:
            tx.execute(_ATTEMPT, **attempt)
            now, dead = attempt["created"], int(last or gone)
            row = await tx.fetch_one(_FAILED, id=found.id, now=now, dead=dead, most=FAILURES)
            reason = "its endpoint answered 410" if gone else self._too_much(row, now)
            if reason and await tx.fetch(_DISABLE, id=found.id):
                tx.publish(
                    WebhookDisabled(
                        subscription=found.id,
                        principal=found.principal,
                        description=found.description,
                        reason=reason,
                    )
                )
        if reason:
            raise Undeliverable(f"{answer.error}; the subscription is disabled: {reason}")
        if answer.later is not None:
            raise RetryLater(answer.error, seconds=answer.later)
        raise Undelivered(answer.error)

    def _too_much(self, row: Row | None, now: float) -> str:
        if row is None:
            return ""
        if row["dead"] >= self._policy.dead:
            return f"{row['dead']} deliveries were given up without a success between them"
        if now - row["failing"] >= self._policy.failing:
            return f"it failed for {self._policy.failing / 86_400:.1f} days"
        return ""

    async def _note_backlog(self, found: Subscription) -> None:
        """Hold what happens from now on, if the deliveries under way are many already."""
        if found.state in ("active", "resuming") and self._turns.backlog(found.id) >= BEHIND:
            async with self._service.transaction() as tx:
                tx.execute(_SLOW, id=found.id)

    async def _recover(self, found: Subscription) -> None:
        """Record that an endpoint takes deliveries again, and release what was held."""
        caught_up = self._turns.backlog(found.id) < BEHIND / 2
        async with self._service.transaction() as tx:
            tx.execute(_WELL, id=found.id)
            if caught_up and await tx.fetch(_CATCH_UP, id=found.id):
                self.resume(tx, found.id)


def _body(event: object, envelope: Envelope) -> bytes:
    """Return what is posted: the fields that the service declares, and nothing of its insides."""
    kind = describe(type(event))
    return Envelope(
        id=envelope.id,
        source=envelope.source,
        type=envelope.type,
        subject=envelope.key,
        time=envelope.time,
        dataschema=kind.dataschema,
        data=encode(kind, event),
    ).structured()


def _seconds(time: str) -> float:
    return parse_time(time).timestamp()


def _place(row: Row) -> str:
    found: str = row["id"]
    return found
