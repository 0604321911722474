"""Take dead letters out of their queue, each one once it is safe elsewhere or not wanted any more.

Whoever is killed in between leaves two messages behind, never none.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from workerkit.amqp import table
from workerkit.amqp.channel import Channel
from workerkit.amqp.copies import NOT_FOR_COPIES, copied
from workerkit.amqp.dead_letters import REPLAYS, Evidence
from workerkit.amqp.message import (
    ACQUIRED_COUNT,
    DELIVERY_COUNT,
    EXCHANGE,
    OURS,
    ROUTING_KEY,
    AMQPMessage,
)
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.queue import Queue
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.session import Session, connect, scratch
from workerkit.config.connections import AMQPSettings
from workerkit.errors import ConnectionLost

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


Treat = Callable[[AMQPMessage[Any]], Awaitable[None]]

_AT_A_TIME = 50
# CC and BCC would route the copy to other queues again.
_COUNTS = ("CC", "BCC", DELIVERY_COUNT, ACQUIRED_COUNT)


class Clearing:
    """Takes some messages out of a queue.

    Args:
        chosen: Which ones; the others stay.
        limit: Take no more.
        rate: ... and no more in a second.
        stopping: Begin with no further message once it is set.

    Attributes:
        done: Messages that were taken out.
    """

    def __init__(
        self,
        browser: Browser,
        chosen: Callable[[AMQPMessage[Any]], bool],
        stopping: asyncio.Event,
        *,
        limit: int | None = None,
        rate: float | None = None,
    ) -> None:
        self._browser = browser
        self._chosen = chosen
        self._limit = limit
        self._stopping = stopping
        self._pace = _Pace(rate, stopping)
        self._under_way: set[asyncio.Task[None]] = set()
        self._begun = 0
        self._failure: BaseException | None = None
        self.done = 0

    async def run(self, treat: Treat) -> None:
        """Acknowledge each message once *treat* has returned for it; some at the same time.

        After the first failure no further message is begun with.

        Raises:
            ConnectionLost: The broker is gone; what was not acknowledged stays, but may already
                have been treated.
            Exception: What *treat* raised: this message stays where it is.
        """
        try:
            while (message := await self._next()) is not None:
                task = asyncio.create_task(self._take(message, treat))
                self._under_way.add(task)
                task.add_done_callback(self._on_done)
                if self._begun == 1:
                    # The first publish on a connection is a trial. The others keep their order.
                    await asyncio.wait([task])
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way)
        if self._failure is not None:
            raise self._failure

    async def _next(self) -> AMQPMessage[Any] | None:
        """The next one of those that are chosen, when its turn has come."""
        if len(self._under_way) >= _AT_A_TIME:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        while not self._finished:
            message = await self._browser.next()
            if message is None:
                return None
            if self._chosen(message):
                await self._pace.turn()
                self._begun += 1
                return None if self._stopped else message
            await self._browser.keep(message)
        return None

    @property
    def _finished(self) -> bool:
        return self._stopped or (self._limit is not None and self._begun >= self._limit)

    @property
    def _stopped(self) -> bool:
        return self._stopping.is_set() or self._failure is not None

    async def _take(self, message: AMQPMessage[Any], treat: Treat) -> None:
        await treat(message)
        if not message.acks.ack(message.tag):
            raise ConnectionLost("the channel was closed before the acknowledgement")
        self.done += 1

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        self._failure = self._failure or error


class _Pace:
    """Turns, so many in a second."""

    def __init__(self, rate: float | None, stopping: asyncio.Event) -> None:
        self._seconds = None if rate is None else 1 / rate
        self._stopping = stopping
        self._due = 0.0

    async def turn(self) -> None:
        """Wait for the next one, or until the process is asked to stop."""
        if self._seconds is None:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now)
        wait, self._due = self._due - now, self._due + self._seconds
        if wait > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)


def replayed(message: AMQPMessage[Any], queue: str) -> Properties:
    """The properties with which a dead letter goes back to *queue*, to begin with its first try.

    All that the sender wrote stays, byte for byte. Of what is ours there is the number of replays,
    and where it was published to first, if that was not this queue: `handle` may ask for it.
    """
    told: dict[str, Any] = {REPLAYS: Evidence.of(message).replays + 1}
    if (message.exchange, message.routing_key) != ("", queue) and EXCHANGE in message.sent:
        told |= {EXCHANGE: message.exchange, ROUTING_KEY: message.routing_key}
    headers = message.properties.table or table.encode({})
    # What is no table cannot be added to, and stays as it is.
    with suppress(table.MalformedTable):
        headers = table.merge(headers, told, _stays)
    return dataclasses.replace(copied(message, {}), table=headers)


def uncounted(message: AMQPMessage[Any]) -> Properties:
    """The properties of a copy for the same queue, without the broker's counts."""
    headers = message.properties.table
    with suppress(table.MalformedTable):
        headers = headers and table.merge(headers, {}, lambda name, _: name not in _COUNTS)
    return dataclasses.replace(
        message.properties, table=headers, delivery_mode=PERSISTENT, user_id=None
    )


def _stays(name: str, entry: bytes) -> bool:
    return not name.startswith(OURS) and name not in NOT_FOR_COPIES
