"""Wire 1.0: its vectors are what the codecs write and read, its page is what the kit tries."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from click.testing import CliRunner
from confluent_kafka import Message
from pamqp import commands, header

from oyez import contract
from oyez.brokers.embedded import wire as embedded
from oyez.brokers.kafka import wire as kafka
from oyez.brokers.nats import wire as nats
from oyez.brokers.postgres import wire as postgres
from oyez.brokers.rabbitmq import wire as rabbitmq
from oyez.brokers.redis import wire as redis
from oyez.brokers.sns_sqs import wire as sns
from oyez.cli.conformance import command
from oyez.envelope import STRUCTURED, Envelope, format_time, open_record, parse_time
from oyez.errors import InvalidEvent, UnknownVersion
from oyez.event import describe
from oyez.partitioning import murmur2, partition_of
from oyez.ports import Record
from oyez.testing.conformance.referee import _keeps, proxy_of
from oyez.testing.conformance.subject import SubjectFailed, read
from oyez.testing.conformance.verdict import Judgement, Outcome, Verdict
from oyez.testing.counter import Tick
from oyez.wire import RULES, SETS, Level, vectors

PAGE = Path(__file__).parents[2] / "docs" / "wire" / "1.0.md"
EVENTS = vectors("events")
REFUSED = vectors("refused")
LETTERS = {"P": Level.PRODUCER, "C": Level.CONSUMER, "S": Level.SERVICE}


def data_of(vector: dict[str, Any]) -> bytes | None:
    if "data_base64" in vector:
        return base64.b64decode(vector["data_base64"])
    return None if vector["data"] is None else vector["data"].encode()


def event_of(vector: dict[str, Any]) -> Envelope:
    event = vector["event"]
    return open_record(event["attributes"], data_of(event))


def record_of(vector: dict[str, Any]) -> Record:
    event = event_of(vector)
    if vector["mode"] == "structured":
        headers, data = {"datacontenttype": STRUCTURED}, event.structured()
    else:
        headers, data = event.headers(), event.data
    return Record(stream="conformance.clock", key=event.key, headers=headers, data=data)


class _Message:
    """A Kafka message as its driver has it."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self._vector = vector

    def key(self) -> bytes | None:
        key = self._vector["key"]
        return None if key is None else key.encode()

    def headers(self) -> list[tuple[str, bytes]]:
        return [(name, value.encode()) for name, value in self._vector["headers"].items()]

    def value(self) -> bytes | None:
        return data_of(self._vector)

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


def from_kafka(vector: dict[str, Any]) -> Record:
    message: Message = _Message(vector)  # type: ignore[assignment]
    return kafka.decode(message, "s", 0)


def to_kafka(record: Record) -> dict[str, Any]:
    _, value, key, _, headers = kafka.encode(record, 0)
    return {
        "key": None if key is None else key.decode(),
        "headers": {
            name: value.decode() if isinstance(value, bytes) else value for name, value in headers
        },
        "data": value,
    }


def from_nats(vector: dict[str, Any]) -> Record:
    lines = "".join(f"{name}: {value}\r\n" for name, value in vector["headers"].items())
    return nats.decode(f"NATS/1.0\r\n{lines}\r\n".encode(), data_of(vector) or b"", "s", 0, 1, 0.0)


def to_nats(record: Record) -> dict[str, Any]:
    lines = nats.encode(record).decode().split("\r\n")[1:-1]
    return {"headers": dict(line.split(": ", 1) for line in lines), "data": record.data}


def from_rabbitmq(vector: dict[str, Any]) -> Record:
    properties = commands.Basic.Properties(
        content_type=vector["content_type"], headers=vector["headers"]
    )
    frame = header.ContentHeader(0, 0, properties).marshal()
    return rabbitmq.decode("s", 0, frame[12:], data_of(vector) or b"", 1, 0.0)


