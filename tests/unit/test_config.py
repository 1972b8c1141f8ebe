"""Settings: what is read, which source wins, and the one line that a mistake gets."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.config import Config, Listen, Replicas, load, read_file
from oyez.endpoint import redact
from oyez.errors import ConfigurationError

SHOP = """\
[system]
name = "shop"

[services.orders]
app = "orders.service:service"
http = "0.0.0.0:9001"

[services.stock-items]
app = "stock:service"
replicas = 3

[gateway]
static = "web"

[[gateway.routes]]
path = "/orders"
service = "orders"
methods = ["GET", "POST"]

[[gateway.routes]]
path = "/orders/live"
service = "orders"
access = "public"
stream = true

[console]

[companions.psp]
run = "python -m 'fake psp'"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "oyez.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problem(path: Path, environ: dict[str, str] | None = None) -> str:
    """The one line that a mistake gets, without the folder."""
    with pytest.raises(ConfigurationError) as caught:
        load(path, environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{path.parent}{os.sep}", "")


def test_reads_everything_with_defaults(write) -> None:
    config = load(write(SHOP), {})
    assert config.system.broker == "embedded:.oyez/events.db"
    assert config.services["orders"].store == "sqlite:.oyez/orders.db"
    assert config.services["orders"].http == Listen("0.0.0.0", 9001)
    assert config.services["orders"].reached_at() == Listen("127.0.0.1", 9001)
    assert config.services["stock-items"].replicas == Replicas(3, 3)
    assert config.services["stock-items"].reached_at() is None
    assert config.gateway is not None
    assert config.gateway.listen == Listen("127.0.0.1", 8080)
    assert [route.stream for route in config.gateway.routes] == [False, True]
    assert config.console is not None
    assert config.companions["psp"].run == ("python", "-m", "fake psp")
    assert config.file("web") == config.root / "web"
    with pytest.raises(AttributeError):
        config.system.name = "other"  # type: ignore[misc]


def test_issuers_and_what_routes_ask_for(write) -> None:
    asks = 'access = "user"\nissuers = ["staff"]\nscopes = ["a:b"]\nroles = ["c d"]\n'
    config = load(write(ROUTED + asks + ISSUER), {"OYEZ_GATEWAY_ISSUERS_STAFF_JWKS": "k.json"})
    assert config.gateway is not None
    (route,) = config.gateway.routes
    assert (route.issuers, route.scopes, route.roles) == (("staff",), ("a:b",), ("c d",))
    staff = config.gateway.issuers["staff"]
    assert (staff.name, staff.audience, staff.jwks) == ("staff", ("shop",), "k.json")
    assert staff.algorithms == ("RS256", "PS256", "ES256", "EdDSA")
    for jwks in ("http://localhost:1/k", "http://127.0.0.2/k", "http://[::1]:5/k", "a/b.json"):
        config = load(write(ROUTED + ISSUER.replace("https://h/keys", jwks)), {})
        assert config.gateway is not None
        assert config.gateway.issuers["staff"].jwks == jwks
    several = ISSUER.replace('"shop"', '["shop", "admin"]')
    config = load(write(ROUTED + several), {})
    assert config.gateway is not None
    assert config.gateway.issuers["staff"].audience == ("shop", "admin")


def test_a_rate_is_a_number_in_a_time(write) -> None:
    rates = {"100/s": (100, 1), "600/min": (600, 60), "5000/h": (5000, 3600)}
    tables = [f'[gateway.limits.l{n}]\nrate = "{rate}"\n' for n, rate in enumerate(rates)]
    config = load(write(SYSTEM + "[gateway]\n" + "".join(tables) + "burst = 7\n"), {})
    assert config.gateway is not None
    found = [each.rate for each in config.gateway.limits.values()]
    assert [(rate.count, rate.seconds) for rate in found] == list(rates.values())
    assert [str(rate) for rate in found] == list(rates)
    assert [each.size for each in config.gateway.limits.values()] == [100, 600, 7]
    assert [each.name for each in config.gateway.limits.values()] == ["l0", "l1", "l2"]


def test_is_found_upwards_and_in_a_folder(write, monkeypatch) -> None:
    path = write(SHOP)
    deep = path.parent / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert load(environ={}).path == path
    assert load(path.parent, {}).path == path
    monkeypatch.chdir("/")
    with pytest.raises(
        ConfigurationError, match=r"expected oyez\.toml in this folder or one above"
    ):
        load(environ={})


def test_the_environment_wins(write) -> None:
    environ = {
        "OYEZ_BROKER": "memory:",
        "OYEZ_PARTITIONS": "16",
        "OYEZ_RETENTION_DAYS": "1.5",
        "OYEZ_STORE": "sqlite:/data/{service}.db",
        "OYEZ_SERVICES_ORDERS_STORE": "postgresql://db/orders",
        "OYEZ_SERVICES_STOCK_ITEMS_HTTP": "[::1]:80",
        "OYEZ_GATEWAY_LISTEN": "localhost:0",
        "OYEZ_GATEWAY_TLS": "true",
        "OYEZ_TOKEN": "reserved",
        "OYEZ_PROJECT": "reserved",
        "OYEZ_SOMETHING": "not ours",
    }
    config = load(write(SHOP), environ)
    assert config.system.broker == "memory:"
    assert config.system.partitions == 16
    assert config.system.retention_days == 1.5
    assert config.services["orders"].store == "postgresql://db/orders"
    assert config.services["stock-items"].store == "sqlite:/data/stock-items.db"
    assert config.services["stock-items"].http == Listen("::1", 80)
    assert config.gateway is not None
    assert config.gateway.listen == Listen("localhost", 0)
    assert config.gateway.tls is True


def test_the_environment_can_add_a_table(write) -> None:
    path = write('[system]\nname = "shop"\n')
    assert load(path, {}).console is None
    console = load(path, {"OYEZ_CONSOLE_LISTEN": "127.0.0.1:9"}).console
    assert console is not None
    assert console.listen.port == 9


def test_variables_in_strings(write) -> None:
    path = write('[system]\nname = "s"\nbroker = "kafka://u:${SECRET}@h"\ndata = "a$$b$c"\n')
    config = load(path, {"SECRET": "p$w"})
    assert config.system.broker == "kafka://u:p$w@h"
    assert config.system.data == "a$b$c"
    assert problem(path, {"SECRE": "x"}) == (
        "oyez.toml:3: system.broker: expected the environment variable SECRET, "
        "found it is not set; did you mean SECRE?"
    )
    assert "closed by a brace" in problem(write('[system]\nname = "${x"\n'))


def outcome(path: Path, environ: dict[str, str]) -> Config | ConfigurationError:
    try:
        return load(path, environ)
    except ConfigurationError as error:
        return error


SYSTEM = '[system]\nname = "shop"\n'
SERVICE = SYSTEM + '[services.orders]\napp = "a:b"\n'
ISSUER = """
[gateway.issuers.staff]
issuer = "https://h/shop"
audience = "shop"
jwks = "https://h/keys"
"""
ROUTED = SERVICE + 'http = "h:1"\n[[gateway.routes]]\npath = "/orders"\nservice = "orders"\n'
KEYED = ROUTED + 'methods = ["POST"]\nidempotency = "optional"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "oyez.toml:1: system: expected a table, found nothing"),
        ("[system]\n", "oyez.toml:1: system.name: expected a name such as"),
        ("system = 3", "oyez.toml:1: system: expected a table, found 3"),
        ("[system\n", "oyez.toml:1:8: expected a TOML file, found Expected"),
        ("\n\tname = ", "oyez.toml:2: expected a TOML file, found Invalid value"),
        ("a = [", "oyez.toml:1: expected a TOML file, found"),
        ("a = " + "[" * 5000, "oyez.toml: expected a TOML file, found a value nested too deeply"),
        ("a = 1" + "0" * 5000, "oyez.toml:1: expected a TOML file, found"),
        (b"a = 1\nb = '\xff'", "oyez.toml:2: expected UTF-8 text, found byte 0xff"),
        (SYSTEM + "brokr = 1", "oyez.toml:3: system.brokr: expected one of name, broker, "),
        (SYSTEM + "[gatway]", "found an unknown key; did you mean gateway?"),
        (SYSTEM + '"a\\nb" = 1', 'oyez.toml:3: system."a\\nb": expected'),
        (
            SYSTEM + "partitions = true",
            "system.partitions: expected a whole number from 1 to 4096, found true",
        ),
        (SYSTEM + "partitions = -1", "found -1"),
        (SYSTEM + "partitions = 0x" + "f" * 5000, "found a very large number"),
        (SYSTEM + "partitions = 8.0", "found 8.0"),
        (SYSTEM + "retention_days = nan", "expected a number of days above 0, at most 36500"),
        (SYSTEM + "retention_days = inf", "found inf"),
        (SYSTEM + "log = 1979-05-27", "found 1979-05-27"),
        (SYSTEM + 'data = "\\u0000"', "oyez.toml:3: system.data: expected a folder"),
        (SYSTEM + 'broker = "kafak://h"', 'found "kafak://h"; did you mean kafka?'),
        (SYSTEM + 'broker = "kafka:"', "oyez.toml:3: system.broker: expected a broker: one of"),
        (SYSTEM + 'broker = "nats://h:99999"', "system.broker: nats://h:99999: expected HOST:PORT"),
        (
            SYSTEM + 'broker = "kafka:h"',
            "oyez.toml:3: system.broker: kafka:h: expected SCHEME://HOST",
        ),
        (SYSTEM + 'broker = "memory:x"', "expected memory: and nothing behind it"),
        (SYSTEM + 'broker = "kafka"', "one of embedded:…, memory:…, kafka:…, nats:…, amqp:…, "),
        (SERVICE + 'store = "postgresql:db"', "services.orders.store: postgresql:db: expected"),
        (SYSTEM + "services = 1", "oyez.toml:3: system.services: expected one of"),
        ("services = 1\n" + SYSTEM, "expected tables [services.NAME], found 1"),
        (SYSTEM + '[services."Orders"]', "oyez.toml:3: services.Orders: expected a name [a-z]"),
        (SYSTEM + "[services.orders]\n", "oyez.toml:3: services.orders.app: expected"),
        (
            SERVICE + 'grace = "10s"',
            "oyez.toml:5: services.orders.grace: expected a number of "
            'seconds above 0, at most 3600, found "10s"',
        ),
        (SERVICE + 'http = "127.0.0.1:65536"', 'expected an address "HOST:PORT"'),
        (SERVICE + 'http = "[:::]:1"', "services.orders.http"),
        (SERVICE + "replicas = 257", 'a range such as "1..4", found 257'),
        (SERVICE + 'store = "mysql://h"', "expected a store: one of sqlite:…, postgresql:…, found"),
        (
            SERVICE + '[gateway]\nstore = "mysql://h"',
            "oyez.toml:6: gateway.store: expected a store of the gateway: one of sqlite:PATH, "
            'postgresql://…, redis://…, rediss://…, found "mysql://h"',
        ),
        (SERVICE + '[gateway]\nstore = "reddis://h"', "did you mean redis?"),
        (SERVICE + '[gateway]\nstore = "sqlite:"', "one of sqlite:PATH, postgresql://…, redis"),
        (SERVICE + '[gateway]\nstore = "redis:h"', "gateway.store: redis:h: expected SCHEME://"),
        (SERVICE + '[gateway]\nstore = "redis://h:99999"', "gateway.store: redis://h:99999: exp"),
        (SERVICE + "[gateway]\nstore = 1", "gateway.store: expected a store of the gateway"),
        (
            SERVICE + '[gateway.limits.a]\nrate = "5 per hour"',
            'oyez.toml:6: gateway.limits.a.rate: expected a rate such as "100/s", "600/min" or '
            '"5000/h", at most 999999, found "5 per hour"',
        ),
        (SERVICE + '[gateway.limits.a]\nrate = "0/s"', "gateway.limits.a.rate: expected a rate"),
        (SERVICE + '[gateway.limits.a]\nrate = "1000000/s"', "rate: expected a rate"),
        (SERVICE + "[gateway.limits.a]\nburst = 5", "gateway.limits.a.rate: expected a rate such"),
        (SERVICE + '[gateway.limits.a]\nrate = "5/s"\nburst = 0', "from 1 to 1000000, found 0"),
        (SERVICE + '[gateway.limits.a]\nrate = "5/s"\nby = "ip"', 'one of "principal", "key", "ad'),
        (SERVICE + '[gateway.limits.A]\nrate = "5/s"', "expected a name [a-z]"),
        (
            ROUTED + 'limits = ["order"]\n[gateway.limits.orders]\nrate = "5/s"',
            "oyez.toml:9: gateway.routes[0].limits: expected a limit, one of orders, found "
            '"order"; did you mean orders?',
        ),
        (ROUTED + 'limits = "orders"', "expected a list of names of [gateway.limits.NAME]"),
        (
            ROUTED + "concurrency = 0",
            "gateway.routes[0].concurrency: expected a whole number from 1",
        ),
        (
            SERVICE + '[gateway]\ntrusted_proxies = ["10.0.0.1/8"]',
            'expected a list of addresses and networks such as "10.0.0.0/8" or "::1", found a list',
        ),
        (SERVICE + '[companions.orders]\nrun = "x"', "expected a name that no service has"),
        (SERVICE + '[companions.x]\nrun = "\'"', "companions.x.run: expected a command"),
        (SERVICE + '[gateway]\nroutes = "x"', "expected tables [[gateway.routes]]"),
        (ROUTED + 'methods = ["get"]', "oyez.toml:9: gateway.routes[0].methods: expected a list"),
        (
            ROUTED.replace('"orders"\n', '"order"\n'),
            "oyez.toml:8: gateway.routes[0].service: "
            'expected a service, one of orders, found "order"; did you mean orders?',
        ),
        (ROUTED.replace('"h:1"', '"h:0"'), "expected a service that listens"),
        (ROUTED.replace('http = "h:1"\n', ""), "found no http"),
        (ROUTED.replace("/orders", "/a/../b"), "expected a path that the gateway doesn't use"),
        (ROUTED.replace("/orders", "/orders/"), 'expected a path such as "/orders"'),
        (ROUTED.replace("/orders", "/session"), "expected a path that the gateway doesn't use"),
        (KEYED + 'access = "public"', 'gateway.routes[0].access: expected "session", as an idem'),
        (KEYED + "stream = true", "gateway.routes[0].stream: expected false, as idempotency keeps"),
        (
            KEYED.replace("POST", "HEAD"),
            "gateway.routes[0].methods: expected a method such as POST",
        ),
        (KEYED.replace("optional", "on"), 'expected one of "off", "optional", "required", found'),
        (
            SERVICE + "[gateway.idempotency]\nlease = 0",
            "gateway.idempotency.lease: expected a numb",
        ),
        (SERVICE + "[gateway.idempotency]\nanswers = 0", "gateway.idempotency.answers: expected a"),
        (SERVICE + "[gateway.idempotency]\nlifetime = 1e9", "gateway.idempotency.lifetime: expect"),
        (
            ROUTED + '[[gateway.routes]]\npath = "/orders"\nservice = "orders"',
            "oyez.toml:10: gateway.routes[1].path: expected each path and method once, found GET ",
        ),
        (
            ROUTED + 'access = "usr"',
            'gateway.routes[0].access: expected one of "public", "session", "key", "user", '
            'found "usr"; did you mean user?',
        ),
        (ROUTED + 'access = "key"', "expected a file of API keys: set keys in [gateway], found"),
        (
            ROUTED + 'access = "public"\nscopes = ["a"]',
            'oyez.toml:9: gateway.routes[0].access: expected "session", "key" or "user", as there',
        ),
        (ROUTED + 'access = "public"\nroles = ["a"]', "as there are scopes or roles"),
        (ROUTED + 'scopes = ["a b"]', 'expected a list of scopes such as "orders:write"'),
        (ROUTED + 'roles = "clerk"', 'expected a list of roles such as "clerk"'),
        (ROUTED + "claims = [1]", "gateway.routes[0].claims: expected a list of names of claims"),
        (ROUTED + 'issuers = ["staff"]', "expected issuers, of (none), found"),
        (
            ROUTED + 'access = "user"\nissuers = ["staf"]\n' + ISSUER,
            'gateway.routes[0].issuers: expected issuers, of staff, found "staf"; did you mean',
        ),
        (ROUTED + 'issuers = ["staff"]\n' + ISSUER, 'expected "user", as there are issuers'),
        (ROUTED + ISSUER.replace("staff", "key"), "expected a name that the gateway doesn't use"),
        (
            ROUTED + ISSUER + ISSUER.replace("staff", "other"),
            "gateway.issuers.other.issuer: expected each issuer once, with a list of audiences, "
            "found that of staff again",
        ),
        (ROUTED + ISSUER.replace("https://h/keys", "http://h/keys"), "expected an https URL, an"),
        (ROUTED + ISSUER.replace("https://h/keys", "http://10.0.0.1/k"), "expected an https URL"),
        (ROUTED + ISSUER.replace("https://h/keys", "ftp://h/keys"), "expected an https URL, an"),
        (ROUTED + ISSUER.replace("https://h/keys", "https://u:p@h/k"), "expected an https URL"),
        (ROUTED + ISSUER.replace("https://h/shop", "h/shop"), "issuer: expected a URL such as"),
        (ROUTED + ISSUER.replace('"shop"', "[]"), 'expected an audience such as "shop", or a'),
        (ROUTED + ISSUER.replace('audience = "shop"\n', ""), "audience: expected an audience"),
        (ROUTED + ISSUER + 'algorithms = ["HS256"]', "expected a list of RS256, RS384, RS512, PS"),
        (ROUTED + ISSUER + 'algorithms = ["none"]', "algorithms: expected a list of RS256, RS384"),
        (ROUTED + ISSUER + "algorithms = []", "gateway.issuers.staff.algorithms: expected a list"),
        (ROUTED + ISSUER + "leeway = 301", "expected a number of seconds from 0 to 300, found 301"),
        (ROUTED + ISSUER + "leeway = -1", "expected a number of seconds from 0 to 300, found -1"),
        (ROUTED + ISSUER + 'roles_claim = ""', 'or a path such as "realm_access.roles", found ""'),
    ],
)
def test_a_mistake_gets_one_line(write, text: str | bytes, expected: str) -> None:
    assert expected in problem(write(text))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OYEZ_PARTITIONS", "many", "environment: OYEZ_PARTITIONS: expected a whole number from 1"),
        ("OYEZ_BROKER", "", "environment: OYEZ_BROKER: expected a broker"),
        ("OYEZ_DATA", "\udcff", "environment: OYEZ_DATA: expected a folder"),
        (
            "OYEZ_GATEWAY_LISTN",
            "x",
            "environment: OYEZ_GATEWAY_LISTN: expected a setting, found an "
            "unknown variable; did you mean OYEZ_GATEWAY_LISTEN?",
        ),
        ("OYEZ_SYSTEM_BROKER", "x", "did you mean OYEZ_BROKER?"),
        ("OYEZ_SERVICES_NONE_APP", "x", "expected a setting"),
        ("OYEZ_GATEWAY_ROUTES", "x", "expected a setting"),
    ],
)
def test_a_mistake_in_the_environment(write, name: str, value: str, expected: str) -> None:
    assert expected in problem(write(SERVICE + "[gateway]\n"), {name: value})


