"""Counters and histograms in plain Python, and the table of every metric that workerkit has."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from time import time
from typing import Literal, NamedTuple

Labels = tuple[str, ...]

_folding = Lock()

FOLD_AFTER = 256
"""Number of values that a distribution collects before it sorts them into its buckets."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Name, labels and description of one metric.

    Attributes:
        name: Without the prefix; with the unit at its end, and `_total` after that of a counter.
        labels: Names of the labels; each has few values.
        text: The description.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    text: str


class Measured(NamedTuple):
    """One measured value and the trace that it was measured in: an exemplar of its bucket.

    Attributes:
        trace: `trace_id` and `span_id`.
        time: In seconds since 1970.
    """

    trace: Mapping[str, str]
    value: float
    time: float


class Count:
    """The count of one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Distribution:
    """The distribution of the values of one set of labels.

    Values are collected, and then sorted into the buckets many at a time, with one search for each
    bucket. Collecting one costs 0.05 µs; `observe` of prometheus_client costs more than 1 µs.

    Attributes:
        collect: Adds one value without checking their number: the caller has to call `fold`.
        exemplars: The last one of each bucket; empty before the first.
    """

    __slots__ = ("_bounds", "_collected", "_counts", "_total", "collect", "exemplars")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._collected: list[float] = []
        self.collect: Callable[[float], None] = self._collected.append
        self.exemplars: list[Measured | None] = []

    def observe(self, value: float) -> None:
        """Add one value."""
        self._collected.append(value)
        if len(self._collected) >= FOLD_AFTER:
            self.fold()

    def exemplify(self, value: float, trace: Mapping[str, str]) -> None:
        """Make a value that was added the exemplar of its bucket."""
        if not self.exemplars:
            self.exemplars = [None] * len(self._counts)
        self.exemplars[bisect_left(self._bounds, value)] = Measured(trace, value, time())

    def fold(self) -> None:
        """Sort the collected values into the buckets."""
        # A reader may run in another thread while values are added.
        with _folding:
            values = sorted(self._collected)
            del self._collected[: len(values)]
            for index, bound in enumerate(self._bounds):
                self._counts[index] += bisect_right(values, bound)
            self._counts[-1] += len(values)
            self._total += sum(values)

    def read(self) -> tuple[Sequence[int], float]:
        """Return the cumulative count of each bucket, and the sum of all values.

        A value on a bound belongs to the bucket below it.
        """
        self.fold()
        with _folding:
            return list(self._counts), self._total


class Counter:
    """A counter with labels."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.series: dict[Labels, Count] = {}

    def of(self, *labels: str) -> Count:
        """Return the count of these labels; callers may keep it."""
        if labels not in self.series:
            self.series[labels] = Count()
        return self.series[labels]

    def add(self, *labels: str) -> None:
        """Add 1."""
        self.of(*labels).value += 1


class Histogram:
    """A histogram with labels.

    Args:
        bounds: Upper bounds of the buckets, ascending; one more bucket has the values above them.
    """

    def __init__(self, metric: Metric, bounds: Sequence[float]) -> None:
        self.metric = metric
        self.bounds = bounds
        self.series: dict[Labels, Distribution] = {}

    def of(self, *labels: str) -> Distribution:
        """Return the distribution of these labels; callers may keep it."""
        if labels not in self.series:
            self.series[labels] = Distribution(self.bounds)
        return self.series[labels]

    def observe(self, value: float, *labels: str) -> None:
        """Add one value."""
        self.of(*labels).observe(value)


