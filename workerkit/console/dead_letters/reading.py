"""Connections to the brokers of dead-letter queues, and one reader of a queue at a time.

A connection is opened when it is needed, and closed when it was idle for half a minute.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakValueDictionary

from workerkit.amqp.browse import Browser, QueueCopies, browse
from workerkit.amqp.destination import Destination
from workerkit.amqp.frames import NOT_FOUND
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX
from workerkit.amqp.session import Session, connect, scratch
from workerkit.config.settings import WorkerSettings
from workerkit.console.dead_letters.model import QueueRef
from workerkit.errors import (
    BrokerRefused,
    ConnectionLost,
    InvalidBody,
    PublishError,
    QueueInUse,
    WorkerkitError,
)
from workerkit.tasks import Deadline

log = logging.getLogger(__name__)

IDLE = 30.0
_TURN_DEADLINE = 30.0
_CONNECT_DEADLINE = 15.0
_COUNT_DEADLINE = 3.0
_REMEMBERED = 30.0
_FAILURE_REMEMBERED = 5.0
_MOST_REMEMBERED = 10_000
_SLICE = 0.005
# A compressed body must not fill the memory.
_MAX_DECODED = 8 * 1024 * 1024


Found = tuple[int, AMQPMessage[Any] | InvalidBody]
"""A position, and the message there; an error for one that is too large."""


class DeskError(WorkerkitError):
    """A request about dead letters cannot be done.

    Attributes:
        status: The status of the HTTP response.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NoQueue(DeskError):
    """There is no dead-letter queue: no message has been dead-lettered yet."""

    def __init__(self, queue: str) -> None:
        super().__init__(404, f"there is no queue {queue!r}")


@contextmanager
def translated(queue: str) -> Iterator[None]:
    """Replace errors of the broker with `DeskError`."""
    try:
        yield
    except BrokerRefused as error:
        if error.code == NOT_FOUND:
            raise NoQueue(queue) from error
        raise DeskError(503, f"queue {queue!r}: {error}") from error
    except ConnectionLost as error:
        raise DeskError(503, f"queue {queue!r}: {error}") from error
    except PublishError as error:
        text = (
            f"queue {queue!r} drops a message that is read more often than its delivery limit, "
            f"unless a copy replaces it, and none can be published: {error}"
        )
        raise DeskError(503, text) from error


async def messages(browser: Browser) -> AsyncGenerator[Found, None]:
    """Yield the messages of a queue with their positions; an error for those that are too large.

    Each stays in the queue. Other tasks run at least every few milliseconds.
    """
    clock = asyncio.get_running_loop().time
    pause_at = clock() + _SLICE
    while True:
        position = browser.read
        found: AMQPMessage[Any] | InvalidBody | None
        try:
            found = await browser.next()
        except InvalidBody as error:
            found = error
        if found is None:
            return
        if isinstance(found, AMQPMessage):
            await browser.keep(found)
        yield position, found
        if clock() > pause_at:
            await asyncio.sleep(0)
            pause_at = clock() + _SLICE


