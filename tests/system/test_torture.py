"""The campaign of `make torture`: its short form, and the oracle, which has to find planted bugs.

The bugs are planted into copies of what the short form leaves: real stores with one defect each.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from oyez.config import load
from oyez.project import Project

SCRIPTS = Path(__file__).parents[2] / "scripts"
KILLS = 12


class Torture(NamedTuple):
    """The modules of the script that are tested."""

    grounds: ModuleType
    plan: ModuleType
    checker: ModuleType
    evidence: ModuleType
    journal: ModuleType
    results: ModuleType
    system_calls: ModuleType
    targets: ModuleType


@pytest.fixture(scope="module")
def torture() -> Iterator[Torture]:
    """The script's modules, which have a folder of their own on the path."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("deploy-test.d", "services.d", "torture.d"):
            patch.syspath_prepend(str(SCRIPTS / folder))
        # Another script's module of the same name must not take its place.
        patch.syspath_prepend(str(Path(__file__).parent))
        yield Torture(*(importlib.import_module(name) for name in Torture._fields))
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(SCRIPTS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def short(
    torture: Torture, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, list[str]]:
    """A short campaign on the embedded broker and SQLite: folder, evidence, what it requires."""
    folder = tmp_path_factory.mktemp("torture")

    async def campaign() -> tuple[Any, list[str]]:
        async with torture.grounds.Ground(folder, folder / "cache") as ground:
            part = torture.plan.PARTS["kills"]
            return await torture.plan.play(part, ground, seed=13, count=KILLS)

    return folder, *asyncio.run(campaign())


@pytest.mark.timeout(180)
def test_killed_processes_harm_nothing(torture: Torture, short) -> None:
    _, evidence, required = short
    verdict = torture.checker.judge(evidence, required)
    assert verdict.problems == []
    assert verdict.void == []
    assert len(evidence.of("fault")) >= KILLS
    assert len(verdict.recoveries) > 0


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    changed = lines(folder)
    change(changed)
    text = "".join(json.dumps(line) + "\n" for line in changed)
    (folder / "journal.jsonl").write_text(text)


def sql(name: str, *statements: str) -> Callable[[Path], None]:
    """Plant by SQL in one of the stores."""

    def plant(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "shop" / ".oyez" / f"{name}.db")) as database:
            changed = [database.execute(statement).rowcount for statement in statements]
            database.commit()
        assert all(changed), f"nothing to plant in: {changed}"

    return plant


def answer_another_order(journal: list[dict[str, Any]]) -> None:
    given = [line for line in journal if line["kind"] == "answer" and line["status"] == 202]
    journal.append(given[0] | {"order": given[1]["order"]})


def forget_a_request(journal: list[dict[str, Any]]) -> None:
    given = next(line for line in journal if line["kind"] == "answer" and line["status"] == 202)
    journal[:] = [line for line in journal if line.get("key") != given["key"]]


def drain_late(journal: list[dict[str, Any]]) -> None:
    next(line for line in journal if line["kind"] == "drained")["seconds"] = 61.0


def never_drain(journal: list[dict[str, Any]]) -> None:
    journal[:] = [line for line in journal if line["kind"] != "drained"]


def inject_unseen_poison(journal: list[dict[str, Any]]) -> None:
    journal.append({"at": 0.0, "kind": "injected", "what": "torture.poison", "event": "unseen"})


def grow(what: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(journal: list[dict[str, Any]]) -> None:
        for second in range(60):
            used = {"rss": 40 * 2**20, "descriptors": 40, "threads": 6}
            used[what] += used[what] * second // 10
            journal.append({"at": second, "kind": "sample", "process": "leak", "pid": 1} | used)

    return change


def skip_damage(journal: list[dict[str, Any]]) -> None:
    journal.append({"at": 0.0, "kind": "damage", "what": "byte 1 is another", "became": "skipped"})


def journal(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], None]:
    """Plant in the journal."""
    return lambda folder: rewrite(folder, change)


_SHIPPED = "(select order_id from orders where shipped = 1 limit 1)"
_CAPTURED = "(select key from charge where status = 'captured' and refunded = 0 limit 1)"
_AGAIN = "event_id, source, type, subject"
_PAIR = """(select a.rowid from seen a join seen b on a.subject = b.subject
 and a.source = b.source and b.number = a.number + 1 limit 1)"""

