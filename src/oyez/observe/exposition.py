"""The metrics of a process through the maintained Prometheus client, which is imported here alone.

The client keeps the registry, adds what the system knows of the process, agrees on the format and
writes it; the numbers are ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from oyez.observe.catalogue import SERVICE
from oyez.observe.catalogue import Metric as Family
from oyez.observe.series import Histogram, Series


def render(series: Series, accept: str) -> tuple[bytes, str]:
    """Return the metrics in a format that ``accept``, a header of HTTP, names; and its type."""
    registry = _registries.get(series)
    if registry is None:
        # The client's own registry is one for the whole process, which may run several services.
        registry = _registries[series] = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(series))
        ProcessCollector(registry=registry)
        python = ".".join(map(str, sys.version_info[:3]))
        series.set("oyez_build_info", (version("oyez"), python), 1.0)
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


_registries: WeakKeyDictionary[Series, CollectorRegistry] = WeakKeyDictionary()


class _Collected(Collector):
    """What the client collects whenever it is scraped."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def collect(self) -> Iterator[Metric]:
        for family in self._series.families:
            if family.kind == "histogram":
                yield self._histograms(family)
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            made = kind(family.name, family.text, labels=(SERVICE, *family.labels))
            # The event loop may add series meanwhile: `sorted` first takes all there are, at once.
            for labels, value in sorted(self._series.values[family.name].items()):
                made.add_metric((self._series.service, *labels), value)
            yield made

    def _histograms(self, family: Family) -> Metric:
        service = self._series.service
        made = HistogramMetricFamily(family.name, family.text, labels=(SERVICE, *family.labels))
        for labels, found in sorted(
            self._series.histograms[family.name].items(), key=lambda item: item[0]
        ):
            made.add_metric((service, *labels), list(_buckets(found)), found.total)
        return made


def _buckets(found: Histogram) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    count = 0
    bounds = [*map(floatToGoString, found.bounds), "+Inf"]
    for index, bound in enumerate(bounds):
        count += found.counts[index]
        exemplar = found.exemplars.get(index)
        if exemplar is None:
            yield bound, count
        else:
            labels = {"trace_id": exemplar.trace_id}
            yield bound, count, Exemplar(labels, exemplar.value, exemplar.at)
