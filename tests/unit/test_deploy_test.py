"""What `make deploy-test` computes: the parts of it that need no cluster."""

from __future__ import annotations

import importlib
import io
import json
import socket
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a module of the script, which has a folder of its own on the path."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "services.d"))
    monkeypatch.syspath_prepend(str(SCRIPTS / "deploy-test.d"))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(SCRIPTS)):
            del sys.modules[name]


def test_a_pause_is_from_the_last_look_at_one_owner_to_the_first_at_the_other(module) -> None:
    handovers = module("measures").Handovers()
    one, other = ("orders", "shop.orders", 0), ("orders", "shop.orders", 1)
    handovers.see(1.0, {one: "a", other: "a"})
    handovers.see(1.5, {one: None, other: "a"})
    handovers.see(1.75, {one: None, other: "a"})
    handovers.see(2.0, {one: "b", other: "a"})
    assert handovers.all_pauses() == [1.0]
    assert handovers.worst == (1.0, "orders: shop.orders[0]")
    assert handovers.seen == [(2.0, 1.0, one, "a", "b")]
    assert (handovers.count, handovers.places) == (1, 2)


def test_an_owner_that_comes_back_is_no_handover(module) -> None:
    handovers = module("measures").Handovers()
    place = ("orders", "shop.orders", 0)
    for at, owner in enumerate(("a", None, "a", "b", "a")):
        handovers.see(float(at), {place: owner})
    assert handovers.all_pauses() == [1.0, 1.0]


def test_percentiles_are_values_that_were_seen(module) -> None:
    percentile = module("measures").percentile
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([], 0.99) == 0.0


def test_effects_are_told_apart_by_what_is_wrong_with_them(module) -> None:
    exactly_once = module("measures").exactly_once
    wanted = [("a", 1), ("a", 2), ("b", 1)]
    assert exactly_once({("a", 1): 1, ("a", 2): 1, ("b", 1): 1}, wanted) == ""
    said = exactly_once({("a", 1): 1, ("a", 2): 2, ("c", 1): 1}, wanted)
    assert said == "1 lost, 1 more than once, 1 unknown"


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        ([1, 3, 1], True),
        ([1, 2, 3, 2, 1], True),
        ([1, 3, 2, 3, 1], False),
        ([1, 2, 1], False),
        ([1, 3, 2], False),
    ],
)
def test_replicas_go_up_once_and_down_once(module, steps: list[int], right: bool) -> None:
    assert module("measures").rises_once(steps, 3) is right


def test_a_part_that_failed_decides(module) -> None:
    report = module("report")
    findings = report.Findings()
    findings.note("rollout", "7 s")
    findings.hold("HTTP errors", 2, right=False, expected="0")
    whole = report.Report({"rollout": "a rolling update", "scaling": "KEDA"})
    whole.add("rollout", findings.outcome())
    whole.add("scaling", report.Outcome.skipped("this machine lacks go"))
    assert whole.exit_code == 1
    said = whole.table()
    assert "HTTP errors: expected 0, found 2" in said
    assert said.endswith("0 passed, 1 failed, 1 skipped")


def test_a_run_that_was_stopped_has_not_passed(module) -> None:
    report = module("report")
    whole = report.Report({"rollout": "a rolling update", "scaling": "KEDA"})
    whole.add("rollout", report.Findings().outcome())
    whole.stopped(["rollout", "scaling"])
    assert whole.exit_code == 1
    assert whole.table().endswith("1 passed, 1 failed, 0 skipped")


def test_the_shop_is_set_up_for_the_node_and_nothing_else_of_it_changes(module) -> None:
    projects = module("projects")
    text = (SCRIPTS.parent / "examples" / "shop" / "oyez.toml").read_text()
    changed = projects.shop_settings(text)
    services = text.count('\napp = "')
    assert changed.count("\nreplicas = 2") == services
    assert 'listen = "127.0.0.1:8080"' in changed
    assert "--listen 10.88.0.1:8090" in changed
    assert "--smtp 10.88.0.1:8025" in changed
    assert "--redirect http://127.0.0.1:8080/login/callback" in changed
    assert changed.endswith(projects.DEPLOY)


