"""The services of an ``oyez.toml``, and its ``simulate.py``, as what a simulation runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from oyez.config import FILE
from oyez.errors import ConfigurationError
from oyez.project import Project
from oyez.simulation.driver import driver
from oyez.simulation.stage import Plan, Scenario

SCENARIO = "simulate.py"
"""The file with a project's scenario."""


class Simulated:
    """A project that can be simulated."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def plan(self, scenario: Scenario | None = None) -> Plan:
        """Return the plan of a scenario, by default that of ``simulate.py``.

        Without that file a driver publishes what the services are there to hear. Raises
        ConfigurationError.
        """
        config = self._project.config
        services = [self._project.service(name) for name in config.services]
        module = self._module()
        found: Scenario | None = scenario or getattr(module, "scenario", None)
        if module is not None and not callable(found):
            raise ConfigurationError(
                f"{config.root / SCENARIO}: expected `async def scenario(sim)` in it"
            )
        return Plan(
            services=services,
            scenario=found or driver(services),
            system=config.system.name,
            root=config.root,
            provide=getattr(module, "provide", {}),
            leave=("simulate", "oyez_simulate"),
        )

    def _module(self) -> ModuleType | None:
        file = self._project.config.root / SCENARIO
        if not file.is_file():
            return None
        spec = importlib.util.spec_from_file_location("oyez_simulate", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["oyez_simulate"] = module
        spec.loader.exec_module(module)
        return module


def project_at(file: Path) -> Simulated:
    """Return the project that a file belongs to. Raises ConfigurationError."""
    from oyez.config import load

    for folder in file.resolve().parents:
        if (folder / FILE).is_file():
            return Simulated(Project(load(folder / FILE)))
    raise ConfigurationError(
        f"{file}: expected an {FILE} in this folder or one above it: write one, or name the "
        "services: @simulate(orders, payments)"
    )
