"""CloudEvents' SDK for JavaScript and Oyez read each other's events, with npm's plain drivers.

The SDK has bindings for Kafka and HTTP. For AMQP and NATS `node/events.mjs` writes and reads the
headers of their bindings by hand, around the SDK's event, and its structured JSON. The SDK leaves
to its user what the script does besides: encoding JSON data of binary events, and percent-encoding
headers for HTTP and NATS. Its times are exact to the millisecond.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cases import CASES, COUNT, FLAG, MODES, agree, record_of, same
from wires import PARTITIONS, WIRES, Line, Node, http_headers, line, plain_headers

from oyez.envelope import Envelope, open_record
from oyez.errors import InvalidEvent
from oyez.partitioning import partition_of

EXACT = timedelta(milliseconds=1)


def fact_of(envelope: Envelope) -> dict[str, Any]:
    """An event as the script is given it."""
    attributes: dict[str, Any] = dict(envelope.headers())
    if COUNT in attributes:
        attributes[COUNT] = int(attributes[COUNT])
    if FLAG in attributes:
        attributes[FLAG] = attributes[FLAG] == "true"
    fact: dict[str, Any] = {"attributes": attributes}
    if not envelope.data:
        return fact
    if envelope.datacontenttype.endswith("json"):
        fact["json"] = json.loads(envelope.data)
    elif envelope.datacontenttype == "text/plain":
        fact["text"] = envelope.data.decode()
    else:
        fact["bytes"] = base64.b64encode(envelope.data).decode()
    return fact


def data_of(fact: dict[str, Any], wanted: Envelope) -> Any:
    """The data of an event as the script gives it; JSON that the SDK left alone is parsed."""
    if "bytes" in fact:
        return base64.b64decode(fact["bytes"])
    data = fact.get("json", fact.get("text"))
    if wanted.datacontenttype == "application/vnd.shop+json" and isinstance(data, str):
        return data.encode()
    return data


def job(line: Line, **more: Any) -> dict[str, Any]:
    server = line.server
    return {
        "wire": server.name,
        "url": server.url,
        "stream": line.stream,
        "partitions": PARTITIONS,
        **more,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wire", WIRES)
async def test_oyez_reads_what_the_sdk_writes(
    wire: str, mode: str, node: Node, tmp_path: Path
) -> None:
    facts = [fact_of(case) for case in CASES.values()]
    async with line(wire, tmp_path) as to:
        await node(job(to, mode=mode, events=facts))
        records = await to.records(len(CASES))
    seen = set()
    for record in records:
        envelope = open_record(record.headers, record.data)
        same(envelope, CASES[envelope.id], exact=EXACT)
        seen.add(envelope.id)
        if envelope.key is not None and (record.key is not None or wire != "kafka"):
            assert record.partition == partition_of(envelope.key, PARTITIONS)
    assert seen == CASES.keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wire", WIRES)
async def test_the_sdk_reads_what_oyez_writes(
    wire: str, mode: str, node: Node, tmp_path: Path
) -> None:
    cases = dict(CASES)
    if wire == "kafka" and mode == "structured":
        del cases["no-time"]  # the SDK raises RangeError; what a service announces has a time
    async with line(wire, tmp_path) as to:
        await to.broker.publish([record_of(case, mode, to.stream) for case in cases.values()])
        facts = await node(job(to, count=len(cases)))
    check(facts, cases)


@pytest.mark.parametrize("mode", MODES)
async def test_over_http(mode: str, node: Node) -> None:
    """Both ways, by the functions of the SDK and of the envelope: Oyez has no face for it."""
    facts = [fact_of(case) for case in CASES.values()]
    for sent in await node({"wire": "http", "mode": mode, "events": facts}):
        headers = plain_headers(sent["headers"])
        envelope = open_record(headers, base64.b64decode(sent["body"]))
        same(envelope, CASES[envelope.id], exact=EXACT)
    messages = []
    for case in CASES.values():
        record = record_of(case, mode, "s")
        body = base64.b64encode(record.data or b"").decode()
        messages.append({"headers": http_headers(record.headers), "body": body})
    check(await node({"wire": "http", "messages": messages}), CASES)


def check(facts: list[dict[str, Any]], cases: dict[str, Envelope]) -> None:
    found = {fact["attributes"]["id"]: fact for fact in facts}
    assert found.keys() == cases.keys()
    for name, fact in found.items():
        agree(fact["attributes"], data_of(fact, cases[name]), cases[name], exact=EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wire", WIRES)
async def test_line_ends_in_an_attribute_are_refused(
    wire: str, mode: str, node: Node, tmp_path: Path
) -> None:
    subject = "a\r\nce-type: evil\r\n\r\nbody"
    attributes = {"id": "1", "source": "/s", "type": "good", "subject": subject}
    async with line(wire, tmp_path) as to:
        await node(job(to, mode=mode, events=[{"attributes": attributes, "json": {}}]))
        (record,) = await to.records(1)
    assert record.headers.get("type", "good") == "good"
    with pytest.raises(InvalidEvent) as caught:
        open_record(record.headers, record.data)
    assert caught.value.field == "subject"
