"""The counters of a timer's sweeps. They continue from the file that the last sweep wrote."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_OURS: Final = "reaper_build_info"
"""Every file that a sweep writes has this metric."""


class TextfileError(ValueError):
    """A file from which the counters cannot continue. The text says why."""


class _Series(NamedTuple):
    name: str
    labels: frozenset[tuple[str, str]]


class OldCounts:
    """The counters and histograms of an earlier file."""

    def __init__(self, text: str = "") -> None:
        """Raises TextfileError if a sweep did not write the text. Empty text has no counts."""
        self._values: dict[str, dict[_Series, float]] = defaultdict(dict)
        is_ours = not text
        try:
            for family in text_string_to_metric_families(text):
                is_ours |= family.name == _OURS
                if family.type in {"counter", "histogram"}:
                    self._values[family.name].update(map(_count, family.samples))
        except (ValueError, KeyError, IndexError) as error:
            raise TextfileError("it cannot be read as metrics") from error
        if not is_ours:
            raise TextfileError("another program wrote it")

    def added_to(self, family: Metric) -> Metric:
        """Return a family of this sweep with the old values added; a family of another type stays
        as it is.

        A histogram with other buckets, written by another version, starts from 0.
        """
        old = self._values.get(family.name, {})
        now = dict(map(_count, family.samples))
        if family.type == "counter":
            labels = {frozenset(name for name, _ in series.labels) for series in now}
            old = {
                series: value
                for series, value in old.items()
                if frozenset(name for name, _ in series.labels) in labels
            }
        elif family.type != "histogram" or old.keys() != now.keys():
            return family
        total = Metric(family.name, family.documentation, family.type)
        # In the order of this sweep, because the buckets of a histogram must be in order.
        for series in dict.fromkeys((*now, *old)):
            value = now.get(series, 0.0) + old.get(series, 0.0)
            total.samples.append(Sample(series.name, dict(series.labels), value))
        return total


def _count(sample: Sample) -> tuple[_Series, float]:
    """Raises ValueError if it is not a count."""
    if not (math.isfinite(sample.value) and sample.value >= 0):
        raise ValueError(f"{sample.name} is {sample.value}")
    return _Series(sample.name, frozenset(sample.labels.items())), sample.value


class Continued(Collector):
    """The metrics of one sweep, with the counts of earlier sweeps added."""

    def __init__(self, sweep: Collector, old: OldCounts) -> None:
        self._sweep = sweep
        self._old = old

    def collect(self) -> Iterable[Metric]:
        return self._continued()

    def _continued(self) -> Iterator[Metric]:
        for family in self._sweep.collect():
            yield self._old.added_to(family)
