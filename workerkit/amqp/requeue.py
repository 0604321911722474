"""Put messages that failed back into their queue, the stubborn ones after a pause."""

import asyncio
import logging
from typing import Any

from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.pacing import Pacing

log = logging.getLogger(__name__)


class Requeue:
    """The messages of one queue that wait to go back.

    A waiting message is unacknowledged, so it counts against the prefetch, but it holds no worker.

    Args:
        most: Messages that may wait at the same time; beyond that the oldest goes back at once.
    """

    def __init__(self, most: int) -> None:
        self._most = max(most, 1)
        self._pacing = Pacing()
        self._held: dict[AMQPMessage[Any], asyncio.TimerHandle] = {}

    @property
    def failing(self) -> bool:
        """Whether messages of this queue have failed in a row."""
        return self._pacing.failures > 0

    def succeeded(self, message: AMQPMessage[Any]) -> None:
        """A message has been handled."""
        self._pacing.succeeded(redelivered=message.redelivered)

    def put(self, message: AMQPMessage[Any], *, stubborn: bool = False) -> bool:
        """Put *message* back, now or later.

        Args:
            stubborn: Hold it even if it was never delivered before: it is not the handler that
                failed but the move of a dead letter, which would fail again at once.

        Returns:
            False if its channel is lost: the broker has put it back by itself.
        """
        pause = self._pacing.failed(redelivered=message.redelivered or stubborn)
        if not pause:
            return message.acks.reject(message.tag, requeue=True)
        if len(self._held) >= self._most:
            self._release(next(iter(self._held)))
        loop = asyncio.get_running_loop()
        self._held[message] = loop.call_later(pause, self._release, message)
        return not message.acks.lost

    def release(self) -> None:
        """Put everything back now."""
        for message in list(self._held):
            self._release(message)

    def _release(self, message: AMQPMessage[Any]) -> None:
        self._held.pop(message).cancel()
        message.acks.reject(message.tag, requeue=True)