def to_rabbitmq(record: Record) -> dict[str, Any]:
    frame = b"\x00\x3c\x00\x00" + bytes(8) + rabbitmq.encode(record, 0.0)
    found = header.ContentHeader()
    found.unmarshal(frame)
    headers = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in (found.properties.headers or {}).items()
        if name != "timestamp_in_ms"
    }
    kind = found.properties.content_type
    return {"content_type": kind, "headers": headers, "data": record.data}


def from_redis(vector: dict[str, Any]) -> Record:
    fields: list[bytes] = []
    for name, value in vector["fields"].items():
        fields += (name.encode(), value.encode())
    fields += (b"data", data_of(vector) or b"")
    return redis.decode((b"1-0", fields), "s", 0)


def to_redis(record: Record) -> dict[str, Any]:
    command = redis.encode(record, 0)[3:]
    texts = [part.decode() if isinstance(part, bytes) else str(part) for part in command[:-2]]
    return {"fields": dict(zip(texts[::2], texts[1::2], strict=True)), "data": command[-1]}


def from_postgresql(vector: dict[str, Any]) -> Record:
    key, data = vector["key"], data_of(vector)
    headers = postgres._json(vector["headers"])
    row = (1, 0.0, None if key is None else key.encode(), headers, data)
    return postgres.decode([row], ("s", 0))[0]


def to_postgresql(record: Record) -> dict[str, Any]:
    _, _, key, headers = postgres.encode(record)
    text = None if key is None else key.decode()
    return {"key": text, "headers": postgres._attributes(headers), "data": record.data}


def from_sns(vector: dict[str, Any]) -> Record:
    message = {
        "Body": vector["body"],
        "MessageAttributes": {
            name: {"StringValue": value} for name, value in vector["attributes"].items()
        },
    }
    (content,) = sns.decode(message)
    return Record(stream="s", key=content.key, headers=content.headers, data=content.data or b"")


BOTH = {
    "kafka": (from_kafka, to_kafka),
    "nats": (from_nats, to_nats),
    "rabbitmq": (from_rabbitmq, to_rabbitmq),
    "redis": (from_redis, to_redis),
    "postgresql": (from_postgresql, to_postgresql),
}


@pytest.mark.parametrize("vector", EVENTS, ids=lambda each: each["name"])
def test_each_broker_carries_an_event_as_its_vector_says(vector: dict[str, Any]) -> None:
    event, record = event_of(vector), record_of(vector)
    assert event.key == vector["event"]["key"]
    assert vector["wire"].keys() >= BOTH.keys()
    for broker, (decode, encode) in BOTH.items():
        carried = vector["wire"][broker]
        wanted = {name: value for name, value in carried.items() if not name.startswith("data")}
        assert encode(record) == {**wanted, "data": data_of(carried)}, broker
        read_back = decode(carried)
        assert open_record(read_back.headers, read_back.data) == event, broker
        assert read_back.key == event.key, broker


@pytest.mark.parametrize("vector", EVENTS, ids=lambda each: each["name"])
def test_sns_carries_an_event_as_its_vector_says(vector: dict[str, Any]) -> None:
    event = event_of(vector)
    if vector["mode"] == "binary":
        assert "sns_sqs" not in vector["wire"]  # a message of SNS is structured
        return
    carried = vector["wire"]["sns_sqs"]
    record = Record(stream="s", key=event.key, headers=event.headers(), data=event.data or None)
    assert sns.encode(record).decode() == carried["body"]
    assert carried["group"] == (sns.group_of(event.key) if event.key else None)
    found = from_sns(carried)
    assert open_record(found.headers, found.data) == event
    assert found.key == event.key


def test_the_embedded_log_carries_the_events() -> None:
    records = [record_of(vector) for vector in EVENTS]
    packed = embedded.pack(1, records)
    found = embedded.unpack(
        packed.body, stream="conformance.clock", partition=0, last=len(records), time=0.0
    )
    assert [(each.key, each.headers, each.data) for each in found] == [
        (each.key, each.headers, each.data) for each in records
    ]


