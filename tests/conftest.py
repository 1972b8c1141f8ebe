"""What a machine lacks is skipped by name; with STRICT=1 it fails instead."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Mapping

import hypothesis
import hypothesis.internal.observability
import pytest
import uvloop

# Hypothesis's plugin imports this in pytest's summary. On CPython 3.11 an import that deep, after
# tests that failed, can end the run with "AST constructor recursion depth mismatch"
# (python/cpython#106905); imported now, it is there in every run, whatever tests are selected.

hypothesis.settings.register_profile("oyez", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("oyez")

DECLARED = "capabilities."
"""A suite leaves out what an adapter declares that it can't do: that is no lack of the machine."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run asynchronous tests on the loop that services run on.

    Drivers meet other errors on it: it says RuntimeError, for one, where asyncio says nothing.
    """
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure under STRICT=1."""
    report = yield
    if report.skipped and os.environ.get("STRICT") == "1" and call.excinfo is not None:
        reason = str(call.excinfo.value)
        if not reason.startswith(DECLARED):
            report.outcome = "failed"
            report.longrepr = f"STRICT=1 allows no skip: {reason}"
    return report
