"""Report which handler blocks the event loop, and with it the whole process."""

import asyncio
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)

_CHECKS_PER_LIMIT = 4


class Watchdog:
    """A thread that checks whether the event loop still runs.

    Args:
        seconds: A loop that is blocked for longer is reported.
        lagged: Called by a timer of the loop, twice a second by default, with the seconds that the
            timer was late.
    """

    def __init__(
        self, seconds: float = 2.0, lagged: Callable[[float], object] = lambda _: None
    ) -> None:
        self._seconds = seconds
        self._interval = seconds / _CHECKS_PER_LIMIT
        self._lagged = lagged
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._last_turn = time.monotonic()
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the thread."""
        self._schedule()
        threading.Thread(target=self._watch, name="workerkit-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._lagged(time.monotonic() - self._last_turn - self._interval)
        self._schedule()

    def _schedule(self) -> None:
        self._last_turn = time.monotonic()
        self._timer = self._loop.call_later(self._interval, self._turn)

    def _watch(self) -> None:
        # A signal that the kernel gives to this thread would not wake the main one, which is the
        # only one that can act on it, out of a blocking call.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        reported = seen = stopped = 0.0
        checked, used = time.monotonic(), time.process_time()
        while not self._stopped.wait(self._interval):
            last_turn, now, cpu = self._last_turn, time.monotonic(), time.process_time()
            if last_turn != seen:
                seen, stopped = last_turn, 0.0
            # If this thread is late as well, and the process has used no CPU in that time, it was
            # suspended or got no CPU: no handler blocks the loop.
            if now - checked - (cpu - used) > 2 * self._interval:
                stopped += now - checked
            checked, used = now, cpu
            blocked = now - last_turn - stopped
            # Report each blocked period once, with the stack of that moment.
            if blocked > self._seconds and last_turn != reported:
                reported = last_turn
                self._report(blocked, sys._current_frames().get(self._ident))

    def _report(self, seconds: float, frame: FrameType | None) -> None:
        task = asyncio.current_task(self._loop)
        log.error(
            "the event loop is blocked: nothing else of this process runs",
            extra={
                "task": task.get_name() if task else "none",
                "seconds": round(seconds, 2),
                "stack": "".join(traceback.format_stack(frame, limit=12)) if frame else "",
            },
        )
