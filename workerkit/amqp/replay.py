"""Read a queue of dead letters, and remove messages after they were replayed or purged.

A message is acknowledged only after its copy is confirmed. If the process is killed in between,
there are two messages, never none.
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

ProcessMessage = Callable[[AMQPMessage[Any]], Awaitable[None]]

_NO_LIMIT = -1
_REQUEUE_POLL = 0.1


class Browser:
    """The messages that were in a queue at the beginning, from the first one on.

    Messages that are not acknowledged are requeued to their position when the channel closes.

    Attributes:
        queue: The name of the queue.
        count: The number of ready messages at the beginning; no more are read.
        read: The number of messages that were read.
        copied: The number of messages that were replaced with copies at the end of the queue.
    """

    def __init__(
        self, channel: Channel, queue: str, count: int, max_returns: int, copy: ProcessMessage
    ) -> None:
        self._channel = channel
        self._max_returns = max_returns
        self._copy = copy
        self.queue = queue
        self.count = count
        self.read = 0
        self.copied = 0

    async def next(self) -> AMQPMessage[Any] | None:
        """Return the next message; None at the end.

        Raises:
            ConnectionLost: The channel is closed, or the broker does not reply.
        """
        if self.read >= self.count:
            return None
        message = await self._channel.get(self.queue)
        self.read += message is not None
        return message

    async def keep(self, message: AMQPMessage[Any]) -> None:
        """Keep a message in its queue, as a copy if its delivery count is too high.

        Raises:
            PublishError: The copy was not confirmed. The next read may drop the message.
        """
        if self._max_returns == _NO_LIMIT or message.delivery_count < self._max_returns:
            return
        await self._copy(message)
        message.acks.ack(message.tag)
        self.copied += 1


@asynccontextmanager
async def browse_queue(
    settings: AMQPSettings, vhost: str | None, queue: str, copy: ProcessMessage
) -> AsyncIterator[Browser]:
    """Open a browser of *queue*, with a separate connection.

    Args:
        copy: Publishes a copy of a message to this queue, and waits for the confirm.

    Raises:
        BrokerRefused: With code 404 if there is no such queue.
        ConnectionLost: The broker cannot be reached.
    """
    session = await connect(settings, vhost, "dead letters")
    try:
        async with scratch(session) as channel:
            count = await channel.count(queue)
            yield Browser(channel, queue, count, await _max_returns(session, queue), copy)
            # From RabbitMQ 4.3 on this does not increase the counts; closing the channel would.
            channel.acks.nack_all()
            with suppress(ConnectionLost):
                await _wait_for_requeue(channel, queue, count)
    finally:
        await session.close()


async def _wait_for_requeue(channel: Channel, queue: str, count: int) -> None:
    """Wait until a queue has its messages again, so that what reads it next finds all of them.

    RabbitMQ requeues some thousand messages in a second. Others may consume them meanwhile: then
    the number of messages does not grow any more.
    """
    before, ready = -1, await channel.count(queue)
    while before < ready < count:
        await asyncio.sleep(_REQUEUE_POLL)
        before, ready = ready, await channel.count(queue)


async def _max_returns(session: Session, queue: str) -> int:
    """Return the delivery count from which on a message must not be requeued.

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


_MAX_CONCURRENT = 50
# CC and BCC would route the copy to other queues again.
_COUNT_HEADERS = ("CC", "BCC", DELIVERY_COUNT, ACQUIRED_COUNT)


