"""What keeps things alive: how long to wait between attempts, and waiting for what comes first."""

import asyncio
import random
from collections.abc import Awaitable, Collection
from typing import TypeVar

T = TypeVar("T")


class Backoff:
    """Growing pauses between attempts, each drawn from the upper half of its bound.

    Args:
        first: Bound of the first pause, in seconds.
        cap: No pause is longer, in seconds.
    """

    def __init__(self, first: float = 0.5, cap: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self.attempt = 0

    def next(self) -> float:
        """Count a failed attempt; the seconds to wait before the next one."""
        bound = min(self._cap, self._first * 2.0 ** min(self.attempt, 30))
        self.attempt += 1
        return bound * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """An attempt succeeded."""
        self.attempt = 0


async def within(seconds: float, awaitable: Awaitable[T], otherwise: Exception) -> T:
    """Await under a deadline.

    Raises:
        Exception: *otherwise*, when the deadline passed, or when the client library cancelled the
            wait from inside, as aiormq does when a connection dies under a pending call.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError as error:
        raise otherwise from error
    except asyncio.CancelledError as error:
        if task.cancelling():
            raise
        raise otherwise from error


async def cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel *tasks* and wait for them, however they end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
