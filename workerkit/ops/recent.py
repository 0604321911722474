"""What the console shows beside the metrics: the last failures, and the state of connections."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import NamedTuple

from workerkit.delivery import Action
from workerkit.describe import error_location, error_text
from workerkit.errors import RequestExpired, Retry
from workerkit.observe import ConnectionEvent, Event, Settled
from workerkit.ops.counting import DELIVERIES, Counter, Histogram

_MOST_FAILURES = 50
# More than is shown: of a secret that is cut, the end by which it is recognized may be missing.
_LONGEST_TEXT = 2_000
_LONGEST_ID = 200
_LOST = "lost"


class FailedDelivery(NamedTuple):
    """A delivery that failed, as text: nothing of it is kept in memory.

    Attributes:
        time: Seconds since 1970.
        place: The innermost line outside of workerkit, such as `orders.py:12`; may be empty.
        delivery: Its id, or its description.
    """

    time: float
    consumer: str
    source: str
    action: str
    error: str
    text: str
    place: str
    delivery: str
    attempt: int
    trace_id: str | None


@dataclass(slots=True)
class ConnectionState:
    """A connection, as of its last event.

    Streams that share a connection of the settings share this as well.

    Attributes:
        reason: Why the last attempt failed, or why it was lost.
    """

    connected: bool = False
    opened: int = 0
    lost: int = 0
    failed: int = 0
    reason: str = ""


class Recent:
    """The last failures, and the connections.

    Attributes:
        failures: The last deliveries that failed, the oldest first.
        failed: The number of deliveries that failed, by consumer.
        connections: The state of each, by name, role and virtual host.
    """

    def __init__(self) -> None:
        self.failures: deque[FailedDelivery] = deque(maxlen=_MOST_FAILURES)
        self.failed: dict[str, int] = {}
        self.connections: dict[tuple[str, str, str], ConnectionState] = {}

    def note_failure(self, record: Settled, error: Exception) -> None:
        """Count a failure, and keep what is known of it.

        No failures are: what a handler has chosen with `Retry`, while it is tried again; requests
        that were refused because of their client; and those whose sender waits no more.
        """
        delivery, action = record.delivery, record.action
        if isinstance(error, RequestExpired) or (
            isinstance(error, Retry) and action in (Action.RETRY, Action.REQUEUE)
        ):
            return
        level, _ = delivery.log_failure(action, error)
        if level < logging.WARNING:
            return
        self.failed[record.consumer] = self.failed.get(record.consumer, 0) + 1
        kind, _, place = error_location(error).partition(" (")
        id_ = getattr(delivery, "message_id", None) or getattr(delivery, "id", None)
        self.failures.append(
            FailedDelivery(
                time(),
                record.consumer,
                record.source,
                action.value,
                kind,
                error_text(error)[:_LONGEST_TEXT],
                place.removesuffix(")"),
                str(id_ or delivery)[:_LONGEST_ID],
                delivery.attempt,
                getattr(delivery, "trace", {}).get("trace_id"),
            )
        )

    def note_connection(self, event: Event, record: ConnectionEvent) -> None:
        """Keep the state of a connection."""
        key = record.name, record.role, record.vhost
        state = self.connections.setdefault(key, ConnectionState())
        state.connected, state.reason = event == "connected", record.reason[:_LONGEST_TEXT]
        state.opened += event == "connected"
        state.lost += event == "connection_lost"
        state.failed += event == "connection_failed"


class ConsumerCounts(NamedTuple):
    """What was counted for one consumer since the start.

    Attributes:
        handled: Settled deliveries, whatever the outcome; not those that were lost before.
        bounds: Upper bounds of the buckets of the durations, in seconds.
        buckets: Cumulative counts of the buckets; one more than bounds.
    """

    handled: int
    retried: int
    dead: int
    bounds: Sequence[float]
    buckets: Sequence[int]


def counts_by_consumer(
    deliveries: Counter, retries: Counter, dead_letters: Counter, seconds: Histogram
) -> Mapping[str, ConsumerCounts]:
    """Return what was counted for each consumer, of all its sources."""
    handled, retried, dead = map(_sums, (deliveries, retries, dead_letters))
    buckets: dict[str, list[int]] = {}
    for (consumer, *_), measured in list(seconds.series.items()):
        counts, _ = measured.read()
        known = buckets.setdefault(consumer, [0] * len(counts))
        buckets[consumer] = [one + other for one, other in zip(known, counts, strict=True)]
    return {
        consumer: ConsumerCounts(
            number,
            retried.get(consumer, 0),
            dead.get(consumer, 0),
            seconds.bounds,
            buckets.get(consumer, ()),
        )
        for consumer, number in handled.items()
    }


def _sums(counter: Counter) -> dict[str, int]:
    """Return the sums by the first label, the consumer; without what was lost."""
    found: dict[str, int] = {}
    for (consumer, *_, last), count in list(counter.series.items()):
        if counter.metric is not DELIVERIES or last != _LOST:
            found[consumer] = found.get(consumer, 0) + count.value
    return found
