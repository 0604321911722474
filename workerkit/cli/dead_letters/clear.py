"""Replay or purge dead letters."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workerkit.amqp.browse import ProcessMessage
from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.destination import Destination
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.replay import QueueCleaner, replay_properties
from workerkit.cli.dead_letters.read import opened
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import DeadLetterQueue
from workerkit.cli.terminal import progress
from workerkit.errors import ConnectionLost, PublishError, RunError


@dataclass(frozen=True, slots=True)
class Operation:
    """What a command does with each dead letter before it removes it from the queue.

    Attributes:
        question: Asks for confirmation; the number of dead letters is put in.
        participle: For reports, such as `replayed`.
        start: Opens the resources, and yields the function that handles one message.
    """

    question: str
    participle: str
    start: Callable[[DeadLetterQueue], AbstractAsyncContextManager[ProcessMessage]]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an operation.

    Attributes:
        count: Dead letters in the queue at the start.
        done: Dead letters that were replayed or purged.
        later: Dead letters that match, but failed after the command started.
        interrupted: A signal stopped the operation early.
    """

    count: int = 0
    done: int = 0
    later: int = 0
    interrupted: bool = False


@asynccontextmanager
async def _replay(queue: DeadLetterQueue) -> AsyncIterator[ProcessMessage]:
    publisher = Publisher()
    publisher.open(queue.settings)

    async def publish(message: AMQPMessage[Any]) -> None:
        source = Evidence.of(message).queue or queue.source
        to = Destination(source, "", queue.connection, queue.vhost)
        await publisher.send(message.raw, replay_properties(message, source), to)

    try:
        yield publish
    finally:
        await publisher.close()


@asynccontextmanager
async def _purge(queue: DeadLetterQueue) -> AsyncIterator[ProcessMessage]:
    async def ignore(message: AMQPMessage[Any]) -> None:
        """Do nothing: the acknowledgement deletes the message."""

    yield ignore


REPLAY = Operation("Replay {} to the queue where they failed?", "replayed", _replay)
PURGE = Operation("Delete {} permanently?", "purged", _purge)


async def clear(
    operation: Operation,
    queue: DeadLetterQueue,
    selection: Selection,
    *,
    limit: int | None,
    rate: float | None,
    until: datetime,
) -> Result:
    """Replay or purge dead letters until the last one, the first failure, SIGINT or SIGTERM.

    Args:
        limit: Maximum number of messages.
        rate: Maximum messages per second.
        until: Messages that failed later are left: they were not counted, and a message that was
            replayed may be dead-lettered again before the end.

    Raises:
        NoDeadLetterQueue: There is no dead-letter queue.
        RunError: The connection was lost, or an operation failed; its message is still there.
    """
    stopping = asyncio.Event()
    later = 0

    def chosen(message: AMQPMessage[Any]) -> bool:
        nonlocal later
        if not selection.matches(message):
            return False
        failed_at = Evidence.of(message).failed_at
        if failed_at is not None and failed_at > until:
            later += 1
            return False
        return True

    async with opened(queue) as browser, operation.start(queue) as treat:
        clearing = QueueCleaner(browser, chosen, stopping, limit=limit, rate=rate)

        def report() -> str:
            done = f"{clearing.done} {operation.participle}"
            return f"{done}, {browser.read} of {browser.count} read"

        with _signals(stopping.set):
            try:
                async with progress(report, lambda: (browser.read, browser.count)):
                    await clearing.run(treat)
            except (PublishError, ConnectionLost, ValueError) as error:
                raise RunError(f"stopped: {report()}: {error}") from error
        return Result(browser.count, clearing.done, later, stopping.is_set())


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* at the first SIGINT or SIGTERM; the second one ends the process immediately."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def receive() -> None:
        stop()
        remove()

    def remove() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, receive)
    try:
        yield
    finally:
        remove()