PLANTED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "an accepted order is gone": (
        "accepted_orders_are_there",
        sql("orders", f"delete from orders where order_id = {_SHIPPED}"),
    ),
    "an order was never announced": (
        "orders_are_announced",
        sql(
            "orders",
            """insert into orders (order_id, principal, email, total_cents, cancelled)
             values ('dual-write', 'p', 'a@example.org', 1, 1)""",
        ),
    ),
    "an event was acknowledged before its commit": (
        "events_are_handled",
        sql("witness", "delete from seen where rowid = (select max(rowid) from seen)"),
    ),
    "a step was written and not announced": (
        "steps_are_announced",
        sql(
            "orders",
            """insert into order_history select order_id, 'confirmed', '2026-01-01T00:00:00Z'
             from orders where cancelled = 1 and confirmed = 0 limit 1""",
        ),
    ),
    "a repeated request was answered with another order": (
        "one_request_is_one_order",
        journal(answer_another_order),
    ),
    "an idempotency key made two orders": (
        "one_request_is_one_order",
        sql(
            "orders",
            """insert into placement select 'another', key, digest, 'twice'
             from placement limit 1""",
        ),
    ),
    "an order that nobody asked for": ("nobody_orders_by_himself", journal(forget_a_request)),
    "an order is shipped and cancelled": (
        "orders_end_once",
        sql("orders", f"update orders set cancelled = 1 where order_id = {_SHIPPED}"),
    ),
    "an event was handled twice": (
        "events_are_handled_once",
        sql("witness", f"insert into seen select {_AGAIN}, number + 100 from seen limit 1"),
    ),
    "a card was charged twice": (
        "charges_are_made_once",
        sql(
            "outside/provider",
            f"""insert into charge select 'another-key', payload, charge_id, reference,
             amount_cents, status, reason, 0 from charge where key = {_CAPTURED}""",
        ),
    ),
    "an e-mail went out under two keys": (
        "effects_have_one_key",
        sql(
            "outside/mailbox",
            """insert into mail (message_id, recipients, subject, text, shop_order, stage,
             received_at) select '<another>', recipients, subject, text, shop_order, stage,
             received_at from mail limit 1""",
        ),
    ),
    "two events of a key changed places": (
        "keys_keep_their_order",
        sql(
            "witness",
            f"create table pair as select * from seen where rowid = {_PAIR}",
            """update seen set number = number - 1 where (subject, source, number) in
             (select subject, source, number + 1 from pair)""",
            """update seen set number = number + 1 where event_id in
             (select event_id from pair)""",
        ),
    ),
    "two events of a key were handled at once": (
        "one_at_a_time",
        sql("witness", f"update seen set number = number + 1 where rowid = {_PAIR}"),
    ),
    "an order never ended": (
        "accepted_orders_end",
        sql("orders", f"update orders set shipped = 0 where order_id = {_SHIPPED}"),
    ),
    "an event is left in an outbox": (
        "outboxes_are_empty",
        sql(
            "payments",
            """insert into oyez_outbox (stream, headers, data, state, due)
             values ('shop.payments', '{}', '', 0, 0)""",
        ),
    ),
    "an event is parked for ever": (
        "nothing_is_parked",
        sql("witness", "update oyez_inbox set state = 2 where rowid = 1"),
    ),
    "a saga waits for ever": (
        "sagas_go_on",
        sql(
            "orders",
            """update oyez_state set status = 'stuck' where (kind, key) =
             (select kind, key from oyez_state where status is not null limit 1)""",
        ),
    ),
    "poison was swallowed": ("dead_letters_are_the_poison", journal(inject_unseen_poison)),
    "it took longer than a minute": ("settled_in_time", journal(drain_late)),
    "it never settled": ("settled_in_time", journal(never_drain)),
    "money came from nowhere": (
        "the_books_balance",
        sql("outside/provider", f"update charge set amount_cents = 1 where key = {_CAPTURED}"),
    ),
    "goods vanished": (
        "the_books_balance",
        sql("inventory", "update stock set free = free - 1 where sku = 'bell'"),
    ),
    "more was sold than there is": (
        "stock_is_never_negative",
        sql(
            "inventory",
            "alter table stock rename to checked",  # a copy has no constraint
            "create table stock as select * from checked",
            "drop table checked",
            "update stock set free = -1, shipped = initial + 1, reserved = 0 where sku = 'cloak'",
        ),
    ),
    "memory leaks": ("processes_stay_flat", journal(grow("rss"))),
    "descriptors leak": ("processes_stay_flat", journal(grow("descriptors"))),
    "threads leak": ("processes_stay_flat", journal(grow("threads"))),
    "damage was read past": ("damage_is_found", journal(skip_damage)),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("bug", PLANTED)
