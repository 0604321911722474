"""Cancel the calls of one consumer that take longer than its timeout.

`asyncio.timeout` makes a context manager and a timer for every call, about 2 µs of CPU. Calls of
one consumer all have the same timeout, so they end in the order in which they began: a dictionary
in that order and one timer for its first entry do the same for 0.3 µs.
"""

import asyncio
import logging

from workerkit.supervisor import reinstate

log = logging.getLogger(__name__)

_PATIENCE = 5.0
_LATE = 0.1
_READ_TIME = 0.1


class Deadlines:
    """The running calls of one consumer, each with the time at which it must be over.

    Args:
        name: Of the consumer.
        seconds: For one call; None for no limit.
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

    def begin(self, task: asyncio.Task[object] | None = None) -> asyncio.Task[object]:
        """The clock starts for a call.

        Args:
            task: The current one, where it is known; else it is asked for, which costs.

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
        """The call is over.

        Returns:
            Whether it was cancelled for being late. That cancellation is then taken back, as is
            any that the call has made itself, so that the task goes on; one from elsewhere stays.
        """
        self._running.pop(task, None)
        complaint = self._overdue.pop(task, None) if self._overdue else None
        if complaint is not None:
            complaint.cancel()
            task.uncancel()
        if task.cancelling():
            reinstate(task)
        return complaint is not None

    def close(self) -> None:
        """Cancel nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now - self._due > _LATE and not self._looked:
            # The event loop was blocked, or the process stopped: what the calls wait for may have
            # come in time, and is read first. Once, or an overloaded loop would know no deadlines.
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
            "handler is late, and goes on though it was cancelled: waiting for it",
            extra={"consumer": self._name, "timeout": self._seconds},
        )
