"""Counters and histograms in plain Python, and the table of every metric that workerkit has."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

Labels = tuple[str, ...]

_folding = Lock()

AT_ONCE = 256
"""So many values of a distribution are put aside before they are sorted into its buckets."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is counted or measured.

    Attributes:
        name: Without the prefix; with the unit at its end, and `_total` behind that of a counter.
        labels: Names of what tells its series apart; few values each.
        text: What it says, for people.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    text: str


class Count:
    """How often something happened, under one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Distribution:
    """The values of something, under one set of labels.

    Values are put aside and looked at many at once: sorted, they need one look for each bucket, and
    to put one aside costs 0.05 µs where `observe` of prometheus_client costs more than one.

    Attributes:
        put_aside: Adds one value, without any look at how many there are: `fold` is up to the
            caller then.
    """

    __slots__ = ("_aside", "_bounds", "_counts", "_total", "put_aside")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._aside: list[float] = []
        self.put_aside: Callable[[float], None] = self._aside.append

    def observe(self, value: float) -> None:
        """Add one value."""
        self._aside.append(value)
        if len(self._aside) >= AT_ONCE:
            self.fold()

    def fold(self) -> None:
        """Sort what was put aside into the buckets."""
        # Whoever reads may do so in another thread, while more is put aside.
        with _folding:
            values = sorted(self._aside)
            del self._aside[: len(values)]
            for index, bound in enumerate(self._bounds):
                self._counts[index] += bisect_right(values, bound)
            self._counts[-1] += len(values)
            self._total += sum(values)

    def read(self) -> tuple[Sequence[int], float]:
        """For each bucket, how many values are in it or below, and the sum of all.

        A value on a bound is below it.
        """
        self.fold()
        with _folding:
            return list(self._counts), self._total


class Counter:
    """How often something happened."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.series: dict[Labels, Count] = {}

    def of(self, *labels: str) -> Count:
        """The count of these labels, for those who keep it."""
        if labels not in self.series:
            self.series[labels] = Count()
        return self.series[labels]

    def add(self, *labels: str) -> None:
        """It happened once more."""
        self.of(*labels).value += 1


class Histogram:
    """How large the values of something were.

    Args:
        bounds: Upper ones of the buckets, ascending; one more bucket takes what is above them.
    """

    def __init__(self, metric: Metric, bounds: Sequence[float]) -> None:
        self.metric = metric
        self.bounds = bounds
        self.series: dict[Labels, Distribution] = {}

    def of(self, *labels: str) -> Distribution:
        """The distribution of these labels, for those who keep it."""
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
    "Deliveries settled; outcome is ack, requeue, reject, dead_letter, retry, or lost where the"
    " connection was gone before",
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
IN_FLIGHT = Metric("in_flight", "gauge", ("consumer",), "Calls of handle that run")
RETRIES = Metric(
    "retries_total",
    "counter",
    ("consumer", "source", "error"),
    "Deliveries to be tried again; error is the class raised, empty where the handler decided",
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
    "1 for the state a consumer is in (starting, waiting, ready, ended, stopping), else 0",
)
LEADER = Metric(
    "periodic_leader",
    "gauge",
    ("consumer",),
    "1 where this process runs a task with singleton, 0 where another one does or none",
)
LAST_EVENT_AGE = Metric(
    "last_event_age_seconds",
    "gauge",
    ("consumer", "source"),
    "Since the last event of a stream; absent before the first",
)
READY = Metric("ready", "gauge", (), "1 where /health/ready says 200, else 0")
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
    "Connections made, to brokers and to servers of event streams; all after the first are "
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
    "From a request to the answer; route is the template, such as /orders/{order_id}, and empty "
    "where there is no view",
)
HTTP_REQUEST_SIZE = Metric(
    "http_request_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Bodies of requests; without those that nobody counted",
)
HTTP_RESPONSE_SIZE = Metric(
    "http_response_size_bytes",
    "histogram",
    ("route", "method", "status"),
    "Bodies of answers; without streams",
)
LOOP_LAG = Metric(
    "loop_lag_seconds",
    "histogram",
    (),
    "How much too late the event loop came to a timer, looked at twice a second",
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
