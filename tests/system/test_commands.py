"""The commands on a small real project: two services in processes of their own, one that never ran.

Every row of bad-input.md "Commands" is here: unknown command, service and id; redriving twice;
``--all`` without confirmation; a closed pipe; no terminal; escape codes in payloads.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest

from oyez.config import load
from oyez.ports import Record
from oyez.project import Project

CONFIG = """
[system]
name = "till"
external = ["till.audited"]

[services.desk]
app = "desk:service"

[services.ledger]
app = "ledger:service"
lease = 1.0

[services.idle]
app = "idle:service"
"""
DESK = """
from oyez import Event, Service, Transaction

class Sold(Event, type="till.sold", key="sale"):
    sale: str
    cents: int
    note: str | None = None

class Paid(Event, type="till.paid", key="sale"):
    sale: str
    cents: int

class Reminder(Event, type="till.reminder", key="sale"):
    sale: str

service = Service("desk", publishes=(Sold, Reminder))

@service.on(Sold)
def pay(event: Sold, tx: Transaction) -> Paid:
    tx.publish(Reminder(sale=event.sale), delay=3600)
    return Paid(sale=event.sale, cents=event.cents)
"""
LEDGER = """
import pathlib
from oyez import Event, Retry, Service, Transaction

class Paid(Event, type="till.paid", key="sale"):
    sale: str
    cents: int

class Audited(Event, type="till.audited", key="sale"):
    sale: str

service = Service("ledger", migrations="migrations")

@service.on(Paid, retry=Retry(attempts=2, first=0.01))
def record(event: Paid, tx: Transaction) -> None:
    if event.cents < 0 and not pathlib.Path("mended").exists():
        raise ValueError("cents \\x1b[31m below zero")
    tx.execute("insert into entry values (:sale, :cents)", sale=event.sale, cents=event.cents)

@service.on(Paid, name="<later>&", retry=Retry(first=3000.0))
def later(event: Paid, tx: Transaction) -> None:
    if event.cents == 13:
        raise RuntimeError("not on a thirteenth")

@service.on(Audited)
def audited(event: Audited, tx: Transaction) -> None:
    pass
"""
IDLE = """
from oyez import Event, Service

service = Service("idle")

class Reminder(Event, type="till.reminder", key="sale"):
    sale: str

@service.on(Reminder)
def remind(event: Reminder) -> None:
    pass
