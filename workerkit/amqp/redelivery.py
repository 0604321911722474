"""Decide about messages that were delivered before, before they are handled again.

RabbitMQ redelivers a message whose acknowledgement it has not received. That is also true of

* a message that was handled, or copied to another queue, but its connection was lost before the
  broker received the acknowledgement: it is acknowledged now (`Handled`);
* a message whose handler takes longer than the broker's consumer timeout (`Overdue`);
* a message that makes processes end, or lose their connections, before it is settled;
* a message whose first call still runs in this process: it is held until that call has ended.

None of these may be handled without end, or twice at the same time.
"""

import dataclasses
import logging
from collections import OrderedDict
from hashlib import blake2b
from time import monotonic
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message import ACQUIRED_COUNT, DELIVERY_COUNT, AMQPMessage
from workerkit.amqp.queue_types import QueueTypes
from workerkit.delivery import Action, Outcome
from workerkit.errors import HandlerTimeout, Reject

log = logging.getLogger(__name__)

TRIES = 3
_COUNTS = frozenset({DELIVERY_COUNT, ACQUIRED_COUNT})
_TOO_MANY_REDELIVERIES = 20
_REMEMBERED = 1_000
_IN_DOUBT = 600.0
_SLACK, _SLACK_SHARE, _SUSPECT_SHARE = 1.0, 0.1, 0.5

Place = tuple[str, str]
"""A named connection and a virtual host."""

HANDLED_BEFORE = Outcome(Action.ACK)
"""The outcome of a redelivered message that was handled; no other outcome is this object."""

_Key = tuple[Place, tuple[str, bytes]]


