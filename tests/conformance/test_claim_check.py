"""Large data in a folder, S3 and PostgreSQL: the suite through it, and faults at every step."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import botocore.session
import pytest

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.claim_check import ClaimCheckOptions, open_storage
from oyez.brokers.claim_check.postgres import DELETED
from oyez.brokers.claim_check.storage import MARGIN
from oyez.envelope import open_record
from oyez.errors import BrokerRefused, BrokerUnavailable, InvalidEvent
from oyez.ports import BEGINNING, Broker, Finding, Record
from oyez.testing.broker_suite import BrokerSuite, Factory, ServerBrokerSuite
from oyez.testing.crash import run_and_kill
from oyez.testing.delivery_suite import DeliverySuite
from oyez.testing.proxy import Proxy
from servers import Server, server

DEADLINE = 60.0
SECRET = "canary-7f3a"
EVERY = ClaimCheckOptions(over=1)
"""Every record with data goes by claim check."""
SOME = ClaimCheckOptions(over=6)
"""Of the suite's records those from number 100 on go by claim check, among others that don't."""
LARGE = ClaimCheckOptions(over=1_000)
HASTY = ClaimCheckOptions(over=1_000, deadline=3.0)


class Bucket:
    """A bucket of the test's own."""

    def __init__(self) -> None:
        self.server = server("s3")
        self.name = f"oyez-{uuid4().hex}"
        self.client: Any = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.server.url,
            aws_access_key_id="testing",
            aws_secret_access_key=SECRET,
        )
        self.client.create_bucket(Bucket=self.name)

    def url(self, endpoint: str = "") -> str:
        at = endpoint or self.server.url
        return f"s3://testing:{SECRET}@{self.name}/large/data?region=us-east-1&endpoint={at}"

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [each["Key"] for each in found]

    def change(self, change: Callable[[bytes], bytes | None]) -> None:
        for key in self.names():
            data = change(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())
            if data is None:
                self.client.delete_object(Bucket=self.name, Key=key)
            else:
                self.client.put_object(Bucket=self.name, Key=key, Body=data)


class Rows:
    """A table of the test's own."""

    def __init__(self) -> None:
        self.server = server("postgresql")
        self.schema = f"large_{uuid4().hex}"

    def url(self, at: str = "") -> str:
        return f"{at or self.server.url}?schema={self.schema}"

    def names(self) -> list[str]:
        return [row["name"] for row in self.ask("select name from large")]

    def change(self, change: Callable[[bytes], bytes | None]) -> None:
        for row in self.ask("select name, data from large"):
            data = change(row["data"])
            if data is None:
                self.ask("delete from large where name = $1", row["name"])
            else:
                self.ask("update large set data = $2 where name = $1", row["name"], data)

    def drop(self) -> None:
        self.ask(f"drop schema if exists {self.schema} cascade")

    def ask(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.server.url)
            try:
                await connection.execute(f"set search_path = {self.schema}")
                return await connection.fetch(sql, *parameters)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()