def test_each_secret_has_its_keys_and_each_store_its_schema(module) -> None:
    values = module("projects").secret_values(
        {
            "oyez": {"broker": "the URL", "token": "the token"},
            "orders-store": {"url": "the URL"},
            "orders-migrate": {"url": "the URL"},
            "gateway": {"gateway.key": "an Ed25519 key"},
        },
        "nats://node:4222",
        lambda schema: f"postgresql://node/oyez?schema={schema}",
        "PEM",
    )
    assert values["oyez"]["broker"] == "nats://node:4222"
    assert len(values["oyez"]["token"]) >= 32
    assert values["orders-store"] == values["orders-migrate"]
    assert values["orders-store"]["url"].endswith("schema=orders")
    assert values["gateway"]["gateway.key"] == "PEM"


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    )


def test_a_name_of_a_service_has_its_address(module) -> None:
    names = module("names")
    service = {
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.7"},
    }
    headless = {"metadata": {"name": "none", "namespace": "shop"}, "spec": {"clusterIP": "None"}}
    known = names.table([service, headless], {"store.servers.svc": "10.88.0.1"})
    told = names.answer(question("Orders.shop.svc.cluster.local"), known.get)
    assert told is not None
    assert told[:2] == b"\0\x07"
    assert struct.unpack("!HH", told[6:10]) == (1, 0)
    assert told.endswith(socket.inet_aton("10.96.0.7"))
    assert known["orders.shop.svc"] == "10.96.0.7"
    assert not any(name.startswith("none.") for name in known)


def test_an_unknown_name_and_an_unknown_kind_have_no_address(module) -> None:
    names = module("names")
    unknown = names.answer(question("nowhere.example"), {}.get)
    other = names.answer(question("a.b", kind=28), {"a.b": "10.96.0.7"}.get)
    assert unknown is not None
    assert other is not None
    assert unknown[3] & 15 == 3  # there is no such name
    assert other[3] & 15 == 0  # there is, but it has no address of this kind
    assert unknown[6:8] == other[6:8] == b"\0\0"


@pytest.mark.parametrize("length", range(30))
def test_what_is_no_question_has_no_answer_or_a_whole_one(module, length: int) -> None:
    told = module("names").answer(question("orders.shop")[:length], {"orders.shop": "10.0.0.1"}.get)
    assert told is None or len(told) >= 12


def test_an_image_is_an_archive_whose_parts_have_the_digests_it_names(
    module, tmp_path: Path
) -> None:
    archives = module("archives")
    layer = archives.layer({"bin/program": b"#!/bin/sh\n"})
    assert layer == archives.layer({"bin/program": b"#!/bin/sh\n"})
    image = archives.Image([layer], entrypoint=["/bin/program"], user="10001")
    path = archives.archive(tmp_path / "image.tar", "localhost/test:1", image)
    with tarfile.open(path) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "localhost/test:1"}
    manifest = json.loads(blob(files, entry))
    config = json.loads(blob(files, manifest["config"]))
    assert config["config"]["User"] == "10001"
    (described,) = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [described["digest"]]
    with tarfile.open(fileobj=io.BytesIO(blob(files, described))) as inner:
        assert inner.getnames() == ["bin/program"]
        assert inner.getmember("bin/program").mode == 0o755


def blob(files: dict[str, bytes], described: dict[str, str]) -> bytes:
    content = files[f"blobs/sha256/{described['digest'].removeprefix('sha256:')}"]
    assert len(content) == described["size"]
    return content


def test_the_modules_pin_the_versions_that_the_script_says(module) -> None:
    programs = module("programs")
    for go in (programs.CONTROL, programs.NODE, programs.AUTOSCALER):
        folder = SCRIPTS / "deploy-test.d" / "go" / go.name
        pinned = (folder / "go.mod").read_text()
        for package in go.packages.values():
            path = package.partition("/cmd/")[0]
            assert f"{path} v{go.version}" in pinned
            assert f'_ "{package}"' in (folder / "tools.go").read_text()


def test_each_spoilt_object_differs_from_what_was_admitted(module) -> None:
    projects = module("projects")
    container = {
        "securityContext": {"capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "admin"}},
    }
    deployment = {
        "kind": "Deployment",
        "spec": {
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"spec": {"containers": [container]}},
        },
    }
    before = json.dumps(deployment)
    wrong = projects.spoilt([{"kind": "Service"}, deployment])
    assert json.dumps(deployment) == before
    assert len({json.dumps(each) for _, each in wrong} - {before}) == len(wrong) == 3


def test_objects_are_found_one_after_the_other_and_in_lists(module) -> None:
    projects = module("projects")
    listed = '{"kind": "List", "items": [{"kind": "Secret"}, {"kind": "Secret"}]}'
    said = f'{{"kind": "Service"}}\n\n{listed}\n'
    assert projects.kinds(projects.documents(said)) == {"Secret": 2, "Service": 1}
    assert projects.documents("") == []
