"""Replay or purge dead letters from the command line."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.amqp.replay import ProcessMessage, QueueCleaner, replay_properties
from workerkit.cli.dead_letters.read import Sieve, opened, progress
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import Whereabouts
from workerkit.errors import ConnectionLost, PublishError, RunError


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done with each dead letter before it is taken out of its queue.

    Attributes:
        question: To be asked before, for the number of dead letters.
        done: What has happened to them afterwards, in a word.
        begin: Opens what it takes.
    """

    question: str
    done: str
    begin: Callable[[Whereabouts], AbstractAsyncContextManager[ProcessMessage]]


@dataclass(frozen=True, slots=True)
class Errand:
    """Which dead letters, how many of them and how fast.

    Attributes:
        until: Not those that failed later.
        rate: Messages in a second.
    """

    where: Whereabouts
    selection: Selection
    limit: int | None
    rate: float | None
    until: datetime


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        count: Dead letters that were there.
        done: Those that were replayed or purged.
        later: Those that match, and were left because they failed later.
        interrupted: A signal came before the end.
    """

    count: int = 0
    done: int = 0
    later: int = 0
    interrupted: bool = False


@asynccontextmanager
async def _replaying(where: Whereabouts) -> AsyncIterator[ProcessMessage]:
    publisher = Publisher()
    publisher.open(where.settings)

    async def replay(message: AMQPMessage[Any]) -> None:
        queue = Evidence.of(message).queue or where.queue
        to = Destination(queue, "", where.connection, where.vhost)
        await publisher.send(message.raw, replay_properties(message, queue), to)

    try:
        yield replay
    finally:
        await publisher.close()


@asynccontextmanager
async def _purging(where: Whereabouts) -> AsyncIterator[ProcessMessage]:
    async def purge(message: AMQPMessage[Any]) -> None:
        """There is nothing to do but to acknowledge it."""

    yield purge


REPLAY = Treatment("Replay {} to where they failed?", "replayed", _replaying)
PURGE = Treatment("Delete {} for good?", "purged", _purging)


async def clear(errand: Errand, treatment: Treatment) -> Result:
    """Run an errand until the end, the first failure, SIGINT or SIGTERM.

    Raises:
        Missing: There is no dead-letter queue.
        RunError: The broker is gone, or a message could not be treated and has stayed.
    """
    stopping = asyncio.Event()
    async with opened(errand.where) as browser, treatment.begin(errand.where) as treat:
        wanted = Sieve(errand.selection, errand.until)
        clearing = QueueCleaner(browser, wanted, stopping, limit=errand.limit, rate=errand.rate)

        def so_far() -> str:
            return f"{clearing.done} {treatment.done}, {browser.read} of {browser.count} read"

        with _signals(stopping.set):
            try:
                async with progress(so_far):
                    await clearing.run(treat)
            except (PublishError, ConnectionLost, ValueError) as error:
                raise RunError(f"stopped with {so_far()}: {error}") from error
        return Result(browser.count, clearing.done, wanted.later, stopping.is_set())


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks to stop, the second ends the process at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def receive() -> None:
        stop()
        ignore()

    def ignore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, receive)
    try:
        yield
    finally:
        ignore()