def test_bom_and_tabs_are_fine(write) -> None:
    assert load(write(b"\xef\xbb\xbf[system]\r\n\tname\t=\t'shop'\r\n"), {}).system.name == "shop"


def test_lines_are_found_among_tables_and_long_strings(write) -> None:
    text = "system.name = 's'\nsystem.data = '''\n[system]\nname = 1\n'''\n"
    assert problem(write(text)).startswith("oyez.toml:2: system.data: expected a folder")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problem(tmp_path / "none.toml") == "none.toml: expected a file, found none"
    assert "oyez.toml: expected a file, found none" in problem(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert problem(fifo) == "fifo: expected a file, found something else"
    with pytest.raises(ConfigurationError):
        load(Path("a\0b"), {})


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root reads everything: a test about permissions runs as nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_file_without_permission(nobody: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "oyez.toml"
        path.write_text(SHOP)
        path.chmod(0)
        assert "expected a file that can be read, found Permission denied" in problem(path)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://user:{}@h1:9092,h2:9092",
        "amqp://user:{}@host//",
        "nats://{}@host",
        "sns+sqs://KEY:{}@region",
        "postgresql://host/db?user=u&password={}&x=1",
        "kafka:user:{}@h",
        "kafak://user:{}@h@h:1",
        "user:{}@h",
    ],
)
@pytest.mark.parametrize("password", ["canary", "can/ary", "can@ary:x", "c?anary=a"])
def test_passwords_never_show(write, url: str, password: str) -> None:
    secret = url.format(password)
    if "?" in url and password != "canary":
        return  # such a password can't be told from the rest of a query
    assert password not in redact(secret)
    assert redact(redact(secret)) == redact(secret)
    assert password not in problem(write(SYSTEM), {"OYEZ_BROKER": "x" + secret})
    assert password not in problem(write(SYSTEM + f'broker = "x{secret}"'))
    assert password not in repr(outcome(write(SYSTEM), {"OYEZ_BROKER": secret}))
    text = SYSTEM + "[gateway]\n"
    assert password not in repr(outcome(write(text), {"OYEZ_GATEWAY_STORE": secret}))
    assert password not in repr(outcome(write(f'{text}store = "{secret}"'), {}))