class Shared:
    """A folder of the test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def url(self) -> str:
        return f"folder:{self.path}"

    def names(self) -> list[str]:
        return [str(each.relative_to(self.path)) for each in self.path.glob("??/*")]

    def change(self, change: Callable[[bytes], bytes | None]) -> None:
        for name in self.names():
            data = change((self.path / name).read_bytes())
            (self.path / name).unlink()
            if data is not None:
                (self.path / name).write_bytes(data)


# -- the suite, through a claim check --------------------------------------------------------------


class TestEmbeddedAndFolder(BrokerSuite):
    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(
            self.url(tmp_path),
            SystemAmbient(),
            root=tmp_path,
            claim_check="folder:large",
            claims=EVERY,
        )

    def url(self, tmp_path: Path) -> str:
        return "embedded:events.db"


class TestEmbeddedAndS3(BrokerSuite):
    @pytest.fixture(autouse=True)
    def _bucket(self) -> None:
        self.bucket = Bucket()

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(
            self.url(tmp_path),
            SystemAmbient(),
            root=tmp_path,
            claim_check=self.bucket.url(),
            claims=SOME,
        )

    def url(self, tmp_path: Path) -> str:
        return "embedded:events.db"


class TestEmbeddedAndPostgres(BrokerSuite):
    @pytest.fixture(autouse=True)
    def _rows(self) -> Iterator[None]:
        self.rows = Rows()
        yield
        self.rows.drop()

    def make(self, tmp_path: Path) -> Factory:
        return lambda: connect(
            self.url(tmp_path),
            SystemAmbient(),
            root=tmp_path,
            claim_check=self.rows.url(),
            claims=SOME,
        )

    def url(self, tmp_path: Path) -> str:
        return "embedded:events.db"


class TestRedisAndFolder(ServerBrokerSuite):
    @pytest.fixture(autouse=True)
    def _redis(self) -> None:
        self.redis = server("redis")

    def server(self, tmp_path: Path) -> Server:
        return self.redis

    def make(self, tmp_path: Path) -> Factory:
        return self._through(self.redis.url, tmp_path)

    def url(self, tmp_path: Path) -> str:
        return self.redis.url

    def proxy(self, tmp_path: Path) -> Proxy:
        return self.redis.proxy()

    def make_through(self, tmp_path: Path, proxy: Proxy) -> Factory:
        return self._through(proxy.through(self.redis.url) + "?deadline=3", tmp_path)

    def _through(self, url: str, tmp_path: Path) -> Factory:
        return lambda: connect(
            url,
            SystemAmbient(),
            root=tmp_path,
            group="suite.group",
            claim_check="folder:large",
            claims=EVERY,
        )


class TestDelivery(DeliverySuite):
    """Real processes, killed and paused, whose own announcements go by claim check."""

    @pytest.fixture(autouse=True)
    def _setting(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("OYEZ_CLAIM_CHECK", f"folder:{tmp_path / 'large'}")
        monkeypatch.setenv("OYEZ_CLAIM_CHECK_OVER", "1")
        yield
        assert Shared(tmp_path / "large").names()

    def broker(self, tmp_path: Path) -> str:
        return "embedded:.oyez/events.db"


# -- on each storage -------------------------------------------------------------------------------

_KILLED_BEFORE_PUBLISHING = """
import asyncio, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.brokers.claim_check import ClaimCheck, ClaimCheckOptions, open_storage
from oyez.brokers.memory.broker import MemoryBroker
from oyez.ports import Record

class Stuck(MemoryBroker):
    async def publish(self, records):
        print("stored", flush=True)
        await asyncio.sleep(3600)

async def main():
    ambient = SystemAmbient()
    storage = open_storage(sys.argv[1], ambient, root=Path(), retention=60.0)
    broker = ClaimCheck(Stuck(ambient), storage, ambient, ClaimCheckOptions(over=1))
    await broker.publish([Record(stream="s", key="k", headers={"id": "1"}, data=b"x" * 5000)])

asyncio.run(main())
"""

_KILLED_AT_ANY_MOMENT = """
import asyncio, sys
from pathlib import Path
from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.claim_check import ClaimCheckOptions
from oyez.ports import Record

async def main():
    url, root, start = sys.argv[1:]
    options = ClaimCheckOptions(over=1_000)
    broker = connect("embedded:events.db", SystemAmbient(), root=Path(root), partitions=1,
        claim_check=url, claims=options)
    await broker.open()
    for n in range(int(start), int(start) + 1_000_000, 3):
        await broker.publish([
            Record(stream="s", key="k", headers={"id": str(m)}, data=str(m).encode() * 9_000)
            for m in range(n, n + 3)
        ])
        print(n + 2, flush=True)

