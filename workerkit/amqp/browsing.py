"""Look through a queue without taking anything out of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from workerkit.amqp.connection import Channel, connect, scratch
from workerkit.amqp.message import AMQPMessage
from workerkit.connections import AMQPSettings


class Browser:
    """The messages that were in a queue at the beginning, from the first one on.

    What is not acknowledged stays in the hands of this channel, and goes back to its place when
    that is closed.

    Attributes:
        queue: Its name.
        count: Messages that were ready in it at the beginning; no more are read.
        read: Messages that were read.
    """

    def __init__(self, channel: Channel, queue: str, count: int) -> None:
        self._channel = channel
        self.queue = queue
        self.count = count
        self.read = 0

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


@asynccontextmanager
async def browsing(settings: AMQPSettings, vhost: str | None, queue: str) -> AsyncIterator[Browser]:
    """Look through *queue*, over a connection of its own.

    Raises:
        BrokerRefused: With code 404 where there is no such queue.
        ConnectionLost: The broker cannot be reached.
    """
    session = await connect(settings, vhost, "dead letters")
    try:
        async with scratch(session) as channel:
            yield Browser(channel, queue, await channel.count(queue))
    finally:
        await session.close()
