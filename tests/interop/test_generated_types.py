"""Generated types are right to TypeScript's own compiler, to Node.js and to msgspec."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from npm import installed

from oyez import Service
from oyez.contracts.generate import Module, generate, wide_integers
from oyez.contracts.model import Published, ServiceContract, contract_of
from oyez.errors import ConfigurationError

HERE = Path(__file__).parent / "typescript"
ORDERS = """
from __future__ import annotations
from decimal import Decimal
from typing import Annotated, Literal
import msgspec
from oyez import Event, Service
class Line(msgspec.Struct):
    sku: str
class Card(msgspec.Struct, tag=True):
    last: str
class Transfer(msgspec.Struct, tag=True):
    iban: str
class Placed(Event, type="shop.placed", key="order_id", version=2):
    "An order was placed. */ alert(1) /*"
    order_id: str
    cents: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    big: int
    lines: list[Line]
    pair: tuple[str, int]
    paid: Card | Transfer
    tags: dict[str, int]
    state: Literal["open", "closed"]
    note: str | None
class Tree(msgspec.Struct):
    below: list[Tree]
class Made(Event, type="shop.made"):
    below: list[Tree]
class Other(Event, type="shop.other", key="order_id"):
    order_id: str
    price: Decimal
    lines: list[Line]
service = Service("orders", publishes=(Placed, Made, Other))
"""


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> ServiceContract:
    file = tmp_path_factory.mktemp("orders") / "generated_orders.py"
    file.write_text(ORDERS)
    return contract_of(loaded(file).service, "shop")


def loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def typescript(contract: ServiceContract) -> Module:
    installed(HERE)  # skips where there is no npm
    return generate("typescript", contract)


def python(contract: ServiceContract) -> Module:
    if importlib.util.find_spec("datamodel_code_generator") is None:
        pytest.skip("datamodel-code-generator is not installed: pip install 'oyez[generate]'")
    return generate("python", contract)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(module: Module, folder: Path, *files: Path) -> None:
    """Compile a module, and what reads by it, strictly."""
    sources = [module.name, *(file.name for file in files)]
    (folder / module.name).write_text(module.text)
    (folder / "package.json").write_text('{"type": "module"}')
    for file in files:
        shutil.copy(file, folder)
    options = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022"]
    tsc = str(installed(HERE) / "node_modules" / "typescript" / "bin" / "tsc")
    run(["node", tsc, *options, "--module", "nodenext", *sources], folder)


def test_typescript_reads_events_and_refuses_others(
    contract: ServiceContract, tmp_path: Path
) -> None:
    module = typescript(contract)
    assert module.warnings == (
        "shop.placed: $.big: an integer may be beyond 2^53, which a number of TypeScript does not "
        "hold exactly: it is refused then; publish a text, or bound the field by "
        "Meta(ge=…, le=9007199254740991)",
        "shop.placed: $.pair[1]: an integer may be beyond 2^53, which a number of TypeScript does "
        "not hold exactly: it is refused then; publish a text, or bound the field by "
        "Meta(ge=…, le=9007199254740991)",
        "shop.placed: $.tags{}: an integer may be beyond 2^53, which a number of TypeScript does "
        "not hold exactly: it is refused then; publish a text, or bound the field by "
        "Meta(ge=…, le=9007199254740991)",
    )
    compiled(module, tmp_path, HERE / "reads.ts")
    found = json.loads(run(["node", "reads.js"], tmp_path))
    assert found == {
        "read": [[{"sku": "a"}], ["a", 1], "open", None],
        "more": "",
        "missing": "$.order_id",
        "gone": "$.big",
        "kind": "$.cents",
        "fraction": "$.cents",
        "wide": "$.big",
        "deep": "$.lines[1].sku",
        "pair": "$.pair",
        "union": "$.paid.last",
        "map": "$.tags.a",
        "value": "$.state",
        "newer": "dataschema",
        "older": "",
        "type": "type",
        "tree": [{"below": []}],
    }


def test_python_reads_events(contract: ServiceContract, tmp_path: Path) -> None:
    module = python(contract)
    (tmp_path / "generated_classes.py").write_text(module.text)
    made = loaded(tmp_path / "generated_classes.py")
    data = {"order_id": "1", "price": "4.50", "lines": [{"sku": "a"}], "new": 1}
    read = msgspec.json.decode(json.dumps(data), type=made.TYPES["shop.other"])
    assert (str(read.price), read.lines[0].sku) == ("4.50", "a")
    placed = {
        "order_id": "1",
        "cents": 1,
        "big": 1,
        "lines": [],
        "pair": ["a", 1],
        "paid": {"type": "Transfer", "iban": "x"},
        "tags": {},
        "state": "open",
        "note": None,
    }
    found = msgspec.json.decode(json.dumps(placed), type=made.TYPES["shop.placed"])
    assert (found.pair, found.paid) == (("a", 1), made.Transfer(iban="x"))
    assert module.text.count("class Line(") == 1  # both types have it
    with pytest.raises(msgspec.ValidationError, match="required field `lines`"):
        msgspec.json.decode(b'{"order_id":"1","price":"1"}', type=made.TYPES["shop.other"])


def test_a_contract_from_elsewhere_is_no_code(tmp_path: Path) -> None:
    evil = '*/ throw new Error("run") /* \n"""\nraise SystemExit("run")\n"""'
    fields = {"a": {"type": "string", "tsType": evil, "pattern": "(x+)+$", "title": evil}}
    schema = {
        "title": evil,
        "description": evil,
        "type": "object",
        "customTypePath": "os.system",
        "properties": {
            **fields,
            # msgspec has no field whose name holds quotes or line ends.
            evil.replace('"', "'").replace("\n", " "): {"enum": [evil]},
            "b": {"$ref": "file:///etc/passwd"},
            "c": {"$ref": "#/$defs/none"},
        },
        "required": ["a"],
    }
    contract = ServiceContract(
        system="shop",
        service="orders",
        publishes={
            evil: Published(version=1, key=evil, stream=evil, to=None, personal=(), schema=schema)
        },
        reads=(),
    )
    module = typescript(contract)
    compiled(module, tmp_path)
    run(["node", "orders.js"], tmp_path)
    (tmp_path / "evil_classes.py").write_text(python(contract).text)
    (kind,) = loaded(tmp_path / "evil_classes.py").TYPES.values()
    assert msgspec.json.decode(b'{"a": "x"}', type=kind).a == "x"


def test_where_integers_may_be_too_wide() -> None:
    most = 2**53 - 1
    narrow = {"type": "integer", "minimum": -most, "maximum": most}
    wide = {"type": "integer", "minimum": 0, "maximum": most + 1}
    schema = {
        "properties": {
            "a": narrow,
            "b": wide,
            "c": {"items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/T"}]}},
            "d": {"type": "number"},
        },
        "$defs": {"T": {"properties": {"e": {"type": ["integer", "string"]}, "t": {"$ref": "T"}}}},
    }
    assert wide_integers(schema) == ["$.b", "$.c[].e"]


def test_what_is_missing_is_said(
    contract: ServiceContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"node is not installed: .*Node\.js 20"):
        generate("typescript", contract)
    monkeypatch.setattr("oyez.contracts.generate.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'oyez\[generate\]'"):
        generate("python", contract)
    silent = contract_of(Service("silent"), "shop")
    with pytest.raises(ConfigurationError, match="silent publishes no event"):
        generate("python", silent)
