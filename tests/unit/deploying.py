"""A small system to be deployed: a desk with requests, its books in a file, what is around them."""

from __future__ import annotations

import os
from pathlib import Path

from oyez.config import load
from oyez.deploy.plan import Plan, plan
from oyez.project import Project

GOLDEN = Path(__file__).parent / "deployed"

SETTINGS = """\
[system]
name = "counter"
broker = "embedded:.oyez/events.db"

[services.desk]
app = "counter_desk.service:service"
http = "127.0.0.1:8101"
replicas = "2..12"

[services.desk.deploy]
cpu = "200m"
egress = ["10.1.0.0/16:443", "payments.example.com:8443"]
include = ["shared"]

[services.books]
app = "counter_books.service:service"

[services.books.deploy]
store = "sqlite:.oyez/books.db"
storage = "5Gi"

[gateway]
listen = "127.0.0.1:8080"

[[gateway.routes]]
path = "/sales"
service = "desk"
methods = ["GET", "POST"]

[console]

[deploy]
registry = "registry.example.com/counter"
broker = "kafka://kafka.messaging:9092"
store = "postgresql://postgres.data/{service}"
monitor = true
"""

_DESK = """\
from oyez import Event, Service


class SaleMade(Event, type="counter.sale.made", key="till"):
    till: str


async def app(scope, receive, send):
    raise NotImplementedError


service = Service("desk", http=app, publishes=(SaleMade,))
"""

_BOOKS = """\
from oyez import Event, Service


class SaleMade(Event, type="counter.sale.made", key="till"):
    till: str


service = Service("books")


@service.on(SaleMade)
def book(sale: SaleMade) -> None:
    return None
"""


def project(root: Path, settings: str = SETTINGS, **environ: str) -> Project:
    """Write the system to a folder and open it."""
    for name, code in (("desk", _DESK), ("books", _BOOKS)):
        folder = root / f"counter_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
        (folder / "service.py").write_text(code)
    (root / "shared").mkdir(exist_ok=True)
    (root / "oyez.toml").write_text(settings)
    return Project(load(root, environ))


def planned(root: Path, settings: str = SETTINGS, **environ: str) -> Plan:
    """Return the plan of the system."""
    return plan(project(root, settings, **environ))


def compare(files: dict[str, str], folder: str) -> None:
    """Compare files with those in a folder of golden ones; OYEZ_GOLDEN=1 writes them."""
    if os.environ.get("OYEZ_GOLDEN"):
        for path, text in files.items():
            (GOLDEN / path).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / path).write_text(text)
    place = GOLDEN / folder
    paths = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
    found = {path.relative_to(GOLDEN).as_posix(): path.read_text() for path in paths}
    assert files == found