class Handled:
    """Remembers messages that were handled, but whose acknowledgement may not have arrived.

    These are the last thousand of this process, so that none is handled twice. The same is true of
    messages that were copied to the queue of a retry or of dead letters.

    If it is in doubt whether the acknowledgement has arrived, the message may be gone, and another
    message that looks the same could be taken for it. So all properties are compared as well, and
    the message is remembered for ten minutes only.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[_Key, int] = OrderedDict()
        self._in_doubt: OrderedDict[tuple[_Key, bytes], tuple[int, float]] = OrderedDict()

    def add(self, place: Place, message: AMQPMessage[Any]) -> None:
        """Remember a message that was handled and cannot be acknowledged.

        A message without an id is not remembered: it could be another one, which would never be
        handled. So it is handled again.
        """
        if not message.message_id:
            return
        key = place, message.fingerprint
        # Two messages may look the same, and then both are redelivered.
        self._times[key] = self._times.pop(key, 0) + 1
        while len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)

    def add_in_doubt(self, place: Place, message: AMQPMessage[Any]) -> None:
        """Remember a message whose acknowledgement was sent, but may not have arrived.

        A message without an id is not remembered.
        """
        if not message.message_id:
            return
        key = (place, message.fingerprint), _metadata_digest(message)
        times, _ = self._in_doubt.pop(key, (0, 0.0))
        self._in_doubt[key] = times + 1, monotonic()
        while len(self._in_doubt) > _REMEMBERED:
            self._in_doubt.popitem(last=False)

    def recall(self, place: Place, message: AMQPMessage[Any]) -> bool:
        """Return whether a redelivered message is one of them, and forget it."""
        if not self._times and not self._in_doubt:
            return False
        key = place, message.fingerprint
        times = self._times.pop(key, 0)
        if times > 1:
            self._times[key] = times - 1
        return times > 0 or (bool(self._in_doubt) and self._was_in_doubt(key, message))

    def _was_in_doubt(self, key: _Key, message: AMQPMessage[Any]) -> bool:
        whole = key, _metadata_digest(message)
        times, since = self._in_doubt.pop(whole, (0, 0.0))
        if times > 1:
            self._in_doubt[whole] = times - 1, since
        return times > 0 and monotonic() - since < _IN_DOUBT


class Overdue:
    """Counts, in this process, how often each message was taken away from its handler.

    After its `consumer_timeout` (30 minutes by default) RabbitMQ requeues a message and redelivers
    it. It closes the channel before that; from 4.3 on it cancels the consumer, and has the timeout
    on quorum queues only. RabbitMQ does not count this, so workerkit does.

    Args:
        consumer: Its name.
        seconds: The broker's `consumer_timeout`, according to the settings.
    """

    def __init__(self, consumer: str, seconds: float) -> None:
        self._consumer = consumer
        self._seconds = seconds
        self._counts: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def is_due(self, seconds: float, *, suspect: bool = False) -> bool:
        """Return whether the consumer timeout may have expired for a handler.

        The broker counts from the time when it sent the message, which then waited for a worker. So
        its time is ahead of ours, and from 4.3 on the timeout is exact.

        Args:
            seconds: How long the handler has run.
            suspect: The broker has closed the channel or cancelled the consumer, and this is its
                oldest unacknowledged message.
        """
        slack = (
            _SUSPECT_SHARE * self._seconds if suspect else min(_SLACK, _SLACK_SHARE * self._seconds)
        )
        return seconds >= self._seconds - slack

    def note(self, message: AMQPMessage[Any], seconds: float, *, suspect: bool = False) -> None:
        """Count a message whose channel was lost, if its handler has run for too long."""
        if not self.is_due(seconds, suspect=suspect):
            return
        key = message.fingerprint
        self._counts[key] = self._counts.pop(key, 0) + 1
        while len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        log.error(
            "handler exceeds the broker's consumer_timeout: its message is redelivered",
            extra={
                "consumer": self._consumer,
                "delivery": str(message),
                "seconds": round(seconds, 1),
                "consumer_timeout": self._seconds,
                "times": self._counts[key],
            },
        )

    def outcome(self, message: AMQPMessage[Any]) -> Outcome | None:
        """Return the dead letter of a message that was taken away too often; None for all others.

        Args:
            message: One that is redelivered.
        """
        if not self._counts or self._counts.get(message.fingerprint, 0) < TRIES:
            return None
        text = f"took longer than the broker's {self._seconds:g} s, {TRIES} times"
        return Outcome(Action.DEAD_LETTER, HandlerTimeout(f"{self._consumer}: handle {text}"))


class Redelivery:
    """What one consumer knows of messages that were delivered before.

    Args:
        types: The types that the queues have at the broker.
        handled: That of the process.
        place: The connection and virtual host of the consumer.
        consumer_timeout: The broker's, in seconds, according to the settings.

    Attributes:
        overdue: The messages whose handlers took too long.
    """

    def __init__(
        self,
        options: AMQPOptions,
        types: QueueTypes,
        handled: Handled,
        place: Place,
        consumer_timeout: float,
    ) -> None:
        self._name = options.name
        self._limits = {queue.name: queue.known_delivery_limit for queue in options.queues}
        self._types = types
        self._handled = handled
        self._place = place
        self.overdue = Overdue(options.name, consumer_timeout)

    def outcome(self, message: AMQPMessage[Any]) -> Outcome | None:
        """Return the outcome that a redelivered message has already; None for most."""
        if self._handled.recall(self._place, message):
            log.info(
                "redelivered message was handled before: acknowledged",
                extra={"consumer": self._name, "delivery": str(message)},
            )
            return HANDLED_BEFORE
        if (outcome := self.overdue.outcome(message)) is not None:
            return outcome
        if count := self._excessive_redeliveries(message):
            error = Reject(f"redelivered {count} times, and never settled")
            return Outcome(Action.DEAD_LETTER, error)
        return None

    def remember(self, message: AMQPMessage[Any]) -> None:
        """Remember a message that was handled and cannot be acknowledged."""
        # A copy in the same queue has the same id and body, and must not be taken for it.
        if message.moved:
            self._handled.add_in_doubt(self._place, message)
        else:
            self._handled.add(self._place, message)

    def remember_in_doubt(self, message: AMQPMessage[Any]) -> None:
        """Remember a message whose acknowledgement was sent, but may not have arrived."""
        self._handled.add_in_doubt(self._place, message)

    def _excessive_redeliveries(self, message: AMQPMessage[Any]) -> int:
        """Return how often a message was redelivered, if that is too often to handle it; else 0.

        The processes that received it ended, or lost their connections. Only a quorum queue counts
        that.
        """
        limit, count = self._limits[message.queue], self._types.delivery_count(message)
        if not count:
            return 0
        if limit is not None:
            # With a limit of 1, such a message looks like one that failed once.
            return count if 1 < limit <= count else 0
        if self._types.of(message.queue) is None:
            count = 1  # On a classic queue the header has the value that the sender wrote.
        returns = message.returns + count
        return returns if returns >= _TOO_MANY_REDELIVERIES else 0


def _metadata_digest(message: AMQPMessage[Any]) -> bytes:
    """Return a digest of everything but the body and counts; the same for each redelivery."""
    headers = sorted((name, each) for name, each in message.sent.items() if name not in _COUNTS)
    properties = dataclasses.replace(message.properties, table=None)
    metadata = repr((message.exchange, message.routing_key, properties, headers))
    return blake2b(metadata.encode(), digest_size=16).digest()
