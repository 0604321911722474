"""Read dead letters, and leave them in their queue."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from workerkit.amqp.browse import Browser, QueueCopies, browse_queue
from workerkit.amqp.destination import Destination
from workerkit.amqp.frames import NOT_FOUND
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Publisher
from workerkit.cli.dead_letters.selection import Selection
from workerkit.cli.dead_letters.target import DeadLetterQueue
from workerkit.cli.parameters import quiet
from workerkit.cli.terminal import progress
from workerkit.errors import BrokerRefused, ConnectionLost, PublishError, PublishRefused, RunError
from workerkit.safe_text import escape

T = TypeVar("T")


class NoDeadLetterQueue(Exception):
    """There is no dead-letter queue: no message has been dead-lettered yet."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Dead letters that match a selection.

    Attributes:
        letters: The first ones.
        more: The number of others.
    """

    letters: list[T]
    more: int


@asynccontextmanager
async def opened(queue: DeadLetterQueue) -> AsyncIterator[Browser]:
    """Open a dead-letter queue for reading.

    Raises:
        NoDeadLetterQueue: There is no dead-letter queue.
        RunError: The broker cannot be reached, or refuses access.
    """
    quiet()
    publisher = Publisher()
    publisher.open(queue.settings)
    copies = QueueCopies(publisher, Destination(queue.name, "", queue.connection, queue.vhost))
    try:
        async with browse_queue(queue.broker, queue.vhost, queue.name, copies) as browser:
            yield browser
            _report_copied(browser)
    except PublishRefused as error:
        raise RunError(
            f"stopped: queue {escape(queue.name)!r} drops a message that is read more often than "
            f"its delivery limit, unless a copy replaces it, and none can be published: {error}; "
            "grant write on the default exchange, or declare the queue without a delivery limit"
        ) from error
    except ConnectionLost as error:
        if isinstance(error, BrokerRefused) and error.code == NOT_FOUND:
            raise NoDeadLetterQueue from error
        raise RunError(str(error)) from error
    finally:
        await publisher.close()


async def keep_in_queue(browser: Browser, message: AMQPMessage[Any]) -> None:
    """Return a message to its queue.

    Raises:
        RunError: RabbitMQ may drop the message when it is requeued once more, and no copy could be
            published.
    """
    try:
        await browser.keep(message)
    except PublishError as error:
        name = escape(message.message_id or "-")
        raise RunError(
            f"stopped: message {name!r} in {message.queue!r} has been requeued "
            f"{message.delivery_count} times; RabbitMQ drops it above the queue's delivery limit, "
            f"and publishing a copy to replace it failed: {error}; grant write on the default "
            "exchange, or declare the queue without a delivery limit"
        ) from error


def _report_copied(browser: Browser) -> None:
    if browser.copied:
        print(
            f"moved {browser.copied} messages to the end of {escape(browser.queue)!r}: the queue "
            "counts every read, and drops a message above its delivery limit; declare it with "
            "x-delivery-limit=-1 (RabbitMQ 4), or as a classic queue",
            file=sys.stderr,
        )


async def collect(
    queue: DeadLetterQueue, selection: Selection, limit: int, keep: Callable[[AMQPMessage[Any]], T]
) -> Page[T]:
    """Return the result of *keep* for the first messages that match, and count the others."""
    letters: list[T] = []
    more = 0
    async with opened(queue) as browser, _reading(browser):
        while (message := await browser.next()) is not None:
            matches = selection.matches(message)
            if matches and len(letters) == limit:
                more += 1
            elif matches:
                letters.append(keep(message))
            await keep_in_queue(browser, message)
            if len(letters) == limit and not selection:
                more = browser.count - browser.read
                break
    return Page(letters, more)


async def first(queue: DeadLetterQueue, selection: Selection) -> AMQPMessage[Any] | None:
    """Return the first message that matches."""
    async with opened(queue) as browser, _reading(browser):
        while (message := await browser.next()) is not None:
            await keep_in_queue(browser, message)
            if selection.matches(message):
                return message
    return None


async def count(queue: DeadLetterQueue, selection: Selection) -> tuple[int, int]:
    """Return the number of messages, and of those that match.

    Without filters, no message is read: quorum queues may count each read.
    """
    async with opened(queue) as browser, _reading(browser):
        if not selection:
            return browser.count, browser.count
        matching = 0
        while (message := await browser.next()) is not None:
            matching += selection.matches(message)
            await keep_in_queue(browser, message)
        return browser.count, matching


@asynccontextmanager
async def _reading(browser: Browser) -> AsyncIterator[None]:
    def report() -> str:
        return f"read {browser.read} of {browser.count}"

    async with progress(report, lambda: (browser.read, browser.count)):
        yield
