"""Signals as metrics in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from oyez import signals

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_HELP = {
    "oyez_events_handled_total": "Events whose handling was committed.",
    "oyez_events_published_total": "Events that the broker acknowledged.",
    "oyez_events_retried_total": "Failed attempts that will be retried.",
    "oyez_events_dead_total": "Events that became dead letters.",
    "oyez_events_missed_total": "Events deleted by retention before they were handled.",
    "oyez_fenced_total": "Commits refused because another replica owns the partition.",
    "oyez_trouble_total": "Errors of broker or store that are retried.",
    "oyez_lag_records": "Lag of an owned partition in records; absent where unknown.",
    "oyez_view_stale_seconds": "Age of the oldest event that a view has not applied here.",
    "oyez_stalled_partitions": "Partitions that make no progress though there is lag.",
    "oyez_owned_partitions": "Partitions that this process owns.",
    "oyez_batch_seconds": "Time from the arrival of a batch to its commit.",
}

_UNKNOWN = ("oyez_lag_records", "oyez_view_stale_seconds")


class Metrics:
    """The metrics of a process; pass `count` to `Signals.listen` and serve `render`."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], float] = defaultdict(float)
        self._buckets = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    def count(self, signal: signals.Signal) -> None:
        """Update the metrics by a signal."""
        match signal:
            case signals.BatchHandled(stream=stream, events=events, seconds=seconds):
                self._add("oyez_events_handled_total", events, stream=stream)
                self._buckets[bisect_left(_BUCKETS, seconds)] += 1
                self._seconds += seconds
            case signals.EventsPublished(stream=stream, events=events):
                self._add("oyez_events_published_total", events, stream=stream)
            case signals.EventRetried(handler=handler):
                self._add("oyez_events_retried_total", 1, handler=handler)
            case signals.EventDead(handler=handler):
                self._add("oyez_events_dead_total", 1, handler=handler)
            case signals.EventsMissed(stream=stream, events=events):
                self._add("oyez_events_missed_total", events, stream=stream)
            case signals.ClaimLost():
                self._add("oyez_fenced_total", 1)
            case signals.Trouble(part=part):
                self._add("oyez_trouble_total", 1, part=part.partition("[")[0])
            case signals.LagMeasured(stream=stream, partition=partition, records=records):
                self._set("oyez_lag_records", records, stream=stream, partition=str(partition))
            case signals.ViewMeasured(view=view, version=version, seconds=seconds):
                self._set("oyez_view_stale_seconds", seconds, view=view, version=str(version))
            case signals.Stalled():
                self._add("oyez_stalled_partitions", 1)
            case signals.Resumed():
                self._add("oyez_stalled_partitions", -1)
            case signals.Claimed():
                self._add("oyez_owned_partitions", 1)
            case signals.Released():
                self._add("oyez_owned_partitions", -1)

    def render(self) -> str:
        """Return all metrics as text."""
        lines: list[str] = []
        named: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for (name, labels), value in sorted(self._values.items()):
            named[name].append((labels, value))
        for name, text in _HELP.items():
            if name == "oyez_batch_seconds":
                lines += self._histogram(name, text)
                continue
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            # An unknown lag is not a lag of 0, nor is a view that does not exist fresh.
            samples = named[name] or ([] if name in _UNKNOWN else [("", 0.0)])
            lines += [f"{name}{labels} {value:g}" for labels, value in samples]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, text: str) -> list[str]:
        lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self._buckets, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._seconds:.6f}", f"{name}_count {total}"]

    def _add(self, name: str, amount: float, **labels: str) -> None:
        self._values[name, _labels(labels)] += amount

    def _set(self, name: str, value: float | None, **labels: str) -> None:
        if value is None:
            self._values.pop((name, _labels(labels)), None)
        else:
            self._values[name, _labels(labels)] = value


def _labels(labels: dict[str, str]) -> str:
    text = ",".join(f'{key}="{_escape(value)}"' for key, value in sorted(labels.items()))
    return f"{{{text}}}" if text else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