class QueueCleaner:
    """Processes selected messages of a queue, and removes them.

    Args:
        is_selected: Returns whether a message is selected; the others stay in the queue.
        limit: The largest number of messages.
        rate: The largest number of messages in a second.
        stopping: Once it is set, no other message is started.

    Attributes:
        done: The number of messages that were removed.
    """

    def __init__(
        self,
        browser: Browser,
        is_selected: Callable[[AMQPMessage[Any]], bool],
        stopping: asyncio.Event,
        *,
        limit: int | None = None,
        rate: float | None = None,
    ) -> None:
        self._browser = browser
        self._is_selected = is_selected
        self._limit = limit
        self._stopping = stopping
        self._rate_limit = _RateLimit(rate, stopping)
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = 0
        self._failure: BaseException | None = None
        self.done = 0

    async def run(self, process: ProcessMessage) -> None:
        """Process messages, several at a time; acknowledge each after *process* has returned.

        After the first failure no other message is started.

        Raises:
            ConnectionLost: The connection was lost. Messages that were not acknowledged stay, but
                some of them may have been processed.
            Exception: An error that *process* raised; its message stays in the queue.
        """
        try:
            while (message := await self._next()) is not None:
                task = asyncio.create_task(self._remove(message, process))
                self._tasks.add(task)
                task.add_done_callback(self._on_done)
                if self._started == 1:
                    # The first publish on a connection is a trial, which others could overtake.
                    await asyncio.wait([task])
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks)
        if self._failure is not None:
            raise self._failure

    async def _next(self) -> AMQPMessage[Any] | None:
        """Return the next selected message, when the rate allows it; None at the end."""
        if len(self._tasks) >= _MAX_CONCURRENT:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        while not self._finished:
            message = await self._browser.next()
            if message is None:
                return None
            if self._is_selected(message):
                await self._rate_limit.wait()
                self._started += 1
                return None if self._stopped else message
            await self._browser.keep(message)
        return None

    @property
    def _finished(self) -> bool:
        return self._stopped or (self._limit is not None and self._started >= self._limit)

    @property
    def _stopped(self) -> bool:
        return self._stopping.is_set() or self._failure is not None

    async def _remove(self, message: AMQPMessage[Any], process: ProcessMessage) -> None:
        await process(message)
        if not message.acks.ack(message.tag):
            raise ConnectionLost("the channel was closed before the acknowledgement")
        self.done += 1

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        self._failure = self._failure or error


class _RateLimit:
    """A limit of the messages in a second."""

    def __init__(self, rate: float | None, stopping: asyncio.Event) -> None:
        self._seconds = None if rate is None else 1 / rate
        self._stopping = stopping
        self._due = 0.0

    async def wait(self) -> None:
        """Wait until the next message is due, or the process is stopping."""
        if self._seconds is None:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now)
        wait, self._due = self._due - now, self._due + self._seconds
        if wait > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)


def replay_properties(message: AMQPMessage[Any], queue: str) -> Properties:
    """Return the properties of a dead letter that is replayed to *queue*, without its retries.

    The headers of the sender do not change. workerkit's headers are removed, except the number of
    replays, and the original exchange and routing key if they differ from this queue: `handle` may
    read them.
    """
    added: dict[str, Any] = {REPLAYS: Evidence.of(message).replays + 1}
    if (message.exchange, message.routing_key) != ("", queue) and EXCHANGE in message.sent:
        added |= {EXCHANGE: message.exchange, ROUTING_KEY: message.routing_key}
    headers = message.properties.table or table.encode({})
    # Nothing can be added to an invalid table, so it does not change.
    with suppress(table.MalformedTable):
        headers = table.merge(headers, added, _is_kept)
    return dataclasses.replace(copied(message, {}), table=headers)


def properties_without_counts(message: AMQPMessage[Any]) -> Properties:
    """Return the properties of a copy for the same queue, without the broker's counts."""
    headers = message.properties.table
    with suppress(table.MalformedTable):
        headers = headers and table.merge(headers, {}, lambda name, _: name not in _COUNT_HEADERS)
    return dataclasses.replace(
        message.properties, table=headers, delivery_mode=PERSISTENT, user_id=None
    )


def _is_kept(name: str, entry: bytes) -> bool:
    return not name.startswith(OURS) and name not in NOT_FOR_COPIES
