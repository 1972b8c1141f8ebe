"""Every setting: one class a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from oyez.config import rules
from oyez.config.mistakes import mistake
from oyez.config.rules import Listen, Network, Rate, Replicas, Secret
from oyez.endpoint import redact
from oyez.errors import ConfigurationError
from oyez.scaling.rule import Limits

_YEAR = 366 * 86400.0


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = [(field, getattr(self, field)) for field in self.__struct_fields__]
        return [(name, redact(v) if isinstance(v, str) else v) for name, v in values]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({inside})"


class SystemSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[system]``: what all processes of one system share."""

    name: Annotated[str, rules.pattern('a name such as "shop", [a-z][a-z0-9-]{0,40}', rules.NAME)]
    broker: Annotated[str, rules.BROKER] = "embedded:.oyez/events.db"
    partitions: Annotated[int, rules.whole(1, 4096)] = 8
    retention_days: Annotated[float, rules.number(36500, "days")] = 7.0
    claim_check: Annotated[str | None, rules.STORAGE] = None
    claim_check_over: Annotated[int, rules.whole(0, 2**30, " of bytes")] = 0
    data: Annotated[str, rules.text("a folder")] = ".oyez"
    log: Annotated[Literal["console", "json"], rules.one_of("console", "json")] = "console"
    external: Annotated[tuple[str, ...], rules.types()] = ()
    erasure: Annotated[str | None, rules.TYPE] = None


class ScalingSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[services.NAME.scaling]``: how the number of replicas follows the load.

    Lag should be handled within ``target`` seconds. A replica goes when one fewer has been enough
    for ``cooldown`` seconds. While more than the share ``failing`` of the calls fail, none comes.
    """

    target: Annotated[float, rules.number(86400, "seconds")] = 300.0
    cooldown: Annotated[float, rules.number(86400, "seconds")] = 300.0
    failing: Annotated[float, rules.share()] = 0.2


class HttpBridgeSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[services.NAME.bridge]``: how events go to the ``url`` of a service, and back.

    A POST has ``timeout`` seconds, and ``concurrency`` of them are under way at once. ``form`` is
    ``binary`` unless a ``secret`` signs, then ``structured``; with ``batch``, many events are one
    POST. An event that fails is tried ``attempts`` times: again after ``first`` seconds, then after
    twice as long each time, up to ``longest``. ``token`` goes with each POST, and is asked for by
    ``POST /publish`` at the address ``http``; whoever may write to the Unix socket ``socket`` needs
    none. ``allow`` are the networks, besides public ones, that another machine's address may be of.
    ``contract`` is the file of what is handled and published, with the schemas.
    """

    form: Annotated[
        Literal["binary", "structured", "batch"] | None,
        rules.one_of("binary", "structured", "batch"),
    ] = None
    timeout: Annotated[float, rules.number(300, "seconds")] = 10.0
    concurrency: Annotated[int, rules.whole(1, 1024)] = 32
    attempts: Annotated[int, rules.whole(1, 1000)] = 20
    first: Annotated[float, rules.number(3600, "seconds")] = 0.5
    longest: Annotated[float, rules.number(86400, "seconds")] = 60.0
    token: Annotated[Secret | None, rules.BEARER] = None
    secret: Annotated[tuple[Secret, ...], rules.SIGNING] = ()
    allow: Annotated[tuple[Network, ...], rules.networks()] = ()
    socket: Annotated[str | None, rules.text("a file")] = None
    contract: Annotated[str | None, rules.text("a file of a contract")] = None


