"""``oyez doctor``: checks the requirements of the system, and prints remedies."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.text import Text

from oyez.cli.invocation import json_option, run_async
from oyez.cli.printing import console, print_json
from oyez.errors import ConfigurationError
from oyez.inspection.checks import CheckResult, as_value, examine, sound, unreadable
from oyez.inspection.form import escape
from oyez.project import Project

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@click.command("doctor")
@click.argument("service", default="")
@json_option
@click.pass_context
def command(context: click.Context, service: str, as_json: bool) -> None:
    """Check configuration, files, connections and migrations; print the remedies.

    With SERVICE only what that service depends on: the code of others need not be there. Exits
    with 1 if there is a problem. Nothing is created or changed.
    """
    try:
        project = Project.open()
    except ConfigurationError as error:
        findings: Sequence[CheckResult] = [unreadable(error)]
    else:
        findings = run_async(examine(project, service))
    if as_json:
        print_json(as_value(findings))
    else:
        _print(findings)
    if not sound(findings):
        context.exit(1)


def _print(findings: Sequence[CheckResult]) -> None:
    output = console()
    for each in findings:
        line = Text.assemble(
            (f"{each.level:<8}", _STYLES[each.level]),
            (f" {escape(each.check)}: ", "bold"),
            escape(each.text),
        )
        if each.remedy:
            line.append(f" → {escape(each.remedy)}")
        output.print(line)
    problems = sum(each.level == "problem" for each in findings)
    warnings = sum(each.level == "warning" for each in findings)
    output.print(f"{len(findings)} checks, {warnings} warnings, {problems} problems")
