"""What is deployed: the stream ``SYSTEM._contracts`` of the broker, to which services say it.

Each replica says its contract when it is ready, again every `AGAIN` seconds, and that it leaves
when it drains. A pipeline says it for a service once a deployment is complete: then what its
replicas had said before counts no longer. So the stream is the record of what runs now, and of what
ran last where nothing does. Its records are CloudEvents of the type `SAID`; their key is the
service.

A *snapshot* is the same as a file, for pipelines that can't reach the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from oyez.contracts import model
from oyez.contracts.foreign import deep
from oyez.contracts.model import MOST, ServiceContract
from oyez.endpoint import redact
from oyez.envelope import Envelope, format_time, open_record
from oyez.errors import BrokerError, ConfigurationError, EventError, OyezError
from oyez.inspection import history
from oyez.partitioning import CONTRACTS
from oyez.ports import Broker, Record
from oyez.project import Project
from oyez.runtime.loop import Loop
from oyez.runtime.process import ServiceProcess

SAID = "oyez.contract.deployed"
"""The type of the records."""
AGAIN = 21_600.0
"""Seconds after which a running replica says its contract again."""
LATER = 10.0
"""Seconds until the next try to say it, where the broker was out of reach."""
FORGOTTEN = 2.5 * AGAIN
"""Seconds after which a replica that has said nothing more counts as gone."""
FORMAT = 1
"""The version of the form of a snapshot."""
SNAPSHOT = 67_108_864
"""A larger snapshot (bytes) is not read."""
LEAVE = 1.0
"""The time that a replica has to say that it leaves, in seconds."""
SECONDS = 20.0
"""The time that a snapshot at a URL has to arrive."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of a service: a build of it is there."""

    contract: ServiceContract
    release: str | None = None
    """The version of the image, as ``OYEZ_RELEASE`` named it."""
    environment: str | None = None
    """Where, as ``OYEZ_ENVIRONMENT`` named it."""
    replica: str | None = None
    """The process that said it; None for a pipeline."""
    gone: bool = False
    """Whether the replica leaves."""
    seen: float = 0.0
    """When it was said, in seconds since 1970."""

    def __str__(self) -> str:
        release = "" if self.release is None else f" {self.release}"
        return f"{self.contract.service}{release}"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is deployed in a system."""

    format: int = FORMAT
    system: str
    deployed: tuple[Said, ...]
    """By service; the newest of each last."""

    def newest(self) -> dict[str, ServiceContract]:
        """Return the contract of each service that was said last."""
        return {each.contract.service: each.contract for each in self.deployed}


def said(contract: ServiceContract, replica: str | None = None, *, gone: bool = False) -> Said:
    """Return what is said of a service here, by ``OYEZ_RELEASE`` and ``OYEZ_ENVIRONMENT``."""
    return Said(
        contract=contract,
        release=os.environ.get("OYEZ_RELEASE") or None,
        environment=os.environ.get("OYEZ_ENVIRONMENT") or None,
        replica=replica,
        gone=gone,
    )


class Saying:
    """What a running service says of itself: that it is there, and that it goes."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._said: Said | None = None
        self._loop = Loop("contract", self._step, process.ambient, process.reports.trouble)

    def start(self) -> None:
        """Begin to say it. Where the broker keeps no history nothing is said."""
        self._loop.start()

    async def stop(self) -> None:
        """Say that it goes, if it was said that it is there, within `LEAVE` seconds."""
        await self._loop.cancel()
        if self._said is not None:
            with contextlib.suppress(OyezError, TimeoutError):
                async with asyncio.timeout(LEAVE):
                    await self._say(msgspec.structs.replace(self._said, gone=True))

    async def _step(self) -> float:
        process = self._process
        if not process.broker.capabilities.history:
            return AGAIN
        each = said(model.contract_of(process.service, process.settings.system), process.owner)
        try:
            await self._say(each)
        except BrokerError as error:
            if error.transient:
                return LATER  # other parts report it
            process.reports.trouble("contract", error)
            return AGAIN
        self._said = each
        return AGAIN

    async def _say(self, each: Said) -> None:
        ambient = self._process.ambient
        await say(self._process.broker, each, ambient.new_id(), ambient.now())


async def say(broker: Broker, each: Said, identity: str, now: float) -> None:
    """Publish what is said, under the record's ``identity``. Raises BrokerError, and OyezError.

    ``now`` is in seconds since 1970.
    """
    if not broker.capabilities.history:
        raise OyezError(NO_HISTORY)
    system, service = each.contract.system, each.contract.service
    stream = f"{system}.{CONTRACTS}"
    if stream not in await broker.streams():
        await broker.create(stream, 1)
    envelope = Envelope(
        id=identity,
        source=f"/{system}/{service}",
        type=SAID,
        subject=service,
        partitionkey=service,
        time=format_time(now),
        data=msgspec.json.encode(each, order="sorted"),
    )
    record = Record(stream=stream, key=service, headers=envelope.headers(), data=envelope.data)
    await broker.publish([record])


async def deployed(
    broker: Broker, system: str, environment: str | None, now: float
) -> tuple[Snapshot, list[str]]:
    """Return what is deployed in an environment, and what could not be read of the record.

    Raises BrokerError, and OyezError for a broker without history.
    """
    if not broker.capabilities.history:
        raise OyezError(NO_HISTORY)
    stream = f"{system}.{CONTRACTS}"
    found: list[Said] = []
    unread: list[str] = []
    for place, end in (await history.ends(broker, [stream])).items():
        async with aclosing(history.read(broker, place, end)) as batches:
            async for batch in batches:
                for record in batch.records:
                    try:
                        found.append(_opened(record))
                    except (EventError, ConfigurationError) as error:
                        unread.append(str(error))
    here = [
        each for each in found if each.environment == environment and each.contract.system == system
    ]
    return Snapshot(system=system, deployed=tuple(_standing(here, now))), unread


