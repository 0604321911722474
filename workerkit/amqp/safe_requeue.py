"""Requeue messages so that RabbitMQ drops none of them.

A quorum queue counts how often a message is requeued, and drops it when the count exceeds its
delivery limit. The limit may come from a policy or another declaration, and a client cannot read
it. If the class does not state it, workerkit does not rely on that count:

* From RabbitMQ 4.3 on, basic.nack does not count.
* Before that, every requeue counts. So a copy is published to the end of the same queue, and the
  original is acknowledged after the confirm. The copy is a new message, which a header counts.

RabbitMQ counts a message that it requeues because a connection or a process ended. Such a message
is replaced with a copy before it is handled, so that its count starts at 0.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import (
    FIRST_FAILED_AT,
    Moves,
    acknowledge_original,
    copied,
    history,
    now,
)
from workerkit.amqp.message import ATTEMPT, QUEUE, RETURNS, AMQPMessage, sent_attempt
from workerkit.amqp.properties import Properties
from workerkit.amqp.queue_types import QueueTypes
from workerkit.errors import PublishRefused
from workerkit.tasks import sleep_unless_stopping

log = logging.getLogger(__name__)

_UNCOUNTED = ("classic", "stream")
_TOO_MANY_FAILURES = 15
_TOO_MANY_REDELIVERIES = 20
_BEFORE_NEXT_TRY = 1.0


class SafeRequeue:
    """Requeues the messages of one consumer.

    Args:
        moves: Publishes the copies.
        types: The types that the queues have at the broker.

    Attributes:
        handle_again: Called with a message that could not be requeued.
    """

    handle_again: Callable[[AMQPMessage[Any]], None]

    def __init__(self, options: AMQPOptions, moves: Moves, types: QueueTypes) -> None:
        self._name = options.name
        self._queues = {queue.name: queue for queue in options.queues}
        self._limits = {queue.name: queue.known_delivery_limit for queue in options.queues}
        self._moves = moves
        self._types = types
        self._copying: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def requeue(self, message: AMQPMessage[Any], *, failed: bool = True) -> bool:
        """Requeue *message*, now or after its copy was confirmed.

        Args:
            failed: A handler has started with it. Else it was only prefetched.

        Returns:
            False if its channel is lost: the broker has requeued it already.
        """
        if message.acks.lost:
            return False
        limit = self._limits[message.queue]
        if self._types.of(message.queue) in _UNCOUNTED or self._queues[message.queue].is_stream:
            return message.acks.reject(message.tag, requeue=True)
        if not self._types.nack_counts and (limit is None or not failed):
            return message.acks.nack(message.tag)
        if limit is None:
            safe = self._types.of(message.queue) is None and self._is_classic(message)
        else:
            safe = failed or limit < 0 or self._types.delivery_count(message) < limit
        if safe:
            return message.acks.reject(message.tag, requeue=True)
        task = asyncio.create_task(self._copy(message, failed))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)
        return True

    def requeue_without_counting(self, messages: list[AMQPMessage[Any]]) -> None:
        """Requeue messages that RabbitMQ would count if the channel were closed now.

        It does nothing where basic.nack counts as well.

        Args:
            messages: Prefetched; no handler has started with them.
        """
        if self._types.nack_counts:
            return
        for message in messages:
            if self._types.of(message.queue) in (None, "quorum"):
                message.acks.nack(message.tag)

    async def replace_with_copy(self, message: AMQPMessage[Any]) -> bool:
        """Replace a redelivered message with a copy that the broker has not counted.

        Returns:
            False if that is not necessary, or if the copy was not confirmed: handle the message.
            True also if the channel of the message is lost: the broker delivers it again.
        """
        limit = self._limits[message.queue]
        if limit is not None or not self._types.delivery_count(message):
            return False
        try:
            await self._move(message, failed=True)
        except Exception:
            if message.acks.lost:
                return True
            log.warning(
                "redelivered message could not be copied",
                exc_info=True,
                extra=self._log_fields(message),
            )
            return False
        return True

    def excessive_redeliveries(self, message: AMQPMessage[Any]) -> int:
        """Return how often a message was redelivered, if that is too often to handle it; else 0.

        The processes that received it ended, or lost their connections.
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

    def failed_too_often(self, message: AMQPMessage[Any]) -> bool:
        """Whether a message must not be requeued, because its queue could drop it."""
        limit, count = self._limits[message.queue], self._types.delivery_count(message)
        if limit is None:
            if not self._types.nack_counts:
                count = message.acquired_count
            is_quorum = self._types.of(message.queue) == "quorum"
            return is_quorum and message.returns + count >= _TOO_MANY_FAILURES
        return limit >= 0 and count >= min(limit, max(limit - 1, 1))

    def stop(self) -> None:
        """Stop trying again: a message that cannot be copied stays until its channel is closed."""
        self._stopping.set()

    async def wait(self) -> None:
        """Wait until all copies are confirmed or have failed."""
        while self._copying:
            await asyncio.wait(self._copying)

    async def _copy(self, message: AMQPMessage[Any], failed: bool) -> None:
        """Copy, then acknowledge. A message that cannot be copied is handled again.

        A full queue refuses the copy. It stays full as long as the messages that wait here take
        the whole prefetch.
        """
        try:
            await self._move(message, failed=failed)
        except Exception as error:
            if isinstance(error, PublishRefused) and self._types.of(message.queue) is None:
                # The user may neither declare nor publish, so the type is unknown: assume classic.
                message.acks.nack(message.tag)
                return
            log.log(
                logging.WARNING if message.acks.lost else logging.ERROR,
                "message could not be moved and stays",
                exc_info=error,
                extra=self._log_fields(message),
            )
            if (
                await sleep_unless_stopping(_BEFORE_NEXT_TRY, self._stopping)
                and not message.acks.lost
            ):
                message.count_failure_in_place()
                self.handle_again(message)

    async def _move(self, message: AMQPMessage[Any], *, failed: bool) -> None:
        """Copy, then acknowledge."""
        tries = copies(message, failed=failed)
        await self._moves.move(message, self._queues[message.queue], tries)
        if next(tries, None) is None:
            # The copy looks like the original.
            message.acks.ack(message.tag)
        else:
            acknowledge_original(message)

    def _is_classic(self, message: AMQPMessage[Any]) -> bool:
        """Whether a redelivery shows it: a quorum queue adds its delivery count to each."""
        return message.redelivered_flag and "x-delivery-count" not in message.sent

    def _log_fields(self, message: AMQPMessage[Any]) -> dict[str, object]:
        return {"consumer": self._name, "delivery": str(message)}


def copies(message: AMQPMessage[Any], *, failed: bool) -> Iterator[Properties]:
    """The properties of a copy for the same queue.

    The second try has no headers of ours, in case the headers do not fit into a frame.
    """
    ours: dict[str, Any] = {
        QUEUE: message.queue,
        RETURNS: message.returns + failed,
        **history(message, now()),
    }
    if not failed and message.past(FIRST_FAILED_AT) is None:
        del ours[FIRST_FAILED_AT]
    if ATTEMPT in message.sent:
        ours[ATTEMPT] = sent_attempt(message)
    for headers in (ours, {}):
        properties = copied(message, headers)
        yield dataclasses.replace(properties, expiration=message.properties.expiration)
