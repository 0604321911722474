"""Send requests to the broker on reused channels, a bounded number at a time.

A connection with five hundred consumers sends thousands of requests at its start. If all were sent
at once, each would wait for the others, and many would reach their deadline. Opening a channel
takes as long as a request, so a channel is reused until the broker refuses a request on it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

MAX_SETUPS = 16
"""Concurrent set-ups on one connection: enough to use a broker with a latency of 100 ms fully."""


class ClosableChannel(Protocol):
    """A channel that one caller at a time uses."""

    @property
    def lost(self) -> "asyncio.Future[Any]":
        """Return a future that is done once the channel is closed."""

    async def close(self) -> None:
        """Close the channel, if it is not closed."""


C = TypeVar("C", bound=ClosableChannel)


class ScratchChannels(Generic[C]):
    """The channels of one connection that are used for requests.

    Args:
        create: Opens a channel.
        max_setups: How many callers may have a turn at the same time, each with one channel.
    """

    def __init__(self, create: Callable[[], Awaitable[C]], max_setups: int = MAX_SETUPS) -> None:
        self._create = create
        self._turns = asyncio.Semaphore(max_setups)
        self._wanted = 0
        self._idle: list[C] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; it lasts for the block.

        Idle channels stay open as long as a caller has a turn or waits for one.
        """
        self._wanted += 1
        try:
            async with self._turns:
                yield
        except asyncio.CancelledError:
            # The process stops and closes the connection, so the channels need no close.
            self._wanted -= 1
            raise
        except BaseException:
            await self._end_turn()
            raise
        await self._end_turn()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[C]:
        """Provide a channel for requests. It is not reused if the block raises."""
        while self._idle and self._idle[-1].lost.done():
            self._idle.pop()
        channel = self._idle.pop() if self._idle else await self._create()
        try:
            yield channel
        except BaseException:
            await channel.close()
            raise
        if self._wanted:
            self._idle.append(channel)
        else:
            await channel.close()

    async def _end_turn(self) -> None:
        self._wanted -= 1
        if not self._wanted:
            await self.close_idle()

    async def close_idle(self) -> None:
        """Close the channels that are not in use."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(each.close() for each in idle))
