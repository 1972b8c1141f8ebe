"""Makes the service of which `oyez.http_bridge` tells, from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from oyez.config import Config, ServiceSettings
from oyez.contracts.model import ServiceContract, decode
from oyez.errors import InvalidEvent
from oyez.event import describe
from oyez.handler import Retry
from oyez.http_bridge.announced import Publishing
from oyez.http_bridge.publish import Published
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
    handles = list(_read(config, settings, contract))
    publishes = list(_published(config, settings, contract))
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
        published = Published(service, publishing, token)
        service.http = published.app()
        service.every(seconds=TIDY, missed="skip", name="tidy")(published.tidy)
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


def _read(
    config: Config, settings: ServiceSettings, contract: ServiceContract | None
) -> Iterable[type[Opaque]]:
    told = {each.type: each for each in contract.reads} if contract is not None else {}
    for kind, version in map(_versioned, settings.handles):
        each = told.get(kind)
        if contract is None or each is None:
            _check(config, settings, "handles", kind, version, contract, None)
            yield opaque(kind, version=version or 1)
        else:
            _check(config, settings, "handles", kind, version, contract, each.version)
            yield opaque(kind, version=each.version, key=each.key, schema=each.schema)


def _published(
    config: Config, settings: ServiceSettings, contract: ServiceContract | None
) -> Iterable[type[Opaque]]:
    told = contract.publishes if contract is not None else {}
    for kind, version in map(_versioned, settings.publishes):
        each = told.get(kind)
        if contract is None or each is None:
            _check(config, settings, "publishes", kind, version, contract, None)
            yield opaque(kind, version=version or 1)
        else:
            _check(config, settings, "publishes", kind, version, contract, each.version)
            yield opaque(kind, version=each.version, key=each.key, schema=each.schema)


def _check(
    config: Config,
    settings: ServiceSettings,
    field: str,
    kind: str,
    version: int | None,
    contract: ServiceContract | None,
    known: int | None,
) -> None:
    """Raise ConfigurationError for a type that the contract does not tell, or tells otherwise."""
    if contract is None or (known is not None and version in (None, known)):
        return
    key = f"services.{settings.name}.{field}"
    if known is None:
        raise config.error(key, f"types that {settings.bridge.contract} tells", f'"{kind}"')
    found = f"{kind}@{version}"
    raise config.error(key, f'"{kind}@{known}", as {settings.bridge.contract} has it', f'"{found}"')


def _versioned(text: str) -> tuple[str, int | None]:
    kind, _, version = text.partition("@")
    return kind, int(version) if version else None
