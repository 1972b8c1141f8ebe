"""Manifests for Kubernetes: what they say, by golden files; what is refused; who may reach whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploying import SETTINGS, compare, planned, project

from oyez import Event, Service
from oyez.cli import main
from oyez.contracts.model import contract_of, encode
from oyez.deploy.kubernetes import FOLDER, base, overlay, secrets
from oyez.deploy.plan import Peer, Plan
from oyez.errors import ConfigurationError


def test_the_files_are_as_meant(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    compare({**base(plan), **overlay(plan, "prod")}, FOLDER)


def test_the_same_project_gives_the_same_files_wherever_it_is(tmp_path: Path) -> None:
    assert base(planned(tmp_path / "one")) == base(planned(tmp_path / "other" / "place"))


def objects(plan: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects of the base, by kind and name."""
    found = {}
    for path, text in base(plan).items():
        if path.endswith(".yaml") and not path.endswith("kustomization.yaml"):
            for each in yaml.safe_load_all(text):
                found[each["kind"], each["metadata"]["name"]] = each
    return found


def test_every_pod_fits_the_restricted_level_and_ends_within_its_time(tmp_path: Path) -> None:
    for (kind, name), each in objects(planned(tmp_path)).items():
        if kind not in ("Deployment", "StatefulSet"):
            continue
        pod = each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "cpu" not in container["resources"]["limits"]
            volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    desk = objects(planned(tmp_path))["Deployment", "desk"]["spec"]["template"]["spec"]
    assert desk["terminationGracePeriodSeconds"] == 4 + 3 * 10 + 5


def test_no_secret_and_no_url_is_in_the_manifests(tmp_path: Path) -> None:
    for path, text in base(planned(tmp_path)).items():
        if path.endswith("/oyez.toml"):
            continue
        told = [line for line in text.splitlines() if not line.startswith("#")]
        assert "postgresql://" not in "\n".join(told), path
        assert "kafka://" not in "\n".join(told), path


def test_no_password_of_the_environment_is_written(tmp_path: Path) -> None:
    secret = {"PW": "canary"}
    settings = (
        SETTINGS.replace('broker = "kafka://kafka.messaging:9092"\n', "")
        .replace("embedded:.oyez/events.db", "amqp://me:${PW}@rabbit/")
        .replace('store = "postgresql://postgres.data/{service}"\n', "")
        .replace(
            'http = "127.0.0.1:8101"',
            'http = "127.0.0.1:8101"\nstore = "postgresql://me:${PW}@postgres/{service}"',
        )
        .replace("[gateway]", '[gateway]\nstore = "redis://:${PW}@redis"')
        .replace('methods = ["GET", "POST"]', 'methods = ["GET", "POST"]\nidempotency = "optional"')
    )
    plan = planned(tmp_path, settings, **secret)
    assert "canary" not in f"{base(plan)}{overlay(plan, 'prod')}{secrets(plan)}"
    assert "redis://redis" in f"{secrets(plan)}"
    assert "postgresql://postgres/desk" in f"{secrets(plan)}"


def test_the_secrets_that_have_to_be_there_are_told(tmp_path: Path) -> None:
    settings = SETTINGS.replace('name = "counter"', 'name = "counter"\nclaim_check = "${BUCKET}"')
    found = secrets(planned(tmp_path, settings, BUCKET="s3://bucket/prefix"))
    assert set(found) == {
        *("desk-store", "desk-migrate", "gateway", "oyez", "oyez-scale", "oyez-variables")
    }
    assert found["oyez-variables"] == {"BUCKET": "the variable BUCKET of oyez.toml"}
    assert set(found["oyez"]) == {"broker", "token"}


def allowed(plan: Any) -> set[tuple[str, str]]:
    """Return who may connect to whom by the policies: both sides have to agree."""
    policies = {
        name: each["spec"]
        for (kind, name), each in objects(plan).items()
        if kind == "NetworkPolicy"
    }
    names = {each.name for each in plan.parts}
    found = set()
    for one in names:
        for other in names - {one}:
            out = {
                port["port"]
                for rule in policies[one]["egress"]
                for port in rule["ports"]
                if any(_selects(to, other, plan) for to in rule["to"])
            }
            into = {
                port["port"]
                for rule in policies[other]["ingress"]
                for port in rule["ports"]
                if any(_selects(source, one, plan) for source in rule["from"])
            }
            if out & into:
                found.add((one, other))
            assert out == into, f"{one} to {other}: one side is open alone"
    return found


