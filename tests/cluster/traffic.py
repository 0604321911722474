"""Independent clients that publish numbered messages to a cluster, and a ledger of the results.

The clients stand on aiormq alone. Each one begins at another node and fails over by itself. A
message counts once it is confirmed; what was not confirmed is never sent again under its number.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count, pairwise
from typing import TypeVar

import aiormq
from aiormq.abc import AbstractConnection
from pamqp.commands import Basic

T = TypeVar("T")

_PACE = 0.02  # Seconds between two messages of one client.
_CONFIRM = 4.0
_CONNECT = 3.0
_CYCLE = ("ok", "ok", "twice", "ok", "forward", "ok", "ok", "never")


class Ledger:
    """Confirmed messages and their results.

    Attributes:
        confirmed: Messages that a broker has confirmed.
        handled: How often each message was handled to its end.
        confirms: When a broker confirmed a message, in seconds of `time.monotonic`.
        moments: When a handler ended well, in the same seconds.
        buried: Dead letters.
        copies: What handlers published.
    """

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.confirms: list[float] = []
        self.handled: Counter[str] = Counter()
        self.moments: list[float] = []
        self.buried: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def confirm(self, message: str) -> None:
        """A broker has confirmed *message*."""
        self.confirmed.add(message)
        self.confirms.append(time.monotonic())

    def note(self, message: str) -> None:
        """A handler has handled *message* to its end."""
        self.handled[message] += 1
        self.moments.append(time.monotonic())

    @property
    def lost(self) -> set[str]:
        """Confirmed messages that are not where they should be."""
        doomed = {message for message in self.confirmed if message.startswith("never")}
        forwarded = {message for message in self.confirmed if message.startswith("forward")}
        return (
            (self.confirmed - doomed - set(self.handled))
            | (doomed - set(self.buried))
            | (forwarded - set(self.copies))
        )

    @property
    def twice(self) -> int:
        """How many times a message was handled though it had been handled before."""
        return sum(self.handled.values()) - len(self.handled)


def longest_pause(moments: Sequence[float], since: float, until: float) -> float:
    """Return the longest time between two of *moments*, in seconds."""
    between = [moment for moment in moments if since <= moment <= until]
    return max(later - earlier for earlier, later in pairwise([since, *between, until]))


class Client:
    """Publishes one message after the other, to any available node.

    Args:
        urls: Of the nodes, the preferred one first.
    """

    def __init__(self, name: str, urls: Sequence[str], queue: str, ledger: Ledger) -> None:
        self._name = name
        self._urls = urls
        self._queue = queue
        self._ledger = ledger
        self._numbers = count()
        self._stopping = False

    def stop(self) -> None:
        """Stop publishing."""
        self._stopping = True

    async def run(self) -> None:
        """Publish until stopped, at the next node whenever one fails."""
        tries = count()
        while not self._stopping:
            url = self._urls[next(tries) % len(self._urls)]
            connection: AbstractConnection | None = None
            # A failing node may cause any error: the next one is tried.
            with suppress(Exception):
                connection = await bounded(aiormq.connect(f"{url}?heartbeat=5"), _CONNECT)
                await self._publish(
                    await bounded(connection.channel(publisher_confirms=True), _CONNECT)
                )
            if connection is not None:
                await _dropped(connection)
            await asyncio.sleep(_PACE)

    async def _publish(self, channel: aiormq.abc.AbstractChannel) -> None:
        properties = Basic.Properties(delivery_mode=2)
        while not self._stopping:
            number = next(self._numbers)
            message = f"{_CYCLE[number % len(_CYCLE)]}:{self._name}:{number}"
            publish = channel.basic_publish(
                message.encode(), routing_key=self._queue, properties=properties, mandatory=True
            )
            confirm = await bounded(publish, _CONFIRM)
            if isinstance(confirm, Basic.Ack):
                self._ledger.confirm(message)
            await asyncio.sleep(_PACE)


@asynccontextmanager
async def publishing(urls: Sequence[str], queue: str, ledger: Ledger) -> AsyncIterator[None]:
    """Publish inside the block, with one client for each node."""
    clients = [
        Client(str(number), [*urls[number:], *urls[:number]], queue, ledger)
        for number in range(len(urls))
    ]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())
        try:
            yield
        finally:
            for client in clients:
                client.stop()


async def drain(url: str, queue: str, into: Counter[str]) -> None:
    """Take everything out of a queue."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        while True:
            message = await channel.basic_get(queue, no_ack=True)
            if isinstance(message.delivery, Basic.GetEmpty):
                return
            into[bytes(message.body).decode()] += 1
    finally:
        await connection.close()


async def bounded(awaitable: Awaitable[T], seconds: float) -> T:
    """Await in a separate task: aiormq cancels waiting tasks when a connection is lost.

    Raises:
        TimeoutError: It took longer.
        ConnectionError: aiormq cancelled it.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        late = not task.done()
        task.cancel()
    if late:
        raise TimeoutError(f"longer than {seconds} s")
    if task.cancelled():
        raise ConnectionError("the connection is lost")
    return task.result()


async def _dropped(connection: AbstractConnection) -> None:
    """Close a connection whose broker may not answer."""
    with suppress(Exception):
        await bounded(connection.close(), 1.0)
