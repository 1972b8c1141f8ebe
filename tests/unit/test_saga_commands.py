"""``oyez saga``: what it lists and shows, and what it does to instances."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.dom import minidom

import msgspec
import pytest
from test_saga import Cancel, Declined, Fulfilment, OrderPlaced, Paid, Reserved, Shipped

from oyez import Event, tables
from oyez.ambient import SystemAmbient
from oyez.cli import main
from oyez.config import load
from oyez.contract import encode
from oyez.envelope import Envelope, format_time
from oyez.event import describe
from oyez.ports import Record
from oyez.project import Project
from oyez.saga import saga_kind
from oyez.saga_handler import carry_out
from oyez.saga_transition import transition
from oyez.testing.sagas import assert_replays
from oyez.timers import Timer
from oyez.transaction import Announcer, Origin, UnitOfWork

TOML = """
[system]
name = "shop"
[services.orders]
app = "saga_orders:service"
[services.idle]
app = "saga_orders:idle"
"""
APP = """
from test_saga import Fulfilment
from oyez import Service

service = Service("orders")
service.saga(Fulfilment)
idle = Service("idle")
"""
KIND = saga_kind(Fulfilment)


class Expired(Event, type="test.expired"):
    """Stands for the timer that is next."""

    order: str


class Desk:
    """A system whose orders have instances, and the command at work in it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (root / "oyez.toml").write_text(TOML)
        (root / "saga_orders.py").write_text(APP)
        self._project = Project(load(root, {}))
        self._file = root / ".oyez" / "orders.db"
        self._capsys = capsys

    def begin(self, key: str, *events: type[Any], stuck: str = "") -> None:
        """Let an instance have these events."""
        asyncio.run(self._begin(key, events, stuck))

    async def _begin(self, key: str, events: tuple[type[Any], ...], stuck: str) -> None:
        store = self._project.store("orders")
        await store.open()
        for cls in events:
            unit = UnitOfWork(store, Announcer("shop", "orders", SystemAmbient()))
            tx = unit.transaction(Origin(correlationid="flow-1"), key)
            await unit.load([(KIND.name, key)], alone=True)
            saga = unit.states.of(KIND, key)
            event, kind = cls(order=key), describe(cls)
            envelope = Envelope(
                id=f"e-{kind.name}", source="/shop/x", type=kind.name, data=encode(kind, event)
            )
            if cls is Expired:
                (due,) = await store.fetch(tables.TIMERS_OF, {"kind": KIND.name, "key": key})
                event = Timer(kind=KIND.name, key=key, **due)
                event_id = f"{KIND.name}/{key}/{event.name}@{format_time(event.due)}"
                kind = describe(Timer)
                envelope = Envelope(id=event_id, source="", type=kind.name, data=b"")
            else:
                await self._publish(envelope)
            outputs = transition(KIND, saga, event, unit.changes.time, envelope)
            carry_out(KIND, saga, outputs, tx)
            saga.progress.stuck = stuck
            await unit.commit()
        await store.close()

    async def _publish(self, envelope: Envelope) -> None:
        async with self._project.opened_broker("orders", create=True) as broker:
            await broker.create("shop.x", 2)
            record = Record(
                stream="shop.x", key="1", headers=envelope.headers(), data=envelope.data
            )
            await broker.publish([record])

    def oyez(self, *arguments: str, code: int = 0) -> str:
        """What the command prints; its errors if it is to fail."""
        with pytest.raises(SystemExit) as end:
            main(["saga", *arguments])
        out, err = self._capsys.readouterr()
        assert end.value.code == code, err
        return err if code else out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.oyez(*arguments, "--json"))

    def acts(self) -> list[Any]:
        """The audit, the newest first."""
        with pytest.raises(SystemExit):
            main(["audit", "orders", "--json"])
        found: list[Any] = json.loads(self._capsys.readouterr()[0])["acts"]
        return found

    def announced(self) -> list[str]:
        """The types in the outbox, in their order."""
        with sqlite3.connect(self._file) as connection:
            rows = connection.execute("select headers from oyez_outbox order by seq").fetchall()
        return [msgspec.json.decode(headers)["type"] for (headers,) in rows]


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    monkeypatch.setenv("OYEZ_PROJECT", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Desk(tmp_path, capsys)
    sys.modules.pop("saga_orders", None)


def test_what_has_not_ended_is_listed(desk: Desk) -> None:
    assert desk.oyez("list") == "no sagas\n"
    desk.begin("1", OrderPlaced)
    desk.begin("2", OrderPlaced, Reserved, Paid, Shipped)
    desk.begin("3", Paid)
    desk.begin("4", OrderPlaced, stuck="because")
    found = desk.json("list")
    assert [(each["key"], each["status"]) for each in found["sagas"]] == [
        ("1", "running"),
        ("3", "waiting"),
        ("4", "stuck"),
    ]
    assert (found["sagas"][0]["service"], found["sagas"][0]["step"]) == (
        "orders",
        "reserve, charge",
    )
    assert [each["key"] for each in desk.json("list", "--stuck")["sagas"]] == ["4"]
    assert [each["key"] for each in desk.json("list", "--status", "ended")["sagas"]] == ["2"]
    assert desk.json("list", "orders", "--older", "1h") == {"sagas": [], "more": False}
    assert desk.json("list", "idle") == {"sagas": [], "more": False}
    assert desk.json("list", "--limit", "1")["more"]
    lines = desk.oyez("list").splitlines()
    assert lines[0].split() == "SERVICE SAGA KEY STATUS STARTED CHANGED WAITS FOR".split()
    assert lines[1].startswith("orders   Fulfilment  1    running  ")


def test_wrong_options_are_refused(desk: Desk) -> None:
    assert "expected a number and a unit" in desk.oyez("list", "--older", "soon", code=2)
    assert "leave out one" in desk.oyez("list", "--stuck", "--status", "ended", code=2)
    assert "there is no service 'nobody'" in desk.oyez("list", "nobody", code=2)
    assert "--why: state the reason" in desk.oyez("abort", "1", "--why", " ", code=2)


def test_one_is_shown_with_its_steps_and_transitions(desk: Desk) -> None:
    desk.begin("1", Reserved, OrderPlaced, Declined)
    shown = desk.oyez("show", "1")
    assert "Fulfilment 1 of orders" in shown
    assert "status   undoing" in shown
    assert "failed   charge: shop.declined" in shown
    assert "  reserve  undoing  asked " in shown
    assert "  charge  failed  asked " in shown
    assert "handles shop.reserved, which came before" in shown
    whole = desk.json("show", "1")
    assert whole["failure"] == {"step": "charge", "reason": "shop.declined"}
    assert [(each["number"], each["type"]) for each in whole["log"]] == [
        (1, "shop.reserved"),
        (2, "shop.placed"),
        (3, "shop.declined"),
    ]
    assert [(each["name"], each["stage"]) for each in whole["steps"]] == [
        ("reserve", "undoing"),
        ("charge", "failed"),
    ]
    assert [each["name"].partition("#")[0] for each in whole["timers"]] == ["oyez:step:reserve"]


def test_one_that_waits_shows_what_came(desk: Desk) -> None:
    desk.begin("1", Paid)
    shown = desk.oyez("show", "1")
    assert "waiting for the start" in shown
    assert "shop.paid  e-shop.paid" in shown


def test_what_is_not_there_is_named(desk: Desk) -> None:
    desk.begin("1", OrderPlaced)
    assert "no saga has the key 7" in desk.oyez("show", "7", code=1)
    assert "no saga of Other has the key 1" in desk.oyez("show", "1", "--saga", "Other", code=1)
    assert "no saga has the key 1" in desk.oyez("show", "1", "--service", "idle", code=1)


def test_retry_asks_again(desk: Desk) -> None:
    desk.begin("1", OrderPlaced, stuck="because")
    assert desk.oyez("retry", "1") == "orders Fulfilment 1: running, waits for reserve, charge\n"
    assert desk.announced() == ["shop.reserve", "shop.charge"] * 2
    assert desk.json("show", "1")["log"][-1]["type"] == "retry"
    (act,) = desk.acts()
    assert (act["act"], act["target"]) == ("saga.retry", "saga Fulfilment 1")
    assert (act["before"]["status"], act["before"]["stuck"]) == ("stuck", True)
    assert act["after"] == {"status": "running", "waits_for": "reserve, charge", "stuck": False}


def test_abort_undoes(desk: Desk) -> None:
    desk.begin("1", OrderPlaced, Reserved)
    said = desk.oyez("abort", "1", "--why", "fraud", "--saga", "Fulfilment")
    assert said == "orders Fulfilment 1: undoing, waits for charge\n"
    assert desk.announced()[-1] == "shop.refund"
    assert desk.json("show", "1")["failure"] == {"step": "", "reason": "fraud"}
    assert "is being undone already" in desk.oyez("abort", "1", "--why", "again", code=1)
    (act,) = desk.acts()
    assert (act["act"], act["reason"]) == ("saga.abort", "fraud")
    assert (act["before"]["status"], act["after"]["status"]) == ("running", "undoing")


def test_resolve_stands_for_an_answer(desk: Desk) -> None:
    desk.begin("1", OrderPlaced, Reserved, Paid)
    assert desk.oyez("resolve", "1", "ship", "done", "--why", "seen") == (
        "orders Fulfilment 1: ended\n"
    )
    assert desk.announced()[-1] == "shop.done"
    assert desk.json("show", "1")["log"][-1]["effects"][0] == "ship is done: seen"
    (act,) = desk.acts()
    assert (act["after"]["step"], act["after"]["took"]) == ("ship", "done")


def test_a_saga_that_the_service_does_not_declare_is_left_alone(desk: Desk, tmp_path: Path) -> None:
    desk.begin("1", OrderPlaced)
    app = (tmp_path / "saga_orders.py").read_text()
    (tmp_path / "saga_orders.py").write_text(app.replace("service.saga(Fulfilment)\n", ""))
    assert "orders does not declare the saga Fulfilment" in desk.oyez("retry", "1", code=2)


def test_a_saga_is_drawn(desk: Desk) -> None:
    drawn = desk.oyez("draw", "Fulfilment")
    assert drawn.startswith("flowchart LR\n")
    assert "  reserve --> ship\n  charge --> ship\n" in drawn
    assert "  charge -. undo .-> refund[/refund/]\n" in drawn
    assert "  ship --> end_shipped\n" in drawn
    picture = minidom.parseString(desk.oyez("draw", "Fulfilment", "--format", "svg"))
    words = [each.firstChild.data for each in picture.getElementsByTagName("text")]
    assert words[:3] == ["Fulfilment", "start", "reserve"]
    assert {"undo: refund", "pivot: is never undone", "shipped", "cancelled"} <= {*words}
    assert len(picture.getElementsByTagName("path")) == 7  # two of them to its cancelled end
    assert "there is no saga 'Other'; there are: Fulfilment" in desk.oyez("draw", "Other", code=2)


def test_a_history_is_exported_and_replayed(desk: Desk, tmp_path: Path) -> None:
    desk.begin("1", Paid, OrderPlaced, Reserved, Expired, Cancel, Shipped)
    file = tmp_path / "history.json"
    file.write_text(desk.oyez("export", "1"))
    history = json.loads(file.read_text())
    assert [each["type"] for each in history["events"]][2:4] == ["shop.reserved", "oyez.timer"]
    assert history["events"][0]["data"] == {"order": "1", "payment": "p1"}
    assert_replays(Fulfilment, file)
    history["events"][1]["effects"] = ["starts"]
    file.write_text(json.dumps(history))
    with pytest.raises(AssertionError, match=r"1 does something else at event 2, shop\.placed"):
        assert_replays(Fulfilment, file)
    history["events"][0]["type"] = "shop.forgotten"
    file.write_text(json.dumps(history))
    with pytest.raises(AssertionError, match=r"does not listen to shop\.forgotten any more"):
        assert_replays(Fulfilment, file)


def test_a_death_is_replayed_too(desk: Desk, tmp_path: Path) -> None:
    history = {
        "service": "orders",
        "saga": "Fulfilment",
        "key": "1",
        "events": [
            {
                "at": 1.0,
                "event_id": "a",
                "type": "shop.placed",
                "data": {"order": "1", "cents": 1},
                "effects": ["starts", "asks shop.reserve", "asks shop.charge"],
            },
            {
                "at": 2.0,
                "event_id": "b",
                "type": "oyez.command.died",
                "data": {"command_id": "x", "type": "shop.charge", "key": "1", "reason": "no"},
                "effects": [
                    "charge is unknown: shop.charge became a dead letter: no",
                    "asks shop.refund",
                ],
            },
        ],
    }
    file = tmp_path / "history.json"
    file.write_text(json.dumps(history))
    assert_replays(Fulfilment, file)


def test_what_is_gone_or_was_made_by_hand_is_not_exported(desk: Desk, tmp_path: Path) -> None:
    desk.begin("1", OrderPlaced)
    desk.oyez("retry", "1")
    assert "transition 2 was made by hand (retry)" in desk.oyez("export", "1", code=1)
    desk.begin("2", OrderPlaced, Reserved)
    for file in (tmp_path / ".oyez").glob("events.db*"):
        file.unlink()
    desk.begin("3", Paid)
    error = desk.oyez("export", "2", code=1)
    assert "the broker no longer has 2 of its 2 events" in error