def test_keys_have_their_partitions() -> None:
    for vector in vectors("keys"):
        assert vector["key"].encode().hex() == vector["utf8"]
        assert murmur2(vector["key"].encode()) == vector["murmur2"]
        for partitions, wanted in vector["partition"].items():
            assert partition_of(vector["key"], int(partitions)) == wanted
    assert any(not vector["key"].isascii() for vector in vectors("keys"))


def test_times_are_read_and_refused() -> None:
    times = vectors("times")
    for vector in times["valid"]:
        assert format_time(parse_time(vector["text"]).timestamp()) == vector["utc"]
    for text in times["invalid"]:
        with pytest.raises(InvalidEvent):
            parse_time(text)


@pytest.mark.parametrize("vector", REFUSED, ids=lambda each: each["name"])
def test_a_bad_event_is_refused_for_the_reason_given(vector: dict[str, Any]) -> None:
    field = vector["field"]

    def opened() -> None:
        event = open_record(vector["headers"], data_of(vector))
        contract.decode(describe(Tick), event.data, event.dataschema)

    with pytest.raises((InvalidEvent, UnknownVersion)) as caught:
        opened()
    if field == "dataschema":
        assert isinstance(caught.value, UnknownVersion)
        assert vector["rule"] == "W18"
    else:
        assert isinstance(caught.value, InvalidEvent)
        assert caught.value.field == field
    assert vector["rule"] in RULES


def test_the_page_has_the_rules_of_the_kit() -> None:
    text = PAGE.read_text()
    rows = re.findall(r"^\| (W\d+) \| ([PCS ]+) \| (.+) \|$", text, re.MULTILINE)
    assert [(name, frozenset(LETTERS[each] for each in levels.split()), what)
            for name, levels, what in rows] == [
        (name, rule.levels, rule.what) for name, rule in RULES.items()
    ]  # fmt: skip
    assert re.findall(r"^\*\*(W\d+)\.\*\*", text, re.MULTILINE) == list(RULES)
    assert all(f"`{name}`" in text for name in SETS)


def test_the_statements_of_the_page_do_what_it_says() -> None:
    tables, _, statements = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(tables)
    bare = re.sub(r"^--.*$", "", statements, flags=re.MULTILINE)
    claim, keep, move, remember, parked, outbox, forget = [
        each.strip() for each in bare.split(";") if each.strip()
    ]
    place = {"stream": "shop.orders", "partition": 3}
    db.execute("insert into cursor (stream, partition) values (:stream, :partition)", place)

    def run(sql: str, **more: Any) -> list[Any]:
        return db.execute(sql, {**place, **more}).fetchall()

    assert run(claim, owner="a", now=1.0, until=3.0) == [(1, 0)]
    assert run(claim, owner="b", now=2.0, until=4.0) == []
    assert run(move, owner="a", epoch=1, position=7) == [(7,)]
    assert run(claim, owner="b", now=4.0, until=6.0) == [(2, 7)]
    assert run(keep, owner="a", epoch=1, until=9.0) == []
    assert run(move, owner="a", epoch=1, position=5) == []
    assert run(keep, owner="b", epoch=2, until=9.0) == [(2,)]
    event = {"source": "/s", "id": "1", "handler": "h", "now": 1.0}
    assert run(remember, **event) == [("1",)]
    assert run(remember, **event) == []
    assert run(remember, **{**event, "source": "/other"}) == [("1",)]
    assert run(parked, key="k") == []
    db.execute("insert into outbox (stream, key) values ('s', 'k')")
    ((seq, *_),) = run(outbox)
    run(forget, seq=seq)
    assert run(outbox) == []


# -- the kit ---------------------------------------------------------------------------------------


