"""``oyez contracts``: what it writes, what it finds between services, what it says of a change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oyez.cli import main
from oyez.contracts.between import RULES
from oyez.contracts.model import MOST, decode, encode, read_folder
from oyez.errors import ConfigurationError

ORDERS = """
from oyez import Event, Service
class Placed(Event, type="shop.placed", key="order"):
    "An order was placed."
    order: str
    email: str
    cents: int
    note: str = ""
class Closed(Event, type="shop.closed", key="order"):
    order: str
service = Service("orders", publishes=(Placed, Closed))
"""
MAIL = """
from oyez import Event, Service
class Placed(Event, type="shop.placed", key="order"):
    order: str
    email: str
service = Service("mail")
@service.on(Placed)
def send(event: Placed) -> None: ...
"""
SHOP = Path(__file__).parents[2] / "examples" / "shop"
Run = Callable[..., tuple[int, str]]


def project(folder: Path, **services: str) -> Path:
    """A project in a folder, with these services, each a module."""
    folder.mkdir(exist_ok=True)
    lines = ['[system]\nname = "shop"\n']
    for name, text in services.items():
        lines.append(f'[services.{name}]\napp = "contracted_{name}:service"\n')
        (folder / f"contracted_{name}.py").write_text(text)
    (folder / "oyez.toml").write_text("".join(lines))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run ``oyez contracts`` in a folder; its exit code, and what it prints."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # a changed module has the same time

    def called(folder: Path, *arguments: str) -> tuple[int, str]:
        for name in [each for each in sys.modules if each.startswith("contracted_")]:
            del sys.modules[name]
        sys.path[:] = [each for each in sys.path if "contracted-" not in each]
        sys.path.insert(0, str(folder))
        monkeypatch.setenv("OYEZ_PROJECT", str(folder))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["contracts", *arguments])
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, printed.out + printed.err

    yield called
    for name in [each for each in sys.modules if each.startswith("contracted_")]:
        del sys.modules[name]


def faults(run: Run, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    code, text = run(folder, "check", "--json", *arguments)
    found = json.loads(text)
    assert code == (0 if found["ok"] else 1)
    told: list[dict[str, Any]] = found["faults"]
    return told


def test_an_export_is_canonical_and_becomes_stale(tmp_path: Path, run: Run) -> None:
    shop = project(tmp_path / "contracted-a", orders=ORDERS, mail=MAIL)
    assert run(shop, "export", "--check")[0] == 1
    assert not (shop / "contracts").exists()
    code, text = run(shop, "export")
    assert (code, text.count("written")) == (0, 2)
    data = (shop / "contracts" / "orders.json").read_bytes()
    told = json.loads(data)
    assert data == (json.dumps(told, indent=2, sort_keys=True) + "\n").encode()
    placed = told["publishes"]["shop.placed"]
    assert placed["stream"] == "shop.orders"
    assert placed["schema"]["description"] == "An order was placed."
    assert placed["schema"]["required"] == ["cents", "email", "note", "order"]
    assert encode(decode(data, "here")) == data
    assert run(shop, "export", "--check")[0] == 0
    (shop / "contracted_orders.py").write_text(ORDERS.replace("cents: int", "cents: float"))
    code, text = run(shop, "export", "--check", "--json")
    assert (code, json.loads(text)["changed"]) == (1, ["orders.json"])
    assert (shop / "contracts" / "orders.json").read_bytes() == data


def test_schemas_and_asyncapi_are_written(tmp_path: Path, run: Run) -> None:
    shop = project(tmp_path / "contracted-b", orders=ORDERS, mail=MAIL)
    for style in ("jsonschema", "asyncapi"):
        assert run(shop, "export", "--format", style)[0] == 0
    schema = json.loads((shop / "contracts/jsonschema/orders/shop.placed.json").read_text())
    assert schema["$schema"].endswith("2020-12/schema")
    mail = json.loads((shop / "contracts/asyncapi/mail.json").read_text())
    assert mail["asyncapi"] == "3.0.0"
    (operation,) = mail["operations"].values()
    assert operation["action"] == "receive"
    assert operation["channel"] == {"$ref": "#/channels/shop.orders"}
    (message,) = mail["components"]["messages"].values()
    assert message["payload"]["required"] == ["email", "order"]
    assert message["examples"] == [{"payload": {"email": "x", "order": "x"}}]


CHANGES = {
    "an optional field is added": ("note: str", "size: int = 0\n    note: str", None),
    "a field that nobody reads goes": ("    cents: int\n", "", None),
    "a field that nobody reads has another type": ("cents: int", "cents: str", None),
    "a type that nobody reads goes": ("(Placed, Closed)", "(Placed,)", None),
    "a field that is read goes": ("    email: str\n", "", "FIELD_MISSING"),
    "a field that is read is renamed": ("email: str", "mail: str", "FIELD_MISSING"),
    "a field that is read may be null": ("email: str", "email: str | None", "FIELD_OPTIONAL"),
    "a field that is read has another type": ("email: str", "email: int", "TYPE_NARROWED"),
    "a field that is read becomes a list": ("email: str", "email: list[str]", "TYPE_NARROWED"),
    "the version goes up": ('"order"):\n    "An', '"order", version=2):\n    "An', "VERSION"),
    "the type is no longer published": ("(Placed, Closed)", "(Closed,)", "TYPE_UNPUBLISHED"),
    "the key changes": ('placed", key="order"', 'placed", key="email"', "KEY_CHANGED"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_in_another_repository(tmp_path: Path, run: Run, change: str) -> None:
    old, new, rule = CHANGES[change]
    mail = project(tmp_path / "contracted-mail", mail=MAIL)
    assert run(mail, "export")[0] == 0
    orders = project(tmp_path / "contracted-orders", orders=ORDERS)
    assert run(orders, "export")[0] == 0
    theirs = orders / "contracts" / "mail.json"
    theirs.write_bytes((mail / "contracts" / "mail.json").read_bytes())
    assert faults(run, orders) == []
    changed = ORDERS.replace(old, new)
    assert changed != ORDERS
    (orders / "contracted_orders.py").write_text(changed)
    found = faults(run, orders)
    assert [each["rule"] for each in found] == ([] if rule is None else [rule_of(rule)])
    for each in found:
        assert (each["reader"], each["handlers"]) == ("mail", ["send"])
        assert each["remedy"]
    code, text = run(orders, "diff", str(orders / "contracts"))
    assert code == (0 if rule is None else 1), text
    assert ("breaks" in text) == (rule is not None)


def rule_of(text: str) -> str:
    return next(rule for rule in RULES if rule.startswith(text))


def test_the_witness_is_printed(tmp_path: Path, run: Run) -> None:
    changed = ORDERS.replace("email: str", "email: str | None")
    shop = project(tmp_path / "contracted-c", orders=changed, mail=MAIL)
    code, text = run(shop, "check")
    assert code == 1
    witness = '{"cents":1,"email":null,"note":"x","order":"x"}'
    assert "FIELD_OPTIONAL shop.placed: mail.send can't read it from orders: email:" in text
    assert f"this event would become a dead letter: {witness}\n" in text
    code, text = run(shop, "check", "--format", "github")
    assert "::error title=FIELD_OPTIONAL::shop.placed: mail.send can't read it" in text
    assert f"%0Athis event would become a dead letter: {witness}" in text


def test_a_witness_that_the_real_class_reads_is_no_fault(tmp_path: Path, run: Run) -> None:
    orders = ORDERS.replace("email: str", "email: bool")
    lax = MAIL.replace("class Placed(Event, type", "@event(type").replace(
        'key="order"):', 'key="order")\nclass Placed(BaseModel):'
    )
    lax = "from pydantic import BaseModel\nfrom oyez import event\n" + lax.replace(
        "email: str", "email: int"
    )
    shop = project(tmp_path / "contracted-d", orders=orders, mail=lax)
    assert faults(run, shop) == []  # pydantic reads true as 1
    (shop / "contracted_mail.py").write_text(
        lax.replace("email: int", "email: StrictInt").replace(
            "import BaseModel", "import BaseModel, StrictInt"
        )
    )
    assert [each["rule"] for each in faults(run, shop)] == ["TYPE_NARROWED"]


def test_the_order_of_deployment(tmp_path: Path, run: Run) -> None:
    shop = project(tmp_path / "contracted-e", orders=ORDERS, mail=MAIL)
    assert run(shop, "export")[0] == 0
    old = str(shop / "contracts")
    both = {
        "deploy publisher first": (
            ORDERS.replace("note: str", "vat: int\n    note: str"),
            MAIL.replace("email: str", "email: str\n    vat: int"),
        ),
        "deploy consumer first": (
            ORDERS.replace("email: str", "email: str | None"),
            MAIL.replace("email: str", "email: str | None"),
        ),
        "breaks": (
            ORDERS.replace("email: str", "email: int"),
            MAIL.replace("email: str", "email: int"),
        ),
        "fine": (
            ORDERS.replace("email: str", "email: int"),
            MAIL.replace("email: str", "email: str | int"),
        ),
    }
    both["deploy consumer first, as well"] = both.pop("fine")
    for verdict, (orders, mail) in both.items():
        (shop / "contracted_orders.py").write_text(orders)
        (shop / "contracted_mail.py").write_text(mail)
        code, text = run(shop, "diff", old, "--json")
        (change,) = json.loads(text)["changes"]
        assert change["verdict"] == verdict.partition(",")[0]
        assert code == (1 if verdict == "breaks" else 0)
        history = [each["rule"] for each in change["faults"] if each["level"] == "warning"]
        assert history == (["HISTORY"] if verdict in ("deploy publisher first", "breaks") else [])


def test_a_field_that_moved_is_read_by_an_upcast(tmp_path: Path, run: Run) -> None:
    newer = MAIL.replace("email: str", "mail: str").replace('"order")', '"order", version=2)')
    upcast = "@upcast(Placed, since=1)\ndef renamed(data): return {**data, 'mail': data['email']}\n"
    shop = project(tmp_path / "contracted-f", orders=ORDERS, mail=newer)
    assert [each["rule"] for each in faults(run, shop)] == ["FIELD_MISSING"]
    text = newer.replace("import Event", "import upcast, Event").replace(
        'service = Service("mail")', upcast + 'service = Service("mail")'
    )
    (shop / "contracted_mail.py").write_text(text)
    assert faults(run, shop) == []
    assert run(shop, "export", "mail")[0] == 0
    (read,) = read_folder(shop / "contracts")["mail"].reads
    assert (read.version, read.upcasts) == (2, (1,))
    (shop / "contracted_mail.py").write_text(text.replace("data['email']", "data['address']"))
    (fault,) = faults(run, shop)
    assert (fault["rule"], fault["handlers"]) == ("HISTORY", ["send"])
    assert "can't be upcast from version 1: KeyError: 'address'" in fault["reason"]
    assert json.loads(fault["witness"])["email"] == "x"


def test_a_diff_against_a_commit(tmp_path: Path, run: Run) -> None:
    shop = project(tmp_path / "contracted-g", orders=ORDERS, mail=MAIL)
    assert run(shop, "export")[0] == 0
    git = ["git", "-C", str(shop), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    assert run(shop, "diff", "git:HEAD") == (0, "nothing changed\n")
    (shop / "contracted_orders.py").write_text(ORDERS.replace('placed", key="order"', 'placed"'))
    code, text = run(shop, "check", "--against", "git:HEAD")
    assert code == 1
    assert "KEY_CHANGED shop.placed: orders: it was ordered by the field order" in text
    for wrong in ("git:", "git:--output=x", "git:nowhere", str(tmp_path / "none"), str(tmp_path)):
        assert run(shop, "diff", wrong)[0] == 2


def test_what_is_not_a_contract_is_refused(tmp_path: Path, run: Run) -> None:
    shop = project(tmp_path / "contracted-h", orders=ORDERS)
    folder = shop / "contracts"
    folder.mkdir()
    for text, problem in (
        ("{", "truncated"),
        ('{"service": "mail"}', "missing required field `system`"),
        ('{"format":2,"system":"s","service":"mail","publishes":{},"reads":[]}', "the format 2"),
        ('{"format":1,"system":"s","service":"post","publishes":{},"reads":[]}', "rename it"),
        ("[" * 100_000, "mail.json"),
        (" " * (MOST + 1), "is larger than"),
    ):
        (folder / "mail.json").write_text(text)
        code, printed = run(shop, "check")
        assert (code, problem in printed) == (2, True), printed
    with pytest.raises(ConfigurationError, match="here: "):
        decode(msgspec.json.encode({"service": 1}), "here")


def test_the_contracts_of_the_shop_are_committed_as_they_are() -> None:
    command = [sys.executable, "-m", "oyez", "contracts", "export", "--check"]
    done = subprocess.run(
        command, cwd=SHOP, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("unchanged") == 5


def test_every_reference_of_a_document_leads_somewhere(tmp_path: Path, run: Run) -> None:
    tree = """
from __future__ import annotations
import msgspec
from oyez import Event, Service
class Tree(msgspec.Struct):
    below: list[Tree] = []
class Grown(Event, type="shop/grown"):
    tree: Tree
service = Service("orders", publishes=(Grown,))
@service.on(Grown)
def look(event: Grown) -> None: ...
"""
    shop = project(tmp_path / "contracted-i", orders=tree)
    assert run(shop, "export", "--format", "asyncapi")[0] == 0
    document = json.loads((shop / "contracts/asyncapi/orders.json").read_text())
    found = references(document)
    assert len(found) > 6
    for each in found:
        place = document
        for name in each.removeprefix("#/").split("/"):
            place = place[name]
    assert set(document["components"]["schemas"]) == {"shop_grown.Tree", "shop_grown.look.Tree"}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [each for part in value.values() for each in references(part)]
    return [each for part in value for each in references(part)] if isinstance(value, list) else []