class ServiceDeploySettings(_Settings, frozen=True, kw_only=True):
    """A table ``[services.NAME.deploy]``: what a service gets where it is deployed.

    ``store`` is its store there, ``url`` where the program is that takes its events. ``cpu`` is
    asked for, ``memory`` asked for and the limit, ``storage`` the size of the volume for a SQLite
    file. ``egress`` is where it may connect to, besides its broker, store and program. ``include``
    are files and folders in its image besides its own.
    """

    store: Annotated[str | None, rules.STORE] = None
    url: Annotated[str | None, rules.SINK] = None
    memory: Annotated[str, rules.BYTES] = "256Mi"
    cpu: Annotated[str, rules.CPU] = "100m"
    storage: Annotated[str, rules.BYTES] = "1Gi"
    egress: Annotated[tuple[str, ...], rules.peers()] = ()
    include: Annotated[tuple[str, ...], rules.paths()] = ()


class ServiceSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[services.NAME]``. In ``store``, ``{service}`` stands for the service's name.

    ``app`` is its code; or else ``url`` is where a program in any language takes the events that
    it ``handles``, over HTTP, and ``publishes`` are those that it may publish.

    ``broker`` is its own where it is not the system's: a bridge then carries streams across.
    ``http`` is where the service listens for requests, ``address`` where the gateway reaches it if
    that differs (another host or container). ``grace`` and ``lease`` are seconds. For
    ``drain_delay`` seconds after it was told to stop it takes requests still, though not ready.
    """

    name: str
    app: Annotated[str, rules.APP] = ""
    url: Annotated[str | None, rules.SINK] = None
    handles: Annotated[tuple[str, ...], rules.VERSIONED] = ()
    publishes: Annotated[tuple[str, ...], rules.VERSIONED] = ()
    bridge: HttpBridgeSettings = HttpBridgeSettings()
    broker: Annotated[str | None, rules.BROKER] = None
    store: Annotated[str, rules.STORE] = "sqlite:.oyez/{service}.db"
    replicas: Annotated[Replicas, rules.REPLICAS] = Replicas(1, 1)
    http: Annotated[Listen | None, rules.ADDRESS] = None
    address: Annotated[Listen | None, rules.ADDRESS] = None
    admin: Annotated[Listen, rules.ADDRESS] = Listen("127.0.0.1", 0)
    grace: Annotated[float, rules.number(3600, "seconds")] = 10.0
    lease: Annotated[float, rules.number(3600, "seconds")] = 3.0
    drain_delay: Annotated[float, rules.upto(60, "seconds")] = 0.0
    scaling: ScalingSettings = ScalingSettings()
    deploy: ServiceDeploySettings = ServiceDeploySettings()

    @property
    def limits(self) -> Limits:
        """What the rule of scaling holds its replicas to."""
        return Limits(
            least=self.replicas.least,
            most=self.replicas.most,
            target=self.scaling.target,
            cooldown=self.scaling.cooldown,
            failing=self.scaling.failing,
        )

    def reached_at(self) -> Listen | None:
        """Return where the gateway sends requests for it; None if it takes none."""
        if self.address or self.http is None:
            return self.address
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        return Listen(everywhere.get(self.http.host, self.http.host), self.http.port)


class Limit(_Settings, frozen=True, kw_only=True):
    """A table ``[gateway.limits.NAME]``: how many requests pass, on the routes that name it.

    ``burst`` is how many may come at once, by default as many as ``rate`` counts. ``by`` is whose
    requests are counted together: of a principal, of an API ``key``, of an ``address``, or of a
    ``route``. Who has no principal, or no key, is counted by the address.
    """

    name: str
    rate: Annotated[Rate, rules.RATE]
    burst: Annotated[int | None, rules.whole(1, 1_000_000)] = None
    by: Annotated[
        Literal["principal", "key", "address", "route"],
        rules.one_of("principal", "key", "address", "route"),
    ] = "principal"

    @property
    def size(self) -> int:
        """The most requests at once."""
        return self.rate.count if self.burst is None else self.burst


class Route(_Settings, frozen=True, kw_only=True):
    """A table ``[[gateway.routes]]``: which requests may pass, to whom, and who may send them.

    ``path`` matches itself and everything below it, on whole segments. ``access`` "public" asks
    for nothing, "session" for any sender that is known, be it by an API key, a token or a session,
    "key" for an API key, "user" for a user that an issuer vouches for: one of ``issuers``, if that
    is set. Of the sender, all ``scopes`` and any of the ``roles`` are asked; ``claims`` are those
    that the service is told. ``stream`` is for answers without an end, such as server-sent events:
    no total timeout. ``compress`` is for answers of text that share no secret with what a request
    says. ``limits`` are the rate limits that hold for it, ``concurrency`` is how many
    of its requests are at work at once. ``idempotency`` has requests of unsafe methods answered
    once for each ``Idempotency-Key``, which they may or must have. ``websocket`` lets
    clients change to WebSocket.

    ``until``: the work of a request that changes something goes on after the answer, until an event
    of one of these types, for at most ``within`` seconds. ``show``: the fields of events' data that
    the client may see meanwhile.
    """

    path: Annotated[str, rules.PATH]
    service: Annotated[str, rules.text("the name of a service")]
    methods: Annotated[tuple[str, ...], rules.methods()] = ("GET", "HEAD")
    access: Annotated[
        Literal["public", "session", "key", "user"],
        rules.one_of("public", "session", "key", "user"),
    ] = "session"
    issuers: Annotated[tuple[str, ...], rules.ISSUERS] = ()
    scopes: Annotated[tuple[str, ...], rules.SCOPES] = ()
    roles: Annotated[tuple[str, ...], rules.ROLES] = ()
    claims: Annotated[tuple[str, ...], rules.CLAIMS] = ()
    stream: Annotated[bool, rules.truth()] = False
    compress: Annotated[bool, rules.truth()] = False
    limits: Annotated[tuple[str, ...], rules.limits()] = ()
    concurrency: Annotated[int | None, rules.whole(1, 1_000_000)] = None
    idempotency: Annotated[
        Literal["off", "optional", "required"], rules.one_of("off", "optional", "required")
    ] = "off"
    websocket: Annotated[bool, rules.truth()] = False
    until: Annotated[tuple[str, ...], rules.types()] = ()
    within: Annotated[float, rules.number(_YEAR, "seconds")] = 86400.0
    show: Annotated[tuple[str, ...], rules.fields()] = ()


class IssuerSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[gateway.issuers.NAME]``: who vouches for users, by JSON Web Tokens.

    A token's ``iss`` is ``issuer``, and one of its ``aud`` one of ``audience``. Its key is one of
    ``jwks``, a URL or a file, and signs by one of ``algorithms``. ``leeway`` is the seconds by
    which clocks may differ. ``scopes_claim`` and ``roles_claim`` are the names of claims, or paths
    to what is within them, such as ``realm_access.roles``.
    """

    name: str
    issuer: Annotated[str, rules.ISSUER]
    audience: Annotated[tuple[str, ...], rules.AUDIENCE]
    jwks: Annotated[str, rules.JWKS]
    algorithms: Annotated[tuple[str, ...], rules.ALGORITHMS] = ("RS256", "PS256", "ES256", "EdDSA")
    leeway: Annotated[float, rules.upto(300, "seconds")] = 30.0
    scopes_claim: Annotated[str, rules.CLAIM] = "scope"
    roles_claim: Annotated[str, rules.CLAIM] = "roles"


class CorsSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway.cors]``: what pages of other origins may do.

    ``methods`` and ``headers`` are what they may send, as far as a route lets it through;
    ``expose`` are the headers of answers that they may read. ``credentials`` lets them use the
    session of their visitor. Browsers remember all of it for ``max_age`` seconds.
    """

    origins: Annotated[tuple[str, ...], rules.ORIGINS]
    methods: Annotated[tuple[str, ...], rules.methods()] = (
        *("GET", "HEAD", "POST"),
        *("PUT", "PATCH", "DELETE"),
    )
    headers: Annotated[tuple[str, ...], rules.HEADERS] = (
        *("Authorization", "Content-Type", "Idempotency-Key"),
        *("If-Match", "If-None-Match", "Last-Event-ID", "Prefer", "X-Api-Key", "X-Request-Id"),
    )
    expose: Annotated[tuple[str, ...], rules.HEADERS] = (
        *("ETag", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy"),
        *("Retry-After", "WWW-Authenticate", "X-Request-Id"),
    )
    credentials: Annotated[bool, rules.truth()] = False
    max_age: Annotated[int, rules.whole(0, 86400, " of seconds")] = 600


class OpenapiSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway.openapi]``: what the routes let through, described for people.

    ``title`` is the system's name, if there is none. ``document`` is the path at which each service
    has its own description. ``access`` says who may read what is made of them.
    """

    title: Annotated[str | None, rules.text("a title")] = None
    version: Annotated[str, rules.text("a version")] = "1"
    document: Annotated[str, rules.PATH] = "/openapi.json"
    access: Annotated[Literal["public", "session"], rules.one_of("public", "session")] = "session"


class SenderSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[gateway.ingest.senders.NAME]``: who may send which events to the gateway.

    Who: principals of one of the names or beginnings in ``principals``, and those with one of
    ``scopes``. What: events of the classes in ``events``, which their data has to fit, and of the
    ``types``, whose data is not looked into. ``sources`` are the sources that they may have, by
    default the principal's own; ``{principal}`` and ``{subject}`` stand for its name and for what
    follows the colon in it, ``/*`` for all below. They are published in the stream
    ``SYSTEM.STREAM``. The quotas are those of each principal at each process of the gateway, days
    are those of UTC.
    """

    name: str
    principals: Annotated[tuple[str, ...], rules.principals()] = ()
    scopes: Annotated[tuple[str, ...], rules.SCOPES] = ()
    events: Annotated[tuple[str, ...], rules.classes()] = ()
    types: Annotated[tuple[str, ...], rules.type_patterns()] = ()
    sources: Annotated[tuple[str, ...], rules.sources()] = ()
    stream: Annotated[str, rules.pattern("a name [a-z][a-z0-9-]{0,40}", rules.NAME)] = "gateway"
    events_per_second: Annotated[float | None, rules.number(1e9, "events")] = None
    bytes_per_day: Annotated[int | None, rules.whole(1, 2**50, " of bytes")] = None


class IngestSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway.ingest]``: events that others send to ``path``."""

    path: Annotated[str, rules.PATH] = "/events"
    senders: dict[str, SenderSettings] = {}


class WebhookSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[gateway.webhooks.NAME]``: a provider's webhook, whose deliveries become events.

    ``scheme`` is how the provider signs, ``secrets`` are what with: several while they change.
    ``path`` is ``/webhooks/NAME`` unless it is given. ``type`` is the type of the events: in it
    ``{header:x-github-event}`` stands for a header, ``{body:type}`` for a field of the JSON body.
    ``key`` is the field that is their key. A signature is valid for ``tolerance`` seconds. They are
    published in the stream ``SYSTEM.STREAM``.
    """

    name: str
    scheme: Annotated[
        Literal["standard", "github", "stripe"], rules.one_of("standard", "github", "stripe")
    ]
    secrets: Annotated[tuple[str, ...], rules.secrets()]
    type: Annotated[str, rules.EVENTS_OF]
    path: Annotated[str | None, rules.PATH] = None
    key: Annotated[str | None, rules.FIELD] = None
    stream: Annotated[str, rules.pattern("a name [a-z][a-z0-9-]{0,40}", rules.NAME)] = "gateway"
    tolerance: Annotated[float, rules.number(86400, "seconds")] = 300.0

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [each for each in super().__rich_repr__() if each[0] != "secrets"]

    def at(self) -> str:
        """Return the path that the provider sends to."""
        return self.path or f"/webhooks/{self.name}"


class IdempotencySettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway.idempotency]``: what is kept of requests with an ``Idempotency-Key``.

    A key is kept for ``lifetime`` seconds from its first request. ``lease`` is the seconds after
    which a request that a killed gateway left behind may be repeated. ``answer_limit`` is the bytes
    of an answer's body, above which it is not kept, ``answers`` how many are kept for one
    principal.
    """

    lifetime: Annotated[float, rules.number(_YEAR, "seconds")] = 86400.0
    lease: Annotated[float, rules.number(3600, "seconds")] = 5.0
    answer_limit: Annotated[int, rules.whole(0, 2**26, " of bytes")] = 262_144
    answers: Annotated[int, rules.whole(1, 1_000_000)] = 1000


class ProviderSettings(_Settings, frozen=True, kw_only=True):
    """An OpenID Connect provider, and what we are to it.

    ``issuer`` is its URL; it knows us by ``client_id`` and ``client_secret``, or without a secret
    as a public client. ``scopes`` are asked for. ``roles_claim`` names the claim with a person's
    roles, where dots lead into objects. ``url`` is where browsers reach us, by default where they
    say.
    """

    issuer: Annotated[str, rules.PROVIDER]
    client_id: Annotated[str, rules.text("what the provider calls this client")]
    client_secret: Annotated[Secret | None, rules.secret("the secret of this client")] = None
    scopes: Annotated[tuple[str, ...], rules.SCOPES] = (
        "openid",
        "profile",
        "email",
    )
    roles_claim: Annotated[str, rules.CLAIM] = "roles"
    url: Annotated[str | None, rules.ORIGIN] = None


class LoginSettings(ProviderSettings, frozen=True, kw_only=True):
    """The table ``[gateway.login]``: people log in at an OpenID Connect provider.

    ``name`` stands for the provider in the names of principals, such as ``login:alice``. Besides
    the roles, ``claims`` are kept. A session ends ``session_lifetime`` seconds after the login, and
    ``idle_timeout`` seconds after it was last renewed.
    """

    name: Annotated[str, rules.pattern("a name [a-z][a-z0-9-]{0,40}", rules.NAME)] = "login"
    claims: Annotated[tuple[str, ...], rules.CLAIMS] = ("name",)
    session_lifetime: Annotated[float, rules.number(_YEAR, "seconds")] = 12 * 3600.0
    idle_timeout: Annotated[float, rules.number(_YEAR, "seconds")] = 3600.0


class GatewaySettings(_Settings, frozen=True, kw_only=True):
    """The table ``[gateway]``. Limits are bytes, times are seconds.

    ``body_limit`` bounds one request body, ``buffer_limit`` all of them together, ``header_limit``
    the head of one request. ``timeout`` bounds reading a request, and again answering it;
    ``connect_timeout`` one attempt to reach a service. ``connections`` is how many clients stay
    connected: above it the one idle longest is let go. ``tls`` says that a TLS proxy stands in
    front; what ``trusted_proxies`` say of who asked them is believed. ``keys`` is a TOML file of
    hashed API keys, ``issuers`` vouch for users, ``static`` is a folder served at ``/``. ``store``
    is a SQLite file, a PostgreSQL database or a Redis that all replicas share. ``concurrency`` is
    how many requests are at work at once, on all routes together. Above ``lag_limit`` seconds by
    which the event loop lags, requests are refused. ``access_log`` is the share of requests with a
    line in the log; failures always have one.
    ``cors`` lets pages of other origins in, ``openapi`` describes what there is.
    ``jwks`` is where services of other folders and containers get the gateway's public keys.
    ``wait`` bounds how long a client may wait for the end of a flow, ``watchers`` how many clients
    may follow flows. ``tunnels`` is how many WebSockets may be open to services, each until both
    sides are silent for ``tunnel_timeout``. For ``drain_delay`` seconds after it was told to stop
    it takes requests still, though it is not ready any more.
    """

    listen: Annotated[Listen, rules.ADDRESS] = Listen("127.0.0.1", 8080)
    admin: Annotated[Listen, rules.ADDRESS] = Listen("127.0.0.1", 0)
    static: Annotated[str | None, rules.text("a folder")] = None
    store: Annotated[str, rules.GATEWAY_STORE] = "sqlite:.oyez/gateway.db"
    body_limit: Annotated[int, rules.whole(0, 2**40, " of bytes")] = 1_048_576
    buffer_limit: Annotated[int, rules.whole(0, 2**40, " of bytes")] = 67_108_864
    header_limit: Annotated[int, rules.whole(1024, 2**20, " of bytes")] = 16_384
    timeout: Annotated[float, rules.number(3600, "seconds")] = 10.0
    connect_timeout: Annotated[float, rules.number(60, "seconds")] = 1.0
    grace: Annotated[float, rules.number(3600, "seconds")] = 10.0
    drain_delay: Annotated[float, rules.upto(60, "seconds")] = 0.0
    connections: Annotated[int, rules.whole(1, 1_000_000)] = 1000
    concurrency: Annotated[int | None, rules.whole(1, 1_000_000)] = None
    lag_limit: Annotated[float, rules.number(3600, "seconds")] = 0.5
    session_lifetime: Annotated[float, rules.number(_YEAR, "seconds")] = 7 * 86400.0
    tls: Annotated[bool, rules.truth()] = False
    trusted_proxies: Annotated[tuple[Network, ...], rules.networks()] = ()
    keys: Annotated[str | None, rules.text("a file")] = None
    access_log: Annotated[float, rules.share()] = 1.0
    jwks: Annotated[str | None, rules.KEYS_AT] = None
    wait: Annotated[float, rules.number(600, "seconds")] = 30.0
    watchers: Annotated[int, rules.whole(1, 1_000_000)] = 1000
    tunnels: Annotated[int, rules.whole(1, 1_000_000)] = 1000
    tunnel_timeout: Annotated[float, rules.number(86400, "seconds")] = 300.0
    issuers: dict[str, IssuerSettings] = {}
    cors: CorsSettings | None = None
    openapi: OpenapiSettings | None = None
    limits: dict[str, Limit] = {}
    ingest: IngestSettings | None = None
    webhooks: dict[str, WebhookSettings] = {}
    idempotency: IdempotencySettings = IdempotencySettings()
    login: LoginSettings | None = None
    routes: tuple[Route, ...] = ()

    @property
    def friends(self) -> tuple[str, ...]:
        """The other origins whose pages may use the sessions of their visitors."""
        return self.cors.origins if self.cors is not None and self.cors.credentials else ()

    @property
    def uses_store(self) -> bool:
        """Whether anything is kept in ``store``: limits are not, in a file."""
        limited = not self.store.startswith("sqlite:") and any(each.limits for each in self.routes)
        return limited or any(each.idempotency != "off" for each in self.routes)


class ConsoleRoles(_Settings, frozen=True, kw_only=True):
    """The table ``[console.login.roles]``: whose roles, in the provider's words, may do what.

    Who may ``operate`` may ``read``. Who has none of these roles may do neither.
    """

    read: Annotated[tuple[str, ...], rules.ROLES] = ()
    operate: Annotated[tuple[str, ...], rules.ROLES] = ()


class ConsoleLoginSettings(ProviderSettings, frozen=True, kw_only=True):
    """The table ``[console.login]``: people sign in at an OpenID Connect provider.

    ``roles`` says who may come in at all. ``name_claim`` is the claim by which the audit names a
    person, so one that people can't choose for themselves; without it that is the subject.
    """

    roles: ConsoleRoles
    name_claim: Annotated[str, rules.CLAIM] = "email"


class ConsoleSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[console]``. ``tls`` says that a TLS proxy stands in front."""

    listen: Annotated[Listen, rules.ADDRESS] = Listen("127.0.0.1", 8081)
    tls: Annotated[bool, rules.truth()] = False
    login: ConsoleLoginSettings | None = None


class LintSettings(_Settings, frozen=True, kw_only=True):
    """The table ``[lint]``: what `oyez topology --check` can't see for itself.

    ``outward`` names provided classes, such as ``Gateway`` or ``shop.payments.Gateway``, that
    reach beyond the service.
    """

    outward: Annotated[tuple[str, ...], rules.names()] = ()


class DeploySettings(_Settings, frozen=True, kw_only=True):
    """The table ``[deploy]``: the system where it is deployed, as `oyez deploy` writes it.

    ``broker`` and ``store`` are those of the deployed system, without passwords, which come from
    secrets; in ``store``, ``{service}`` stands for the service's name. ``registry`` is what the
    names of images begin with. ``gateway_replicas`` and ``gateway_store`` are the gateway's.
    ``monitor`` adds a PodMonitor, for clusters with the operator of Prometheus.
    """

    namespace: Annotated[str | None, rules.NAMESPACE] = None
    registry: Annotated[str | None, rules.IMAGES] = None
    broker: Annotated[str | None, rules.BROKER] = None
    store: Annotated[str | None, rules.STORE] = None
    gateway_store: Annotated[str | None, rules.GATEWAY_STORE] = None
    gateway_replicas: Annotated[int, rules.whole(1, 256)] = 2
    monitor: Annotated[bool, rules.truth()] = False


class BridgeSettings(_Settings, frozen=True, kw_only=True):
    """A table ``[bridges.NAME]``: streams that are carried from one broker to another.

    ``streams`` are names, or beginnings of names such as ``shop.*``. ``store`` keeps how far it is;
    ``{bridge}`` in it stands for the bridge's name. ``grace`` and ``lease`` are seconds.
    """

    name: str
    source: Annotated[str, rules.BROKER]
    target: Annotated[str, rules.BROKER]
    streams: Annotated[tuple[str, ...], rules.streams()]
    store: Annotated[str, rules.STORE] = "sqlite:.oyez/bridge-{bridge}.db"
    admin: Annotated[Listen, rules.ADDRESS] = Listen("127.0.0.1", 0)
    grace: Annotated[float, rules.number(3600, "seconds")] = 10.0
    lease: Annotated[float, rules.number(3600, "seconds")] = 3.0

    def carries(self, stream: str) -> bool:
        """Return whether the stream is one of those."""
        return any(
            stream.startswith(each[:-1]) if each.endswith("*") else stream == each
            for each in self.streams
        )


class Companion(_Settings, frozen=True, kw_only=True):
    """A table ``[companions.NAME]``: a process that ``oyez dev`` starts beside the services."""

    name: str
    run: Annotated[tuple[str, ...], rules.command()]


class Config(_Settings, frozen=True, kw_only=True):
    """Everything that was configured, checked. Relative files and folders start at ``root``."""

    path: Path
    root: Path
    places: Mapping[str, str]
    system: SystemSettings
    services: dict[str, ServiceSettings] = {}
    gateway: GatewaySettings | None = None
    console: ConsoleSettings | None = None
    lint: LintSettings | None = None
    deploy: DeploySettings = DeploySettings()
    bridges: dict[str, BridgeSettings] = {}
    companions: dict[str, Companion] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [each for each in super().__rich_repr__() if each[0] != "places"]

    def file(self, name: str) -> Path:
        """Return the file or folder that a setting names, below ``root`` unless absolute."""
        return self.root / name

    def error(self, key: str, expected: str, found: str) -> ConfigurationError:
        """Return an error about ``key`` (such as ``gateway.listen``) that names its file and line.

        For what shows only when a setting is used: a port in use, a folder that can't be written.
        """
        place = self.places.get(key)
        return mistake(place or f"{self.path}", key, expected, found)
