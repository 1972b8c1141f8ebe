"""Dashboards and alerts: they parse, and rest on nothing but metrics that exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from oyez.cli import root
from oyez.observe import FILES
from oyez.observe.catalogue import BY_NAME, SERVICE

ROOT = Path(__file__).parents[2]
RULES = FILES / "prometheus" / "oyez.rules.yml"
DASHBOARDS = sorted((FILES / "grafana").glob("*.json"))
CASES = Path(__file__).with_name("oyez.rules.test.yml")

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")
_OTHERS = {
    "ALERTS", "up", "process_cpu_seconds_total", "process_resident_memory_bytes"
}  # fmt: skip
"""What Prometheus and its client tell, whatever is scraped."""
_GIVEN = {SERVICE, "instance", "job", "le"}
_OF_ALERTS = {"alertname", "alertstate", "severity"}
_WORDS = {
    *("sum", "max", "min", "count", "topk", "by", "on", "or", "and", "unless", "offset", "vector"),
    *("rate", "increase", "histogram_quantile", "group_left", "m", "h", "s", "bool"),
}


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels(dashboard: Path) -> list[dict[str, Any]]:
    return [each for each in json.loads(dashboard.read_text())["panels"] if each["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression with the place where it stands."""
    for rule in rules():
        yield rule.get("record") or rule["alert"], rule["expr"]
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield f"{dashboard.name}: {panel['title']}", target["expr"]
        for variable in json.loads(dashboard.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                inner = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert inner, variable
                yield f"{dashboard.name}: ${variable['name']}", f"sum by ({inner[2]}) ({inner[1]})"


def filled(expression: str) -> str:
    """An expression with its variables filled in, as Grafana does before it asks."""
    assert not re.search(r"\$(?!__rate_interval|[a-z]+\b)", expression), expression
    return re.sub(r"\$[a-z]+", "x", expression.replace("$__rate_interval", "5m"))


def bare(expression: str) -> str:
    """An expression without texts, which may hold any word."""
    return re.sub(r'"[^"]*"', '""', filled(expression))


def metrics_in(expression: str) -> set[str]:
    text = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\]", " ", bare(expression))
    return {each for each in _NAME.findall(text) if each not in _WORDS}


def labels_in(expression: str) -> set[str]:
    text = bare(expression)
    chosen = re.findall(r"\{([^}]*)\}", text)
    grouped = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", text)
    return {each for part in (*chosen, *grouped) for each in _NAME.findall(part)}


def known(name: str) -> set[str] | None:
    """The labels of a metric that a process shows, or a rule records; None if there is none."""
    if name in _OTHERS:
        return _OF_ALERTS if name == "ALERTS" else set()
    if name in RECORDED:
        return labels_of(RECORDED[name])
    family = BY_NAME.get(name) or BY_NAME.get(_OF_HISTOGRAMS.sub("", name))
    if family is None or (family.kind == "histogram") != (name != family.name):
        return None
    return set(family.labels)


def labels_of(expression: str) -> set[str]:
    return set().union(*(known(name) or set() for name in metrics_in(expression)))


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_an_expression_names_metrics_and_labels_that_exist(place: str, expression: str) -> None:
    named = metrics_in(expression)
    assert named, place
    assert {name for name in named if known(name) is None} == set(), place
    assert labels_in(expression) - _GIVEN - labels_of(expression) == set(), place


def test_every_metric_is_shown_or_told() -> None:
    """A number that nobody looks at is not worth its cost."""
    used = {
        _OF_HISTOGRAMS.sub("", name) if name not in BY_NAME else name
        for _, expression in expressions()
        for name in metrics_in(expression)
    }
    assert set(BY_NAME) - used == set()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.stem)
def test_a_dashboard_is_whole(dashboard: Path) -> None:
    made = json.loads(dashboard.read_text())
    assert made["uid"] == f"oyez-{dashboard.stem}"
    assert "id" not in made  # Grafana gives it
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {each["name"]: each for each in made["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels(dashboard):
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            used = set(re.findall(r"\$([a-z]+)", target["expr"]))
            assert used <= set(variables), panel["title"]
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= _GIVEN | labels_of(target["expr"]), panel["title"]


def test_there_is_a_dashboard_for_each_matter() -> None:
    assert [each.stem for each in DASHBOARDS] == ["broker", "gateway", "service", "system"]
    titles = [json.loads(each.read_text())["title"] for each in DASHBOARDS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name: str) -> None:
    """Its runbook begins with a command that Oyez has, and the page has a section for it."""
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    commands = re.findall(r"`(oyez [^`]+)`", alert["annotations"]["runbook"])
    assert alert["annotations"]["runbook"].startswith(f"`{commands[0]}`")
    for command in commands:
        words = shlex.split(re.sub(r"\{\{[^}]*\}\}", "NAME", command))[1:]
        assert _is_command(words), command
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/guide/runbook.md").read_text(), re.M)
    assert name in headings


def test_the_runbook_has_no_other_alerts() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/guide/runbook.md").read_text(), re.M)
    assert sorted(headings) == sorted(ALERTS)


def _is_command(words: list[str]) -> bool:
    found: click.Command = root
    while isinstance(found, click.Group) and words:
        name, *words = words
        child = found.get_command(click.Context(found), name)
        if child is None:
            return False
        found = child
    options = {name for each in found.params for name in each.opts}
    whole = not isinstance(found, click.Group) or found.invoke_without_command
    return whole and {w for w in words if w[0] == "-"} <= options


# By Prometheus itself


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool: make services installs it (Debian's package prometheus)")
    return found


def ran(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_rules(promtool: str) -> None:
    said = ran(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert f"{len(RECORDED) + len(ALERTS)} rules found" in said


def test_alerts_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.read_text().replace("RULES", str(RULES)))
    assert "SUCCESS" in ran(promtool, "test", "rules", cases)


def test_promtool_reads_every_expression_of_the_dashboards(promtool: str, tmp_path: Path) -> None:
    asked = [filled(expression) for place, expression in expressions() if ".json" in place]
    file = tmp_path / "asked.yml"
    made = [{"record": f"asked:{number}", "expr": each} for number, each in enumerate(asked)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": made}]}))
    assert f"{len(asked)} rules found" in ran(promtool, "check", "rules", "--lint=none", file)
