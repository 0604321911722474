"""Notify observers of each delivery, publish and connection."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from workerkit.delivery import Action, Delivery, Outcome
from workerkit.describe import describe_error
from workerkit.errors import InvalidBody, PublishError, Signal

log = logging.getLogger(__name__)

_HANDLED_AND_LOST = "handled, but not acknowledged: the connection was lost"


class Settled(NamedTuple):
    """One delivery that its transport has settled.

    Attributes:
        consumer: Name of the consumer.
        source: The queue, stream or route it came from.
        outcome: What was decided, with the exception where there was one.
        action: What the transport did; it differs from the decision where that could not be carried
            out, as when a dead letter could not be moved and went back instead.
        seconds: From the start of handling to the decision.
        lost: The connection was lost, so nothing was settled: the source redelivers.
    """

    consumer: str
    source: str
    delivery: Delivery
    outcome: Outcome
    action: Action
    seconds: float
    lost: bool = False


class Published(NamedTuple):
    """One publish that has ended; cancelled ones are not reported.

    Attributes:
        connection: Its name in the settings.
        size: Bytes of the body.
        seconds: From the call to the end.
        error: Why it failed; None when the broker has confirmed it.
    """

    connection: str
    exchange: str
    routing_key: str
    message_id: str
    size: int
    seconds: float
    error: PublishError | None = None


class ConnectionEvent(NamedTuple):
    """A connection that was opened, could not be opened, or was lost.

    Attributes:
        name: Its name in the settings, or that of the consumer if the class has the URL.
        role: `consumers` or `publisher` of a broker, or `stream`.
        vhost: The virtual host of the broker; empty for a stream.
        attempt: The number of attempts in a row, from 1.
        reason: Why it failed or was lost; empty when it was opened.
    """

    name: str
    role: str
    vhost: str
    attempt: int
    reason: str = ""


class Unhandled(NamedTuple):
    """A request that was answered by a middleware, or for which there is no view.

    Attributes:
        route: The declared route that matches it; empty if there is none for its path
            and method.
        seconds: From the first middleware to the response; if the request did not arrive in time,
            the time of waiting for it.
        request_size: Bytes of the body that have arrived.
        response_size: Bytes of the response body; None for a stream.
    """

    route: str
    method: str
    status: int
    seconds: float
    request_size: int
    response_size: int | None


Observer = Callable[[Settled], object]
"""Called with each `Settled`. A method named like an `Event` is called with those."""

Event = Literal["published", "connected", "connection_failed", "connection_lost", "unhandled"]


def notify(observers: Sequence[Observer], record: Settled) -> None:
    """Call every observer; one that raises is logged, and called again the next time."""
    for observer in observers:
        try:
            observer(record)
        except Exception:
            log.exception("observer failed", extra={"observer": repr(observer)})


def notify_event(
    observers: Sequence[Observer], event: Event, record: Published | ConnectionEvent | Unhandled
) -> None:
    """Call the method named *event* of each observer that has it, as `notify` calls all of them."""
    for observer in observers:
        method = getattr(observer, event, None)
        if method is None:
            continue
        try:
            method(record)
        except Exception:
            log.exception("observer failed", extra={"observer": repr(observer)})


def log_settled(record: Settled) -> None:
    """Write one record per delivery: at DEBUG when all went well, else with the traceback.

    WARNING means that it is tried again, ERROR that it is not; see `Delivery.log_failure`. Where a
    call of `handle` failed for a batch, there is one record of each level for all of its
    deliveries, and the others are logged at DEBUG.
    """
    error = record.outcome.error
    fine = record.action is Action.ACK and error is None and not record.lost
    if fine and not log.isEnabledFor(logging.DEBUG):
        return
    delivery, outcome = record.delivery, record.outcome
    well = outcome.action is Action.ACK and error is None
    fields = delivery.log_fields(record.source, "lost" if record.lost else record.action.value)
    if fine:
        level, message = logging.DEBUG, delivery.log_success
    elif record.lost and not (delivery.moved and record.action is Action.DEAD_LETTER):
        level, message = logging.WARNING, _HANDLED_AND_LOST if well else "not handled"
    else:
        level, message = delivery.log_failure(record.action, error)
    if record.action is Action.RETRY and not record.lost:
        fields["delay"] = round(outcome.delay, 3)
    if outcome.call is not None:
        fields["batch"] = outcome.call.size
        if not outcome.call.first(level):
            level = logging.DEBUG
    log.log(
        level,
        message,
        exc_info=error if _is_traced(error, level) else None,
        extra={
            "consumer": record.consumer,
            **delivery.log_context(),
            **fields,
            **getattr(delivery, "trace", {}),
            "seconds": round(record.seconds, 6),
            **({} if error is None else {"error": describe_error(error)}),
        },
    )


def _is_traced(error: Exception | None, level: int) -> bool:
    """Whether a record has the traceback, which error trackers take from those at ERROR."""
    if isinstance(error, Signal | InvalidBody):
        # Raised on purpose, or about the body: worth it only when nothing else follows.
        return level >= logging.ERROR
    return level > logging.DEBUG