class Place:
    """One virtual host of one broker.

    Args:
        connection: Its name in the settings.
        vhost: As the broker knows it.

    Attributes:
        publisher: Publishes there.
        problem: Why the last attempt to connect failed; empty if it did not.
    """

    def __init__(self, settings: WorkerSettings, connection: str, vhost: str) -> None:
        self._settings = settings
        self.connection = connection
        self.vhost = vhost
        self.publisher = Publisher()
        self.publisher.open(settings)
        self.problem = ""
        self._session: Session | None = None
        self._connecting = asyncio.Lock()
        self._readers: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._counted: dict[str, float] = {}
        self._failed_until = 0.0
        self._users = 0
        self._clock = asyncio.get_running_loop().time
        self.idle_since = self._clock()

    @property
    def broker(self) -> str:
        """The address, without a password."""
        return self._settings.amqp[self.connection].display(self.vhost)

    def to(self, queue: str) -> Destination:
        """Return the destination that is a queue."""
        return Destination(queue, "", self.connection, self.vhost)

    def is_idle(self, seconds: float) -> bool:
        """Return whether nothing has used it for some time."""
        return not self._users and self._clock() - self.idle_since >= seconds

    @asynccontextmanager
    async def reading(self, queue: str) -> AsyncIterator[Browser]:
        """Open a browser of a queue. Nobody else here reads that queue meanwhile.

        Raises:
            DeskError: The queue cannot be read.
        """
        async with self.turn(queue), self.browser(queue) as browser:
            yield browser

    @asynccontextmanager
    async def turn(self, queue: str) -> AsyncIterator[None]:
        """Wait until nobody else reads a queue."""
        lock = self._readers.get(queue)
        if lock is None:
            lock = self._readers[queue] = asyncio.Lock()
        try:
            async with Deadline(_TURN_DEADLINE):
                await lock.acquire()
        except TimeoutError as error:
            text = f"queue {queue!r} is read by others: try again later"
            raise DeskError(503, text) from error
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def browser(self, queue: str) -> AsyncIterator[Browser]:
        """Open a browser of a queue without waiting for others."""
        copies = QueueCopies(self.publisher, self.to(queue))
        with translated(queue):
            async with self._connected() as session, browse(session, queue, copies) as browser:
                browser.limit_decoded(_MAX_DECODED)
                yield browser

    async def count(self, queue: str) -> int:
        """Return the number of ready messages of a queue; 0 if there is none."""
        with translated(queue):
            async with self._connected() as session, scratch(session) as channel:
                try:
                    return await channel.count(queue)
                except BrokerRefused as error:
                    if error.code != NOT_FOUND:
                        raise
                    return 0

    async def counts(self, queues: Iterable[str]) -> Mapping[str, int | None]:
        """Return the number of ready messages of queues; 0 for a missing one, None if unknown.

        A missing queue is not asked for again for half a minute: the broker closes the channel.
        """
        wanted = list(dict.fromkeys(queues))
        found: dict[str, int | None] = dict.fromkeys(wanted)
        if self._clock() < self._failed_until:
            return found
        try:
            async with (
                Deadline(_COUNT_DEADLINE),
                self._connected() as session,
                session.scratch.turn(),
            ):
                for queue in wanted:
                    found[queue] = await self._count(session, queue)
        except (ConnectionLost, TimeoutError) as error:
            self.problem = str(error) or "the broker does not answer in time"
            self._failed_until = self._clock() + _FAILURE_REMEMBERED
        else:
            self.problem = ""
        return found

    async def _count(self, session: Session, queue: str) -> int | None:
        if self._counted.get(queue, 0.0) > self._clock():
            return 0
        try:
            async with scratch(session) as channel:
                return await channel.count(queue)
        except QueueInUse:
            return None
        except BrokerRefused as error:
            if error.code != NOT_FOUND:
                return None
            if len(self._counted) >= _MOST_REMEMBERED:
                self._counted.clear()
            self._counted[queue] = self._clock() + _REMEMBERED
            return 0

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Session]:
        self._users += 1
        try:
            yield await self._open()
        finally:
            self._users -= 1
            self.idle_since = self._clock()

    async def _open(self) -> Session:
        """Return the session, opened if that is necessary."""
        async with self._connecting:
            if self._session is None or self._session.gone:
                settings = self._settings.connection(self.connection)
                try:
                    async with Deadline(_CONNECT_DEADLINE):
                        self._session = await connect(settings, self.vhost, "console")
                except TimeoutError as error:
                    raise ConnectionLost("the broker cannot be reached in time") from error
            return self._session

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self.publisher.close()


class Places:
    """The virtual hosts that are in use.

    Args:
        idle: Seconds after which the connections of one are closed.
    """

    def __init__(self, settings: WorkerSettings, idle: float = IDLE) -> None:
        self._settings = settings
        self._idle = idle
        self._places: dict[tuple[str, str], Place] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def of(self, ref: QueueRef) -> Place:
        """Return the place of a queue. Raises as `find` does."""
        return self.find(ref.connection, ref.vhost)

    def find(self, connection: str, vhost: str | None) -> Place:
        """Return a place.

        Raises:
            DeskError: The settings have no such connection.
        """
        name = connection.casefold()
        if name not in self._settings.amqp:
            raise DeskError(404, f"the settings have no connection {connection!r}")
        key = name, self._settings.amqp[name].vhost_name(vhost)
        if (place := self._places.get(key)) is None:
            place = self._places[key] = Place(self._settings, *key)
        if self._sweeper is None:
            self._sweep()
        return place

    async def close(self) -> None:
        """Close all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        places, self._places = list(self._places.values()), {}
        await asyncio.gather(*(each.close() for each in places), *self._closing)

    def _sweep(self) -> None:
        """Close what is idle, and look again later as long as there is anything."""
        loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        for key, place in list(self._places.items()):
            if place.is_idle(self._idle):
                del self._places[key]
                task = loop.create_task(place.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        later: Callable[[], None] = self._sweep
        self._sweeper = loop.call_later(self._idle / 4, later) if self._places else None


def dead_letter_queue(ref: QueueRef) -> str:
    """Return the name of the dead-letter queue."""
    return ref.queue + DEAD_LETTER_SUFFIX
