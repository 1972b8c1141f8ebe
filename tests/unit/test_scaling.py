"""The rule of scaling: its bounds and its calm, as properties and against loads in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oyez.scaling.forecast import Capacity, Forecast, forecast
from oyez.scaling.meter import Look, Meter, Seen
from oyez.scaling.rule import AGAIN, Limits, Measured, Past, decide

COOLDOWN = 300.0
LIMITS = Limits(least=1, most=8, target=300.0, cooldown=COOLDOWN)


def measured(**changed: object) -> Measured:
    """A service that keeps up by itself, unless it is changed."""
    values: dict[str, object] = {
        "at": 1000.0,
        "replicas": 1,
        "partitions": 8,
        "behind": 8,
        "lag": 0,
        "inflow": 50.0,
        "total": 50.0,
        "rate": 100.0,
        **changed,
    }
    return Measured(**values)  # type: ignore[arg-type]


# -- one decision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "wanted", "why"),
    [
        ({}, 1, "0.5 are needed"),
        ({"lag": 90_000}, 4, "4 are needed"),
        ({"lag": 900_000}, 8, "31 are needed, of 8 at most"),
        ({"lag": 900_000, "partitions": 3}, 3, "31 are needed, of 3 at most"),
        ({"lag": 90_000, "behind": 2}, 2, "4 are needed; 2 partitions have lag that lasts"),
        ({"lag": 90_000, "behind": 1}, 1, "4 are needed; 1 partitions have lag that lasts"),
        ({"lag": 90_000, "rate": None}, 1, "unknown"),
        ({"lag": 90_000, "inflow": None}, 1, "unknown"),
        ({"lag": 90_000, "stuck": True}, 1, "nothing is handled"),
        ({"lag": 90_000, "failing": 0.5}, 1, "50% of calls fail"),
        ({"inflow": 104.0}, 1, "1.0 are needed"),
        ({"inflow": 106.0}, 2, "2 are needed"),
        ({"replicas": 0, "rate": None}, 1, "within 1..8"),
        ({"replicas": 12}, 8, "within 1..8"),
        ({"rate": 1e-313}, 8, "of 8 at most"),
        ({"replicas": 0, "partitions": 0, "behind": 0}, 1, "within 1..1"),
    ],
)
def test_a_decision(changed: dict[str, object], wanted: int, why: str) -> None:
    found = decide(measured(**changed), LIMITS)
    assert found.wanted == wanted
    assert why in found.why


def test_one_replica_goes_at_a_time_and_not_within_a_cooldown() -> None:
    past = decide(measured(replicas=4, at=0.0), LIMITS).past
    early = decide(measured(replicas=4, at=COOLDOWN - 1), LIMITS, past)
    assert early.wanted == 4
    assert "one goes in 1 s if that stays so" in early.why
    assert decide(measured(replicas=4, at=COOLDOWN), LIMITS, past).wanted == 3
    for changed in ({"inflow": 350.0}, {"stuck": True}, {"failing": 0.9}):
        break_ = decide(measured(replicas=4, at=COOLDOWN - 1, **changed), LIMITS, past)
        assert decide(measured(replicas=4, at=COOLDOWN), LIMITS, break_.past).wanted == 4


@pytest.mark.parametrize(
    ("changed", "in_the_end"),
    [({"stuck": True}, 1), ({"rate": None}, 1), ({"failing": 0.5}, 1), ({"lag": 30_000}, 2)],
)
def test_replicas_that_were_asked_for_are_wanted_while_they_start(
    changed: dict[str, object], in_the_end: int
) -> None:
    asked = decide(measured(lag=90_000, at=0.0), LIMITS)
    assert asked.wanted == 4
    values = {"lag": 90_000, **changed}
    early = decide(measured(at=COOLDOWN - 1, **values), LIMITS, asked.past)
    assert early.wanted == 4
    assert "4 were asked for" in early.why
    assert decide(measured(at=COOLDOWN, **values), LIMITS, early.past).wanted == in_the_end


def test_more_than_were_asked_for_are_wanted_when_they_are_needed() -> None:
    asked = decide(measured(replicas=2, inflow=300.0, at=0.0), LIMITS)
    assert asked.wanted == 3
    assert decide(measured(replicas=2, inflow=500.0, at=5.0), LIMITS, asked.past).wanted == 5


def test_a_replica_that_is_away_for_a_moment_is_wanted_still() -> None:
    """A busy process may miss its lease: whoever is told two would end a third that works."""
    load = {"inflow": 200.0, "lag": 0}
    there = decide(measured(replicas=3, at=0.0, **load), LIMITS)
    assert there.wanted == 3
    away = decide(measured(replicas=2, at=5.0, **load), LIMITS, there.past)
    assert away.wanted == 3
    assert "3 were asked for" in away.why
    back = decide(measured(replicas=3, at=10.0, **load), LIMITS, away.past)
    assert back.wanted == 3
    gone = decide(measured(replicas=2, at=10.0 + COOLDOWN, **load), LIMITS, back.past)
    assert gone.wanted < 3


def test_a_replica_stays_while_the_others_would_have_little_room() -> None:
    """Three of four would be enough for 240/s, and would not be for 241/s after a fifth more."""
    past = Past(replicas=4, total=0.0, changed=0.0, spare=0.0)
    assert decide(measured(replicas=4, inflow=239.0), LIMITS, past).wanted == 3
    assert decide(measured(replicas=4, inflow=241.0), LIMITS, past).wanted == 4


def test_a_replica_stays_until_the_lag_is_almost_handled() -> None:
    past = Past(replicas=4, total=0.0, changed=0.0, spare=0.0)
    assert decide(measured(replicas=4, inflow=0.0, lag=30 * 239), LIMITS, past).wanted == 3
    assert decide(measured(replicas=4, inflow=0.0, lag=30 * 241), LIMITS, past).wanted == 4


def test_a_step_that_does_not_help_is_taken_back_and_not_repeated_soon() -> None:
    slow = {"lag": 90_000, "total": 100.0}
    past = decide(measured(at=0.0, **slow), LIMITS).past
    past = decide(measured(at=10.0, replicas=4, **slow), LIMITS, past).past
    early = decide(measured(at=COOLDOWN, replicas=4, **slow), LIMITS, past)
    assert early.wanted == 4
    judged = decide(measured(at=COOLDOWN + 10, replicas=4, **slow), LIMITS, early.past)
    assert judged.wanted == 1
    assert "store or downstream is the limit" in judged.why
    assert decide(measured(at=COOLDOWN + 20, replicas=4, **slow), LIMITS, judged.past).wanted == 1
    back = decide(measured(at=COOLDOWN + 30, replicas=1, **slow), LIMITS, judged.past)
    assert back.wanted == 1
    assert "more than 1 did not help" in back.why
    later = COOLDOWN + 10 + AGAIN * COOLDOWN
    assert decide(measured(at=later - 1, **slow), LIMITS, back.past).wanted == 1
    assert decide(measured(at=later, **slow), LIMITS, back.past).wanted == 4


def test_a_step_that_somebody_else_took_back_is_not_judged() -> None:
    """What fewer replicas handle says nothing about what the step would have brought."""
    slow = {"lag": 90_000, "total": 100.0}
    past = decide(measured(at=0.0, **slow), LIMITS).past
    past = decide(measured(at=10.0, replicas=4, **slow), LIMITS, past).past
    past = decide(measured(at=20.0, replicas=3, **slow), LIMITS, past).past
    found = decide(measured(at=20.0 + COOLDOWN, replicas=3, **slow), LIMITS, past)
    assert found.wanted == 4


@pytest.mark.parametrize(
    ("before", "after", "total", "kept"),
    [(1, 2, 109.0, False), (1, 2, 111.0, True), (10, 11, 104.0, False), (10, 11, 106.0, True)],
)
def test_how_much_a_step_has_to_help(before: int, after: int, total: float, kept: bool) -> None:
    """A tenth, or half of what it could where that is less."""
    limits = Limits(most=20, cooldown=COOLDOWN)
    there = {"partitions": 20, "behind": 20, "inflow": after * 100.0}
    past = decide(measured(at=0.0, replicas=before, total=100.0, **there), limits).past
    past = decide(measured(at=1.0, replicas=after, total=100.0, **there), limits, past).past
    at = COOLDOWN + 1
    found = decide(measured(at=at, replicas=after, total=total, **there), limits, past)
    assert found.wanted == (after if kept else before)


def test_what_a_step_brought_just_now_counts() -> None:
    """In a short cooldown, the rate that changes by and by has hardly changed."""
    limits = Limits(most=8, cooldown=3.0)
    slow = {"lag": 90_000, "total": 100.0, "recent": 100.0}
    past = decide(measured(at=0.0, **slow), limits).past
    past = decide(measured(at=1.0, replicas=4, **slow), limits, past).past
    late = {**slow, "total": 105.0, "recent": 390.0}
    assert decide(measured(at=5.0, replicas=4, **late), limits, past).wanted == 4


def test_a_step_that_has_caught_up_is_not_taken_back() -> None:
    past = decide(measured(at=0.0), LIMITS).past
    past = decide(measured(at=1.0, replicas=2), LIMITS, past).past
    past = decide(measured(at=2.0, replicas=2, inflow=150.0), LIMITS, past).past
    found = decide(measured(at=COOLDOWN + 1, replicas=2, behind=0, inflow=150.0), LIMITS, past)
    assert found.wanted == 2


# -- every decision --------------------------------------------------------------------------------

counts = st.integers(0, 40)
rates = st.none() | st.floats(0.0, 1e6)
bounds = st.tuples(st.integers(1, 20), st.integers(0, 20)).map(
    lambda two: Limits(least=two[0], most=two[0] + two[1], target=300.0, cooldown=COOLDOWN)
)
services = st.builds(
    Measured,
    at=st.floats(0, 1e6),
    replicas=counts,
    partitions=counts,
    behind=counts,
    lag=st.integers(0, 10**9),
    inflow=rates,
    total=st.floats(0, 1e6),
    rate=rates,
    stuck=st.booleans(),
    failing=st.floats(0, 1),
)
pasts = st.none() | st.builds(
    Past,
    replicas=counts,
    total=st.floats(0, 1e6),
    changed=st.floats(0, 1e6),
    spare=st.none() | st.floats(0, 1e6),
    climb=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1e6)), max_size=3).map(tuple),
    ceiling=st.none() | st.integers(1, 40),
    until=st.floats(0, 1e6),
    asked=counts,
    since=st.floats(0, 1e6),
)


@example(measured(), Limits(most=3), Past(replicas=1, total=0.0, changed=0.0, asked=8, since=1e3))
@example(
    measured(partitions=2), LIMITS, Past(replicas=1, total=0.0, changed=0.0, asked=8, since=1e3)
)
@given(services, bounds, pasts)
def test_bounds_always_hold(service: Measured, limits: Limits, past: Past | None) -> None:
    wanted = decide(service, limits, past).wanted
    assert limits.least <= wanted <= limits.most
    assert wanted <= max(service.partitions, limits.least)


@given(services, bounds, pasts)
def test_the_same_question_has_the_same_answer(
    service: Measured, limits: Limits, past: Past | None
) -> None:
    """Whoever acts may take its time: to ask again before it has acted changes nothing."""
    first = decide(service, limits, past)
    again = decide(service, limits, first.past)
    assert (again.wanted, again.past) == (first.wanted, first.past)


@given(services, bounds, st.integers(0, 10**9))
def test_more_lag_never_asks_for_fewer(service: Measured, limits: Limits, more: int) -> None:
    worse = Measured(**{**{f: getattr(service, f) for f in service.__struct_fields__},
                        "lag": service.lag + more})  # fmt: skip
    assert decide(worse, limits).wanted >= decide(service, limits).wanted


@given(st.lists(services, min_size=2, max_size=30), bounds)
def test_fewer_come_one_at_a_time_a_cooldown_after_any_change(
    drawn: list[Measured], limits: Limits
) -> None:
    """Whatever is measured, each 100 s, and done at once; a ceiling and a bound apart."""
    past, replicas, changed = None, limits.least, 0.0
    for index, each in enumerate(drawn):
        values = {f: getattr(each, f) for f in each.__struct_fields__}
        values |= {"at": index * 100.0, "replicas": replicas, "partitions": 40}
        found = decide(Measured(**values), limits, past)
        past = found.past
        if found.wanted < replicas:
            assert index * 100.0 - changed >= limits.cooldown
            assert found.wanted == replicas - 1 or "is the limit" in found.why
        if found.wanted != replicas:
            # It is there, and seen, at the next look.
            replicas, changed = found.wanted, (index + 1) * 100.0


# -- the meter -------------------------------------------------------------------------------------


def looked(at: float, *partitions: tuple[int, str, int], **changed: float) -> Look:
    """A look at partitions with lag, owner, and what was handled since the last look."""
    owners = {owner for _, owner, _ in partitions}
    return Look(
        at=at,
        replicas=len(owners),
        partitions={
            ("s", number): Seen(lag=lag, owner=owner, handled=handled)
            for number, (lag, owner, handled) in enumerate(partitions)
        },
        **changed,
    )


def test_what_arrives_and_what_is_handled_are_told_from_two_looks() -> None:
    meter = Meter()
    first = meter.note(looked(0.0, (100, "a", 0), (300, "a", 0)))
    assert (first.lag, first.inflow, first.rate, first.behind) == (400, None, None, 0)
    found = meter.note(looked(10.0, (120, "a", 80), (220, "a", 120)))
    assert (found.lag, found.inflow, found.total, found.rate) == (340, 14.0, 20.0, 20.0)
    assert (found.behind, found.stuck) == (2, False)


def test_a_replica_with_little_to_do_tells_no_rate() -> None:
    """Some records are always on their way. They are no lag that replicas would cure."""
    meter = Meter()
    meter.note(looked(0.0, (7, "a", 0)))
    found = meter.note(looked(10.0, (9, "a", 100)))
    assert (found.rate, found.behind, found.inflow) == (None, 0, 10.2)


def test_idle_replicas_do_not_lower_the_rate_of_one() -> None:
    meter = Meter()
    meter.note(looked(0.0, (900, "a", 0), (0, "b", 0)))
    found = meter.note(looked(10.0, (800, "a", 100), (0, "b", 3)))
    assert (found.rate, found.behind) == (10.0, 1)


def test_a_partition_that_changes_hands_tells_no_rate() -> None:
    meter = Meter()
    meter.note(looked(0.0, (900, "a", 0), (900, "a", 0), (900, "c", 0)))
    found = meter.note(looked(10.0, (800, "a", 100), (800, "b", 100), (880, "c", 20)))
    assert found.rate == 2.0


def test_nothing_handled_with_lag_is_stuck() -> None:
    meter = Meter()
    meter.note(looked(0.0, (900, "a", 0)))
    assert meter.note(looked(10.0, (900, "a", 0))).stuck
    assert not meter.note(looked(20.0, (890, "a", 10))).stuck


def test_what_nothing_tells_is_unknown() -> None:
    meter = Meter()
    for at in (0.0, 10.0):
        seen = {("s", 0): Seen(lag=900, owner="a")}
        found = meter.note(Look(at=at, replicas=1, partitions=seen))
        assert (found.inflow, found.rate, found.stuck, found.lag) == (None, None, False, 900)


# -- loads in virtual time -------------------------------------------------------------------------


def ramp(at: float) -> float:
    """From 50 to 350 events a second in half an hour."""
    return 50 + 300 * min(at, 1800) / 1800


def spike(at: float) -> float:
    """Four times as much as one replica handles, for five minutes."""
    return 400.0 if 600 <= at < 900 else 60.0


def burst(at: float) -> float:
    """A quarter of a million events within a minute, then little."""
    return 3000.0 if 60 <= at < 120 else 20.0


def waves(at: float) -> float:
    """Up and down by half around two replicas, every seven minutes."""
    return 200 + 100 * math.sin(at / 420 * 2 * math.pi)


def drained(found: Forecast, since: float) -> float:
    """Return the seconds from then until less waits than 5 s of one replica's work."""
    return next(each.at for each in found.moments if each.at > since and each.lag < 500) - since


