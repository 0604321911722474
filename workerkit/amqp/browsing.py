"""Read the messages of a queue, and keep all of them in the queue.

Up to RabbitMQ 4.2, a quorum queue counts each read as a delivery, and drops a message when the
count exceeds its delivery limit. A message that must not be counted once more is replaced with a
copy at the end of the queue, which is counted from 0.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from workerkit.amqp.channel import Channel
from workerkit.amqp.connection import Session, connect, scratch
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue import Queue
from workerkit.amqp.queue_types import QueueTypes
from workerkit.config.connections import AMQPSettings

Copy = Callable[[AMQPMessage[Any]], Awaitable[None]]

_NO_LIMIT = -1


class Browser:
    """The messages that were in a queue at the beginning, from the first one on.

    What is not acknowledged stays in the hands of this channel, and goes back to its place when
    that is closed.

    Attributes:
        queue: Its name.
        count: Messages that were ready in it at the beginning; no more are read.
        read: Messages that were read.
        copied: How many messages were replaced with copies at the end of the queue.
    """

    def __init__(
        self, channel: Channel, queue: str, count: int, max_returns: int, copy: Copy
    ) -> None:
        self._channel = channel
        self._max_returns = max_returns
        self._copy = copy
        self.queue = queue
        self.count = count
        self.read = 0
        self.copied = 0

    async def next(self) -> AMQPMessage[Any] | None:
        """The next message; None at the end.

        Raises:
            ConnectionLost: The channel is closed, or the broker does not answer.
        """
        if self.read >= self.count:
            return None
        message = await self._channel.get(self.queue)
        self.read += message is not None
        return message

    async def keep(self, message: AMQPMessage[Any]) -> None:
        """Keep a message in its queue, as a copy if its count is too high.

        Raises:
            PublishError: The copy was not confirmed. The next read may drop the message.
        """
        if self._max_returns == _NO_LIMIT or message.delivery_count < self._max_returns:
            return
        await self._copy(message)
        message.acks.ack(message.tag)
        self.copied += 1


@asynccontextmanager
async def browsing(
    settings: AMQPSettings, vhost: str | None, queue: str, copy: Copy
) -> AsyncIterator[Browser]:
    """Look through *queue*, over a connection of its own.

    Args:
        copy: Publishes a copy of a message to this queue, and waits for the confirm.

    Raises:
        BrokerRefused: With code 404 where there is no such queue.
        ConnectionLost: The broker cannot be reached.
    """
    session = await connect(settings, vhost, "dead letters")
    try:
        async with scratch(session) as channel:
            count = await channel.count(queue)
            yield Browser(channel, queue, count, await _max_returns(session, queue), copy)
            # From RabbitMQ 4.3 on this does not count, but the close of the channel would.
            channel.acks.nack_all()
    finally:
        await session.close()


async def _max_returns(session: Session, queue: str) -> int:
    """The number of earlier requeues up to which it is safe to requeue a message once more.

    Before RabbitMQ 4 a quorum queue has no limit by default, and later a limit of 20. A policy may
    set another one, which a client cannot read.
    """
    types = QueueTypes()
    found = await types.learn(session, Queue(queue, "quorum"))
    if not types.nack_counts or (found is not None and found.type != "quorum"):
        return _NO_LIMIT
    limit = None if found is None else found.arguments.get("x-delivery-limit")
    if isinstance(limit, int):
        return limit if limit >= 0 and not isinstance(limit, bool) else _NO_LIMIT
    is_unlimited = found is not None and (0,) < session.version < (4,)
    return _NO_LIMIT if is_unlimited else 1
