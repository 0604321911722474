"""Heartbeats: AMQP 0-9-1, section 4.2.7."""

import asyncio
from collections.abc import Callable

# A client is gone when nothing came for two intervals; we look twice in each.
_SILENT_LOOKS = 4


class Heart:
    """Beats on one connection, and notices when the other one stops.

    It follows real time, not the broker's clock: a test that moves the clock loses no connection.

    Args:
        interval: Seconds.
        beat: Called twice per interval.
        on_silence: Called when the client is taken for dead.

    Attributes:
        heard: Something came; set by whoever reads.
        deaf: Nothing can come, because nothing is read.
    """

    def __init__(
        self, interval: float, beat: Callable[[], None], on_silence: Callable[[], None]
    ) -> None:
        self.heard = True
        self.deaf = False
        self._interval = interval
        self._beat = beat
        self._on_silence = on_silence
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval / 2, self._look)

    def _look(self) -> None:
        self._silent = 0 if self.heard or self.deaf else self._silent + 1
        self.heard = False
        if self._silent >= _SILENT_LOOKS:
            self._on_silence()
        else:
            self._next()
            self._beat()