async def of_broker(
    project: Project, url: str, environment: str | None
) -> tuple[Snapshot, list[str]]:
    """Return what is deployed by the broker at a URL, or by the project's; as `deployed`."""
    system, now = project.config.system.name, project.ambient.now()
    if not url:
        async with project.opened_broker(group=False) as broker:
            return await deployed(broker, system, environment, now)
    broker = project.connect(url)
    try:
        await broker.open()
        return await deployed(broker, system, environment, now)
    finally:
        await broker.close()


async def of_url(url: str) -> Snapshot:
    """Return the snapshot at a URL: https, or http on this machine alone; it leads nowhere else.

    Raises ConfigurationError, and OyezError where nothing answers.
    """
    return read_snapshot(await _fetched(url), redact(url))


def of_file(place: str) -> Snapshot:
    """Return the snapshot in a file, or of a folder of contracts. Raises ConfigurationError."""
    path = Path(place)
    if path.is_dir():
        return _of_contracts(model.read_folder(path).values(), place)
    try:
        if path.stat().st_size > SNAPSHOT:
            raise ConfigurationError(f"{place}: is larger than {SNAPSHOT} bytes")
        return read_snapshot(path.read_bytes(), place)
    except OSError as error:
        raise ConfigurationError(
            f"{place}: {error.strerror}: expected a snapshot (`oyez contracts pull`), a contract, "
            "a folder of contracts, or an https URL of one"
        ) from error


def read_snapshot(data: bytes, place: str) -> Snapshot:
    """Return the snapshot, or the one contract, in a file. Raises ConfigurationError."""
    if len(data) > SNAPSHOT:
        raise ConfigurationError(f"{place}: is larger than {SNAPSHOT} bytes")
    if deep(data):
        raise ConfigurationError(f"{place}: is nested too deep")
    try:
        kind = msgspec.json.decode(data, type=_Either)
        if kind.deployed is msgspec.UNSET:
            return _of_contracts([model.decode(data, place)], place)
        found = msgspec.json.decode(data, type=Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{place}: {error}; `oyez contracts pull` writes it") from error
    if found.format != FORMAT:
        raise ConfigurationError(
            f"{place}: has the format {found.format}; this Oyez reads {FORMAT}"
        )
    for index, each in enumerate(found.deployed):
        model.judged(each.contract, f"{place}: deployed[{index}].contract")
    return found


def write_snapshot(snapshot: Snapshot) -> bytes:
    """Return the file of a snapshot: JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(snapshot, order="sorted"), indent=2) + b"\n"


NO_HISTORY = (
    "this broker keeps no history, so it can't be the record of what is deployed (SNS/SQS, and "
    "RabbitMQ's quorum queues): put the contracts into a folder, or at an https URL, and name it "
    "with --from"
)


class _Either(msgspec.Struct):
    deployed: Any = msgspec.UNSET


def _opened(record: Record) -> Said:
    envelope = open_record(record.headers, record.data)
    place = f"{record.stream}, record {record.position}"
    if len(envelope.data) > MOST or deep(envelope.data):
        raise ConfigurationError(f"{place}: is too large or nested too deep: it is left out")
    try:
        each = msgspec.json.decode(envelope.data, type=Said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{place}: {error}: it is left out") from error
    model.judged(each.contract, place)
    return msgspec.structs.replace(each, seen=record.time)


def _standing(found: Iterable[Said], now: float) -> list[Said]:
    """What stands of all that was said: of each service what runs, else what was said last."""
    services: dict[str, list[Said]] = {}
    for each in sorted(found, key=lambda each: each.seen):
        services.setdefault(each.contract.service, []).append(each)
    standing: list[Said] = []
    for _, every in sorted(services.items()):
        last = max((n for n, each in enumerate(every) if each.replica is None), default=0)
        replicas = {each.replica or "": each for each in every[last:]}
        live = [each for each in replicas.values() if not each.gone and not _is_past(each, now)]
        came = [each for each in every[last:] if not each.gone] or every
        standing += _distinct(live) if live else came[-1:]
    return standing


def _is_past(each: Said, now: float) -> bool:
    return each.replica is not None and each.seen < now - FORGOTTEN


def _distinct(live: Sequence[Said]) -> list[Said]:
    """One of those that say the same, which is the newest."""
    found = {(each.release, msgspec.json.encode(each.contract)): each for each in live}
    return sorted(found.values(), key=lambda each: each.seen)


def _of_contracts(contracts: Iterable[ServiceContract], place: str) -> Snapshot:
    deployed = tuple(Said(contract=each) for each in contracts)
    if not deployed:
        raise ConfigurationError(f"{place}: holds no contract, such as orders.json")
    return Snapshot(system=deployed[0].contract.system, deployed=deployed)


async def _fetched(url: str) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_here(parts.hostname)):
        raise ConfigurationError(f"{redact(url)}: expected https, or http on this machine")
    import httpx  # not in a service, which has this module to say what it is

    from oyez.http_client import Client

    found = bytearray()
    try:
        async with (
            Client(timeout=SECONDS, trust_env=False) as client,
            asyncio.timeout(SECONDS),
            client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code != 200:
                raise OyezError(f"{redact(url)}: answered {answer.status_code}, expected 200")
            async for each in answer.aiter_bytes():
                found += each
                if len(found) > SNAPSHOT:
                    raise ConfigurationError(f"{redact(url)}: is larger than {SNAPSHOT} bytes")
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        reason = str(error) or f"no answer within {SECONDS:g} s"
        raise OyezError(f"{redact(url)}: {reason}") from error
    return bytes(found)


def _is_here(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