DELIVERIES = Metric(
    "deliveries_total",
    "counter",
    ("consumer", "source", "outcome"),
    "Settled deliveries; outcome is ack, requeue, reject, dead_letter, retry, expired if nobody"
    " waited for the reply any more, or lost if the connection was lost first",
)
HANDLER_SECONDS = Metric(
    "handler_seconds",
    "histogram",
    ("consumer", "source"),
    "From the start of handling a delivery, or its batch, to the decision",
)
DELIVERY_AGE = Metric(
    "delivery_age_seconds",
    "histogram",
    ("consumer", "source"),
    "From the timestamp of a delivery, whole seconds on AMQP, to its settlement; only with"
    " METRICS__AGE",
)
IN_FLIGHT = Metric("in_flight", "gauge", ("consumer",), "Running calls of handle")
RETRIES = Metric(
    "retries_total",
    "counter",
    ("consumer", "source", "error"),
    "Deliveries to be retried; error is the exception class, empty if the handler decided",
)
DEAD_LETTERS = Metric(
    "dead_letters_total",
    "counter",
    ("consumer", "source", "error"),
    "Deliveries moved to the dead letters; error as for retries",
)
CONSUMER_STATE = Metric(
    "consumer_state",
    "gauge",
    ("consumer", "state"),
    "1 for the state a consumer is in (starting, waiting, ready, paused, ended, stopping), else 0",
)
LEADER = Metric(
    "periodic_leader",
    "gauge",
    ("consumer",),
    "1 if this process holds the lease of a task with singleton, else 0",
)
LAST_EVENT_AGE = Metric(
    "last_event_age_seconds",
    "gauge",
    ("consumer", "source"),
    "Since the last event of a stream; absent before the first",
)
READY = Metric("ready", "gauge", (), "1 if /health/ready responds with 200, else 0")
PUBLISHES = Metric(
    "publishes_total",
    "counter",
    ("connection", "outcome"),
    "Publishes by handlers; outcome is confirmed, unroutable, refused, too_large, timeout,"
    " blocked or unknown",
)
PUBLISH_SECONDS = Metric(
    "publish_seconds", "histogram", ("connection",), "From the call of publish to its end"
)
CONNECTIONS = Metric(
    "connections_total",
    "counter",
    ("connection", "role"),
    "Connections opened, to brokers and to servers of event streams; all after the first are "
    "reconnections",
)
CONNECTION_FAILURES = Metric(
    "connection_failures_total",
    "counter",
    ("connection", "role"),
    "Attempts to connect that failed",
)
CONNECTION_LOSSES = Metric(
    "connection_losses_total", "counter", ("connection", "role"), "Connections lost"
)
HTTP_SECONDS = Metric(
    "http_request_seconds",
    "histogram",
    ("route", "method", "status"),
    "From a request to its response; route is the template, such as /orders/{order_id}, and empty "
    "where there is no view",
)
HTTP_REQUEST_SIZE = Metric(
    "http_request_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Sizes of request bodies; without those of unknown size",
)
HTTP_RESPONSE_SIZE = Metric(
    "http_response_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Sizes of response bodies; without streams",
)
LOOP_LAG = Metric(
    "loop_lag_seconds",
    "histogram",
    (),
    "Delay of a timer of the event loop, measured twice a second",
)
PROCESS_UP = Metric(
    "process_up",
    "gauge",
    ("process",),
    "1 if a process responds, else 0",
)
PROCESS_RESTARTS = Metric(
    "process_restarts_total",
    "counter",
    ("process",),
    "Restarts of a process that ended by itself",
)

METRICS = (
    DELIVERIES,
    HANDLER_SECONDS,
    DELIVERY_AGE,
    IN_FLIGHT,
    RETRIES,
    DEAD_LETTERS,
    CONSUMER_STATE,
    LEADER,
    LAST_EVENT_AGE,
    READY,
    PUBLISHES,
    PUBLISH_SECONDS,
    CONNECTIONS,
    CONNECTION_FAILURES,
    CONNECTION_LOSSES,
    HTTP_SECONDS,
    HTTP_REQUEST_SIZE,
    HTTP_RESPONSE_SIZE,
    LOOP_LAG,
)

METRICS_OF_PARENT = (PROCESS_UP, PROCESS_RESTARTS)
"""What a page has beside these if there are several processes."""
