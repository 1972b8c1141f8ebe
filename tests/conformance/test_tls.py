"""Encrypted connections to every server: who vouches for it is checked, and nothing goes around."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import botocore.session
import pytest
from tls import SSL_REQUEST, Certificate, TlsProxy, self_signed

from oyez.ambient import SystemAmbient
from oyez.brokers import connect
from oyez.brokers.claim_check import open_storage
from oyez.errors import BrokerError, BrokerRefused, StoreError
from oyez.ports import BEGINNING, Changes, Record
from oyez.stores import connect as connect_store
from servers import server

DEADLINE = 60.0
BROKERS = ["kafka", "nats", "rabbitmq", "redis", "postgresql", "sns_sqs"]
ANOTHER = "127.0.0.2"


@asynccontextmanager
async def encrypted(name: str, certificate: Certificate) -> AsyncIterator[str]:
    """The URL of a server behind TLS, without ``cafile``."""
    there = server(name)
    port = there.ports.get("proxied", there.port)
    asked = SSL_REQUEST if name == "postgresql" else b""
    listen = there.ports.get("proxy", 0)
    async with TlsProxy(there.host, port, certificate, listen=listen, asked=asked) as proxy:
        at = f"{proxy.host}:{proxy.port}"
        parts = urlsplit(there.url)
        credentials = parts.netloc.rpartition("@")[0]
        place = f"{credentials}@{at}" if credentials else at
        yield {
            "kafka": f"kafka://{place}?tls=true&deadline=5",
            "nats": f"nats://{place}?tls=true&tls_first=true&deadline=5",
            "rabbitmq": f"amqps://{place}{parts.path}?deadline=5",
            "redis": f"rediss://{place}{parts.path}?deadline=5",
            "postgresql": f"postgresql://{place}{parts.path}?sslmode=verify-full&deadline=5",
            "sns_sqs": f"sns+sqs://testing:testing@us-east-1?endpoint=https://{at}",
            "s3": f"s3://testing:testing@large/data?region=us-east-1&endpoint=https://{at}",
        }[name]


async def carry(url: str, tmp_path: Path) -> bytes | None:
    """What comes back of one event."""
    broker = connect(url, SystemAmbient(), root=tmp_path, group=f"tls.{uuid4().hex}")
    stream = f"tls.{uuid4().hex}"
    try:
        async with asyncio.timeout(DEADLINE):
            await broker.open()
            await broker.create(stream, 1)
            batches = broker.read(stream, 0, BEGINNING)
            await broker.publish([Record(stream=stream, key="k", headers={"id": "1"}, data=b"1")])
            batch = await anext(batches)
            await batches.aclose()  # type: ignore[attr-defined]
            return batch.records[0].data
    finally:
        await broker.close()


@pytest.mark.parametrize("name", BROKERS)
async def test_an_event_goes_through_and_back(tmp_path: Path, name: str) -> None:
    certificate = self_signed(tmp_path)
    async with encrypted(name, certificate) as url:
        assert await carry(f"{url}&cafile={certificate.cafile}", tmp_path) == b"1"


async def test_a_store_and_a_storage_go_through_and_back(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    schema = f"tls_{uuid4().hex}"
    async with encrypted("postgresql", certificate) as url:
        url = f"{url}&cafile={certificate.cafile}&schema={schema}"
        store = connect_store(url, SystemAmbient(), root=tmp_path)
        await store.open()
        try:
            assert await store.fetch("select 1 as one", {}) == [{"one": 1}]
            drop = (f"drop schema if exists {schema} cascade", [{}])
            await store.begin().commit(Changes(writes=[drop]))
        finally:
            await store.close()
    bucket = f"tls-{uuid4().hex}"
    botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server("s3").url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    ).create_bucket(Bucket=bucket)
    async with encrypted("s3", certificate) as url:
        url = f"{url.replace('large', bucket)}&cafile={certificate.cafile}"
        storage = open_storage(url, SystemAmbient(), root=tmp_path, retention=60.0)
        name = f"{'0' * 64}-1"
        await storage.put(name, b"1")
        assert await storage.get(name, 1) == b"1"
        await storage.close()


async def test_a_store_and_a_storage_that_nobody_vouches_for_are_refused(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    async with encrypted("postgresql", certificate) as url:
        store = connect_store(url, SystemAmbient(), root=tmp_path)
        with pytest.raises(StoreError, match=r"certificate.*cafile"):
            await store.open()
        await store.close()
    async with encrypted("s3", certificate) as url:
        storage = open_storage(url, SystemAmbient(), root=tmp_path, retention=60.0)
        with pytest.raises(BrokerRefused, match=r"certificate.*cafile"):
            await storage.get(f"{'0' * 64}-1", 1)
        await storage.close()


@pytest.mark.parametrize("name", BROKERS)
@pytest.mark.parametrize("trusted", ["nobody", "another"])
async def test_a_server_that_nobody_vouches_for_is_refused(
    tmp_path: Path, name: str, trusted: str
) -> None:
    """With an error that says so and what to set, and without its password."""
    certificate = self_signed(tmp_path)
    async with encrypted(name, certificate) as url:
        if trusted == "another":
            url += f"&cafile={self_signed(tmp_path, ANOTHER).cafile}"
        with pytest.raises(BrokerError) as refused:
            await carry(url, tmp_path)
    told = str(refused.value)
    assert "certificate" in told.lower()
    assert "cafile" in told
    assert (urlsplit(server(name).url).password or "canary") not in told


@pytest.mark.parametrize("name", BROKERS)
async def test_a_certificate_for_another_address_is_refused(tmp_path: Path, name: str) -> None:
    certificate = self_signed(tmp_path, ANOTHER)
    async with encrypted(name, certificate) as url:
        with pytest.raises(BrokerError, match=r"(?i)certificate"):
            await carry(f"{url}&cafile={certificate.cafile}", tmp_path)