def calm(found: Forecast) -> bool:
    """Return whether there is at most one reversal in any cooldown."""
    times = found.reversals
    return all(b - a >= COOLDOWN for a, b in pairwise(times))


@pytest.mark.parametrize("load", [ramp, spike, burst, waves])
@pytest.mark.parametrize("every", [5.0, 15.0, 30.0])
def test_a_load_is_followed_without_flapping(load: Callable[[float], float], every: float) -> None:
    found = forecast(load, 7200, Capacity(rate=100.0), LIMITS, every=every)
    assert calm(found)
    assert max(each.replicas for each in found.moments) > 1


def test_waves_within_the_hysteresis_are_ridden_out() -> None:
    found = forecast(waves, 7200, Capacity(rate=100.0), LIMITS)
    assert [each for each in found.changes if each[0] > 1200] == []


@pytest.mark.parametrize("every", [5.0, 15.0, 30.0])
def test_a_spike_settles_in_three_steps_and_is_drained_in_time(every: float) -> None:
    found = forecast(spike, 7200, Capacity(rate=100.0), LIMITS, every=every)
    assert len([change for change in found.changes if 600 <= change[0] < 900]) <= 3
    assert drained(found, 900) <= 1.3 * LIMITS.target
    assert found.moments[-1].replicas == 1