def test_redact_keeps_what_is_no_secret() -> None:
    assert redact("kafka://user:pw@h1:9092,h2:9092/x") == "kafka://user:***@h1:9092,h2:9092/x"
    assert redact("embedded:.oyez/events.db") == "embedded:.oyez/events.db"
    assert redact("postgresql://h/d?sslmode=on") == "postgresql://h/d?sslmode=on"


def test_errors_found_later_name_their_line(write) -> None:
    config = load(write(SHOP), {"OYEZ_GATEWAY_LISTEN": "127.0.0.1:1"})
    assert "oyez.toml:13: gateway.static: expected" in str(config.error("gateway.static", "x", "y"))
    text = str(config.error("gateway.listen", "a free port", "127.0.0.1:1 in use"))
    assert text.startswith("environment: OYEZ_GATEWAY_LISTEN: gateway.listen: expected a free port")


class Secrets(msgspec.Struct, frozen=True):
    pass


def test_other_files_never_show_values(write) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_file(write('canary-key = "canary-value"'), Secrets)
    assert "canary-value" not in str(caught.value)


_FRAGMENT = st.sampled_from(
    [*SHOP.splitlines(), *SHOP.split(), "=", "[", "]", "\n", '"', "'''", "1", "-1", "nan", "true"]
)
_TEXT = st.one_of(
    st.text(max_size=200), st.lists(_FRAGMENT, max_size=20).map("\n".join), st.binary(max_size=80)
)


@given(text=_TEXT)
def test_any_text_is_settings_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert "\n" not in str(outcome(path, {}))


_VALUE = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.text()), st.just({})
)


@given(
    key=st.sampled_from(["broker", "partitions", "retention_days", "data", "log"]),
    value=_VALUE,
    variable=st.text(alphabet=st.characters(blacklist_characters="\0"), max_size=20),
)
def test_any_value_is_a_setting_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, variable: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.toml"
    text = f"[system]\nname = 'shop'\n{key} = {json.dumps(value)}\n"
    path.write_text(text)
    for environ in ({}, {f"OYEZ_{key.upper()}": variable}):
        assert "\n" not in str(outcome(path, environ))