def test_what_a_subject_shows_is_read() -> None:
    shown = read(
        b'{"row": {"name": "a", "number": 1}}\n\n'
        b'{"dead": {"id": null, "source": null, "reason": "no id", "data": "AAE="}}\n'
        b'{"position": {"partition": 2, "position": 17}}\n{"row": {"na'
    )
    assert [(row.name, row.number) for row in shown.rows] == [("a", 1)]
    assert [letter.bytes() for letter in shown.dead] == [b"\x00\x01"]
    assert shown.positions == {2: 17}


@pytest.mark.parametrize(
    "line", [b"rows\n", b'{"row": {"name": "a"}}\n', b'{"row": {"name": "a", "number": "1"}}\n']
)
def test_a_line_of_another_form_is_told(line: bytes) -> None:
    with pytest.raises(SubjectFailed, match="line 1"):
        read(line)


def test_a_dead_letter_has_its_bytes_and_a_reason() -> None:
    vector = next(each for each in REFUSED if each["name"] == "not-utf8")
    record = Record(stream="s", key="bad", headers=vector["headers"], data=data_of(vector))
    whole = base64.b64encode(record.data or b"").decode()

    def letter(data: str, reason: str = "not JSON") -> bytes:
        return (
            f'{{"dead": {{"id": "bad-not-utf8", "reason": "{reason}", "data": "{data}"}}}}\n'
        ).encode()

    assert _keeps(read(letter(whole)), vector, record)
    assert not _keeps(read(b""), vector, record)
    for wrong in (letter("e30="), letter(whole, reason="")):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its rule is what counts
            _keeps(read(wrong), vector, record)
        assert caught.value.rule == "W17"  # type: ignore[attr-defined]


def test_a_verdict_is_told_in_each_form() -> None:
    verdict = Verdict(
        subject="./counter",
        level="service",
        broker="nats",
        seed=3,
        seconds=12.34,
        judgements=[
            Judgement(rule="W1", outcome=Outcome.KEPT),
            Judgement(rule="W7", outcome=Outcome.BROKEN, why="tock a\x1b[2J | 1 <&>"),
            Judgement(rule="W12", outcome=Outcome.NOT_TRIED, why="no proxy"),
        ],
    )
    assert not verdict.ok
    assert verdict.broken == ["W7"]
    lines = list(verdict.lines())
    assert lines[-1] == "1 kept, 1 broken, 1 not tried, in 12.3 s"
    assert "\x1b" not in "".join(lines)
    assert "a\\x1b[2J \\| 1" in verdict.markdown()
    suite = Xml.fromstring(verdict.junit())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "tock a\\x1b[2J | 1 <&>"


def test_the_option_for_a_proxy_names_what_is_wrong() -> None:
    assert proxy_of("127.0.0.1:9094=9095") == ("127.0.0.1", 9094, 9095)
    for text in ("9094", "127.0.0.1:9094", "127.0.0.1=9095", "h:p=1"):
        with pytest.raises(Exception, match="--proxy: expected HOST:PORT=PORT"):
            proxy_of(text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--level", "service", "--broker", "nats://h:1"], "--start"),
        (["run", "--level", "expert", "--broker", "nats://h:1", "--start", "true"], "--level"),
        (
            ["run", "--level", "service", "--broker", "nats://h:1", "--start", "no-such-program"],
            "there is no program 'no-such-program'",
        ),
        (
            ["run", "--level", "service", "--broker", "nats://h:1", "--start", "sh 'x"],
            "No closing quotation",
        ),
        (["vectors", "nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert told in done.output


def test_rules_and_vectors_are_listed() -> None:
    listed = CliRunner().invoke(command, ["rules", "--level", "consumer"]).output
    wanted = [name for name, rule in RULES.items() if Level.CONSUMER in rule.levels]
    assert [line.split()[0] for line in listed.splitlines()] == wanted
    printed = CliRunner().invoke(command, ["vectors", "keys"]).output
    assert json.loads(printed) == vectors("keys")
