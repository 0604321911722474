"""Tasks: cancellation, deadlines, and growing pauses between attempts."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Collection, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from workerkit.describe import describe_error
from workerkit.errors import HandlerExit
from workerkit.retry import growing_pause

log = logging.getLogger(__name__)

T = TypeVar("T")

LATE = "it did not end in time"
_CANCEL_TIME = 0.2
_READ_TIME = 0.1

_protected: "WeakKeyDictionary[asyncio.Task[Any], bool]" = WeakKeyDictionary()


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
        """Count a failed attempt, and return the seconds to wait before the next one."""
        self.attempt += 1
        bound = growing_pause(self.attempt, self._first, self._cap)
        return bound * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Count from the beginning again, after a success."""
        self.attempt = 0


def protect(task: "asyncio.Task[Any]") -> None:
    """Protect a task: until `unprotect`, no cancellation ends it.

    Handlers may cancel their own task by mistake: up to Python 3.12 a `TaskGroup`
    with a child that fails leaves one cancellation behind.
    """
    _protected[task] = True


def unprotect(task: "asyncio.Task[Any]") -> None:
    """Remove the protection of a task: a cancellation now means that it should end."""
    _protected[task] = False


def cancel(task: "asyncio.Task[Any]") -> None:
    """Cancel a task so that it ends."""
    unprotect(task)
    task.cancel()


def is_meant_to_end(task: "asyncio.Task[Any]", error: BaseException | None = None) -> bool:
    """Return whether a task was cancelled so that it ends.

    Args:
        error: What its code raised. Only a `CancelledError` counts if the task was never protected.
    """
    if not task.cancelling():
        return False
    ours = _protected.get(task)
    if ours is None:
        return error is None or isinstance(error, asyncio.CancelledError)
    return not ours


def discard_cancellations(task: "asyncio.Task[Any]") -> bool:
    """Undo the cancellations by code inside a task, unless the task is to end.

    Returns:
        Whether it has undone them. One that has not arrived yet will: see `receive_discarded`.
    """
    if not _protected.get(task):
        return False
    while task.uncancel():
        pass
    return True


async def receive_discarded(task: "asyncio.Task[Any]") -> None:
    """Let a cancellation arrive that was discarded before its task received it.

    Code that cancels its own task, and then awaits nothing, has not received it. Up to Python 3.12,
    `uncancel` does not prevent that it arrives at the next await, whatever that waits for.

    Args:
        task: The current one.

    Raises:
        asyncio.CancelledError: The task is to end.
    """
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if is_meant_to_end(task):
            raise


class Deadline:
    """Limits the time of its block as `asyncio.timeout` does, but reads before it expires.

    If code blocked the event loop, or the process was stopped, a reply may have arrived in time but
    not been read. `TimeoutError` is raised when the time has passed.
    """

    __slots__ = ("_scope", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._read, loop)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    @property
    def passed(self) -> bool:
        """Whether the time passed before the block ended."""
        return self._scope.expired()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scope.reschedule(loop.time() + _READ_TIME)


async def with_deadline(seconds: float, awaitable: Awaitable[T], otherwise: Exception) -> T:
    """Await under a deadline.

    Raises:
        Exception: *otherwise*, when the deadline passed, or when the client library cancelled the
            wait from inside, as aiormq does when a connection dies under a pending call.
    """
    task = asyncio.current_task()
    assert task is not None
    before, deadline = task.cancelling(), Deadline(seconds)
    try:
        async with deadline:
            return await awaitable
    except BaseException as error:
        if task.cancelling() > before:
            if isinstance(error, asyncio.CancelledError):
                raise
            # aiormq raises the loss of the connection instead, if both happen in the same turn.
            raise asyncio.CancelledError from error
        late = isinstance(error, TimeoutError) and deadline.passed
        if late or isinstance(error, asyncio.CancelledError):
            raise otherwise from error
        raise


async def sleep_unless_stopping(seconds: float, stopping: asyncio.Event) -> bool:
    """Sleep before another attempt; return False if the process stops."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
    return not stopping.is_set()


async def cancel_and_wait(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel *tasks*, and wait until they have ended."""
    for task in tasks:
        cancel(task)
    if tasks:
        await asyncio.wait(tasks)


class Interrupted(Exception):
    """User code raised an exception that would end more than itself."""


async def guard(call: Awaitable[T]) -> T:
    """Await user code that is not a handler: a hook, a provider, a resource.

    Raises:
        Interrupted: It raised `SystemExit`, `KeyboardInterrupt`, or a `CancelledError` though
            the task was not cancelled.
        Exception: Anything else that it raised.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await call
    except asyncio.CancelledError as error:
        if task.cancelling() > before:
            raise
        raise Interrupted("it was cancelled from inside") from error
    except (SystemExit, KeyboardInterrupt) as error:
        raise Interrupted(f"it raised {type(error).__name__}: {error}") from error


async def run_all(calls: Mapping[str, Awaitable[object]], seconds: float) -> dict[str, str]:
    """Run all of *calls*, and cancel those that take too long, without waiting for them.

    Returns:
        The failures by name: `LATE`, or what was raised.
    """
    tasks = {name: asyncio.ensure_future(guard(call)) for name, call in calls.items()}
    if tasks:
        _, unfinished = await asyncio.wait(tasks.values(), timeout=seconds)
        if unfinished:
            # If the event loop was blocked, a reply may have arrived in time but not been read.
            await asyncio.wait(unfinished, timeout=_READ_TIME)
    wrong = {}
    for name, task in tasks.items():
        if not task.done():
            cancel(task)
            wrong[name] = LATE
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed while shutting down", exc_info=error, extra={"what": name})
            wrong[name] = describe_error(error)
    # Tasks that react to the cancellation have ended after this.
    late = [tasks[name] for name, text in wrong.items() if text is LATE]
    if late:
        await asyncio.wait(late, timeout=_CANCEL_TIME)
    return wrong


def failure_of(what: str, error: BaseException) -> Exception:
    """Return the failure of *what* that *error* is, also if it was cancelled from inside.

    Raises:
        asyncio.CancelledError: The task is to end.
        HandlerExit: *what* raised `SystemExit` or `KeyboardInterrupt`: the process has to end.
    """
    if isinstance(error, Exception):
        return error
    task = asyncio.current_task()
    assert task is not None
    if isinstance(error, SystemExit | KeyboardInterrupt):
        raise HandlerExit(f"{what} raised {type(error).__name__}: {error}") from error
    if is_meant_to_end(task, error) or not isinstance(error, asyncio.CancelledError):
        raise error
    discard_cancellations(task)
    failure = Interrupted(f"{what} was cancelled from inside")
    failure.__cause__ = error
    return failure