async def test_a_planted_bug_is_found(torture: Torture, short, bug: str, tmp_path: Path) -> None:
    rule, plant = PLANTED[bug]
    # The bells are sockets, of which a killed process has left some.
    folder = shutil.copytree(short[0], tmp_path / "copy", ignore=shutil.ignore_patterns("*.bell"))
    plant(folder)
    evidence = await torture.evidence.gather(folder, Project(load(folder / "shop", {})))
    found = {problem.rule for problem in torture.checker.judge(evidence).problems}
    assert rule in found


def test_every_rule_has_found_a_planted_bug(torture: Torture) -> None:
    assert {rule for rule, _ in PLANTED.values()} == set(torture.checker.RULES)


@pytest.mark.timeout(180)
def test_a_run_without_what_it_was_to_survive_is_void(torture: Torture, short) -> None:
    _, evidence, _ = short
    calm = torture.evidence.Evidence(
        **{
            **{name: getattr(evidence, name) for name in evidence.__struct_fields__},
            "lines": [line for line in evidence.lines if line["kind"] != "fault"],
            "records": [],
            "effects_repeated": 0,
        }
    )
    void = torture.checker.judge(calm, ["kill", "duplicates", "inside"]).void
    assert void == [
        "kill never fired",
        "no event and no effect came twice",
        "no kill landed inside a transaction",
    ]


def test_the_journal_is_read_up_to_where_a_crash_has_cut_it(
    torture: Torture, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    with torture.journal.Journal(path) as written:
        written.write("request", key="a")
        written.write("answer", key="a", status=202)
    with path.open("a") as file:
        file.write('{"at": 1, "kind": "requ')
    assert [line["kind"] for line in torture.journal.read(path)] == ["request", "answer"]


def test_the_calls_of_a_log_are_points_of_their_threads(torture: Torture) -> None:
    log = (
        "11 pwrite64(5</tmp/orders.db>, \"\", 4096, 0) = 4096\n"
        "12 write(7<anon_inode:[eventfd]>, \"x\", 8) = 8\n"
        "12 write(8<pipe:[3]>, \"x\", 1 <unfinished ...>\n"
        "11 pwrite64(5</tmp/orders.db>, \"\", 4096, 4096) = 4096\n"
        "12 <... write resumed>) = 1\n"
        "99 write(1<pipe:[3]>, \"\", 0) = 0\n"
    )  # fmt: skip
    found = torture.system_calls.points("orders", [11, 12], log)
    assert [tuple(point) for point in found] == [
        ("orders", 0, "pwrite64", 1),
        ("orders", 1, "write", 2),
        ("orders", 0, "pwrite64", 2),
    ]


def test_the_table_adds_runs_up_and_leaves_void_ones_out(torture: Torture) -> None:
    run = {
        "part": "kills",
        "broker": "embedded",
        "store": "sqlite",
        "void": [],
        "faults": {"kill": 100, "duplicate": 50},
        "inside": 60,
        "orders": 10,
        "events": 70,
        "duplicates": 3,
        "recovery": [0.5, 1.5],
        "drained": 2.0,
        **dict.fromkeys(torture.checker.HARMS, 0),
    }
    table = torture.results.table([run, run, run | {"void": ["nothing came twice"]}])
    *_, row = table.splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("kills", "embedded", "sqlite", "2", "200", "120", "20", "140", "6"),
        *("0", "0", "0", "0", "0", "0", "< 0.015", "0.50 s", "1.50 s", "2.0 s"),
    ]
    harmful = run | {"lost": 1, "seed": 7, "commit": "abc"}
    *_, row = torture.results.table([harmful]).splitlines()
    assert "< " not in row
    found = harmful | {"because": "a fault of Oyez"}
    assert torture.results.table([run, run, found]) == torture.results.table([run, run])
    *_, row = torture.results.causes([run, harmful, found]).splitlines()
    assert row == "| kills | embedded | sqlite | 7 | abc | lost 1 | a fault of Oyez |"


