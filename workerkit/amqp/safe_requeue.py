"""Give messages back to their queue in a way that loses none.

A quorum queue counts how often a message comes back, and drops it beyond its delivery limit. That
limit may be a policy's or somebody else's, and no client can ask for it. Where the class does not
state it, nothing is left to the counter:

* From RabbitMQ 4.3 on, basic.nack does not count.
* Before that, whatever goes back counts. So a confirmed copy goes to the end of the same queue, and
  then the original is acknowledged: the copy is a new message, and our header counts instead.

What comes back because a connection or a process ended was counted by the broker. Such a message is
replaced with a copy before it is handled, so that its count begins anew.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message import ATTEMPT, QUEUE, RETURNS, AMQPMessage
from workerkit.amqp.moving import (
    FIRST_FAILED_AT,
    Moves,
    acknowledge_original,
    copied,
    history,
    now,
)
from workerkit.amqp.properties import Properties
from workerkit.amqp.queue_types import QueueTypes
from workerkit.errors import PublishRefused
from workerkit.supervisor import paused

log = logging.getLogger(__name__)

_UNCOUNTED = ("classic", "stream")
_TOO_MANY_FAILURES = 15
_TOO_MANY_REDELIVERIES = 20
_BEFORE_NEXT_TRY = 1.0


class SafeRequeue:
    """Gives the messages of one consumer back.

    Args:
        moves: Sends the copies.
        types: What the queues are at the broker.

    Attributes:
        handle_again: Takes a message that could not go back.
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
        """Give *message* back, now or once its copy is safe.

        Args:
            failed: A handler has begun with it. Else it was only sent ahead.

        Returns:
            False if its channel is lost: the broker has taken it back by itself.
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
        """Give back what would be counted if its channel were closed now, where that is possible.

        Args:
            messages: Only sent ahead; no handler has begun with them.
        """
        if self._types.nack_counts:
            return
        for message in messages:
            if self._types.of(message.queue) in (None, "quorum"):
                message.acks.nack(message.tag)

    async def replace_with_copy(self, message: AMQPMessage[Any]) -> bool:
        """Replace a redelivered message with a copy that the broker has not counted yet.

        Returns:
            False where its queue has no unknown limit, or no copy arrived: handle it. True also
            where its channel was lost meanwhile.
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
        """How often a redelivered message came back, where nobody should begin with it again.

        The processes that had it ended, or lost their connections. 0 for all other messages.
        """
        limit, count = self._limits[message.queue], self._types.delivery_count(message)
        if not count:
            return 0
        if limit is not None:
            # With a limit of 1 that cannot be told apart from a message that merely failed.
            return count if 1 < limit <= count else 0
        if self._types.of(message.queue) is None:
            count = 1  # On a classic queue this is whatever the sender wrote.
        returns = message.returns + count
        return returns if returns >= _TOO_MANY_REDELIVERIES else 0

    def failed_too_often(self, message: AMQPMessage[Any]) -> bool:
        """Whether a message must not go back, because its queue would drop it or should have."""
        limit, count = self._limits[message.queue], self._types.delivery_count(message)
        if limit is None:
            if not self._types.nack_counts:
                count = message.acquired_count
            is_quorum = self._types.of(message.queue) == "quorum"
            return is_quorum and message.returns + count >= _TOO_MANY_FAILURES
        return limit >= 0 and count >= min(limit, max(limit - 1, 1))

    def stop(self) -> None:
        """The process stops: what cannot be copied at once stays, and its channel is closed."""
        self._stopping.set()

    async def wait(self) -> None:
        """Return once everything has gone back that can."""
        while self._copying:
            await asyncio.wait(self._copying)

    async def _copy(self, message: AMQPMessage[Any], failed: bool) -> None:
        """Copy, then acknowledge. What cannot be copied stays, and is handled again.

        A queue may refuse the copy because it is full; and it stays full while the messages that
        wait to go back leave no room in the prefetch for others.
        """
        try:
            await self._move(message, failed=failed)
        except Exception as error:
            if isinstance(error, PublishRefused) and self._types.of(message.queue) is None:
                # We may neither declare nor publish: the queue may well be a classic one.
                message.acks.nack(message.tag)
                return
            log.exception("message could not be moved and stays", extra=self._log_fields(message))
            if await paused(_BEFORE_NEXT_TRY, self._stopping) and not message.acks.lost:
                message.count_failure_in_place()
                self.handle_again(message)

    async def _move(self, message: AMQPMessage[Any], *, failed: bool) -> None:
        """Copy, then acknowledge."""
        copies = _copies(message, failed=failed)
        await self._moves.move(message, self._queues[message.queue], copies)
        if next(copies, None) is None:
            # The copy looks like the original.
            message.acks.ack(message.tag)
        else:
            acknowledge_original(message)

    def _is_classic(self, message: AMQPMessage[Any]) -> bool:
        """Whether that shows: quorum queues tell how often they have delivered a message."""
        return message.redelivered_flag and "x-delivery-count" not in message.sent

    def _log_fields(self, message: AMQPMessage[Any]) -> dict[str, object]:
        return {"consumer": self._name, "delivery": repr(message)}


def _copies(message: AMQPMessage[Any], *, failed: bool) -> Iterator[Properties]:
    """The properties of a copy for the same queue.

    The second one has nothing of ours in it, for headers that leave no room.
    """
    ours: dict[str, Any] = {
        QUEUE: message.queue,
        RETURNS: message.returns + failed,
        **history(message, now()),
    }
    if not failed and message.past(FIRST_FAILED_AT) is None:
        del ours[FIRST_FAILED_AT]
    if ATTEMPT in message.sent:
        ours[ATTEMPT] = message.past(ATTEMPT) or 1
    for headers in (ours, {}):
        properties = copied(message, headers)
        yield dataclasses.replace(properties, expiration=message.properties.expiration)
