"""What is deployed is recorded on every broker that keeps history; the others say so."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from oyez import Event, Service
from oyez.config import load
from oyez.contracts.model import contract_of
from oyez.errors import OyezError
from oyez.inspection import history
from oyez.inspection.deployed import Said, deployed, say
from oyez.project import Project
from servers import server


class Placed(Event, type="shop.placed", key="order"):
    order: str


def project(folder: Path, broker: str) -> tuple[Project, str]:
    """A project on a server, of a system that is there for the first time."""
    name = f"t{uuid4().hex[:10]}"
    url = server(broker).url
    (folder / "oyez.toml").write_text(f'[system]\nname = "{name}"\nbroker = "{url}"\n')
    return Project(load(folder, {})), name


@pytest.mark.parametrize("broker", ["kafka", "nats", "rabbitmq", "redis", "postgresql"])
async def test_the_record_on_a_server(tmp_path: Path, broker: str) -> None:
    made, name = project(tmp_path, broker)
    contract = contract_of(Service("orders", publishes=(Placed,)), name)
    async with made.opened_broker(create=True, group=False) as opened:
        empty, _ = await deployed(opened, name, None, made.ambient.now())
        assert empty.deployed == ()
        for each in ("a", "b"):
            one = Said(contract=contract, release="1", replica=each)
            await say(opened, one, made.ambient.new_id(), made.ambient.now())
        found, unread = await deployed(opened, name, None, made.ambient.now())
        (only,) = found.deployed
        assert (only.contract, only.release, unread) == (contract, "1", [])
        assert f"{name}._contracts" in await opened.streams()
        assert f"{name}._contracts" not in await history.streams(opened)


async def test_a_queue_can_not_be_the_record(tmp_path: Path) -> None:
    made, name = project(tmp_path, "sns_sqs")
    async with made.opened_broker(create=True, group=False) as opened:
        with pytest.raises(OyezError, match=r"keeps no history.*SNS/SQS.*--from"):
            await deployed(opened, name, None, 0.0)
