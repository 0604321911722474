"""A clock for all timers of the broker, which tests can move.

A test of a message that expires after an hour calls `advance(3600)` and does not wait.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class Timer:
    """A call at a time of the clock.

    Attributes:
        when: The time, on the clock.
    """

    __slots__ = ("_callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Cancel the call."""
        self._callback = None

    @property
    def cancelled(self) -> bool:
        """Whether the call was cancelled, or has been made."""
        return self._callback is None

    def fire(self) -> None:
        """Make the call, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Clock:
    """The time of the loop, plus the seconds that tests have skipped.

    All timers share at most one handle of the loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._skipped = 0.0
        self._frozen_at: float | None = None  # The time of the present timer during `advance`.
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start using *loop*."""
        self._loop = loop
        self._arm()

    def stop(self) -> None:
        """Discard every timer."""
        self._timers.clear()
        self._arm()
        self._loop = None

    def now(self) -> float:
        """Return the time in seconds; the zero point is arbitrary."""
        if self._frozen_at is not None:
            return self._frozen_at
        return (self._loop.time() if self._loop else 0.0) + self._skipped

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* after *seconds* of this clock."""
        timer = Timer(self.now() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        if self._timers[0][2] is timer:
            self._arm()
        return timer

    def advance(self, seconds: float) -> None:
        """Skip *seconds*: run the timers that fall into them, in order, each at its own time."""
        self._frozen_at = self.now()
        end = self._frozen_at + seconds
        try:
            while self._timers and self._timers[0][0] <= end:
                self._frozen_at = max(self._frozen_at, self._timers[0][0])
                heapq.heappop(self._timers)[2].fire()
        finally:
            self._frozen_at = None
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
