"""The time limit of each call of `handle`."""

import asyncio
import logging
from typing import Any

from workerkit.tasks import discard_cancellations, receive_discarded

log = logging.getLogger(__name__)

_PATIENCE = 5.0
_LATE = 0.1
_READ_TIME = 0.1


class Deadlines:
    """The running calls of one consumer, each with its deadline.

    Args:
        name: Of the consumer.
        seconds: For one call; None for no limit.

    Attributes:
        has_discarded: The last `end` has undone a cancellation by the call itself.
    """

    def __init__(self, name: str, seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._seconds = seconds
        self._running: dict[asyncio.Task[object], float] = {}
        self._overdue: dict[asyncio.Task[object], asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._looked = False
        self.has_discarded = False

    def begin(self, task: asyncio.Task[object] | None = None) -> asyncio.Task[object]:
        """Start the clock for a call.

        Args:
            task: The current one, where the caller knows it; finding it costs time.

        Returns:
            The current task, which makes the call.
        """
        if task is None:
            task = asyncio.current_task(self._loop)
            assert task is not None
        if self._seconds is not None:
            self._running[task] = deadline = self._loop.time() + self._seconds
            if self._timer is None:
                self._due = deadline
                self._timer = self._loop.call_at(deadline, self._expire)
        return task

    def end(self, task: asyncio.Task[object]) -> bool:
        """Stop the clock for a call.

        Returns:
            Whether it was cancelled because it was late. That cancellation is then undone, as is
            any by the call itself, so that the task continues; one from elsewhere stays.
        """
        self._running.pop(task, None)
        complaint = self._overdue.pop(task, None) if self._overdue else None
        if complaint is not None:
            complaint.cancel()
            task.uncancel()
        if task.cancelling():
            self.has_discarded = discard_cancellations(task)
        return complaint is not None

    async def receive_discarded(self, task: asyncio.Task[object]) -> None:
        """Let the cancellation arrive that `end` has undone, before anything else is awaited.

        Raises:
            asyncio.CancelledError: The task is to end.
        """
        self.has_discarded = False
        await receive_discarded(task)

    def seconds_in_call(self, task: asyncio.Task[Any]) -> float | None:
        """Return how long a call has been running; None if it has no deadline, or has ended."""
        deadline = self._running.get(task)
        if deadline is None and (complaint := self._overdue.get(task)) is not None:
            deadline = complaint.when() - _PATIENCE
        if deadline is None or self._seconds is None:
            return None
        return self._loop.time() - deadline + self._seconds

    def is_late(self, task: asyncio.Task[object]) -> bool:
        """Return whether a call was cancelled because it is late."""
        return task in self._overdue

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now - self._due > _LATE and not self._looked:
            # The event loop was blocked, or the process stopped: what the calls wait for may have
            # arrived in time, and is read first. Once only: an overloaded loop has deadlines, too.
            self._looked, self._due = True, now + _READ_TIME
            self._timer = self._loop.call_at(self._due, self._expire)
            return
        self._looked = False
        while self._running:
            task, deadline = next(iter(self._running.items()))
            if deadline > now:
                self._due = deadline
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            del self._running[task]
            self._overdue[task] = self._loop.call_later(_PATIENCE, self._complain)
            task.cancel()

    def _complain(self) -> None:
        log.error(
            "handler timed out and still runs after cancellation: waiting for it",
            extra={"consumer": self._name, "timeout": self._seconds},
        )
