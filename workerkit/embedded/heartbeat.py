"""Heartbeats of a connection: AMQP 0-9-1, section 4.2.7."""

import asyncio
from collections.abc import Callable

# A client is lost after two intervals without data; each interval has two checks.
_SILENT_CHECKS = 4


class Heartbeat:
    """Sends heartbeats on one connection, and detects a lost client.

    It uses real time, not the clock of the broker: a test that moves the clock loses no connection.

    Args:
        interval: Seconds.
        send: Called twice per interval.
        on_silence: Called when the client is lost.

    Attributes:
        received: The connection sets it when it receives data.
        paused: The connection reads nothing, so silence does not count.
    """

    def __init__(
        self, interval: float, send: Callable[[], None], on_silence: Callable[[], None]
    ) -> None:
        self.received = True
        self.paused = False
        self._interval = interval
        self._send = send
        self._on_silence = on_silence
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next()

    def stop(self) -> None:
        """Stop sending and checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval / 2, self._check)

    def _check(self) -> None:
        self._silent = 0 if self.received or self.paused else self._silent + 1
        self.received = False
        if self._silent >= _SILENT_CHECKS:
            self._on_silence()
        else:
            self._next()
            self._send()
