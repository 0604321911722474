"""Say which handler blocks the event loop: while it does, nothing else of the process runs."""

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

_BEATS_PER_LIMIT = 4


class Watchdog:
    """A thread that looks whether the event loop still turns.

    Args:
        seconds: The loop may stand still for so long.
        lagged: Told at each of its looks at the loop, twice a second, how many seconds too late
            the loop came to it.
    """

    def __init__(
        self, seconds: float = 2.0, lagged: Callable[[float], object] = lambda _: None
    ) -> None:
        self._seconds = seconds
        self._every = seconds / _BEATS_PER_LIMIT
        self._lagged = lagged
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._beat = time.monotonic()
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self._look_again()
        threading.Thread(target=self._watch, name="workerkit-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._lagged(time.monotonic() - self._beat - self._every)
        self._look_again()

    def _look_again(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(self._every, self._turn)

    def _watch(self) -> None:
        # A signal that the kernel gives to this thread would not wake the main one, which is the
        # only one that can act on it, out of a blocking call.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        told = seen = stopped = 0.0
        looked, used = time.monotonic(), time.process_time()
        while not self._stopped.wait(self._every):
            beat, now, cpu = self._beat, time.monotonic(), time.process_time()
            if beat != seen:
                seen, stopped = beat, 0.0
            # If this thread is late as well, and the process has used no CPU meanwhile, then it was
            # stopped, or the machine had no time for it: the loop is not blocked by a handler.
            if now - looked - (cpu - used) > 2 * self._every:
                stopped += now - looked
            looked, used = now, cpu
            blocked = now - beat - stopped
            # Once for each time it stands still, with the stack of that moment.
            if blocked > self._seconds and beat != told:
                told = beat
                self._tell(blocked, sys._current_frames().get(self._ident))

    def _tell(self, seconds: float, frame: FrameType | None) -> None:
        task = asyncio.current_task(self._loop)
        log.error(
            "the event loop is blocked: nothing else of this process runs",
            extra={
                "task": task.get_name() if task else "none",
                "seconds": round(seconds, 2),
                "stack": "".join(traceback.format_stack(frame, limit=12)) if frame else "",
            },
        )
