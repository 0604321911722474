"""The position at which a consumer continues to read a stream: the broker does not store it."""

from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue import StreamOffset

_OFFSET = "x-stream-offset"


class StreamPosition:
    """The position in one stream up to which messages are settled, on all channels so far.

    Args:
        start: The position at which to start if nothing has been read yet.
    """

    def __init__(self, start: StreamOffset) -> None:
        self._start = start
        self._last: int | None = None
        self._offsets: dict[int, int] = {}
        self._acks: Acks | None = None

    def resume(self, acks: Acks) -> StreamOffset:
        """Return the offset at which a new consumer starts to read.

        On a new channel it is that of the first message that is not settled: a message whose
        handler is still running is redelivered. On the same channel all messages can be settled, so
        it is the next one.
        """
        if acks is self._acks and self._last is not None:
            return self._last + 1
        offset = self._next_offset()
        self._acks = acks
        self._offsets = {}
        self._last = None
        self._start = offset
        return offset

    def note(self, message: AMQPMessage[Any]) -> None:
        """Note a message that was delivered."""
        offset = message.sent.get(_OFFSET)
        if isinstance(offset, int):
            self._remove_settled()
            self._offsets[message.tag] = self._last = offset

    def _next_offset(self) -> StreamOffset:
        self._remove_settled()
        if self._offsets:
            return next(iter(self._offsets.values()))
        return self._start if self._last is None else self._last + 1

    def _remove_settled(self) -> None:
        first = None if self._acks is None else self._acks.first
        while self._offsets and (first is None or next(iter(self._offsets)) < first):
            del self._offsets[next(iter(self._offsets))]
