"""Put messages that failed back into their queue, the stubborn ones after a pause."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workerkit.amqp.message import AMQPMessage

_FIRST = 1.0
_CAP = 30.0
_BURST = 0.05


class Pacing:
    """The failures of one queue.

    A message that fails for the first time goes back at once: another process may do better. One
    that was delivered before and fails again is held, and longer with each such failure in a row,
    so that a message nobody can handle does not spin.
    """

    __slots__ = ("_last", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._last = 0.0

    def failed(self, *, redelivered: bool, now: float) -> float:
        """Count a failure; the seconds to hold the message, 0 for not at all.

        The messages of a batch fail at the same time, and that is one failure.

        Args:
            now: Seconds of any clock.
        """
        if not redelivered:
            return 0.0
        if not self.failures or now - self._last > _BURST:
            self.failures += 1
        self._last = now
        return min(_CAP, _FIRST * 2.0 ** min(self.failures - 1, 10))

    def succeeded(self, *, redelivered: bool) -> None:
        """A message that was delivered before has been handled: begin anew."""
        if redelivered:
            self.failures = 0


_LEAST = 1.0


@dataclass(frozen=True, slots=True)
class _Held:
    """A message that waits to go back.

    Attributes:
        since: The loop's time.
        timer: Puts it back.
    """

    since: float
    timer: asyncio.TimerHandle


class Requeue:
    """The messages of one queue that wait to go back.

    A waiting message is unacknowledged, so it counts against the prefetch, but it holds no worker
    as long as there is room for it.

    Args:
        most: Messages that may wait at the same time. One more keeps its worker until the oldest
            has waited for a second and goes back: to put that back at once would bring it here
            again at once, and a hundred messages that fail would spin as fast as they can.
        requeue: Puts a message back; False if its channel is lost.
    """

    def __init__(self, most: int, requeue: Callable[[AMQPMessage[Any]], bool]) -> None:
        self._most = max(most, 1)
        self._requeue_one = requeue
        self._pacing = Pacing()
        self._held: dict[AMQPMessage[Any], _Held] = {}
        self._room = asyncio.Event()
        self._hurried = False

    @property
    def failing(self) -> bool:
        """Whether messages of this queue have failed in a row."""
        return self._pacing.failures > 0

    def succeeded(self, message: AMQPMessage[Any]) -> None:
        """A message has been handled."""
        self._pacing.succeeded(redelivered=message.redelivered)

    async def put(self, message: AMQPMessage[Any], *, stubborn: bool = False) -> bool:
        """Put *message* back, now or later; return when it needs no worker any more.

        Args:
            stubborn: Hold it even if it was never delivered before: it is not the handler that
                failed but the move of a dead letter, which would fail again at once.

        Returns:
            False if its channel is lost: the broker has put it back by itself.
        """
        loop = asyncio.get_running_loop()
        again = message.redelivered or stubborn
        pause = self._pacing.failed(redelivered=again, now=loop.time())
        if pause:
            await self._wait_for_room()
        if not pause or self._hurried or message.acks.lost:
            return self._requeue_one(message)
        timer = loop.call_later(pause, self._release, message)
        self._held[message] = _Held(loop.time(), timer)
        return True

    def forget(self) -> None:
        """A channel is lost: its messages went back by themselves."""
        for message in [each for each in self._held if each.acks.lost]:
            self._release(message)

    def release(self) -> None:
        """Put everything back that waits now."""
        for message in list(self._held):
            self._release(message)

    def hurry(self) -> None:
        """Put everything back at once, now and from now on."""
        self._hurried = True
        self.release()
        self._room.set()

    async def _wait_for_room(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._held) >= self._most and not self._hurried:
            oldest, held = next(iter(self._held.items()))
            self._room.clear()
            try:
                async with asyncio.timeout_at(held.since + _LEAST):
                    await self._room.wait()
            except TimeoutError:
                if oldest in self._held and loop.time() >= held.since + _LEAST:
                    self._release(oldest)

    def _release(self, message: AMQPMessage[Any]) -> None:
        self._held.pop(message).timer.cancel()
        self._room.set()
        self._requeue_one(message)
