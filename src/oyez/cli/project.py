"""What commands have in common: the project's settings, services, broker and stores."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import click

from oyez import brokers, stores
from oyez.ambient import Ambient, SystemAmbient
from oyez.brokers.claim_check import ClaimCheckOptions
from oyez.cli.printing import warn
from oyez.config import Config, ServiceSettings, load
from oyez.errors import ConfigurationError, OyezError, StoreMissing
from oyez.event import MAX_DATA
from oyez.ports import Broker, Store
from oyez.service import Service

T = TypeVar("T")


class NotCreated(OyezError):
    """What a command was to read does not exist yet; the message says what makes it."""


class Project:
    """An ``oyez.toml`` and what it names."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ambient: Ambient = SystemAmbient()

    @classmethod
    def open(cls) -> Project:
        """The project that ``OYEZ_PROJECT`` names, or that the folder is in."""
        named = os.environ.get("OYEZ_PROJECT")
        return cls(load(Path(named) if named else None))

    def settings(self, service: str) -> ServiceSettings:
        """A service's settings. Raises ConfigurationError with the names there are."""
        found = self.config.services.get(service)
        if found is None:
            names = ", ".join(sorted(self.config.services)) or "none"
            raise ConfigurationError(
                f"{self.config.path}: there is no service {service!r}; there are: {names}"
            )
        return found

    def service(self, name: str) -> Service:
        """Import a service. Raises ConfigurationError when ``app`` does not lead to one."""
        settings = self.settings(name)
        module, _, attribute = settings.app.partition(":")
        key = f"services.{name}.app"
        root = str(self.config.root)
        if root not in sys.path:
            sys.path.insert(0, root)
        try:
            found = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(error.name)):
                raise
            raise self.config.error(
                key, f"a module below {root}", f'"{settings.app}": there is no module {error.name}'
            ) from error
        except AttributeError as error:
            raise self.config.error(
                key, "module:attribute", f'"{settings.app}": {error}'
            ) from error
        if not isinstance(found, Service):
            raise self.config.error(
                key, "an oyez.Service", f'"{settings.app}", which is a {type(found).__name__}'
            )
        if found.name != name:
            raise self.config.error(
                key, f'Service("{name}")', f'"{settings.app}", which is Service("{found.name}")'
            )
        return found

    def broker(self, service: str = "") -> Broker:
        """The broker of a service, which reads as its consumer group; by default the system's.

        It is not opened yet.
        """
        group = f"{self.config.system.name}.{service}" if service else ""
        return self.connect(self.broker_url(service), group)

    def broker_url(self, service: str = "") -> str:
        """Where the broker of a service is; by default the system's. It may hold a password."""
        own = self.settings(service).broker if service else None
        return own or self.config.system.broker

    def broker_names(self) -> dict[str, str]:
        """A short name for every broker that the settings name, by its URL; the system's first.

        It is the kind of broker (``kafka``), with who uses it behind a colon where the system has
        more of that kind (``kafka:shipping``).
        """
        keys = self._broker_keys()
        kinds = Counter(url.partition(":")[0] for url in keys)
        names = {}
        for url, key in keys.items():
            kind = url.partition(":")[0]
            user = key.removeprefix("services.").removeprefix("bridges.").removesuffix(".broker")
            plain = kinds[kind] == 1 or url == self.config.system.broker
            names[url] = kind if plain else f"{kind}:{user}"
        return names

    def _broker_keys(self) -> dict[str, str]:
        """The first setting that names each broker, by the broker's URL."""
        keys = {self.config.system.broker: "system.broker"}
        for name, service in self.config.services.items():
            keys.setdefault(service.broker or self.config.system.broker, f"services.{name}.broker")
        for name, bridge in self.config.bridges.items():
            keys.setdefault(bridge.source, f"bridges.{name}.source")
            keys.setdefault(bridge.target, f"bridges.{name}.target")
        return keys

    def connect(self, url: str, group: str = "") -> Broker:
        """A broker by its URL, for a consumer group; not opened yet."""
        system = self.config.system
        return brokers.connect(
            url,
            self.ambient,
            root=self.config.root,
            group=group,
            partitions=system.partitions,
            retention=system.retention_days * 86_400,
            claim_check=system.claim_check,
            claims=ClaimCheckOptions(over=system.claim_check_over, most=MAX_DATA),
        )

    def store(self, service: str) -> Store:
        """A service's store, not opened yet."""
        return stores.connect(self.settings(service).store, self.ambient, root=self.config.root)

    def services(self, *names: str) -> tuple[dict[str, Service], dict[str, str]]:
        """Those of the services (all by default) that can be imported, and why the others can't."""
        found: dict[str, Service] = {}
        failed: dict[str, str] = {}
        for name in names or self.config.services:
            try:
                # What a module prints must not get between the lines of a command's answer.
                with contextlib.redirect_stdout(sys.stderr):
                    found[name] = self.service(name)
            except OyezError as error:
                failed[name] = str(error)
            except Exception as error:  # noqa: BLE001 - whatever a module does when it is imported
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return found, failed

    def broker_file(self) -> Path | None:
        """The embedded broker's file; None for a broker that is a server."""
        return self._file(self.config.system.broker, "embedded")

    def store_file(self, service: str) -> Path | None:
        """A service's SQLite file; None for a store that is a server."""
        return self._file(self.settings(service).store, "sqlite")

    def _file(self, url: str, wanted: str) -> Path | None:
        scheme, _, rest = url.partition(":")
        return self.config.root / rest if scheme == wanted else None

    def opened_broker(
        self, service: str = "", *, create: bool = False, group: bool = True
    ) -> AbstractAsyncContextManager[Broker]:
        """The broker as in `broker`, open until the block ends; without ``group`` it does not read.

        Raises NotCreated, and makes nothing, where the system has not run yet, unless ``create``.
        """
        url = self.broker_url(service)
        broker = self.broker(service) if group else self.connect(url)
        return self._opened(url, broker, create=create)

    @contextlib.asynccontextmanager
    async def opened_brokers(self) -> AsyncIterator[dict[str, Broker]]:
        """Every broker of the system by its URL, as in `broker_names`, open until the block ends.

        What can't be opened is left out as in `ask_brokers`.
        """
        async with AsyncExitStack() as stack:

            async def enter(url: str) -> Broker:
                return await stack.enter_async_context(self._opened(url, self.connect(url)))

            yield await self.ask_brokers(self.broker_names(), enter)

    async def ask_brokers(
        self, urls: Iterable[str], ask: Callable[[str], Awaitable[T]]
    ) -> dict[str, T]:
        """What ``ask`` gives for each of the brokers, by URL.

        One for which it fails is left out, and a warning names it; where none is left, the first
        error is raised.
        """
        answers: dict[str, T] = {}
        failed: dict[str, OyezError] = {}
        for url in urls:
            try:
                answers[url] = await ask(url)
            except OyezError as error:
                failed[url] = error
        raised = None if answers else next(iter(failed.values()), None)
        names = self.broker_names()
        for url, reason in failed.items():
            if reason is not raised:
                warn(f"broker {names[url]} is left out: {reason}")
        if raised is not None:
            raise raised
        return answers

    @contextlib.asynccontextmanager
    async def _opened(
        self, url: str, broker: Broker, *, create: bool = False
    ) -> AsyncIterator[Broker]:
        if not broker.capabilities.processes:
            raise self.config.error(
                self._broker_keys()[url],
                "a broker that several processes use",
                f'"{url}", whose events no other process can see',
            )
        file = self._file(url, "embedded")
        if not create and file is not None and not file.exists():
            raise NotCreated(f"{file} does not exist yet: `oyez dev` makes it")
        try:
            await broker.open()
            yield broker
        finally:
            await broker.close()

    def opened_store(self, service: str) -> AbstractAsyncContextManager[Store]:
        """A service's store, open until the block ends, whether or not the service runs.

        Raises NotCreated, and makes nothing, where the service has not run yet.
        """
        return self._opened_store(self.store(service), f"oyez run {service}")

    def opened_bridge_store(self, bridge: str) -> AbstractAsyncContextManager[Store]:
        """Where a bridge keeps how far it is; otherwise as `opened_store`."""
        url = self.config.bridges[bridge].store
        store = stores.connect(url, self.ambient, root=self.config.root)
        return self._opened_store(store, f"oyez bridge {bridge}")

    @contextlib.asynccontextmanager
    async def _opened_store(self, store: Store, maker: str) -> AsyncIterator[Store]:
        try:
            try:
                await store.open(create=False)
            except StoreMissing as error:
                raise NotCreated(f"{error}: `{maker}` makes it") from error
            yield store
        finally:
            await store.close()

    def token(self) -> str:
        """The token of admin ports: ``OYEZ_TOKEN``, or a file made for its owner alone."""
        given = os.environ.get("OYEZ_TOKEN")
        if given:
            return given
        path = self.config.file(self.config.system.data) / "token"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                raise ConfigurationError(
                    f"{path}: others can read this secret: chmod 600 it"
                ) from None
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        return path.read_text().strip()


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run on the fastest event loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
"""Every listing command takes it."""
