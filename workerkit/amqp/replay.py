"""Replay or remove messages of a queue of dead letters.

A message is acknowledged only after its copy is confirmed. If the process is killed in between,
there are two messages, never none.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from workerkit.amqp import table
from workerkit.amqp.browse import Browser, ProcessMessage
from workerkit.amqp.copies import NOT_FOR_COPIES, copied
from workerkit.amqp.dead_letters import ORIGINAL, REPLAYS, Evidence
from workerkit.amqp.message import EXCHANGE, OURS, ROUTING_KEY, AMQPMessage
from workerkit.amqp.properties import Properties
from workerkit.errors import ConnectionLost, InvalidBody

_MAX_CONCURRENT = 50
_NOTHING: Mapping[str, Any] = {}


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
            try:
                message = await self._browser.next()
            except InvalidBody:
                continue  # It is larger than the settings allow, and stays.
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


def replay_properties(
    message: AMQPMessage[Any], queue: str, more: Mapping[str, Any] = _NOTHING
) -> Properties:
    """Return the properties of a dead letter that is replayed to *queue*, without its retries.

    The headers of the sender do not change. workerkit's headers are removed, except the number of
    replays, what an edit has changed, and the original exchange and routing key if they differ from
    this queue: `handle` may read them.

    Args:
        more: Further headers, which replace those of the message.
    """
    added: dict[str, Any] = {REPLAYS: Evidence.of(message).replays + 1, **more}
    if (message.exchange, message.routing_key) != ("", queue) and EXCHANGE in message.sent:
        added |= {EXCHANGE: message.exchange, ROUTING_KEY: message.routing_key}
    headers = message.properties.table or table.encode({})
    # Nothing can be added to an invalid table, so it does not change.
    with suppress(table.MalformedTable):
        headers = table.merge(headers, added, _is_kept)
    return dataclasses.replace(copied(message, {}), table=headers)


def _is_kept(name: str, entry: bytes) -> bool:
    is_ours = name.startswith(OURS) and not name.startswith(ORIGINAL)
    return not is_ours and name not in NOT_FOR_COPIES
