"""Ask the broker for things, a bounded number at a time, on channels that are used again.

A connection of five hundred consumers has thousands of questions when it is new. Asked all at
once, each of them waits for the others in the broker's queue, and those that wait too long are
given up. And opening a channel costs as much as a question does: only a refusal closes one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

MAX_SETUPS = 16
"""Set-ups at a time on one connection: enough to keep a broker busy that is 100 ms away."""


class ClosableChannel(Protocol):
    """A channel, as far as it matters here."""

    @property
    def lost(self) -> "asyncio.Future[Any]":
        """Done once it is closed."""

    async def close(self) -> None:
        """Close it, if it is not closed."""


C = TypeVar("C", bound=ClosableChannel)


class ScratchChannels(Generic[C]):
    """The channels of one connection on which the broker is asked for things.

    Args:
        create: Opens a channel.
        max_setups: Turns that are given out at the same time, and so channels that are needed.
    """

    def __init__(self, create: Callable[[], Awaitable[C]], max_setups: int = MAX_SETUPS) -> None:
        self._create = create
        self._turns = asyncio.Semaphore(max_setups)
        self._wanted = 0
        self._idle: list[C] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it is this caller's turn to set something up; the block is the turn.

        Channels are kept open for as long as somebody has a turn, or waits for one.
        """
        self._wanted += 1
        try:
            async with self._turns:
                yield
        except asyncio.CancelledError:
            # The process stops, and closes the connection: that waits for nothing else.
            self._wanted -= 1
            raise
        except BaseException:
            await self._end_turn()
            raise
        await self._end_turn()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[C]:
        """A channel to ask on. It is not used again if the block raises."""
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
        """Close the channels on which nobody asks just now."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(each.close() for each in idle))
