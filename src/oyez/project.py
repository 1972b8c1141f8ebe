"""A project: an ``oyez.toml``, and the services, brokers and stores that it names."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from pathlib import Path

import msgspec

from oyez import brokers, stores
from oyez.ambient import Ambient, SystemAmbient
from oyez.brokers.claim_check import ClaimCheckOptions
from oyez.config import Config, ServiceSettings, given, load
from oyez.endpoint import redact
from oyez.errors import ConfigurationError, NotCreated, OyezError, StoreMissing
from oyez.event import MAX_DATA
from oyez.ports import Broker, Store
from oyez.service import Service
from oyez.sites import kind, site


class KnownBroker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker that the settings name."""

    name: str
    """A short name for messages: its kind (``kafka``), with one of its users if the system has
    several of that kind (``kafka:shipping``)."""
    url: str
    """Its URL, from the first setting that names it. It may contain a password."""
    setting: str
    """The key of that setting, such as ``services.shipping.broker``."""

    def __repr__(self) -> str:
        return f"KnownBroker({self.name!r}, {redact(self.url)!r})"


class Project:
    """An ``oyez.toml``, with its services, brokers and stores."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ambient: Ambient = SystemAmbient()

    @classmethod
    def open(cls) -> Project:
        """Return the project that ``OYEZ_PROJECT`` names, or that of the current folder.

        Raises ConfigurationError.
        """
        named = os.environ.get("OYEZ_PROJECT")
        return cls(load(Path(named) if named else None))

    def settings(self, service: str) -> ServiceSettings:
        """Return a service's settings. Raises ConfigurationError listing the existing names."""
        found = self.config.services.get(service)
        if found is None:
            names = ", ".join(sorted(self.config.services)) or "none"
            raise ConfigurationError(
                f"{self.config.path}: there is no service {service!r}; there are: {names}"
            )
        return found

    def service(self, name: str) -> Service:
        """Import a service, or make the one that stands for a ``url``.

        Raises ConfigurationError when ``app`` does not name one.
        """
        settings = self.settings(name)
        if settings.url is not None:
            from oyez.http_bridge import bridged  # its HTTP client is for those who need it

            return bridged(self.config, settings)
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
        """Return the broker of a service, or the system's, for its consumer group; not open."""
        group = f"{self.config.system.name}.{service}" if service else ""
        return self.connect(self.broker_url(service), group)

    def broker_url(self, service: str = "") -> str:
        """Return the URL of a service's broker, by default the system's; it may hold a password."""
        own = self.settings(service).broker if service else None
        return own or self.config.system.broker

    def site(self, url: str) -> str:
        """Return the site of this URL, which identifies the broker; see `oyez.sites`."""
        return site(url, self.config.root)

    @cached_property
    def brokers(self) -> Mapping[str, KnownBroker]:
        """Return every broker that the settings name, by its site; the system's first."""
        named = {"system.broker": self.config.system.broker}
        for name, service in self.config.services.items():
            named[f"services.{name}.broker"] = service.broker or self.config.system.broker
        for name, bridge in self.config.bridges.items():
            named[f"bridges.{name}.source"] = bridge.source
            named[f"bridges.{name}.target"] = bridge.target
        first: dict[str, tuple[str, str]] = {}
        for setting, url in named.items():
            first.setdefault(self.site(url), (setting, url))
        kinds = Counter(kind(url) for _, url in first.values())
        found = {}
        for where, (setting, url) in first.items():
            of = kind(url)
            user = setting.removeprefix("services.").removeprefix("bridges.")
            plain = kinds[of] == 1 or setting == "system.broker"
            name = of if plain else f"{of}:{user.removesuffix('.broker')}"
            found[where] = KnownBroker(name=name, url=url, setting=setting)
        return found

    def connect(self, url: str, group: str = "") -> Broker:
        """Return the broker at a URL, for a consumer group; not opened yet."""
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
        """Return a service's store, not opened yet."""
        return stores.connect(self.settings(service).store, self.ambient, root=self.config.root)

    def services(self, *names: str) -> tuple[dict[str, Service], dict[str, str]]:
        """Import services, by default all; return the imported and the errors of the others."""
        found: dict[str, Service] = {}
        failed: dict[str, str] = {}
        for name in names or self.config.services:
            try:
                # A module's own output must not be mixed with the command's.
                with contextlib.redirect_stdout(sys.stderr):
                    found[name] = self.service(name)
            except OyezError as error:
                failed[name] = str(error)
            except Exception as error:  # noqa: BLE001 - an import may raise anything
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return found, failed

    def broker_file(self) -> Path | None:
        """Return the embedded broker's file; None for a broker that is a server."""
        return self._file(self.config.system.broker, "embedded")

    def store_file(self, service: str) -> Path | None:
        """Return a service's SQLite file; None for a store that is a server."""
        return self._file(self.settings(service).store, "sqlite")

    def _file(self, url: str, wanted: str) -> Path | None:
        scheme, _, rest = url.partition(":")
        return self.config.root / rest if scheme == wanted else None

    def opened_broker(
        self, service: str = "", *, create: bool = False, group: bool = True
    ) -> AbstractAsyncContextManager[Broker]:
        """Open the broker of `broker` until the block ends; without ``group`` it can't be read.

        Unless ``create``, raises NotCreated, and creates nothing, if the system has not run yet.
        """
        url = self.broker_url(service)
        broker = self.broker(service) if group else self.connect(url)
        return self._opened(url, broker, create=create)

    def opened(self, where: str) -> AbstractAsyncContextManager[Broker]:
        """Open one of `brokers` by its site, as `opened_broker` does, for no consumer group."""
        url = self.brokers[where].url
        return self._opened(url, self.connect(url))

    @contextlib.asynccontextmanager
    async def _opened(
        self, url: str, broker: Broker, *, create: bool = False
    ) -> AsyncIterator[Broker]:
        if not broker.capabilities.processes:
            raise self.config.error(
                self.brokers[self.site(url)].setting,
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
        """Open a service's store until the block ends, whether or not the service runs.

        Raises NotCreated, and creates nothing, if the service has not run yet.
        """
        return self._opened_store(self.store(service), f"oyez run {service}")

    def opened_bridge_store(self, bridge: str) -> AbstractAsyncContextManager[Store]:
        """Open the store of a bridge's positions, as `opened_store` does."""
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
        """Return the token of admin ports: ``OYEZ_TOKEN``, or the contents of the token file.

        The file is created if missing, readable for its owner alone. Raises ConfigurationError
        when that fails, and for a file that others can read.
        """
        token = given("OYEZ_TOKEN")
        if token:
            return token
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

    def read_token(self) -> str | None:
        """Return the token of the console's readers, ``OYEZ_READ_TOKEN``; None without one."""
        return given("OYEZ_READ_TOKEN") or None

    def scale_token(self) -> str | None:
        """Return the token of those that ask how many replicas a service needs, and nothing else.

        ``OYEZ_SCALE_TOKEN``; None without one.
        """
        return given("OYEZ_SCALE_TOKEN") or None