"""


class Till:
    """The project and its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "OYEZ_PROJECT": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment.pop("COLUMNS", None)

    def oyez(self, *arguments: str, data: bytes = b"", code: int = 0) -> str:
        """Run a command that must end with ``code``; its output, or its errors if not 0."""
        done = subprocess.run(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env=self.environment,
            input=data,
            capture_output=True,
            timeout=60,
            check=False,
        )
        said = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, said
        assert "Traceback" not in said[1], said
        return said[1] if code else said[0]

    def json(self, *arguments: str) -> Any:
        """What a command answers with ``--json``."""
        return json.loads(self.oyez(*arguments, "--json"))

    def run(self, service: str) -> None:
        """Start a service."""
        self.processes[service] = subprocess.Popen(
            [sys.executable, "-m", "oyez", "run", service],
            cwd=self.root,
            env=self.environment,
            stderr=(self.root / f"{service}.log").open("ab"),
        )

    def stop(self) -> None:
        """Stop what runs, in order."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)
        self.processes = {}

    def publish(self, sale: str, cents: int) -> str:
        """Sell something; the event's id."""
        body = json.dumps({"sale": sale, "cents": cents})
        return self.oyez("publish", "till.sold", body).strip()

    def publish_raw(self, **record: Any) -> None:
        """Put a record on the broker as it is."""

        async def put() -> None:
            project = Project(load(self.root))
            async with project.opened_broker(create=True) as broker:
                await broker.publish([Record(**record)])

        asyncio.run(put())

    def letters(self) -> list[dict[str, Any]]:
        """The dead letters of the ledger."""
        found: list[dict[str, Any]] = self.json("dead", "list", "ledger")["letters"]
        return found

    def dead(self, sale: str) -> int:
        """Sell something that the ledger gives up on; the dead letter's id."""
        self.publish(sale, -1)
        return int(until(lambda: [r["id"] for r in self.letters() if r["key"] == sale])[0])

    @contextmanager
    def started(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs beside the test."""
        process = subprocess.Popen(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=self.root,
            env=self.environment,
            **{"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def make(folder: Path, **files: str) -> Till:
    root = folder / "till"
    (root / "migrations").mkdir(parents=True)
    given = {"oyez.toml": CONFIG, "desk.py": DESK, "ledger.py": LEDGER, "idle.py": IDLE}
    for name, text in {**given, **files}.items():
        (root / name).write_text(text)
    (root / "migrations" / "001_entry.sql").write_text("create table entry (sale, cents);")
    return Till(root)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives as soon as that is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)  # between two looks at a condition with a deadline
    return found


@pytest.fixture(scope="module")
def till(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    made = make(tmp_path_factory.mktemp("commands"))
    made.run("desk")
    made.run("ledger")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Till]:
    """A project that never ran."""
    made = make(tmp_path)
    try:
        yield made
    finally:
        made.stop()


# -- wrong usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead", "list", "nobody"),
        ("dead", "show", "nobody", "1"),
        ("dead", "redrive", "nobody", "1"),
        ("dead", "discard", "nobody", "1", "--why", "x"),
        ("dead", "groups", "nobody"),
        ("audit", "nobody"),
        ("lag", "nobody"),
        ("schedule", "list", "nobody"),
        ("schedule", "cancel", "nobody", "1"),
        ("run", "nobody"),
        ("migrate", "nobody"),
        ("doctor", "nobody"),
        ("publish", "till.paid", '{"sale":"1","cents":1}', "--service", "nobody"),
    ],
)
def test_an_unknown_service_is_answered_with_those_there_are(
    till: Till, arguments: tuple[str, ...]
) -> None:
    error = till.oyez(*arguments, code=2)
    assert "there is no service 'nobody'; there are: desk, idle, ledger" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("dead", "frobnicate"),
        ("dead", "show", "ledger", "x"),
        ("dead", "redrive", "ledger"),
        ("dead", "redrive", "ledger", "1", "--all"),
        ("dead", "redrive", "ledger", "--key", "1", "--all"),
        ("dead", "redrive", "ledger", "--group", "all"),
        ("dead", "redrive", "ledger", "1", "--rate", "0"),
        ("dead", "groups", "ledger", "--limit", "0"),
        ("audit", "--limit", "0"),
        ("dead", "redrive", "ledger", "1", "--handler", "recrod"),
        ("dead", "redrive", "ledger", "1", "--data", "no-such-file"),
        ("dead", "redrive", "ledger", "1", "2", "--data", "oyez.toml"),
        ("dead", "redrive", "ledger", "1", "--data", "oyez.toml"),
        ("dead", "discard", "ledger", "1"),
        ("dead", "discard", "ledger", "1", "--why", " "),
        ("dead", "discard", "ledger", "--why", "x"),
        ("topology", "--format", "pdf"),
        ("tail", "--limit", "0"),
        ("flow",),
    ],
)
def test_wrong_usage_ends_with_2(till: Till, arguments: tuple[str, ...]) -> None:
    till.oyez(*arguments, code=2)


def test_a_project_that_never_ran_gets_an_answer_and_no_files(fresh: Till) -> None:
    before = sorted(fresh.root.rglob("*"))
    for arguments, code in (
        (("tail",), 1),
        (("flow", "1"), 1),
        (("dead", "show", "ledger", "1"), 1),
        (("dead", "redrive", "ledger", "1"), 1),
        (("dead", "discard", "ledger", "1", "--why", "x"), 1),
    ):
        error = fresh.oyez(*arguments, code=code)
        assert "does not exist yet: `oyez " in error
        assert error.count("\n") == 1
    assert fresh.json("dead", "list") == {"letters": [], "more": False}
    assert fresh.json("dead", "groups") == {"groups": [], "more": False}
    assert fresh.json("audit") == {"acts": [], "more": False}
    assert fresh.json("lag") == {"services": [], "not_created": ["desk", "ledger", "idle"]}
    assert fresh.oyez("topology")
    assert fresh.json("doctor")["ok"] is True
    assert sorted(fresh.root.rglob("*")) == before


# -- publish ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"sale": "1"}', "missing required field `cents`"),
        (b'{"sale": "1", "cents": "x"}', "$.cents: Expected `int`, got `str`"),
        (b'{"sale": 1, "cents": 1}', "$.sale: "),
        (b'{"sale": "1", "cents": NaN}', "$.cents: NaN"),
        (b'{"sale": "1", "cents": 1, "x": 1e400}', "$.x: 1e400 is too large"),
        (b'{"sale": "1", "cents": 9223372036854775808}', "$.cents: "),
        (b'{"sale": "1", "sale": "2", "cents": 1}', "'sale' twice"),
        (b'{"sale": "1", "cents": 1, "note": "\\ud800"}', "$.note: holds NUL or half"),
        (b'{"sale": "1", "cents": 1, "note": "\\u0000"}', "$.note: holds NUL or half"),
        (b'{"sale": "\xff", "cents": 1}', "is not UTF-8"),
        (b'{"sale": "", "cents": 1}', "$.sale: is the key"),
        (b'{"sale": "\\u001b[31m", "cents": 1}', "printable"),
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'"' + b"x" * 1_048_576 + b'"', "1048576 bytes"),
        (b"7", "Expected `object`"),
    ],
)
def test_publish_checks_data_and_names_the_field(till: Till, data: bytes, said: str) -> None:
    error = till.oyez("publish", "till.sold", "-", data=data, code=2)
    assert said in error
    assert error.count("\n") == 1


def test_publish_refuses_an_unknown_type_unless_forced(till: Till) -> None:
    error = till.oyez("publish", "till.sodl", "{}", code=2)
    assert "did you mean till.sold?" in error
    error = till.oyez("publish", "till.sodl", "{}", "--force", code=2)
    assert "--service; there are: desk, ledger, idle" in error
    said = json.loads(
        till.oyez("publish", "till.sodl", "{}", "--force", "--service", "idle", "--json")
    )
    assert (said["stream"], said["source"], said["key"]) == ("till.idle", "/till/cli", None)
    assert "did you mean" not in till.oyez("publish", "\x1b", "{}", "--force", code=2)


def test_publish_asks_for_the_stream_of_a_type_that_nobody_announces(till: Till) -> None:
    body = '{"sale": "audit"}'
    assert "--service" in till.oyez("publish", "till.audited", body, code=2)
    said = json.loads(
        till.oyez("publish", "till.audited", body, "--service", "ledger", "--json", "--key", "k")
    )
    assert (said["stream"], said["key"]) == ("till.ledger", "k")


def test_what_is_published_is_handled(till: Till) -> None:
    identity = till.publish("sale-1", 5)

    def handled() -> bool:
        (root,) = till.json("flow", identity)["journeys"][0]["events"]
        led_to = {event["type"]: event for event in root["events"]}
        paid = led_to.get("till.paid", {"handlers": []})["handlers"]
        return (
            led_to.keys() == {"till.paid", "till.reminder"}
            and len(paid) == 2
            and {each["state"] for each in (*root["handlers"], *paid)} == {"handled"}
        )

    until(handled)


def test_a_service_that_cant_be_imported_is_a_warning(tmp_path: Path) -> None:
    broken = make(tmp_path, **{"idle.py": "print('hello')\nraise RuntimeError('no idea')"})
    for arguments in (("topology", "--json"), ("publish", "till.sold", "{}", "--force")):
        done = subprocess.run(
            [sys.executable, "-m", "oyez", *arguments],
            cwd=broken.root,
            env=broken.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "idle can't be imported" in done.stderr
        assert "RuntimeError: no idea" in done.stderr
        assert "hello" not in done.stdout
    assert "idle" in broken.json("topology")["failed"]


# -- tail ------------------------------------------------------------------------------------------


def test_tail_follows_what_comes_and_filters(till: Till) -> None:
    arguments = ("tail", "desk", "--from-start", "--limit", "1", "--json", "--key", "tailed")
    with till.started(*arguments, "--type", "till.paid") as process:
        till.publish("tailed", 7)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    (line,) = output.splitlines()
    found = json.loads(line)
    assert found["data"] == {"sale": "tailed", "cents": 7}
    assert found["stream"] == "till.desk"
    assert found["attributes"]["source"] == "/till/desk"


def test_tail_picks_up_new_streams_and_ends_at_ctrl_c(till: Till) -> None:
    till.publish("before", 1)
    with till.started("tail", "--from-start", "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        headers = {"specversion": "1.0", "id": "n1", "source": "/x", "type": "till.new"}
        till.publish_raw(stream="till.newcomer", key=None, headers=headers, data=b"{}")
        while json.loads(process.stdout.readline())["stream"] != "till.newcomer":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_tail_ends_with_0_when_its_pipe_is_closed(till: Till) -> None:
    till.publish("piped", 1)
    with till.started("tail", "--from-start", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_a_listing_ends_with_0_when_its_pipe_is_closed(till: Till) -> None:
    for arguments in (
        ("lag", "ledger"),
        ("lag", "--json"),
        ("topology", "--format", "svg"),
        ("dead", "list"),
        ("doctor", "--json"),
        ("tail", "--from-start", "--limit", "1"),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        with till.started(*arguments, stdout=writer, stderr=subprocess.PIPE) as process:
            os.close(writer)
            _, error = process.communicate(timeout=60)
        assert process.returncode == 0, (arguments, error)
        assert b"Traceback" not in error
        assert b"BrokenPipe" not in error


def test_tail_names_the_streams_there_are(till: Till) -> None:
    till.publish("any", 1)
    error = till.oyez("tail", "nothing", code=1)
    assert "there is no stream 'nothing'; there are: " in error
    assert "till.desk" in error


# -- escape codes and terminals --------------------------------------------------------------------


def test_escape_codes_from_the_wire_are_shown_escaped(till: Till) -> None:
    headers = {
        "specversion": "1.0",
        "id": "evil",
        "source": "/x\u202e",
        "type": "till.paid",
        "subject": "evil",
    }
    till.publish_raw(stream="till.desk", key="evil", headers=headers, data=b"\x1b]0;own\x07\x9b")
    letter = int(until(lambda: [r["id"] for r in till.letters() if r["key"] == "evil"])[0])
    shown = till.oyez("dead", "show", "ledger", f"{letter}")
    assert "\x1b" not in shown
    assert "\\u202e" in shown
    assert "0x1b5d303b6f776e079b" in shown
    tailed = till.oyez("tail", "--from-start", "--key", "evil", "--limit", "1")
    assert tailed.isascii()
    assert "0x1b5d303b6f776e079b" in tailed
    whole = till.json("dead", "show", "ledger", f"{letter}")
    assert whole["data_base64"] == "G10wO293bgeb"
    text = b'{"x": "\x1b[2J \xc2\x9b \xe2\x80\xae"}'
    till.publish_raw(stream="till.desk", key="text", headers={"type": "x\r\n"}, data=text)
    tailed = till.oyez("tail", "--from-start", "--key", "text", "--limit", "1")
    assert '{"x": "\\x1b[2J \\x9b \\u202e"}' in tailed
    assert "x\\r\\n" in tailed


def test_colours_on_a_terminal_only(till: Till) -> None:
    letter = till.dead("colour")
    for arguments in (
        ("dead", "list"),
        ("dead", "show", "ledger", f"{letter}"),
        ("flow", "colour"),
        ("doctor",),
        ("tail", "--from-start", "--limit", "1"),
        ("lag",),
    ):
        assert "\x1b" not in till.oyez(*arguments)
        assert "\x1b[" in on_terminal(till, *arguments)
    error = "cents \\x1b[31m below zero"
    assert error in till.oyez("dead", "list")
    assert error in till.oyez("dead", "show", "ledger", f"{letter}")


def on_terminal(till: Till, *arguments: str, types: bytes = b"", code: int = 0) -> str:
    """What a command writes to a terminal, on which ``types`` is typed."""
    master, slave = pty.openpty()
    environment = {**till.environment, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "oyez", *arguments],
        cwd=till.root,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    if types:
        os.write(master, types)
    output = b""
    while True:
        try:
            piece = os.read(master, 65_536)
        except OSError:  # the other side has closed
            break
        output += piece
    assert process.wait(30) == code, output
    os.close(master)
    return output.decode()


# -- dead letters ----------------------------------------------------------------------------------


def test_a_dead_letter_is_shown_redriven_once_and_then_refused(till: Till) -> None:
    letter = till.dead("redriven")
    (listed,) = [row for row in till.letters() if row["id"] == letter]
    assert (listed["type"], listed["handler"], listed["attempts"]) == ("till.paid", "record", 2)
    shown = till.json("dead", "show", "ledger", f"{letter}")
    assert shown["data"] == {"sale": "redriven", "cents": -1}
    assert [entry["attempt"] for entry in shown["history"]] == [1, 2]
    assert "ValueError" in shown["traceback"]
    assert shown["headers"]["subject"] == "redriven"
    text = till.oyez("dead", "show", "ledger", f"{letter}")
    assert "raise ValueError" in text
    assert '{"sale":"redriven","cents":-1}' in text
    fixed = till.root / "fixed.json"
    fixed.write_text('{"sale": "redriven", "cents": 1}')
    till.oyez("dead", "redrive", "ledger", f"{letter}", "--data", str(fixed))
    again = till.oyez("dead", "redrive", "ledger", f"{letter}", code=1)
    assert f"dead letter {letter} was redriven already: payload replaced" in again
    assert letter not in [row["id"] for row in till.letters()]

    def handled() -> bool:
        (paid,) = [
            event
            for root in till.json("flow", "redriven")["journeys"][0]["events"]
            for event in root["events"]
            if event["type"] == "till.paid"
        ]
        (record,) = [each for each in paid["handlers"] if each["handler"] == "record"]
        assert record["redriven"] is True
        return bool(record["state"] == "handled")

    until(handled)
    states = {r["id"]: r["state"] for r in till.json("dead", "list", "--all")["letters"]}
    assert states[letter] == "redriven"


def test_a_discarded_dead_letter_says_why(till: Till) -> None:
    letter = till.dead("discarded")
    till.oyez("dead", "discard", "ledger", f"{letter}", "--why", "a test")
    assert till.json("dead", "show", "ledger", f"{letter}")["note"] == "a test"
    assert "still dead" in till.oyez("dead", "discard", "ledger", f"{letter}", "--why", "x", code=1)
    assert "was discarded already: a test" in till.oyez(
        "dead", "redrive", "ledger", f"{letter}", code=1
    )


def test_a_group_is_looked_at_and_redriven_and_the_audit_tells_who_did_it(till: Till) -> None:
    letters = [till.dead(sale) for sale in ("alike 1", "alike 2")]
    groups = till.json("dead", "groups", "ledger", "--handler", "record")["groups"]
    (group,) = [each for each in groups if each["example"] in letters]
    assert group["letters"] >= 2
    assert "ValueError" in group["cause"]
    assert group["group"] in till.oyez("dead", "groups")
    arguments = ("dead", "redrive", "ledger", "--group", group["group"])
    looked = till.oyez(*arguments, "--dry-run")
    assert f'{letters[0]}  → record  Paid  {{"sale":"alike 1","cents":-1}}' in looked
    assert {row["id"] for row in till.letters()} >= set(letters)
    assert "use --yes" in till.oyez(*arguments, code=2)
    told = till.oyez(*arguments, "--yes", "--rate", "1000", "--why", "mended\x1b[31m")
    assert f"redriven: ledger {letters[0]}\n" in told
    acts = till.json("audit", "ledger", "--limit", "1000")["acts"]
    (act,) = [each for each in acts if each["target"] == f"dead letter {letters[0]}"]
    assert (act["act"], act["via"], act["reason"]) == (
        "dead.redrive",
        "command",
        "mended\x1b[31m",
    )
    assert act["who"].endswith(f"@{socket.gethostname()}")
    assert (act["before"]["state"], act["after"]["state"]) == ("dead", "redriven")
    shown = till.oyez("audit")
    assert "mended\\x1b[31m" in shown
    assert "\x1b" not in shown
    # It dies again, as nothing was mended.
    until(lambda: "alike 1" in {row["key"] for row in till.letters()})
    assert "redriven: ledger" in till.oyez("dead", "redrive", "ledger", "--key", "alike 1", "--yes")
    assert "no such dead letters" in till.oyez("dead", "redrive", "ledger", "--key", "nobody")


def test_an_unknown_dead_letter_ends_with_1(till: Till) -> None:
    assert "no dead letter 999" in till.oyez("dead", "show", "ledger", "999", code=1)
    assert "no dead letter 999" in till.oyez("dead", "redrive", "ledger", "999", code=1)
    assert "no dead letter 999" in till.oyez(
        "dead", "discard", "ledger", "999", "--why", "x", code=1
    )
    assert "2 of 2 were refused" in till.oyez("dead", "redrive", "ledger", "998", "999", code=1)
    assert "did you mean record?" in till.oyez(
        "dead", "redrive", "ledger", "1", "--handler", "recrod", code=2
    )


def test_all_needs_confirmation(till: Till) -> None:
    till.dead("first")
    till.dead("second")
    count = len(till.letters())
    assert "use --yes" in till.oyez("dead", "redrive", "ledger", "--all", code=2)
    refused = on_terminal(till, "dead", "redrive", "ledger", "--all", types=b"n\n", code=1)
    assert f"Redrive {count} dead letters of ledger?" in refused
    assert len(till.letters()) == count
    (till.root / "mended").touch()
    try:
        on_terminal(till, "dead", "redrive", "ledger", "--all", types=b"y\n")
        # What could be handled is; the unreadable ones come back.
        until(lambda: {row["key"] for row in till.letters()} <= {"evil"})
    finally:
        (till.root / "mended").unlink()
    till.dead("third")
    assert "redriven: ledger" in till.oyez("dead", "redrive", "ledger", "--all", "--yes")


def test_dead_letters_of_a_service_that_is_down(fresh: Till) -> None:
    fresh.run("desk")
    fresh.run("ledger")
    letter = fresh.dead("down")
    fresh.stop()
    assert [row["id"] for row in fresh.letters()] == [letter]
    (fresh.root / "ledger.py").write_text(LEDGER.replace("def record", "def renamed"))
    error = fresh.oyez("dead", "redrive", "ledger", f"{letter}", code=1)
    assert "is of record, a handler that its service no longer has" in error
    (fresh.root / "mended").touch()
    fresh.oyez("dead", "redrive", "ledger", f"{letter}", "--handler", "renamed")
    fresh.run("ledger")

    def handled() -> bool:
        (journey,) = fresh.json("flow", "down")["journeys"]
        events = journey["events"][0]["events"]
        states = {each["handler"]: each["state"] for event in events for each in event["handlers"]}
        return states.get("renamed") == "handled"

    until(handled)


# -- lag -------------------------------------------------------------------------------------------


def test_a_scheduled_event_is_listed_and_cancelled_once(till: Till) -> None:
    till.publish("later", 1)

    def listed() -> list[dict[str, Any]]:
        later = till.json("schedule", "list", "desk", "--limit", "10000")["later"]
        return [each for each in later if each["key"] == "later"]

    (one,) = until(listed)
    assert (one["what"], one["kind"], one["name"]) == ("event", "till.reminder", None)
    assert one["id"] in till.oyez("schedule", "list", "desk", "--limit", "10000")
    assert till.oyez("schedule", "cancel", "desk", one["id"]) == f"cancelled: desk {one['id']}\n"
    assert listed() == []
    error = till.oyez("schedule", "cancel", "desk", one["id"], code=1)
    assert "it has been published or cancelled" in error
    assert till.oyez("schedule", "list", "idle") == "nothing is scheduled\n"


def test_lag_tells_owners_positions_and_ages(till: Till) -> None:
    def settled() -> bool:
        (ledger,) = till.json("lag", "ledger")["services"]
        return bool(ledger["lag"] == 0 and ledger["replicas"] and ledger["partitions"])

    until(settled)
    (desk,) = till.json("lag", "desk")["services"]
    assert all(each["alive"] and each["epoch"] >= 1 for each in desk["partitions"])
    assert desk["outbox"]["later"] == desk["outbox"]["events"] > 0
    assert desk["outbox"]["oldest_age"] is None
    text = till.oyez("lag")
    assert "idle: has not run yet" in text
    assert "till.desk[" in text
    assert till.json("lag")["not_created"] == ["idle"]


def test_lag_of_a_service_that_died(fresh: Till) -> None:
    fresh.run("ledger")
    until(lambda: (fresh.root / ".oyez" / "ledger.db").exists())
    fresh.oyez("publish", "till.audited", '{"sale": "1"}', "--service", "desk")

    def standing() -> Any:
        (found,) = fresh.json("lag", "ledger")["services"]
        return found

    until(lambda: standing()["lag"] == 0 and any(p["end"] for p in standing()["partitions"]))
    fresh.processes["ledger"].kill()
    fresh.processes["ledger"].wait()
    fresh.oyez("publish", "till.audited", '{"sale": "1"}', "--service", "desk")
    until(lambda: not standing()["replicas"])
    found = standing()
    assert found["lag"] == 1
    assert found["oldest_age"] >= 0.0
    (behind,) = [each for each in found["partitions"] if each["lag"]]
    assert behind["owner"] is not None
    assert behind["alive"] is False
    assert "(dead)" in fresh.oyez("lag", "ledger")
    # What does not concern the service is behind its position, but nothing that waits.
    fresh.oyez("publish", "till.reminder", '{"sale": "2"}')
    others = [p for p in standing()["partitions"] if p["lag"] and p["oldest_age"] is None]
    assert [each["oldest_known"] for each in others] == [True]
    for file in (fresh.root / ".oyez").glob("events.db*"):
        file.rename(file.with_name(f"away-{file.name}"))
    unknown = standing()
    assert unknown["lag"] is None
    assert unknown["oldest_known"] is False
    assert {each["end"] for each in unknown["partitions"]} == {None}
    assert "?" in fresh.oyez("lag", "ledger")
    assert not (fresh.root / ".oyez" / "events.db").exists()


# -- flow ------------------------------------------------------------------------------------------


def test_flow_shows_retries_delays_and_dead_letters(till: Till) -> None:
    identity = till.publish("thirteen", 13)

    def handlers() -> dict[str, Any]:
        (root,) = till.json("flow", "thirteen")["journeys"][0]["events"]
        paid = [event for event in root["events"] if event["type"] == "till.paid"]
        return {each["handler"]: each for event in paid for each in event["handlers"]}

    until(lambda: handlers().get("<later>&", {}).get("state") == "retrying")
    later = handlers()["<later>&"]
    assert later["attempts"] == 1
    assert later["error"] == "RuntimeError: not on a thirteenth"
    assert later["due"] > later["seen"]
    (root,) = till.json("flow", identity)["journeys"][0]["events"]
    (reminder,) = [event for event in root["events"] if event["type"] == "till.reminder"]
    assert reminder["state"] == "delayed"
    text = till.oyez("flow", identity[-8:])
    assert "failed 1x, next attempt in" in text
    assert re.search(r"till\.reminder .* delayed, in \d+ min", text)
    letter = till.dead("flown")
    text = till.oyez("flow", "flown")
    assert f"dead, dead letter {letter}" in text
    assert re.search(rf"held up by .* gave up on .* see `oyez dead show \w+ {letter}`", text)


def test_flow_says_who_holds_a_journey_up(till: Till) -> None:
    letter = till.dead("held")
    (journey,) = till.json("flow", "held")["journeys"]
    held = journey["held_up_by"]
    assert (held["level"], held["over"]) == ("bad", False)
    assert "gave up on" in held["what"]
    assert held["why"].startswith("failed 2 of 2 attempts: ValueError")
    assert held["cure"].startswith("oyez dead show ")
    assert held["cure"].endswith(f" {letter}")
    assert "failed 2 of 2 attempts" in till.oyez(*held["cure"].split()[1:])


def test_flow_survives_events_that_claim_to_have_caused_each_other(till: Till) -> None:
    for one, other in (("loop-a", "loop-b"), ("loop-b", "loop-a"), ("self", "self")):
        headers = {
            "specversion": "1.0",
            "id": one,
            "source": "/loop",
            "type": "till.loop",
            "correlationid": "looped",
            "causationid": other,
        }
        till.publish_raw(stream="till.desk", key="loop", headers=headers, data=b"{}")
    text = till.oyez("flow", "looped")
    assert text.count("till.loop") == 3
    assert till.json("flow", "looped")["journeys"][0]["correlationid"] == "looped"


def test_flow_stays_readable_when_a_chain_is_long(till: Till) -> None:
    async def put() -> None:
        async with Project(load(till.root)).opened_broker() as broker:
            await broker.publish(
                [
                    Record(
                        stream="till.chain",
                        key="chain",
                        headers={
                            "specversion": "1.0",
                            "id": f"c{n}",
                            "source": "/chain",
                            "type": "till.chain",
                            "correlationid": "chained",
                            "causationid": f"c{n - 1}",
                        },
                        data=b"{}",
                    )
                    for n in range(3_000)
                ]
            )

    asyncio.run(put())
    assert till.oyez("flow", "chained").count("till.chain") == 3_000
    assert till.oyez("flow", "chained", "--json").count('"till.chain"') == 6_000  # type and stream


def test_flow_of_nothing_ends_with_1_and_a_hint(till: Till) -> None:
    till.publish("something", 1)
    error = till.oyez("flow", "no-such-order", code=1)
    assert "'no-such-order' is unknown" in error
    assert "oyez tail --from-start" in error


# -- topology --------------------------------------------------------------------------------------


def test_topology_in_every_format(till: Till) -> None:
    found = till.json("topology")
    assert found == json.loads(till.oyez("topology", "--format", "json"))
    types = {each["type"]: each for each in found["types"]}
    assert types["till.paid"]["publishers"] == ["desk"]
    assert types["till.paid"]["handlers"] == [
        {"service": "ledger", "handler": "record"},
        {"service": "ledger", "handler": "<later>&"},
    ]
    assert found["unpublished"] == ["till.audited"]
    assert found["unhandled"] == []
    table = till.oyez("topology")
    assert "no known publisher: till.audited" in table
    mermaid = till.oyez("topology", "--format", "mermaid")
    assert mermaid.startswith("flowchart LR\n")
    assert 's0 -->|"till.paid"| s1' in mermaid
    drawing = minidom.parseString(till.oyez("topology", "--format", "svg"))
    texts = [node.firstChild.data for node in drawing.getElementsByTagName("text")]
    assert {"till.paid", "desk", "<later>&", "record"} <= set(texts)
    assert drawing.documentElement.getElementsByTagName("script") == []


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_finds_a_running_system_well(till: Till) -> None:
    until(lambda: till.json("lag", "ledger")["services"][0]["replicas"])
    report = till.json("doctor")
    assert report["ok"] is True
    levels = {each["check"]: each["level"] for each in report["findings"]}
    assert levels["migrations ledger"] == "ok"
    assert levels["broker setup"] == levels["store ledger setup"] == "ok"


def problems(till: Till, code: int = 1) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "doctor", "--json"],
        cwd=till.root,
        env=till.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (code == 0)
    assert all(f["remedy"] for f in report["findings"] if f["level"] == "problem")
    return {f["check"]: f["text"] for f in report["findings"] if f["level"] == "problem"}


def test_doctor_names_what_is_wrong_before_anything_ran(fresh: Till) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        toml = fresh.root / "oyez.toml"
        toml.write_text(
            CONFIG.replace(
                'app = "desk:service"', f'app = "desk:service"\nhttp = "127.0.0.1:{port}"'
            )
        )
        (fresh.root / "idle.py").write_text("service = 1")
        (fresh.root / ".oyez").mkdir()
        (fresh.root / ".oyez" / "token").write_text("x" * 32)
        (fresh.root / ".oyez" / "token").chmod(0o644)
        found = problems(fresh)
    assert "in use" in found[f"port 127.0.0.1:{port}"]
    assert "an oyez.Service" in found["service idle"]
    assert "mode 644" in found[f"secret {fresh.root / '.oyez' / 'token'}"]
    assert "problem " in fresh_text(fresh)
    toml.write_text("[system]\nnam = 1\n")
    assert "did you mean name" in problems(fresh)["configuration"]


def fresh_text(till: Till) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "oyez", "doctor"],
        cwd=till.root,
        env=till.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return done.stdout


def test_doctor_names_what_is_wrong_after_it_ran(fresh: Till) -> None:
    fresh.run("ledger")
    until(lambda: b"started" in (fresh.root / "ledger.log").read_bytes())
    fresh.stop()
    assert problems(fresh, code=0) == {}
    migration = fresh.root / "migrations" / "001_entry.sql"
    migration.write_text("create table entry (sale, cents, more);")
    assert "was changed since" in problems(fresh)["migrations ledger"]
    migration.write_text("create table entry (sale, cents);")
    second = fresh.root / "migrations" / "002_more.sql"
    second.write_text("create table more (x);")
    assert "pending: 002_more.sql" in fresh.oyez("doctor")
    store = fresh.root / ".oyez" / "ledger.db"
    damaged = bytearray(store.read_bytes())
    damaged[4096:8192] = b"\xff" * 4096
    store.write_bytes(damaged)
    found = problems(fresh)
    assert str(store) in found["store ledger"]
