"""From MQTT to the gateway: ``python mqtt.py HOST:PORT GATEWAY``, its API key in ``IOT_KEY``.

A message is acknowledged to the MQTT broker when the gateway has taken it, and not before: a bridge
that dies is sent it again, and the services know a repeated one by its id.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import sys
from collections.abc import Callable
from typing import Any

import httpx
from trial import Example, free_address, post

from feed import TYPE

TOPIC = "sites/{}/readings"
SETTINGS = """listener {} {}
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
"""
BATCH = 500
Publish = Callable[[str, list[bytes]], None]


def main(broker: str, gateway: str) -> None:
    """Carry messages over, for ever."""
    from paho.mqtt import client as mqtt

    waiting: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, "bridge", clean_session=False, manual_ack=True
    )
    client.on_connect = lambda client, *_: client.subscribe(TOPIC.format("+"), qos=1)
    client.on_subscribe = lambda *_: print("the bridge is up", flush=True)
    client.on_message = lambda _, __, message: waiting.put(message)
    host, _, port = broker.rpartition(":")
    client.connect(host, int(port))
    client.loop_start()
    while True:
        batch = [waiting.get()]
        while len(batch) < BATCH and not waiting.empty():
            batch.append(waiting.get())
        asyncio.run(carry(gateway, [(each.topic, each.payload) for each in batch]))
        for each in batch:
            client.ack(each.mid, each.qos)


async def carry(gateway: str, batch: list[tuple[str, bytes]]) -> None:
    """Return when the gateway has taken all of the batch, but for what it will never take."""
    try:
        async with httpx.AsyncClient(base_url=gateway, timeout=20.0) as client:
            await post(client, os.environ["IOT_KEY"], [event(*each) for each in batch])
    except ValueError as error:
        if len(batch) == 1:
            print(f"dropped, of {batch[0][0]}: {error}", flush=True)
            return
        for each in batch:  # one that is no reading must not keep those beside it
            await carry(gateway, [each])


def event(topic: str, payload: bytes) -> dict[str, Any]:
    """Return a message as an event of its site. Raises ValueError."""
    said = json.loads(payload)
    if not isinstance(said, dict) or said.keys() != {"id", "data"}:
        raise ValueError("expected an id and data")
    return {"specversion": "1.0", "type": TYPE, "source": f"/mqtt/{topic.split('/')[1]}", **said}


def speak(example: Example, gateway: str) -> Publish | None:
    """Run an MQTT broker, if mosquitto is installed, and the bridge: what publishes for a site."""
    found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        print("mosquitto is not installed (apt-get install mosquitto): all readings go by HTTP")
        return None
    from paho.mqtt import client as mqtt

    address = free_address()
    host, _, port = address.rpartition(":")
    settings = example.project.config.root / ".oyez" / "mosquitto.conf"
    settings.write_text(SETTINGS.format(port, host))
    example.beside(found, "-c", str(settings), up="running")
    bridge = (sys.executable, __file__, address, gateway)
    example.beside(*bridge, up="the bridge is up", IOT_KEY=example.keys["mqtt"])
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect(host, int(port))
    client.loop_start()
    example.processes.callback(client.loop_stop)

    def publish(site: str, lines: list[bytes]) -> None:
        for each in [client.publish(TOPIC.format(site), line, qos=1) for line in lines]:
            each.wait_for_publish(60)

    return publish


if __name__ == "__main__":
    main(*sys.argv[1:])
