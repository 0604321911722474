"""The metrics of a process, as Prometheus reads them.

Observing costs half a microsecond per message, which is why nothing here is one of
prometheus_client's own metrics: a labelled `Histogram.observe` of theirs takes several.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from time import monotonic, time
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar

from workerkit.config.sections import MetricsSettings
from workerkit.delivery import Action, Delivery
from workerkit.errors import (
    BrokerBlocked,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    RequestExpired,
    Unroutable,
)
from workerkit.health import Readiness, State
from workerkit.observe import ConnectionEvent, Published, Settled, Unhandled
from workerkit.ops.counting import (
    CONNECTION_FAILURES,
    CONNECTION_LOSSES,
    CONNECTIONS,
    CONSUMER_STATE,
    DEAD_LETTERS,
    DELIVERIES,
    DELIVERY_AGE,
    FOLD_AFTER,
    HANDLER_SECONDS,
    HTTP_REQUEST_SIZE,
    HTTP_RESPONSE_SIZE,
    HTTP_SECONDS,
    IN_FLIGHT,
    LAST_EVENT_AGE,
    LEADER,
    LOOP_LAG,
    PUBLISH_SECONDS,
    PUBLISHES,
    READY,
    RETRIES,
    Count,
    Counter,
    Distribution,
    Histogram,
    Labels,
    Measured,
    Metric,
)
from workerkit.ops.recent import ConsumerCounts, Recent, counts_by_consumer

# Subclasses come before their base classes.
_PUBLISH_OUTCOMES: dict[type[PublishError], str] = {
    Unroutable: "unroutable",
    PublishRefused: "refused",
    MessageTooLarge: "too_large",
    PublishTimeout: "timeout",
    BrokerBlocked: "blocked",
    PublishOutcomeUnknown: "unknown",
}
_ACK = Action.ACK
_METHODS = frozenset("CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT TRACE".split())

_AGES = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0)
_LAGS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (100.0, 1e3, 1e4, 1e5, 1e6, 1e7)


class Answered(Protocol):
    """A delivery that was an HTTP request; the record's source is the template of its route.

    The first delivery of a source tells, by having a `status`, that all of them are.

    Attributes:
        status: Of the answer.
        request_size: Bytes of the body; None where nobody counted, as with what is streamed.
        response_size: The same of the answer.
        seconds: From the request to the answer.
    """

    method: str
    status: int
    request_size: int | None
    response_size: int | None
    seconds: float


class _Requests(NamedTuple):
    """What is measured of each request of one route, method and status."""

    seconds: Distribution
    request_sizes: Distribution
    response_sizes: Distribution


class _Source:
    """What is counted for each delivery of one source of one consumer, found with one look.

    Attributes:
        requests: By method and status; None where deliveries are no requests.
    """

    __slots__ = ("acks", "consumer", "left", "requests", "seconds")

    def __init__(self, consumer: str, acks: Count, seconds: Distribution, answered: bool) -> None:
        self.consumer = consumer
        self.acks = acks
        self.seconds = seconds
        self.requests: dict[tuple[str, int], _Requests] | None = {} if answered else None
        self.left = FOLD_AFTER

    def fold(self) -> None:
        """Sort the collected values, so that they do not accumulate."""
        self.left = FOLD_AFTER
        self.seconds.fold()
        for measured in (self.requests or {}).values():
            for each in measured:
                each.fold()


class Metrics:
    """An observer that counts, and a Prometheus collector of the counts.

    Args:
        readiness: Has the values of the gauges.

    Attributes:
        registry: One for each instance, so that two in one interpreter do not clash.
        handler_seconds: By consumer and source.
        publish_seconds: By connection.
        request_seconds: By route, method and status.
        recent: The last failures, and the connections.
    """

    def __init__(self, settings: MetricsSettings, readiness: Readiness) -> None:
        self._prefix = settings.prefix
        self._measures_age = settings.age
        self._readiness = readiness
        self._counters: list[Counter] = []
        self._histograms: list[Histogram] = []
        self._deliveries = self._counter(DELIVERIES)
        self.handler_seconds = self._histogram(HANDLER_SECONDS, settings.buckets)
        self._ages = self._histogram(DELIVERY_AGE, _AGES)
        self._retries = self._counter(RETRIES)
        self._dead_letters = self._counter(DEAD_LETTERS)
        self._publishes = self._counter(PUBLISHES)
        self.publish_seconds = self._histogram(PUBLISH_SECONDS, settings.buckets)
        self._connections = self._counter(CONNECTIONS)
        self._failures = self._counter(CONNECTION_FAILURES)
        self._losses = self._counter(CONNECTION_LOSSES)
        self.request_seconds = self._histogram(HTTP_SECONDS, settings.buckets)
        self._request_sizes = self._histogram(HTTP_REQUEST_SIZE, _SIZES)
        self._response_sizes = self._histogram(HTTP_RESPONSE_SIZE, _SIZES)
        self._lags = self._histogram(LOOP_LAG, _LAGS)
        self.recent = Recent()
        self._known: dict[tuple[str, str], _Source] = {}
        # By source alone, for speed: most have one consumer; else the one of the last record.
        self._sources: dict[str, _Source] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def __call__(self, record: Settled) -> None:
        """Count a delivery."""
        consumer, source, delivery, outcome, action, seconds, lost = record
        its = self._sources.get(source)
        if its is None or its.consumer != consumer:
            its = self._source(record)
        if action is _ACK and not lost and outcome.error is None:
            its.acks.value += 1
        else:
            self._not_acknowledged(record)
        its.seconds.collect(seconds)
        if its.requests is not None:
            self._observe_request(its.requests, source, delivery)
        its.left -= 1
        if not its.left:
            its.fold()
        if self._measures_age:
            self._observe_age(consumer, source, delivery)

    def unhandled(self, record: Unhandled) -> None:
        """Count a request that reached no view."""
        measured = self._measures(record.route, record.method, record.status)
        measured.seconds.observe(record.seconds)
        measured.request_sizes.observe(record.request_size)
        if record.response_size is not None:
            measured.response_sizes.observe(record.response_size)

    def published(self, record: Published) -> None:
        """Count a publish."""
        kinds = _PUBLISH_OUTCOMES.items()
        outcome = next(
            (name for kind, name in kinds if isinstance(record.error, kind)), "confirmed"
        )
        self._publishes.add(record.connection, outcome)
        self.publish_seconds.observe(record.seconds, record.connection)

    def connected(self, record: ConnectionEvent) -> None:
        """Count a connection."""
        self._connections.add(record.name, record.role)
        self.recent.note_connection("connected", record)

    def connection_failed(self, record: ConnectionEvent) -> None:
        """Count a failed attempt to connect."""
        self._failures.add(record.name, record.role)
        self.recent.note_connection("connection_failed", record)

    def connection_lost(self, record: ConnectionEvent) -> None:
        """Count a lost connection."""
        self._losses.add(record.name, record.role)
        self.recent.note_connection("connection_lost", record)

    def by_consumer(self) -> Mapping[str, ConsumerCounts]:
        """Return what was counted for each consumer."""
        return counts_by_consumer(
            self._deliveries, self._retries, self._dead_letters, self.handler_seconds
        )

    def lag(self) -> tuple[Sequence[float], Sequence[int]]:
        """Return bounds and cumulative counts of the delays of the event loop."""
        return self._lags.bounds, self._lags.of().read()[0]

    def lagged(self, seconds: float) -> None:
        """Observe how late a timer of the event loop ran."""
        self._lags.observe(max(seconds, 0.0))

    def collect(self) -> Iterator[Family]:
        """Yield all metrics for Prometheus."""
        for counter in self._counters:
            counts = {labels: count.value for labels, count in counter.series.items()}
            yield self._family(CounterMetricFamily, counter.metric, counts)
        for histogram in self._histograms:
            yield self._histogram_family(histogram)
        health, now = self._readiness.health, monotonic()
        yield self._family(
            GaugeMetricFamily, IN_FLIGHT, {(each.consumer,): each.in_flight() for each in health}
        )
        states: dict[Labels, float] = {
            (each.consumer, state): float(each.state is state) for each in health for state in State
        }
        yield self._family(GaugeMetricFamily, CONSUMER_STATE, states)
        leaders: dict[Labels, float] = {
            (each.consumer,): float(role == "leader") for each in health if (role := each.role())
        }
        yield self._family(GaugeMetricFamily, LEADER, leaders)
        ages: dict[Labels, float] = {
            (each.consumer, part.source): now - part.last_event
            for each in health
            for part in each.parts
            if part.last_event is not None
        }
        yield self._family(GaugeMetricFamily, LAST_EVENT_AGE, ages)
        yield self._family(GaugeMetricFamily, READY, {(): float(self._readiness.ready)})

    def _counter(self, metric: Metric) -> Counter:
        self._counters.append(Counter(metric))
        return self._counters[-1]

    def _histogram(self, metric: Metric, bounds: Sequence[float]) -> Histogram:
        self._histograms.append(Histogram(metric, bounds))
        return self._histograms[-1]

    def _source(self, record: Settled) -> _Source:
        """Return the counters of the consumer and source of a record."""
        labels = record.consumer, record.source
        if labels not in self._known:
            self._known[labels] = _Source(
                record.consumer,
                self._deliveries.of(*labels, Action.ACK),
                self.handler_seconds.of(*labels),
                hasattr(record.delivery, "status"),
            )
        found = self._sources[record.source] = self._known[labels]
        return found

    def _not_acknowledged(self, record: Settled) -> None:
        labels = record.consumer, record.source
        if record.lost:
            self._deliveries.add(*labels, "lost")
            return
        error = record.outcome.error
        expired = isinstance(error, RequestExpired)
        self._deliveries.add(*labels, "expired" if expired else record.action)
        name = "" if error is None else type(error).__name__
        if record.action is Action.RETRY:
            self._retries.add(*labels, name)
        elif record.action is Action.DEAD_LETTER:
            self._dead_letters.add(*labels, name)
        if error is not None:
            self.recent.note_failure(record, error)

    def _observe_request(
        self, known: dict[tuple[str, int], _Requests], route: str, request: Any
    ) -> None:
        answered: Answered = request
        key = answered.method, answered.status
        measured = known.get(key)
        if measured is None:
            measured = self._measures(route, *key)
            known[known_method(answered.method), answered.status] = measured
        measured[0].collect(answered.seconds)
        if (size := answered.request_size) is not None:
            measured[1].collect(size)
        if (size := answered.response_size) is not None:
            measured[2].collect(size)

    def _measures(self, route: str, method: str, status: int) -> _Requests:
        labels = route, known_method(method), str(status)
        return _Requests(
            self.request_seconds.of(*labels),
            self._request_sizes.of(*labels),
            self._response_sizes.of(*labels),
        )

    def _observe_age(self, consumer: str, source: str, delivery: Delivery) -> None:
        sent = getattr(delivery, "timestamp", None)
        if isinstance(sent, datetime):
            # The sender's clock may be ahead of ours.
            self._ages.observe(max(time() - sent.timestamp(), 0.0), consumer, source)

    def _family(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        metric: Metric,
        values: Mapping[Labels, float],
    ) -> Family:
        gathered = family(f"{self._prefix}_{metric.name}", metric.text, labels=metric.labels)
        for labels, value in values.items():
            gathered.add_metric([str(each) for each in labels], value)
        return gathered

    def _histogram_family(self, histogram: Histogram) -> Family:
        metric = histogram.metric
        name = f"{self._prefix}_{metric.name}"
        measured = HistogramMetricFamily(name, metric.text, labels=metric.labels)
        bounds = [*map(str, histogram.bounds), "+Inf"]
        for labels, values in histogram.series.items():
            counts, total = values.read()
            if not counts[-1]:
                continue
            buckets: Sequence[Any] = list(zip(bounds, counts, strict=True))
            if values.exemplars:
                exemplars = map(_exemplar, values.exemplars)
                buckets = list(zip(bounds, counts, exemplars, strict=True))
            measured.add_metric([str(each) for each in labels], buckets, total)
        return measured


def known_method(method: str) -> str:
    """Return the method, or "other": clients may send any word, and labels need few values."""
    return method if method in _METHODS else "other"


def _exemplar(measured: Measured | None) -> Exemplar | None:
    if measured is None:
        return None
    return Exemplar(dict(measured.trace), measured.value, measured.time)
