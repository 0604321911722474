"""The metrics of several processes as one page.

Counters, histograms and summaries are summed, with those of processes that have ended, so that no
sum falls when a process is replaced. Most gauges cannot be summed (a state, an age, a temperature):
each process has its own, with a label. So have the `process_*` metrics of prometheus_client.

Rejected: the multiprocess mode of prometheus_client. It replaces the values of its own metrics by
memory-mapped files, which costs several microseconds for each observation, leaves one file for each
process that there ever was, and has neither exemplars, collectors nor `process_*`. workerkit's own
metrics are no metrics of prometheus_client, because those are too slow.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from workerkit.describe import describe_error
from workerkit.ops.counting import IN_FLIGHT, LEADER, PROCESS_RESTARTS, PROCESS_UP, READY

log = logging.getLogger(__name__)

_SUMMED = ("counter", "histogram", "summary")
_OF_PROCESS = "process_"
_LABEL = "process"

Key = tuple[str, tuple[tuple[str, str], ...]]


class Sums(Collector):
    """Sums of the last pages of processes that run, and of those that have ended.

    Args:
        prefix: Of workerkit's own metrics.

    Attributes:
        ready: Whether all processes are.
        up: Whether each process responds, by its number.
        restarts: The number of restarts of each process that died.
    """

    def __init__(self, prefix: str) -> None:
        self.ready = False
        self.up: dict[int, bool] = {}
        self.restarts: dict[int, int] = {}
        self._prefix = prefix
        self._summed_gauges = {f"{prefix}_{each.name}" for each in (IN_FLIGHT, LEADER)}
        self._ended = _Total()
        self._running: dict[int, tuple[int, Sequence[Family]]] = {}

    def update(self, pid: int, number: int, page: str) -> bool:
        """Replace the last page of a process; return False if it is no page of OpenMetrics."""
        parse: Callable[[str], Iterator[Family]] = text_string_to_metric_families
        try:
            self._running[pid] = number, list(parse(page))
        except Exception as error:
            # The application may have metrics whose names or values OpenMetrics does not allow.
            fields = {"process_number": number, "pid": pid, "error": describe_error(error)}
            log.error("metrics of a process are not valid: keeping the previous ones", extra=fields)
            return False
        return True

    def retire(self, pid: int) -> None:
        """Keep the counts of a process that has ended."""
        _, families = self._running.pop(pid, (0, ()))
        self._ended.add(each for each in families if _is_summed(each))

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page in the format that the Accept header selects, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterator[Family]:
        """Yield all metrics."""
        total = _Total()
        total.add(self._ended.families())
        for number, families in self._running.values():
            for each in families:
                if each.name == f"{self._prefix}_{READY.name}":
                    continue
                summed = _is_summed(each) or each.name in self._summed_gauges
                total.add([each], None if summed else number)
        yield from total.families()
        yield self._gauge(READY.name, READY.text, {(): self.ready}, ())
        up: Mapping[tuple[str, ...], bool] = {(str(number),): up for number, up in self.up.items()}
        yield self._gauge(PROCESS_UP.name, PROCESS_UP.text, up, PROCESS_UP.labels)
        restarts = CounterMetricFamily(
            f"{self._prefix}_{PROCESS_RESTARTS.name}", PROCESS_RESTARTS.text, labels=[_LABEL]
        )
        for number, count in self.restarts.items():
            restarts.add_metric([str(number)], count)
        yield restarts

    def _gauge(
        self, name: str, text: str, values: Mapping[tuple[str, ...], bool], labels: Sequence[str]
    ) -> Family:
        gauge = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=labels)
        for each, value in values.items():
            gauge.add_metric(each, float(value))
        return gauge


def _is_summed(family: Family) -> bool:
    return family.type in _SUMMED and not family.name.startswith(_OF_PROCESS)


class _Total:
    """Families of metrics, to which others are added."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._samples: dict[str, dict[Key, Sample]] = {}

    def add(self, families: Iterable[Family], number: int | None = None) -> None:
        """Add to the samples with the same labels.

        Args:
            number: Of the process, for a label; None for none.
        """
        for family in families:
            self._families.setdefault(family.name, family)
            samples = self._samples.setdefault(family.name, {})
            for sample in family.samples:
                if number is not None:
                    sample = _labelled(sample, number)
                key = sample.name, tuple(sorted(sample.labels.items()))
                # While a process is replaced there are two with its number: the newer one counts.
                other = samples.get(key) if number is None else None
                samples[key] = sample if other is None else _added(other, sample)

    def families(self) -> Iterator[Family]:
        """Yield the sums."""
        for name, each in self._families.items():
            total = Family(name, each.documentation, each.type, each.unit)
            total.samples = list(self._samples[name].values())
            yield total


def _labelled(sample: Sample, number: int) -> Sample:
    labels = dict(sample.labels)
    if _LABEL in labels:  # As Prometheus does with a label that the target has itself.
        labels[f"exported_{_LABEL}"] = labels[_LABEL]
    return sample._replace(labels={**labels, _LABEL: str(number)})


def _added(one: Sample, other: Sample) -> Sample:
    if one.name.endswith("_created"):
        return one._replace(value=min(one.value, other.value))
    exemplars = [each.exemplar for each in (one, other) if each.exemplar is not None]
    newest = max(exemplars, key=lambda each: each.timestamp or 0.0, default=None)
    return one._replace(value=one.value + other.value, exemplar=newest)