def survived(part: str, faults: dict[str, int], **more: object) -> dict[str, Any]:
    place = {"part": part, "broker": "embedded", "store": "sqlite", "faults": faults}
    return place | {"events": 10, "seconds": 200.0, "void": [], "problems": []} | more


def test_a_campaign_does_what_the_results_lack_the_smallest_share_first(torture: Torture) -> None:
    targets = torture.targets
    kills = targets.Target("kills", "embedded", "sqlite", 1_000, 250, "kill")
    links = targets.Target("links", "embedded", "sqlite", 40, 120, "partition")
    soak = targets.Target("soak", "embedded", "sqlite", 360, 360, seconds=3_900.0)
    all_of_them = [kills, links, soak]
    assert targets.following([], 600.0, all_of_them) is kills
    kept = [survived("kills", {"kill": 250, "duplicate": 25})]
    assert targets.following(kept, 600.0, all_of_them) is links
    kept.append(survived("links", {"partition: store": 24, "reset: store": 24}))
    assert [each.missing(kept) for each in all_of_them] == [750, 16, 360]
    assert targets.following(kept, 600.0, all_of_them) is kills
    assert targets.following(kept, 150.0, all_of_them) is None, "no run is so short"
    assert targets.following(kept, 3_900.0, all_of_them) is soak
    kept.append(survived("soak", {"kill": 180, "terminate": 180}))
    assert targets.following(kept, 3_900.0, all_of_them) is kills
    kept += [survived("kills", {"kill": 800}), survived("links", {"partition": 40})]
    assert targets.following(kept, 3_900.0, all_of_them) is None
    assert "40 of 40" not in targets.shown(kept, all_of_them)
    assert "64 of 40" in targets.shown(kept, all_of_them)


@pytest.mark.parametrize("worth", [{"void": ["nothing came twice"]}, {"problems": ["lost: 1"]}])
def test_a_run_that_failed_counts_for_nothing_and_comes_last(
    torture: Torture, worth: dict[str, Any]
) -> None:
    targets = torture.targets
    kills = targets.Target("kills", "embedded", "sqlite", 1_000, 250, "kill")
    links = targets.Target("links", "embedded", "sqlite", 40, 4, "partition")
    kept = [
        survived("kills", {"kill": 250}, **worth),
        survived("links", {"partition": 4}),
    ]
    assert kills.missing(kept) == 1_000
    assert targets.following(kept, 600.0, [kills, links]) is links
    assert "1 runs failed" in targets.shown(kept, [kills])


def test_recovery_lasts_until_the_first_of_the_later_orders_has_ended(torture: Torture) -> None:
    def order(placed: int, ended: int) -> dict[str, Any]:
        stages = {"placed": placed, "shipped": ended}
        return {"history": {s: f"1970-01-01T00:00:{at:02}+00:00" for s, at in stages.items()}}

    inside = torture.evidence.Inside(
        orders={"a": order(1, 30), "b": order(5, 20), "c": order(6, 9), "d": order(11, 12)},
        lines=[],
        stock=[],
        unfinished={},
    )
    faults = [{"kind": "fault", "ended": at} for at in (2.0, 6.5, 11.5)]
    evidence = torture.evidence.Evidence(
        lines=faults,
        inside=inside,
        outside=torture.evidence.Outside(ledger={"charges": []}, mails=[], texts=[]),
        placements={},
        charge_keys=[],
        mail_keys=[],
        text_keys=[],
        effects_repeated=0,
        records=[],
        witnessed=[],
        letters=[],
        unfinished={},
        stuck_sagas=[],
    )
    assert list(torture.checker._recoveries(evidence)) == [7.0, 5.5]


def test_the_page_has_the_table_of_the_results(torture: Torture) -> None:
    results = torture.results
    text = results.PAGE.read_text()
    shown = text.split(results.BEGIN)[1].split(results.END)[0].strip()
    assert shown == results.told(results.read(results.FILE)), "run: scripts/torture --page"
