"""Read dead letters from the command line."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from workerkit.amqp.dead_letters import Evidence
from workerkit.amqp.frames import NOT_FOUND
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.amqp.replay import Browser, browse_queue, properties_without_counts
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import Whereabouts
from workerkit.cli.parameters import quiet
from workerkit.errors import BrokerRefused, ConnectionLost, PublishError, RunError
from workerkit.safe_text import escape

T = TypeVar("T")

_TELL_EVERY = 2.0


class Missing(Exception):
    """There is no dead-letter queue: nothing has been dead-lettered yet."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What was looked for.

    Attributes:
        letters: The first ones that match.
        more: How many others match.
    """

    letters: list[T]
    more: int


@dataclass(frozen=True, slots=True)
class Survey:
    """How many dead letters there are, and how many of them match."""

    count: int
    matching: int


class Sieve:
    """Lets through what was selected.

    Args:
        until: Nothing that failed later: a replayed message may be back before the end.

    Attributes:
        later: How many were kept back because they failed later.
    """

    def __init__(self, selection: Selection, until: datetime | None = None) -> None:
        self._selection = selection
        self._until = until
        self.later = 0

    def __call__(self, message: AMQPMessage[Any]) -> bool:
        """Whether *message* is wanted."""
        if not self._selection.matches(message):
            return False
        failed_at = Evidence.of(message).failed_at
        if self._until is not None and failed_at is not None and failed_at > self._until:
            self.later += 1
            return False
        return True


@asynccontextmanager
async def opened(where: Whereabouts) -> AsyncIterator[Browser]:
    """Look through the dead letters of a queue.

    Raises:
        Missing: There is no dead-letter queue.
        RunError: The broker cannot be reached, or refuses.
    """
    quiet()
    publisher = Publisher()
    publisher.open(where.settings)
    to = Destination(where.dead_letters, "", where.connection, where.vhost)

    async def copy(message: AMQPMessage[Any]) -> None:
        await publisher.send(message.raw, properties_without_counts(message), to)

    try:
        async with browse_queue(where.broker, where.vhost, where.dead_letters, copy) as browser:
            yield browser
            _report_copied(browser)
    except ConnectionLost as error:
        if isinstance(error, BrokerRefused) and error.code == NOT_FOUND:
            raise Missing from error
        raise RunError(str(error)) from error
    finally:
        await publisher.close()


async def keep_in_queue(browser: Browser, message: AMQPMessage[Any]) -> None:
    """Keep a message in its queue.

    Raises:
        RunError: RabbitMQ may drop the message when it is requeued once more, and no copy could be
            published.
    """
    try:
        await browser.keep(message)
    except PublishError as error:
        name = escape(message.message_id or "-")
        raise RunError(
            f"stopped: message {name!r} in {message.queue!r} was requeued "
            f"{message.delivery_count} times; RabbitMQ drops it beyond the queue's delivery limit, "
            f"and no copy could be left in its place: {error}; grant write on the default "
            "exchange, or declare the queue without a delivery limit"
        ) from error


def _report_copied(browser: Browser) -> None:
    if browser.copied:
        print(
            f"{browser.copied} messages of {escape(browser.queue)!r} were moved to its end: the "
            "queue counts every read, and drops a message beyond its delivery limit; declare it "
            "with x-delivery-limit=-1 (RabbitMQ 4), or classic",
            file=sys.stderr,
        )


@asynccontextmanager
async def progress(tell: Callable[[], str]) -> AsyncIterator[None]:
    """Write to stderr, every few seconds, how far the block has come."""

    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY)
            print(tell(), file=sys.stderr, flush=True)

    telling = asyncio.create_task(keep_telling())
    try:
        yield
    finally:
        telling.cancel()


async def collect(
    where: Whereabouts, selection: Selection, limit: int, keep: Callable[[AMQPMessage[Any]], T]
) -> Found[T]:
    """What *keep* makes of the first messages that match; the others are only counted."""
    letters: list[T] = []
    more = 0
    async with opened(where) as browser, _reading(browser):
        wanted = Sieve(selection)
        while (message := await browser.next()) is not None:
            is_wanted = wanted(message)
            if is_wanted and len(letters) == limit:
                more += 1
            elif is_wanted:
                letters.append(keep(message))
            await keep_in_queue(browser, message)
            if len(letters) == limit and not selection:
                more = browser.count - browser.read
                break
    return Found(letters, more)


async def first(where: Whereabouts, selection: Selection) -> AMQPMessage[Any] | None:
    """The first message that matches."""
    async with opened(where) as browser, _reading(browser):
        wanted = Sieve(selection)
        while (message := await browser.next()) is not None:
            await keep_in_queue(browser, message)
            if wanted(message):
                return message
    return None


async def survey(where: Whereabouts, selection: Selection) -> Survey:
    """Count the messages that match; those of quorum queues are only looked at where they must."""
    async with opened(where) as browser, _reading(browser):
        if not selection:
            return Survey(browser.count, browser.count)
        wanted = Sieve(selection)
        matching = 0
        while (message := await browser.next()) is not None:
            matching += wanted(message)
            await keep_in_queue(browser, message)
        return Survey(browser.count, matching)


@asynccontextmanager
async def _reading(browser: Browser) -> AsyncIterator[None]:
    async with progress(lambda: f"read {browser.read} of {browser.count}"):
        yield
