"""Images, the Compose file and pipelines: what they say, by golden files, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploying import SETTINGS, compare, planned, project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oyez.cli import main
from oyez.config import load
from oyez.deploy.compose import FILE, compose
from oyez.deploy.generated import signed
from oyez.deploy.image import check_base, image
from oyez.deploy.pipelines import GITHUB, GITLAB, github, gitlab
from oyez.deploy.plan import Plan, plan
from oyez.deploy.yaml import document
from oyez.errors import ConfigurationError
from oyez.project import Project

Run = Callable[..., tuple[int, str]]
DIGEST = "python:3.13-slim@sha256:" + 64 * "0"
BESIDE = SETTINGS.replace("kafka.messaging", "kafka").replace("postgres.data", "postgresql")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `oyez deploy` in the system; returns the exit code, and all that was printed."""
    project(tmp_path)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OYEZ_PROJECT", raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["deploy", *arguments])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def vendored(name: str) -> dict[str, Any]:
    """Return a schema that check-jsonschema brings."""
    text = files("check_jsonschema").joinpath(f"builtin_schemas/vendor/{name}.json").read_text()
    return dict(json.loads(text))


def test_the_files_of_images_are_as_meant(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    for name in ("desk", "gateway"):
        made = image(plan, plan.part(name), tmp_path, DIGEST)
        without = {path: re.sub(r"==[\w.]+", "==VERSION", text) for path, text in made.items()}
        compare(without, f"deploy/{name}")


def test_an_image_has_its_own_folder_and_extras_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    for name, folder, other in (
        ("desk", "counter_desk", "counter_books"),
        ("books", "counter_books", "counter_desk"),
    ):
        made = image(plan, plan.part(name), tmp_path, DIGEST)
        text = made[f"deploy/{name}/Containerfile"]
        assert f"COPY {folder} " in text
        assert other not in "".join(made.values())
    wanted = {n: image(plan, plan.part(n), tmp_path, None) for n in ("desk", "books")}
    assert "oyez[kafka,postgresql]==" in wanted["desk"]["deploy/desk/requirements.in"]
    assert "oyez[kafka]==" in wanted["books"]["deploy/books/requirements.in"]


def test_the_requirements_of_a_services_own_code_are_in_its_image(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (tmp_path / "counter_desk" / "requirements.in").write_text("stripe\n")
    made = image(plan, plan.part("desk"), tmp_path, None)["deploy/desk/requirements.in"]
    assert made.splitlines()[1:] == ["-r ../../counter_desk/requirements.in"]


@pytest.mark.parametrize(
    "base",
    ["python:3.13-slim", "python@sha256:12", "a b@sha256:" + 64 * "0", "x\n@sha256:" + 64 * "0"],
)
def test_a_base_that_may_be_another_tomorrow_is_refused(base: str) -> None:
    with pytest.raises(ConfigurationError, match="--base: expected an image by its digest"):
        check_base(base)


def test_a_containerfile_keeps_its_base(run: Run, tmp_path: Path) -> None:
    assert run("image", "desk")[0] == 0
    file = tmp_path / "deploy/desk/Containerfile"
    assert "\nARG BASE\n" in file.read_text()
    assert run("image", "desk", "--base", DIGEST)[0] == 0
    assert run("image", "desk", "--check")[0] == 0
    assert f"\nARG BASE={DIGEST}\n" in file.read_text()
    code, output = run("image", "dusk")
    assert code == 2
    assert "there are: desk, books, gateway, console, oyez-scale" in output


def test_the_lock_that_is_missing_is_told(run: Run, tmp_path: Path) -> None:
    assert "pip-compile --generate-hashes" in run("image", "desk")[1]
    (tmp_path / "deploy/desk/requirements.txt").write_text("")
    assert "is missing" not in run("image", "desk")[1]


def on_one_machine(root: Path, text: str = BESIDE) -> Plan:
    project(root, text)
    return plan(Project(load(root, {})), single=True)


def test_the_compose_file_is_as_meant_and_fits_the_schema(tmp_path: Path) -> None:
    text = compose(on_one_machine(tmp_path))
    jsonschema.validate(yaml.safe_load(text), vendored("compose-spec"))
    compare({FILE: text}, FILE)


def test_services_wait_for_brokers_and_stores_alone(tmp_path: Path) -> None:
    services = yaml.safe_load(compose(on_one_machine(tmp_path)))["services"]
    waits = {name: set(each.get("depends_on", ())) for name, each in services.items()}
    assert waits["desk"] == {"kafka", "postgresql"}
    assert waits["books"] == {"kafka"}
    assert not waits["kafka"]
    for name, each in services.items():
        for needed in each.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}, name
        assert "healthcheck" in each, name
    assert "/readyz" in str(services["desk"]["healthcheck"])


def test_no_secret_is_in_the_compose_file(tmp_path: Path) -> None:
    value = yaml.safe_load(compose(on_one_machine(tmp_path)))
    assert "postgresql://" not in str(value)
    assert value["secrets"]["oyez-broker"] == {"file": "secrets/oyez-broker"}


def test_a_system_on_files_shares_a_volume(tmp_path: Path) -> None:
    """One machine: the embedded broker is one file for all of them."""
    settings = BESIDE.replace('broker = "kafka://kafka:9092"\n', "")
    value = yaml.safe_load(compose(on_one_machine(tmp_path, settings)))
    assert value["services"]["desk"]["volumes"] == ["data:/app/.oyez"]
    assert value["services"]["books"]["volumes"] == ["data:/app/.oyez"]
    assert "kafka" not in value["services"]


def test_the_workflows_are_as_meant_and_fit_the_schema(tmp_path: Path) -> None:
    made = github(planned(tmp_path), "system/")
    for text in made.values():
        jsonschema.validate(_workflow(text), vendored("github-workflows"))
    compare({path: made[path] for path in (f"{GITHUB}/deliver-desk.yaml",)}, ".github")


def _workflow(text: str) -> dict[str, Any]:
    """Return a workflow as GitHub reads it: its key ``on`` is no boolean."""
    found = yaml.safe_load(text)
    return {("on" if key is True else key): value for key, value in found.items()}


def test_the_jobs_for_gitlab_are_as_meant_and_fit_the_schema(tmp_path: Path) -> None:
    made = gitlab(planned(tmp_path), "")
    jsonschema.validate(yaml.safe_load(made[GITLAB]), vendored("gitlab-ci"))
    compare(made, ".gitlab")


def test_a_part_is_delivered_for_its_own_changes_and_what_is_shared(tmp_path: Path) -> None:
    made = github(planned(tmp_path), "system/")
    paths = _workflow(made[f"{GITHUB}/deliver-desk.yaml"])["on"]["push"]["paths"]
    assert "system/counter_desk/**" in paths
    assert "system/shared/**" in paths
    assert "system/oyez.toml" in paths
    assert not [path for path in paths if "books" in path]


def test_the_steps_stand_in_their_order(tmp_path: Path) -> None:
    text = github(planned(tmp_path), "")[f"{GITHUB}/deliver-desk.yaml"]
    order = (
        "pytest counter_desk",
        "contracts check",
        "simulate --seeds 500",
        "buildx build",
        "--sbom=true",
        "cosign sign",
        "contracts can-deploy desk",
        "kustomize edit set image",
        "rollout status",
        "doctor desk",
        "contracts publish desk",
    )
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_pipelines_are_written_into_the_repository(run: Run, tmp_path: Path) -> None:
    code, output = run("ci", "github")
    assert code == 0
    assert "not checked: the tags of actions" in output
    assert (tmp_path / GITHUB / "deliver-books.yaml").exists()
    assert "pytest\n" in (tmp_path / "deploy/ci/requirements.in").read_text()
    assert run("ci", "github", "--check")[0] == 0
    hand_made = tmp_path / GITHUB / "mine.yaml"
    hand_made.write_text("on: push\n")
    assert run("ci", "github")[0] == 0
    assert hand_made.exists()
    assert run("ci", "gitlab")[0] == 0
    assert (tmp_path / GITLAB).exists()


def test_pipelines_need_a_registry(run: Run, tmp_path: Path) -> None:
    (tmp_path / "oyez.toml").write_text(SETTINGS.replace("registry.example.com/", ""))
    code, output = run("ci", "gitlab")
    assert code == 2
    assert "deploy.registry: expected a registry" in output
    assert not (tmp_path / GITLAB).exists()


def test_pipelines_need_a_repository(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".git").rmdir()
    code, output = run("ci", "github")
    assert code == 2
    assert "git init" in output


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1, max_size=8), inner),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc-/.", min_size=1), values, min_size=1))
def test_what_is_written_as_yaml_is_read_as_it_was(value: dict[str, Any]) -> None:
    assert yaml.safe_load(document(value)) == value


def test_a_signature_is_that_of_the_text_below_it() -> None:
    text = signed("kind: Pod\n", "oyez deploy kubernetes")
    assert text.startswith("# Made by `oyez deploy kubernetes`")
    assert text.endswith("\nkind: Pod\n")
