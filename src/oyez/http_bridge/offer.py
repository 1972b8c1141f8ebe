"""Makes the service of which `oyez.http_bridge` tells, from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from oyez.config import Config, ServiceSettings
from oyez.contracts.model import Published, Read, ServiceContract, decode
from oyez.errors import InvalidEvent
from oyez.event import describe
from oyez.handler import Retry
from oyez.http_bridge.announced import Publishing
from oyez.http_bridge.publish import Desk
from oyez.http_bridge.sink import BATCH, Sink, place_of
from oyez.opaque import Opaque, opaque
from oyez.parameters import Context
from oyez.service import Service
from oyez.transaction import After

HANDLER = "post"
"""The name of the one handler, in inbox and dead letters."""
TIDY = 3_600.0
"""Seconds between two looks for keys of `POST /publish` that are too old."""


def bridged(config: Config, settings: ServiceSettings) -> Service:
    """Return the service that hands events to the ``url`` of its settings.

    Raises ConfigurationError for a contract that does not fit them.
    """
    name, bridge = settings.name, settings.bridge
    contract = _contract(config, settings)
    read = None if contract is None else {each.type: each for each in contract.reads}
    published = None if contract is None else contract.publishes
    handles = list(_kinds(config, settings, "handles", read))
    publishes = list(_kinds(config, settings, "publishes", published))
    publishing = Publishing(map(describe, publishes))
    listens = settings.http is not None or bridge.socket is not None
    service = Service(
        name,
        migrations=str(Path(__file__).parent / "migrations") if listens else None,
        publishes=tuple(publishes),
    )

    try:
        place = place_of(settings, config.root)
    except InvalidEvent as error:
        raise config.error(f"services.{name}.url", "a URL to post to", error.problem) from error

    @service.provides
    async def sink() -> AsyncIterator[Sink]:
        async with Sink(settings, place, publishing) as made:
            yield made

    async def post(event, context: Context, after: After, sink: Sink) -> None:  # type: ignore[no-untyped-def]
        sink.announce(await sink.post(context), after)

    if handles:
        retry = Retry(attempts=bridge.attempts, first=bridge.first, longest=bridge.longest)
        at_once = bridge.concurrency * (BATCH if bridge.form == "batch" else 1)
        service.on(*handles, name=HANDLER, retry=retry, timeout=None, concurrency=at_once)(post)
    if listens:
        token = None if bridge.token is None else bridge.token.text
        desk = Desk(service, publishing, token)
        service.http = desk.app()
        service.every(seconds=TIDY, missed="skip", name="tidy")(desk.tidy)
    return service


def _contract(config: Config, settings: ServiceSettings) -> ServiceContract | None:
    file = settings.bridge.contract
    if file is None:
        return None
    key = f"services.{settings.name}.bridge.contract"
    path = config.file(file)
    try:
        found = decode(path.read_bytes(), str(path))
    except OSError as error:
        raise config.error(key, "a file of a contract", f"{path} ({error.strerror})") from error
    if (found.system, found.service) != (config.system.name, settings.name):
        expected = f"the contract of {settings.name} in {config.system.name}"
        raise config.error(key, expected, f"that of {found.service} in {found.system}")
    return found


def _kinds(
    config: Config,
    settings: ServiceSettings,
    field: str,
    told: Mapping[str, Published | Read] | None,
) -> Iterator[type[Opaque]]:
    """Yield the classes of the types in a setting; ``told`` is what the contract says of them."""
    key, file = f"services.{settings.name}.{field}", settings.bridge.contract
    for text in getattr(settings, field):
        name, _, version = text.partition("@")
        if told is None:
            yield opaque(name, version=int(version or 1))
            continue
        known = told.get(name)
        if known is None:
            raise config.error(key, f"types that {file} tells", f'"{name}"')
        if version and int(version) != known.version:
            raise config.error(key, f'"{name}@{known.version}", as {file} has it', f'"{text}"')
        yield opaque(name, version=known.version, key=known.key, schema=known.schema)
