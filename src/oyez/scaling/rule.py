"""The rule of scaling: from what was measured of a service to the replicas that it should have."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

UP = 1.05
"""The need, in shares of the replicas there are, above which there should be more."""
DOWN = 0.8
"""The need, in shares of the replicas that would be left, below which one may go."""
LEFT = 0.1
"""The share of the target in which those that are left have to handle the lag before one goes."""
GAIN = 0.1
"""The growth of a service's rate by which more replicas have to show that they help."""
AGAIN = 4
"""Cooldowns after which more replicas are tried again that did not help."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a service's replicas are held to; times in seconds."""

    least: int = 1
    most: int = 1
    target: float = 300.0
    """The time in which lag should be handled."""
    cooldown: float = 300.0
    """The time that one replica fewer has to be enough before one goes."""
    failing: float = 0.2
    """The share of handlers' calls that fail above which more replicas would only fail more."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A service at one time, as `oyez.scaling.meter.Meter` returns it. Rates are per second."""

    at: float
    """Seconds of a clock that does not go back."""
    replicas: int
    partitions: int
    """The partitions that it reads."""
    behind: int
    """How many of them have lag that lasts."""
    lag: int
    """Records that wait; parked ones do not count, as no replica handles them sooner."""
    inflow: float | None = None
    """Records that arrive."""
    total: float = 0.0
    """Records that all replicas handle."""
    recent: float = 0.0
    """The same since the last look, where ``total`` changes by and by."""
    rate: float | None = None
    """Records that one replica handles when it has enough to do; None before one had."""
    stuck: bool = False
    """Whether nothing at all was handled since the last look although there is lag."""
    failing: float = 0.0
    """The share of handlers' calls since the last look that failed."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What the rule has to remember: how the replicas changed, by whomever, and what came of it."""

    replicas: int
    total: float
    """What all of them handled a second, lately at best."""
    changed: float
    """The time of the last change; the first look counts as one."""
    spare: float | None = None
    """The time since which one fewer would have been enough."""
    climb: tuple[tuple[int, float], ...] = ()
    """The replicas before each step up that has not been judged, and what they handled."""
    ceiling: int | None = None
    """The number above which replicas did not help."""
    until: float = 0.0
    """The time until which that holds."""
    asked: int = 0
    """The replicas that were asked for last."""
    since: float = 0.0
    """The last time when all of them were there, or when so many were asked for first."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas there should be, why, and what to pass to the next call."""

    wanted: int
    why: str
    past: Past


def need(measured: Measured, target: float) -> float:
    """Return the replicas that keep up and handle the lag within ``target`` seconds."""
    assert measured.inflow is not None
    assert measured.rate
    return (measured.inflow + measured.lag / target) / measured.rate


def decide(measured: Measured, limits: Limits, past: Past | None = None) -> Decision:
    """Return how many replicas a service should have.

    More at once, as many as are needed; fewer one at a time, each after a cooldown without a change
    in which one fewer would have been enough. More replicas than partitions with lag are not asked
    for. Steps up that did not help within a cooldown are taken back, and not repeated before
    `AGAIN` cooldowns have passed. Replicas that were asked for and are not there are wanted still,
    for a cooldown: they may be starting, or too busy to renew their lease. Bounds always hold.
    """
    decision = _judged(measured, limits, past)
    now, at, past = measured.replicas, measured.at, decision.past
    asked = min(past.asked, limits.most, measured.partitions)
    missing = now < asked and at - past.since < limits.cooldown
    if missing and now <= decision.wanted <= asked:
        return replace(decision, wanted=asked, why=f"{asked} were asked for; {decision.why}")
    return replace(decision, past=replace(past, asked=decision.wanted, since=at))


def _judged(measured: Measured, limits: Limits, past: Past | None) -> Decision:
    """Return what these figures ask for, whatever was asked for before."""
    past = _remember(measured, past)
    now, at = measured.replicas, measured.at
    cap = max(limits.least, min(limits.most, measured.partitions))
    if not limits.least <= now <= cap:
        wanted = min(max(now, limits.least), cap)
        return Decision(wanted=wanted, why=f"within {limits.least}..{cap}", past=past)
    if measured.stuck:
        return _stay(now, "nothing is handled: no number of replicas cures that", past)
    if measured.failing > limits.failing:
        why = f"{measured.failing:.0%} of calls fail: more replicas would fail more"
        return _stay(now, why, past)
    if past.climb and at - past.changed >= limits.cooldown:
        past = _judge(measured, limits, past)
    if past.ceiling is not None and at < past.until:
        cap = max(limits.least, min(cap, past.ceiling))
        if now > cap:
            why = f"{now} replicas handle no more than {cap}: store or downstream is the limit"
            return Decision(wanted=cap, why=why, past=past)
    if measured.inflow is None or not measured.rate:
        return _stay(now, "no replica has been busy, so its rate is unknown", past)
    needed = need(measured, limits.target)
    if needed > now * UP:
        return _up(measured, math.ceil(min(needed, 1e9) - 1e-9), cap, replace(past, spare=None))
    if now <= limits.least or need(measured, limits.target * LEFT) >= (now - 1) * DOWN:
        return _stay(now, f"{needed:.1f} are needed", past)
    past = replace(past, spare=at if past.spare is None else past.spare)
    left = limits.cooldown - (at - (past.spare or 0.0))
    if left > 0:
        why = f"{needed:.1f} are needed; one goes in {left:.0f} s if that stays so"
        return Decision(wanted=now, why=why, past=past)
    return Decision(wanted=now - 1, why=f"{needed:.1f} are needed: one less is enough", past=past)


def _stay(now: int, why: str, past: Past) -> Decision:
    return Decision(wanted=now, why=why, past=replace(past, spare=None))


def _up(measured: Measured, needed: int, cap: int, past: Past) -> Decision:
    now = measured.replicas
    # A partition has one reader, so a replica more than there are partitions with lag has no work.
    wanted = max(now, min(needed, cap, measured.behind))
    if wanted == needed:
        why = f"{needed} are needed"
    elif wanted == cap and past.ceiling == cap:
        why = f"{needed} are needed; more than {cap} did not help: store or downstream is the limit"
    elif wanted == cap:
        why = f"{needed} are needed, of {cap} at most"
    else:
        why = f"{needed} are needed; {measured.behind} partitions have lag that lasts"
    return Decision(wanted=wanted, why=why, past=past)


def _remember(measured: Measured, past: Past | None) -> Past:
    """Note a change of the replicas since the last call."""
    now, at = measured.replicas, measured.at
    total = max(measured.total, measured.recent)
    if past is None:
        return Past(replicas=now, total=total, changed=at)
    if now == past.replicas:
        return replace(past, total=total)
    climb = (*past.climb, (past.replicas, past.total)) if now > past.replicas > 0 else ()
    return replace(past, replicas=now, total=total, changed=at, spare=None, climb=climb)


def _judge(measured: Measured, limits: Limits, past: Past) -> Past:
    """Set a ceiling where fewer replicas handled about as much before the last steps up."""
    judged = replace(past, climb=())
    if measured.behind == 0:
        return judged
    for fewer, total in past.climb:
        # Of many replicas, one more can't add a tenth.
        enough = min(GAIN, (measured.replicas / fewer - 1) / 2)
        if past.total < total * (1 + enough):
            until = measured.at + AGAIN * limits.cooldown
            return replace(judged, ceiling=fewer, until=until)
    return judged
