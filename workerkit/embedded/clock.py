"""Time: one clock for everything that waits, which tests can move.

A test of a message that expires after an hour does not wait for an hour: `advance(3600)`.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class Timer:
    """Something that will happen, unless it is cancelled.

    Attributes:
        when: The clock's time.
    """

    __slots__ = ("_callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not let it happen."""
        self._callback = None

    @property
    def cancelled(self) -> bool:
        """It will not happen, or has happened."""
        return self._callback is None

    def fire(self) -> None:
        """Let it happen, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Clock:
    """The loop's time, plus what was skipped.

    However many timers there are, the loop has one handle at most, so closing it leaves nothing.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._skipped = 0.0
        self._standing: float | None = None  # The time, while `advance` goes from one to the next.
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run on *loop* from now on."""
        self._loop = loop
        self._arm()

    def stop(self) -> None:
        """Forget every timer."""
        self._timers.clear()
        self._arm()
        self._loop = None

    def now(self) -> float:
        """Seconds, from any point."""
        if self._standing is not None:
            return self._standing
        return (self._loop.time() if self._loop else 0.0) + self._skipped

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* in so many seconds of this clock."""
        timer = Timer(self.now() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        if self._timers[0][2] is timer:
            self._arm()
        return timer

    def advance(self, seconds: float) -> None:
        """Skip *seconds*: what falls into them happens now, in order and each at its own time."""
        self._standing = self.now()
        end = self._standing + seconds
        try:
            while self._timers and self._timers[0][0] <= end:
                self._standing = max(self._standing, self._timers[0][0])
                heapq.heappop(self._timers)[2].fire()
        finally:
            self._standing = None
            self._skipped += seconds
            self._arm()

    def _run(self) -> None:
        self._handle = None
        while self._timers and (self._timers[0][0] <= self.now() or self._timers[0][2].cancelled):
            heapq.heappop(self._timers)[2].fire()
        self._arm()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._timers and self._loop is not None:
            self._handle = self._loop.call_at(self._timers[0][0] - self._skipped, self._run)
