"""What `oyez contracts export --format asyncapi` writes is valid to AsyncAPI's own parser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from npm import installed

from oyez.config import load
from oyez.inspection.contracts import files, of_code
from oyez.project import Project

HERE = Path(__file__).parent / "asyncapi"
SHOP = Path(__file__).parents[2] / "examples" / "shop"


def parsed(*documents: Path) -> dict[str, dict[str, list[str]]]:
    done = subprocess.run(
        ["node", "parse.mjs", *map(str, documents)],
        cwd=installed(HERE),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


def test_the_documents_of_the_shop_are_valid(tmp_path: Path) -> None:
    project = Project(load(SHOP, {}))
    services, failed = project.services()
    assert failed == {}
    contracts = of_code(project, services)
    documents = []
    for name, data in files("asyncapi", contracts, contracts).items():
        file = tmp_path / Path(name).name
        file.write_bytes(data)
        documents.append(file)
    found = parsed(*documents)
    assert {each: one["problems"] for each, one in found.items() if one["problems"]} == {}
    orders = found[str(tmp_path / "orders.json")]["operations"]
    assert "send.shop.order.placed" in orders
    assert len(found) == len(services)


def test_a_document_that_is_wrong_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"asyncapi":"3.0.0","info":{"title":"x"}}')
    assert parsed(wrong)[str(wrong)]["problems"] != []
