"""A run repeats, a crash is no cancellation, and the shop's books balance whatever goes wrong."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from planted import HERE, Bank, Paid, Placed, charge_without_key, sound

from oyez import Event, Service, Transaction
from oyez.event import describe
from oyez.simulation import Sim, simulate
from oyez.simulation.broker import KINDS
from oyez.simulation.driver import draw
from oyez.simulation.run import Fate, run
from oyez.simulation.search import search
from oyez.simulation.stage import Plan
from oyez.simulation.tape import Choices

SHOP = Path(__file__).parents[2] / "examples" / "shop"
SEEDS = int(os.environ.get("OYEZ_TEST_SIMULATION_SHOP", "20"))
FOUND = (562, 11_391, 18_145, 30_364, 31_098, 59_721, 73_910, 301_945)
"""Seeds with which the shop failed, each for a fault of the core or the simulator."""


def test_a_tape_repeats_what_a_seed_chose() -> None:
    first = Choices(7)
    made = [(first.draw(9, "a"), first.pick((0.5, 0.2), "b")) for _ in range(50)]
    again = Choices(0, first.tape)
    assert [(again.draw(9, "a"), again.pick((0.5, 0.2), "b")) for _ in range(50)] == made
    assert (again.draw(9, "a"), again.pick((1.0,), "c")) == (0, 0)  # beyond its end: the tame one
    assert {each for each, _ in made} == set(range(9))
    assert {each for _, each in made} == {0, 1, 2}


def test_a_seed_and_its_tape_give_the_same_run() -> None:
    plan = sound()
    for seed in range(5):
        result = run(plan, seed)
        assert run(plan, seed).trace == result.trace
        assert run(plan, seed, result.tape).trace == result.trace
    assert run(plan, 5).trace != result.trace


def test_a_crash_runs_no_cleanup() -> None:
    service = Service("pay", migrations="migrations")
    ran: list[str] = []

    @service.on(Placed)
    async def keep(event: Placed, tx: Transaction) -> None:
        ran.append("began")
        try:
            await asyncio.sleep(3.0)
        except asyncio.CancelledError:
            ran.append("cancelled")
            raise
        finally:
            ran.append("left")

    async def scenario(sim: Sim) -> None:
        await sim.publish(Placed(order_id="1"), service="shop")
        await sim.sleep(10.0)

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=("crash",))
    unfinished = 0
    for seed in range(40):
        ran.clear()
        result = run(plan, seed)
        assert result.failures == []
        # What a dead replica left is closed only when the run is over.
        unfinished += ran[:2] == ["began", "began"]
        assert "cancelled" not in ran
    assert unfinished


def test_without_faults_all_is_tame() -> None:
    result = run(msgspec.structs.replace(sound(), faults=()), 3)
    assert result.failures == []
    assert [each.what for each in result.story if each.fault] == ["nothing goes wrong any more"]


def test_a_quiet_hour_takes_few_steps() -> None:
    async def scenario(sim: Sim) -> None:
        await sim.sleep(3_500.0)

    result = run(msgspec.structs.replace(sound(), scenario=scenario, faults=()), 0)
    assert result.failures == []
    assert result.virtual > 3_500.0
    assert result.steps < 4_000  # with the pauses of production more than 100,000


@pytest.mark.parametrize("what", ["time.sleep", "a thread", "a network connection"])
def test_the_real_world_is_refused(what: str) -> None:
    service = Service("pay")

    @service.on(Placed)
    async def reach_out(event: Placed) -> None:
        if what == "time.sleep":
            time.sleep(1.0)
        elif what == "a thread":
            await asyncio.to_thread(print)
        else:
            await asyncio.open_connection("127.0.0.1", 1)

    async def scenario(sim: Sim) -> None:
        await sim.publish(Placed(order_id="1"), service="shop")

    result = run(Plan(services=[service], scenario=scenario, root=HERE), 0)
    assert any(what in each for each in result.failures), result.failures


def test_what_must_hold_and_does_not_is_told() -> None:
    service = Service("pay")

    @service.on(Placed)
    async def pay(event: Placed) -> Paid:
        return Paid(order_id=event.order_id)

    async def scenario(sim: Sim) -> None:
        @sim.always
        def few() -> bool:
            return len(sim.announced(Paid)) < 1

        @sim.eventually(within=5.0)
        def never() -> bool:
            return False

        await sim.publish(Placed(order_id="1"), service="shop")
        await sim.sleep(5.0)
        await sim.publish(Placed(order_id="2"), service="shop")

    result = run(Plan(services=[service], scenario=scenario, root=HERE, faults=()), 0)
    assert result.failures == [
        "few does not hold",
        "never does not hold 5 s after the last fault",
    ]


def test_the_test_of_a_scenario_tells_a_story() -> None:
    plan = charge_without_key()

    @simulate(*plan.services, seeds=100, system="planted", root=HERE, provide=plan.provide)
    async def scenario(sim: Sim) -> None:
        await plan.scenario(sim)

    with pytest.raises(AssertionError, match=r"(?s)seed \d+:.*Bank\.pay.*again: oyez simulate"):
        scenario()


def test_what_is_found_does_not_depend_on_the_number_of_processes() -> None:
    plan = charge_without_key()
    found = [search(plan, range(1, 60), jobs=jobs, shrinks=False) for jobs in (0, 1, 3)]
    first = found[0].failure
    assert first is not None
    for each in found:
        assert each.seeds == found[0].seeds
        assert each.failure == first
    clean = [search(sound(), range(1, 10), jobs=jobs) for jobs in (0, 2)]
    assert [each.seeds for each in clean] == [9, 9]
    assert clean[0].virtual == clean[1].virtual


def test_a_service_that_ends_its_process_is_told() -> None:
    service = Service("pay")

    @service.on(Placed)
    async def leave(event: Placed) -> None:
        os._exit(3)

    async def scenario(sim: Sim) -> None:
        if sim._run.seed in (0, 4):
            await sim.publish(Placed(order_id="1"), service="shop")

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=())
    found = search(plan, range(2, 9), jobs=2)
    assert found.failure is not None
    assert found.failure.seed == 4
    assert "the process was ended with exit code 3" in found.failure.failures[0]


def test_what_a_run_leaves_is_closed_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    service = Service("pay", migrations="migrations")

    @service.on(Placed)
    async def keep(event: Placed, tx: Transaction) -> None:
        await tx.fetch("select * from own")
        await asyncio.sleep(3.0)

    async def scenario(sim: Sim) -> None:
        await sim.publish(Placed(order_id="1"), service="shop")
        await sim.sleep(10.0)

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=("crash",))
    warnings.simplefilter("always")
    crashes = 0
    with ThreadPoolExecutor(1) as thread:  # which has no event loop of its own to fall back on
        for result in thread.map(lambda seed: run(plan, seed), range(30)):
            crashes += any(each.what == "crashed" for each in result.story)
    gc.collect()
    assert crashes
    assert [str(each.message) for each in recwarn if "never awaited" in str(each.message)] == []


def test_a_replica_that_is_stopped_leaves_the_others_at_work() -> None:
    service = Service("pay")
    served: list[bool] = []

    @service.on(Placed)
    async def keep(event: Placed) -> None:
        pass

    async def scenario(sim: Sim) -> None:
        for _ in range(60):
            await sim.sleep(0.1)
            async with service.transaction() as tx:
                tx.publish(Placed(order_id="1"))
            served.append(True)

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=("crash",))
    for seed in range(200):
        result = run(plan, seed)
        assert not any("is not running" in each for each in result.failures), result.failures
        stops = [each.time for each in result.story if each.what == "is stopped in order"]
        if stops and stops[0] < 6.0:  # and the scenario goes on
            break
    else:
        pytest.fail("no replica was stopped")
    assert served


def test_a_replica_that_drains_as_the_faults_end_is_started_again() -> None:
    service = Service("pay")

    @service.on(Placed)
    async def keep(event: Placed, tx: Transaction) -> None:
        await asyncio.sleep(3.0)  # a drain waits for it

    async def scenario(sim: Sim) -> None:
        for number in range(4):
            await sim.publish(Placed(order_id=f"{number}"), service="shop")
        await sim.sleep(2.0)

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=("crash",))
    late = 0
    for seed in range(100):
        result = run(plan, seed)
        assert result.failures == [], f"seed {seed}: {result.failures}"
        told = [(each.node, each.what) for each in result.story]
        healed = told.index(("everyone", "nothing goes wrong any more"))
        for index, (who, what) in enumerate(told):
            if what == "is stopped in order":
                late += (who, "starts again") not in told[index:healed]
                assert (who, "starts again") in told[index:], f"seed {seed}"
    assert late, "no drain was going on as the faults ended"


def test_each_run_begins_with_the_same_data() -> None:
    service = Service("pay", migrations="migrations")

    @service.on(Placed)
    async def keep(event: Placed, tx: Transaction) -> None:
        tx.execute("insert into own (name, n) values (:name, 1)", name=event.order_id)
        if event.number == 2:
            tx.execute("create table more (name text)")

    async def scenario(sim: Sim) -> None:
        for number in range(1, 2 + sim._run.seed % 2):
            await sim.publish(Placed(order_id=f"{number}", number=number), service="shop")

        @sim.at_rest
        async def all_is_there() -> None:
            rows = await sim.fetch("pay", "select rowid from own order by rowid")
            assert [row["rowid"] for row in rows] == [*range(1, 2 + sim._run.seed % 2)]

    plan = Plan(services=[service], scenario=scenario, root=HERE, faults=(), brokers=("kafka",))
    traces = {run(plan, seed).trace for seed in (2, 2)}
    assert len(traces) == 1
    for seed in (3, 2, 2, 3, 2):
        result = run(plan, seed)
        assert result.failures == []
        assert seed == 3 or result.trace in traces


def test_each_kind_of_broker_is_run() -> None:
    kinds = {Fate.of(sound(), seed).faults.broker for seed in range(100)}
    assert kinds == set(KINDS)
    kept = msgspec.structs.replace(sound(), brokers=("sns_sqs",))
    assert {Fate.of(kept, seed).faults.broker for seed in range(20)} == {"sns_sqs"}
    for name in KINDS:
        result = run(msgspec.structs.replace(sound(), brokers=(name,)), 2)
        assert result.failures == []


def test_a_replica_that_lost_a_partition_tries_to_commit() -> None:
    ways = {"freeze": "stands still", "lapse": "its lease has run out"}
    for fault, told in ways.items():
        plan = msgspec.structs.replace(sound(), faults=("slow", fault))
        for seed in range(100):
            result = run(plan, seed)
            assert result.failures == []
            what = [each.what for each in result.story]
            if any("is no longer owned by" in each for each in what):
                break
        else:
            pytest.fail(f"no commit was refused because of {fault}")
        assert any(told in each for each in what)


def test_what_no_seed_reaches_fails_the_test() -> None:
    plan = sound()

    @simulate(*plan.services, seeds=3, system="planted", root=HERE, provide=plan.provide)
    async def scenario(sim: Sim) -> None:
        @sim.sometimes("a bank is robbed")
        def robbed() -> bool:
            return "robber" in sim.outside(Bank).payments

    with pytest.raises(AssertionError, match="in 3 seeds never reached: a bank is robbed"):
        scenario()


class Drawn(Event, type="drawn.all", key="name"):
    name: str
    size: Literal["s", "m"]
    parts: list[int]
    more: dict[str, int]
    maybe: float | None = None


def test_events_are_drawn_from_their_schemas() -> None:
    chance = random.Random(1)
    found = [draw(describe(Drawn), chance) for _ in range(50)]
    assert all(isinstance(each, Drawn) for each in found)
    assert {each.size for each in found if isinstance(each, Drawn)} == {"s", "m"}
    assert len({each.name for each in found if isinstance(each, Drawn)}) == 3


def shop(*options: str) -> dict[str, Any]:
    """Search the shop, and return what is told of it."""
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "simulate", *options, "--json"],
        cwd=SHOP,
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_the_shop_balances() -> None:
    """``OYEZ_TEST_SIMULATION_SHOP`` is the number of seeds."""
    told = shop("--seeds", str(SEEDS))
    assert told["failure"] is None, told["failure"]
    assert told["seeds"] == SEEDS


@pytest.mark.parametrize("seed", FOUND)
def test_what_a_seed_of_the_shop_found_stays_mended(seed: int) -> None:
    told = shop("--first", str(seed), "--seeds", "1")
    assert told["failure"] is None, told["failure"]
    assert told["seeds"] == 1