def _selects(peer: dict[str, Any], name: str, plan: Any) -> bool:
    labels = peer.get("podSelector", {}).get("matchLabels", {"no": "pod"})
    pod = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": plan.part(name).kind}
    return all(pod.get(key) == value for key, value in labels.items())


def test_only_who_has_to_may_connect(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert allowed(plan) == {
        ("gateway", "desk"),  # its route
        ("desk", "gateway"),  # its keys
        ("console", "desk"),
        ("console", "books"),
    }
    assert objects(plan)["NetworkPolicy", "default"]["spec"]["podSelector"] == {}


def test_a_service_that_calls_another_may_connect_to_it(tmp_path: Path) -> None:
    settings = SETTINGS.replace('storage = "5Gi"', 'storage = "5Gi"\negress = ["desk:8000"]')
    assert ("books", "desk") in allowed(planned(tmp_path, settings))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('broker = "kafka://kafka.messaging:9092"\n', ""), ["system.broker", "[deploy]"]),
        (
            (
                'app = "counter_books.service:service"',
                'app = "counter_books.service:service"\nreplicas = 3',
            ),
            ["services.books.replicas", "SQLite file", "postgresql://"],
        ),
        (
            ('"sqlite:.oyez/books.db"', '"sqlite:/srv/books.db"'),
            ["services.books.deploy.store", "the folder .oyez"],
        ),
        (
            ("kafka://kafka", "kafka://me:canary@kafka"),
            ["deploy.broker", "${NAME}"],
        ),
        (("services.books", "services.gateway"), ["services.gateway", "a name that no other"]),
        (('cpu = "200m"', 'cpu = "much"'), ["services.desk.deploy.cpu", '"100m"']),
        (('include = ["shared"]', 'include = ["../up"]'), ["services.desk.deploy.include"]),
        (('egress = ["10', 'egress = ["no port", "10'), ["services.desk.deploy.egress"]),
    ],
)
def test_what_can_not_be_deployed_is_refused(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    settings = SETTINGS.replace(*change)
    assert settings != SETTINGS
    with pytest.raises(ConfigurationError) as refused:
        planned(tmp_path, settings)
    for word in words:
        assert word in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_gateway_that_counts_in_a_file_is_one(tmp_path: Path) -> None:
    settings = SETTINGS.replace(
        'methods = ["GET", "POST"]', 'methods = ["GET", "POST"]\nidempotency = "optional"'
    )
    with pytest.raises(ConfigurationError, match=r"deploy\.gateway_replicas"):
        planned(tmp_path, settings)
    one = settings.replace("[deploy]", "[deploy]\ngateway_replicas = 1")
    assert ("StatefulSet", "gateway") in objects(planned(tmp_path, one))
    shared = settings.replace("[deploy]", '[deploy]\ngateway_store = "redis://redis.data"')
    assert ("Deployment", "gateway") in objects(planned(tmp_path, shared))


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `oyez deploy`; returns the exit code, and all that was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["deploy", *arguments])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OYEZ_PROJECT", raising=False)
    return tmp_path


def test_stale_files_are_told_and_written_again(here: Path, run: Run) -> None:
    desk = here / FOLDER / "base" / "desk.yaml"
    assert run("kubernetes", "--check")[0] == 1
    assert not desk.exists()
    assert run("kubernetes", "--overlay", "prod")[0] == 0
    assert run("kubernetes", "--check")[0] == 0
    (here / "oyez.toml").write_text(SETTINGS.replace('cpu = "200m"', 'cpu = "300m"'))
    code, output = run("kubernetes", "--check")
    assert code == 1
    assert f"{FOLDER}/base/desk.yaml: stale" in output
    assert run("kubernetes")[0] == 0
    assert "300m" in desk.read_text()


def test_an_edited_file_stays_unless_forced(here: Path, run: Run) -> None:
    run("kubernetes")
    desk, books = (here / FOLDER / "base" / f"{name}.yaml" for name in ("desk", "books"))
    desk.write_text(desk.read_text().replace("200m", "500m"))
    books.unlink()
    code, output = run("kubernetes")
    assert code == 2
    assert f"{desk}" in output.replace("\n", "")
    assert "--force" in output
    assert not books.exists(), "a refused run must write nothing"
    assert run("kubernetes", "--force")[0] == 0
    assert "500m" not in desk.read_text()


