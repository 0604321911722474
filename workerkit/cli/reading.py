"""Read dead letters from the command line."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from workerkit.amqp.browsing import Browser, browsing
from workerkit.amqp.codes import NOT_FOUND
from workerkit.amqp.evidence import Evidence
from workerkit.amqp.message import AMQPMessage
from workerkit.cli.letters import printable
from workerkit.cli.options import quiet
from workerkit.cli.selection import Selection
from workerkit.cli.whereabouts import Whereabouts
from workerkit.errors import BrokerRefused, ConnectionLost, RunError

T = TypeVar("T")

_TELL_EVERY = 2.0
_MANY_DELIVERIES = 15


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
    """Lets through what was selected, and warns of what the broker may drop.

    Args:
        until: Nothing that failed later: a replayed message may be back before the end.

    Attributes:
        later: How many were kept back because they failed later.
    """

    def __init__(self, selection: Selection, until: datetime | None = None) -> None:
        self._selection = selection
        self._until = until
        self._warned = False
        self.later = 0

    def __call__(self, message: AMQPMessage[Any]) -> bool:
        """Whether *message* is wanted."""
        self._warn(message)
        if not self._selection.matches(message):
            return False
        failed_at = Evidence.of(message).failed_at
        if self._until is not None and failed_at is not None and failed_at > self._until:
            self.later += 1
            return False
        return True

    def _warn(self, message: AMQPMessage[Any]) -> None:
        if message.delivery_count < _MANY_DELIVERIES or self._warned:
            return
        self._warned = True
        print(
            f"warning: message {printable(message.message_id or '-')!r} in {message.queue!r} has "
            f"come back {message.delivery_count} times: every look at a quorum queue counts, and "
            "RabbitMQ 4 drops a message after 20, unless the queue's delivery limit is raised",
            file=sys.stderr,
        )


@asynccontextmanager
async def opened(where: Whereabouts) -> AsyncIterator[Browser]:
    """Look through the dead letters of a queue.

    Raises:
        Missing: There is no dead-letter queue.
        RunError: The broker cannot be reached, or refuses.
    """
    quiet()
    try:
        async with browsing(where.broker, where.vhost, where.dead_letters) as browser:
            yield browser
    except ConnectionLost as error:
        if isinstance(error, BrokerRefused) and error.code == NOT_FOUND:
            raise Missing from error
        raise RunError(str(error)) from error


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
            if not wanted(message):
                continue
            if len(letters) == limit:
                more += 1
                continue
            letters.append(keep(message))
            if len(letters) == limit and not selection:
                more = browser.count - browser.read
                break
    return Found(letters, more)


async def first(where: Whereabouts, selection: Selection) -> AMQPMessage[Any] | None:
    """The first message that matches."""
    async with opened(where) as browser, _reading(browser):
        wanted = Sieve(selection)
        while (message := await browser.next()) is not None:
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
        return Survey(browser.count, matching)


@asynccontextmanager
async def _reading(browser: Browser) -> AsyncIterator[None]:
    async with progress(lambda: f"read {browser.read} of {browser.count}"):
        yield
