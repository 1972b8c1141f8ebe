"""What the environment asks of tracing: OpenTelemetry's own variables, checked."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from oyez.errors import ConfigurationError

EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_RATIO = "traceidratio"
_SAMPLERS = (
    "always_on",
    "always_off",
    _RATIO,
    "parentbased_always_on",
    "parentbased_always_off",
    f"parentbased_{_RATIO}",
)
_NUMBERS = (
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
)


class Asked(msgspec.Struct, frozen=True):
    """What is asked: the names of the exporters, and how OTLP is sent."""

    exporters: tuple[str, ...]
    protocol: str = "http/protobuf"
    inherits: bool = True
    """Whether a span is recorded if its parent is, as with all samplers ``parentbased_``."""


def asked(environment: Mapping[str, str]) -> Asked | None:
    """Return what is asked of tracing, or None for none.

    Raises ConfigurationError, naming the variable, for a value that OpenTelemetry does not know.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = next((name for name in _ENDPOINTS if name in given), None)
    names = given.get(EXPORTER, "otlp" if endpoint is not None else "none")
    exporters = tuple(name for each in names.split(",") if (name := each.strip()))
    if exporters == ("none",):
        return None
    if not exporters or "none" in exporters:
        raise _error(EXPORTER, "otlp, console, none, or several with commas between them", names)
    for name in _ENDPOINTS:
        if name in given and not given[name].startswith(("http://", "https://")):
            raise _error(name, "a URL such as http://localhost:4318", "another scheme, or none")
    for name in _NUMBERS:
        if name in given and not (given[name].isdecimal() and int(given[name]) > 0):
            raise _error(name, "a whole number above 0", given[name])
    protocol = next((given[name] for name in _PROTOCOLS if name in given), "http/protobuf")
    if protocol not in ("http/protobuf", "grpc"):
        name = next(name for name in _PROTOCOLS if name in given)
        raise _error(name, "http/protobuf, or grpc with its package", protocol)
    sampler = given.get(_SAMPLER, "parentbased_always_on").lower()
    if sampler not in _SAMPLERS:
        raise _error(_SAMPLER, f"one of {', '.join(_SAMPLERS)}", sampler)
    if sampler.endswith(_RATIO) and _SHARE in given and not _is_share(given[_SHARE]):
        raise _error(_SHARE, "a share from 0 to 1, such as 0.01", given[_SHARE])
    return Asked(exporters, protocol, sampler.startswith("parentbased_"))


def _is_share(text: str) -> bool:
    try:
        return 0.0 <= float(text) <= 1.0
    except ValueError:
        return False


def _error(name: str, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: expected {expected}, found {found[:100]!r}")