def test_a_backlog_is_drained_in_time_when_there_is_room() -> None:
    limits = Limits(least=1, most=12, cooldown=COOLDOWN)
    found = forecast(burst, 7200, Capacity(rate=100.0, partitions=12), limits)
    assert drained(found, 120) <= 1.3 * limits.target
    assert found.moments[-1].replicas == 1


def test_a_ramp_never_falls_behind_the_target() -> None:
    found = forecast(ramp, 7200, Capacity(rate=100.0), LIMITS)
    assert max(each.oldest for each in found.moments) <= 1.3 * LIMITS.target
    assert found.moments[-1].replicas in (4, 5)
    assert found.moments[-1].lag < 500


def test_a_skewed_key_never_gets_a_second_replica() -> None:
    """All that is too much is in one partition, which has one reader."""
    capacity = Capacity(rate=100.0, shares=(150.0, *(2.0,) * 7))
    found = forecast(lambda at: 164.0, 7200, capacity, LIMITS)
    assert {each.replicas for each in found.moments} == {1}
    assert "1 partitions have lag that lasts" in found.moments[-1].why


def test_a_store_that_is_the_limit_is_not_given_more_replicas() -> None:
    capacity = Capacity(rate=100.0, shared=104.0)
    found = forecast(lambda at: 300.0, 3 * AGAIN * COOLDOWN, capacity, LIMITS)
    assert calm(found)
    busy = sum(each.replicas > 1 for each in found.moments) / len(found.moments)
    assert busy < 0.3
    assert "store or downstream is the limit" in found.moments[-1].why


def test_a_dead_store_changes_nothing() -> None:
    """It stands still at once, and lag grows without end."""
    capacity = Capacity(rate=100.0, shared=0.0)
    found = forecast(lambda at: 300.0, 1800, capacity, LIMITS)
    assert found.changes == ()
    assert "nothing is handled" in found.moments[-1].why


@settings(max_examples=40)
@given(
    st.lists(st.floats(0, 1500), min_size=1, max_size=12),
    st.floats(20, 500),
    st.none() | st.floats(50, 2000),
    st.integers(1, 16),
)
def test_no_load_takes_back_a_replica_within_a_cooldown(
    steps: list[float], rate: float, shared: float | None, partitions: int
) -> None:
    """Any load that changes each three minutes."""

    def load(at: float) -> float:
        return steps[int(at // 180) % len(steps)]

    capacity = Capacity(rate=rate, shared=shared, partitions=partitions)
    changes = forecast(load, 3600, capacity, LIMITS, every=15.0).changes
    for (before, _, _), (at, had, has) in pairwise(changes):
        assert has > had or at - before >= COOLDOWN
