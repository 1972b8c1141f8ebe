"""Faults as SARIF 2.1.0, the format in which code scanning takes the findings of a checker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from oyez.inspection.lint.system import Fault

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def sarif(
    faults: Iterable[Fault], failed: Mapping[str, str], codes: Mapping[str, str]
) -> dict[str, Any]:
    """Return the log of one run; ``codes`` has what each rule reports.

    Files are relative to the source root, which the reader of the log knows.
    """
    notes = [
        {"level": "error", "message": {"text": f"{name} can't be imported: {reason}"}}
        for name, reason in failed.items()
    ]
    driver = {
        "name": "oyez",
        "version": version("oyez"),
        "rules": [{"id": code, "shortDescription": {"text": text}} for code, text in codes.items()],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [
            {"executionSuccessful": not failed, "toolExecutionNotifications": notes},
        ],
        "results": [_result(each) for each in faults],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(fault: Fault) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": fault.code,
        "level": fault.level,
        "message": {"text": f"{fault.text}: {fault.remedy}"},
    }
    if fault.file:
        where = {
            "artifactLocation": {"uri": quote(PurePath(fault.file).as_posix())},
            "region": {"startLine": fault.line},
        }
        result["locations"] = [{"physicalLocation": where}]
    return result
