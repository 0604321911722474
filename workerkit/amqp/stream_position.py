"""Where the reading of a stream goes on: the broker does not remember it for us."""

from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue import StreamOffset

_OFFSET = "x-stream-offset"


class Position:
    """How far the messages of one stream are settled, over all the channels they came on.

    Args:
        start: Where to begin when nothing has been read yet.
    """

    def __init__(self, start: StreamOffset) -> None:
        self._start = start
        self._last: int | None = None
        self._offsets: dict[int, int] = {}
        self._acks: Acks | None = None

    def begin(self, acks: Acks) -> StreamOffset:
        """A new channel: where to read on. That is behind the last of the settled messages before
        which none is unsettled; a message whose handler still runs comes again."""
        resume = self._resume()
        self._acks = acks
        self._offsets = {}
        self._last = None
        self._start = resume
        return resume

    def note(self, message: AMQPMessage[Any]) -> None:
        """A message has come."""
        offset = message.sent.get(_OFFSET)
        if isinstance(offset, int):
            self._forget_settled()
            self._offsets[message.tag] = self._last = offset

    def _resume(self) -> StreamOffset:
        self._forget_settled()
        if self._offsets:
            return next(iter(self._offsets.values()))
        return self._start if self._last is None else self._last + 1

    def _forget_settled(self) -> None:
        first = None if self._acks is None else self._acks.first
        while self._offsets and (first is None or next(iter(self._offsets)) < first):
            del self._offsets[next(iter(self._offsets))]
