"""What keeps things alive: how long to wait between attempts, and waiting for what comes first."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from typing import TypeVar

from workerkit.places import said

log = logging.getLogger(__name__)

T = TypeVar("T")

LATE = "it did not end in time"
_AFTERMATH = 0.2


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


async def paused(seconds: float, stopping: asyncio.Event) -> bool:
    """Let time pass before another try; False if the process stops meanwhile."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
    return not stopping.is_set()


async def cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel *tasks* and wait for them, however they end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class Interrupted(Exception):
    """Code of the user's raised something that would end more than itself."""


async def guarded(call: Awaitable[T]) -> T:
    """Await code of the user's that is no handler: a hook, a provider, a resource.

    Raises:
        Interrupted: It raised `SystemExit`, `KeyboardInterrupt`, or a `CancelledError` though
            nobody had cancelled it.
        Exception: Whatever else it raised.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        return await call
    except asyncio.CancelledError as error:
        if task.cancelling():
            raise
        raise Interrupted("it was cancelled from inside") from error
    except (SystemExit, KeyboardInterrupt) as error:
        raise Interrupted(f"it raised {type(error).__name__}: {error}") from error


async def finish(calls: Mapping[str, Awaitable[object]], seconds: float) -> dict[str, str]:
    """Run all of *calls*, and give up those that take too long: they are cancelled, not waited for.

    Returns:
        What went wrong, by name: `LATE`, or what was raised.
    """
    tasks = {name: asyncio.ensure_future(guarded(call)) for name, call in calls.items()}
    if tasks:
        await asyncio.wait(tasks.values(), timeout=seconds)
    wrong = {}
    for name, task in tasks.items():
        if not task.done():
            task.cancel()
            wrong[name] = LATE
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.error("could not end in good order", exc_info=error, extra={"what": name})
            wrong[name] = said(error)
    # What is cancelled and behaves has ended after this.
    late = [tasks[name] for name, text in wrong.items() if text is LATE]
    if late:
        await asyncio.wait(late, timeout=_AFTERMATH)
    return wrong