asyncio.run(main())
"""


Place = Shared | Bucket | Rows


@pytest.fixture
def rows() -> Iterator[Rows]:
    made = Rows()
    yield made
    made.drop()


@pytest.fixture(params=["folder", "s3", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "postgresql":
        return cast(Rows, request.getfixturevalue("rows"))
    return Bucket() if request.param == "s3" else Shared(tmp_path / "large")


@asynccontextmanager
async def opened(
    tmp_path: Path, url: str | None, options: ClaimCheckOptions = LARGE
) -> AsyncIterator[Broker]:
    broker = connect(
        "embedded:events.db",
        SystemAmbient(),
        root=tmp_path,
        partitions=1,
        claim_check=url,
        claims=options,
    )
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def take(broker: Broker, count: int, after: int = BEGINNING) -> list[Record]:
    records: list[Record] = []
    batches = cast(Any, broker.read("s", 0, after))
    async with asyncio.timeout(DEADLINE), aclosing(batches):
        while len(records) < count:
            records += (await anext(batches)).records
    return records


def record(number: int, data: bytes, **headers: str) -> Record:
    named = {"specversion": "1.0", "id": str(number), "source": "/s", "type": "t", **headers}
    return Record(stream="s", key="k", headers=named, data=data)


def text(number: int, size: int = 50_000) -> bytes:
    return random.Random(number).randbytes(size)


async def test_large_data_stands_in_the_storage_once_and_small_data_in_the_broker(
    tmp_path: Path, place: Place
) -> None:
    sent = [record(1, text(1)), record(2, b"small"), record(3, text(1)), record(4, text(4))]
    async with opened(tmp_path, place.url()) as broker:
        for _ in range(2):
            await broker.publish(sent)
    async with opened(tmp_path, place.url()) as broker:
        await broker.publish(sent)
        found = await take(broker, 12)
        assert broker.capabilities.max_bytes == 0
    assert [(r.headers, r.data) for r in found] == [(r.headers, r.data) for r in sent] * 3
    assert len(place.names()) == 2
    async with opened(tmp_path, None) as broker:
        bare = await take(broker, 4)
    assert [record.data for record in bare[:4]] == [b"", b"small", b"", b""]
    assert bare[0].headers["dataref"] == bare[2].headers["dataref"] != bare[3].headers["dataref"]
    assert SECRET not in str(bare)


async def test_a_publisher_killed_between_storing_and_publishing_leaves_what_a_resend_uses(
    tmp_path: Path, place: Place
) -> None:
    await asyncio.to_thread(run_and_kill, _KILLED_BEFORE_PUBLISHING, place.url(), lines=1)
    stored = place.names()
    assert len(stored) == 1
    async with opened(tmp_path, place.url()) as broker:
        await broker.publish([record(1, b"x" * 5_000)])
        (found,) = await take(broker, 1)
    assert found.data == b"x" * 5_000
    assert place.names() == stored


async def test_whenever_a_publisher_is_killed_what_it_published_has_its_data(
    tmp_path: Path, place: Place
) -> None:
    acknowledged = []
    for turn in range(3):
        start, lines = str(turn * 1_000_000), random.randrange(1, 12)
        arguments = (place.url(), str(tmp_path), start)
        said = await asyncio.to_thread(run_and_kill, _KILLED_AT_ANY_MOMENT, *arguments, lines=lines)
        acknowledged += map(int, said)
    async with opened(tmp_path, place.url()) as broker:
        (end,) = await broker.ends("s")
        found = await take(broker, end)
    assert {int(each.headers["id"]) for each in found} >= set(acknowledged)
    for each in found:
        assert each.data == each.headers["id"].encode() * 9_000


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"!" + data[1:],
        lambda data: data[:-1],
        lambda data: data + b"!" * 3_000_000,
        lambda data: b"",
        lambda data: None,
    ],
    ids=["tampered", "truncated", "longer", "empty", "deleted"],
)
async def test_data_that_is_not_what_was_stored_counts_as_gone(
    tmp_path: Path, place: Place, change: Callable[[bytes], bytes | None]
) -> None:
    async with opened(tmp_path, place.url()) as broker:
        await broker.publish([record(1, text(1)), record(2, b"small")])
        place.change(change)
        lost, whole = await take(broker, 2)
    assert lost.data is None
    assert whole.data == b"small"
    with pytest.raises(InvalidEvent, match="is gone") as gone:
        open_record(lost.headers, lost.data)
    assert all(name in lost.headers["dataref"] for name in place.names())
    assert lost.headers["dataref"] in str(gone.value)
    assert SECRET not in str(gone.value)


async def test_only_what_lies_in_the_storage_is_ever_fetched(tmp_path: Path, place: Place) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    (tmp_path / "passwd").write_bytes(b"root")
    async with opened(tmp_path, place.url()) as broker:
        await broker.publish([record(1, text(1))])
    async with opened(tmp_path, None) as bare:
        (sound,) = await take(bare, 1)
        reference = sound.headers["dataref"]
        name = "/".join(reference.split("/")[-2:])
        prefix = reference.removesuffix(f"/{name}")
        foreign = [
            "file:///etc/passwd",
            "http://169.254.169.254/latest/meta-data/",
            f"http://127.0.0.1:{port}/{name}",
            f"s3://another/large/data/{name}",
            f"postgresql://127.0.0.1:{port}/oyez/large/{name}",
            f"postgresql:///another/oyez/large/{name}",
            f"s3://127.0.0.1:{port}/large/data/{name}",
            f"{prefix}/../passwd",
            f"{prefix}/../../{name}",
            f"{prefix}/%2e%2e/{name}",
            f"{prefix}//{name}",
            f"{prefix}/{name}?x",
            f"{prefix}/{name}\n",
            f"{prefix}/{name.upper()}0",
            f"{prefix}/{name.rpartition('-')[0]}-99999999999",
            f"{prefix}-other/{name}",
            f"{prefix}/",
            f"/{name}",
            name,
            "",
        ]
        await bare.publish([record(n, b"", dataref=each) for n, each in enumerate(foreign)])
        await bare.publish([record(99, b"{}", dataref=foreign[0])])
    async with opened(tmp_path, place.url()) as broker:
        first, *rest, both = await take(broker, len(foreign) + 2)
    assert first.data == text(1)
    assert [each.headers["dataref"] for each in rest] == foreign
    assert not any(each.data for each in rest)
    assert both.data == b"{}"
    for each in rest:
        with pytest.raises(InvalidEvent, match="is gone"):
            open_record(each.headers, each.data)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


# -- out of reach ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize("kind", ["s3", "postgresql"])
async def test_a_server_out_of_reach_holds_up_and_loses_nothing(
    tmp_path: Path, rows: Rows, kind: str, fault: str
) -> None:
    there = Bucket() if kind == "s3" else rows
    named = "bucket" if kind == "s3" else str(rows.server.host)
    async with there.server.proxy() as proxy:
        url = there.url(proxy.through(there.server.url))
        async with opened(tmp_path, url, HASTY) as broker:
            await broker.publish([record(1, text(1)), record(2, b"small")])
            getattr(proxy, fault)()
            with pytest.raises(BrokerUnavailable, match=named) as refused:
                async with asyncio.timeout(DEADLINE):
                    await broker.publish([record(3, text(3)), record(4, b"small")])
            assert SECRET not in str(refused.value)
            assert list(await broker.ends("s")) == [2]
            with pytest.raises(BrokerUnavailable, match=named):
                await take(broker, 1)
            proxy.restore()
            await broker.publish([record(3, text(3))])
            found = await take(broker, 3)
    assert [each.data for each in found] == [text(1), b"small", text(3)]


async def test_a_folder_that_is_not_mounted_holds_up_and_loses_nothing(tmp_path: Path) -> None:
    shared = Shared(tmp_path / "large")
    async with opened(tmp_path, shared.url()) as broker:
        await broker.publish([record(1, text(1))])
        shared.path.rename(tmp_path / "elsewhere")
        for made in (False, True):
            if made:
                shared.path.mkdir()
            with pytest.raises(BrokerUnavailable, match="mounted"):
                await take(broker, 1)
        shared.path.rmdir()
        (tmp_path / "elsewhere").rename(shared.path)
        (found,) = await take(broker, 1)
    assert found.data == text(1)


async def test_a_table_that_is_elsewhere_holds_up_and_loses_nothing(
    tmp_path: Path, rows: Rows
) -> None:
    async with opened(tmp_path, rows.url()) as broker:
        await broker.publish([record(1, text(1))])
        rows.ask("alter table large rename to elsewhere")
        with pytest.raises(BrokerUnavailable, match="is missing"):
            await take(broker, 1)
        rows.ask("alter table elsewhere rename to large")
        (found,) = await take(broker, 1)
    assert found.data == text(1)


async def test_a_table_is_swept_by_age_and_what_is_stored_again_is_new(rows: Rows) -> None:
    storage = open_storage(rows.url(), SystemAmbient(), root=Path(), retention=1_000.0)
    await storage.sweep()
    for name in ("a", "b", "c"):
        await storage.put(name, b"1")
    rows.ask("update large set stored = stored - $1 where name <> 'c'", 1_000 + MARGIN + 1.0)
    await storage.put("b", b"1")
    await storage.sweep()
    assert sorted(rows.names()) == ["b", "c"]
    assert await storage.get("a", 1) is None
    assert await storage.get("b", 0) == b"1"
    rows.ask(f"insert into large select 'old' || n, 'x', 0 from generate_series(1, {DELETED}) n")
    await storage.sweep()
    assert sorted(rows.names()) == ["b", "c"]
    await storage.close()


async def test_a_storage_that_says_no_says_what_to_do(tmp_path: Path) -> None:
    bucket = Bucket()
    bucket.client.delete_bucket(Bucket=bucket.name)
    async with opened(tmp_path, bucket.url()) as broker:
        with pytest.raises(BrokerRefused, match="NoSuchBucket"):
            await broker.publish([record(1, text(1))])
        assert list(await broker.ends("s")) == []
        assert "exists" in " ".join(each.remedy for each in await broker.inspect())
    file = tmp_path / "file"
    file.write_text("")
    async with opened(tmp_path, f"folder:{file}") as broker:
        with pytest.raises(BrokerUnavailable, match="file"):
            await broker.publish([record(1, text(1))])
        assert "folder" in " ".join(each.what for each in await broker.inspect())
    nowhere = server("postgresql").url.rpartition("/")[0] + "/nowhere"
    async with opened(tmp_path, nowhere) as broker:
        with pytest.raises(BrokerRefused, match="create the database"):
            await broker.publish([record(1, text(1))])


async def test_credentials_come_from_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    url = bucket.url().replace(f"testing:{SECRET}@", "")
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    async with opened(tmp_path, url) as broker:
        with pytest.raises(BrokerRefused, match="AWS_SECRET_ACCESS_KEY"):
            await broker.publish([record(1, text(1))])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    async with opened(tmp_path, url) as broker:
        await broker.publish([record(1, text(1))])
    assert len(bucket.names()) == 1


# -- the bucket's lifecycle ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "only grows"),
        ([{"Prefix": "large/", "Expiration": {"Days": 8}}], None),
        ([{"Prefix": "", "Expiration": {"Days": 30}}], None),
        ([{"Prefix": "large/", "Expiration": {"Days": 7}}], "still keeps"),
        ([{"Prefix": "large/data/3f", "Expiration": {"Days": 1}}], "still keeps"),
        ([{"Prefix": "other/", "Expiration": {"Days": 1}}], "only grows"),
        ([{"Prefix": "large/", "Expiration": {"Days": 8}, "Status": "Disabled"}], "only grows"),
        ([{"Prefix": "", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}], "grows"),
    ],
)
async def test_the_lifecycle_of_a_bucket_is_looked_at(
    tmp_path: Path, rules: list[dict[str, Any]], expected: str | None
) -> None:
    bucket = Bucket()
    if rules:
        named = [
            {"ID": "rule", "Status": "Enabled", **each, "Filter": {"Prefix": each["Prefix"]}}
            for each in rules
        ]
        for each in named:
            del each["Prefix"]
        bucket.client.put_bucket_lifecycle_configuration(
            Bucket=bucket.name, LifecycleConfiguration={"Rules": named}
        )
    async with opened(tmp_path, bucket.url()) as broker:
        found: list[Finding] = list(await broker.inspect())
    if expected is None:
        assert found == []
    else:
        assert expected in found[0].what
        assert found[0].grave == (expected == "still keeps")
        assert "8 days" in found[0].remedy