def test_an_overlay_is_begun_once_and_then_left_alone(here: Path, run: Run) -> None:
    run("kubernetes", "--overlay", "prod")
    file = here / FOLDER / "overlays" / "prod" / "kustomization.yaml"
    file.write_text("# mine\n")
    assert run("kubernetes", "--overlay", "prod")[0] == 0
    assert file.read_text() == "# mine\n"
    assert run("kubernetes", "--overlay", "../up")[0] == 2


def test_the_file_of_a_service_that_is_gone_goes(here: Path, run: Run) -> None:
    run("kubernetes")
    base = here / FOLDER / "base"
    hand_made, edited = base / "extra.yaml", base / "edited.yaml"
    hand_made.write_text("kind: ConfigMap\n")
    edited.write_text((base / "desk.yaml").read_text() + "# by hand\n")
    text = SETTINGS[: SETTINGS.index("[services.books]")] + SETTINGS[SETTINGS.index("[gateway]") :]
    (here / "oyez.toml").write_text(text)
    code, output = run("kubernetes")
    assert code == 0, output
    assert not (base / "books.yaml").exists()
    assert hand_made.exists()
    assert edited.exists()


PROGRAM = """
[services.points]
url = "http://127.0.0.1:9100/events"
handles = ["counter.sale.made"]
bridge.secret = "${SECRET}"
bridge.allow = ["10.0.0.0/8"]
bridge.contract = "points.json"
"""


class SaleMade(Event, type="counter.sale.made", key="till"):
    till: str


def deployed(url: str) -> str:
    return f'{PROGRAM}[services.points.deploy]\nurl = "{url}"\n'


def with_program(root: Path, text: str, **environ: str) -> Plan:
    points = Service("points")

    @points.on(SaleMade)
    def post(sale: SaleMade) -> None: ...

    root.mkdir(exist_ok=True)
    (root / "points.json").write_bytes(encode(contract_of(points, "counter")))
    secret = "whsec_dGhlIHZhbHVlIG9mIGEgdmFyaWFibGUh"
    return planned(root, SETTINGS + text, SECRET=secret, **environ)


def test_a_bridge_reaches_its_program_where_that_is_deployed(tmp_path: Path) -> None:
    text = deployed("http://program.points:9100/events")
    found = objects(with_program(tmp_path, text))
    (container,) = found["Deployment", "points"]["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert told["OYEZ_SERVICES_POINTS_URL"] == "http://program.points:9100/events"
    egress = found["NetworkPolicy", "points"]["spec"]["egress"]
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": "points"}}
    way = {"to": [{"namespaceSelector": namespace}], "ports": [{"port": 9100, "protocol": "TCP"}]}
    assert way in egress
    plan = with_program(tmp_path, text)
    (part,) = [each for each in plan.parts if each.name == "points"]
    assert part.include == ("points.json",)
    for url, port in (("http://program", 80), ("https://program.example/x", 443)):
        (part,) = [e for e in with_program(tmp_path, deployed(url)).parts if e.name == "points"]
        assert Peer(url.partition("://")[2].partition("/")[0], port) in part.peers


def test_a_program_in_the_same_pod_needs_no_way_out(tmp_path: Path) -> None:
    plan = with_program(tmp_path, deployed("http://127.0.0.1:9100/events"))
    (part,) = [each for each in plan.parts if each.name == "points"]
    assert "OYEZ_SERVICES_POINTS_URL" not in part.environment
    assert {peer.port for peer in part.peers} == {9092, 5432}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PROGRAM, "deploy.url: expected where the program is when it is deployed"),
        (deployed("http://${HOST}/events"), "deploy.url: expected a URL without var"),
        (
            deployed("http://program/").replace("bridge.allow", "# "),
            "deploy.url: expected https, or http within the networks",
        ),
        (
            deployed("https://program/").replace("bridge.secret", "# "),
            "bridge.secret: expected a secret that signs, as the deploy.url is of another machine",
        ),
    ],
)
def test_where_a_program_is_has_to_be_known(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        with_program(tmp_path, text, HOST="program.points")
    assert f"services.points.{problem}" in str(raised.value)


def test_a_url_is_only_deployed_where_there_is_one(tmp_path: Path) -> None:
    text = SETTINGS.replace('storage = "5Gi"', 'url = "http://127.0.0.1:9100/"')
    with pytest.raises(
        ConfigurationError, match=r"books\.deploy\.url: expected a service with a url"
    ):
        planned(tmp_path, text)
