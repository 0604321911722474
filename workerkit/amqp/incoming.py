"""Create messages from the deliveries of one channel."""

import logging
from collections.abc import Callable
from functools import cached_property
from struct import Struct
from typing import Any, NoReturn

from workerkit.amqp.acks import Acks
from workerkit.amqp.frames import MalformedFrame
from workerkit.amqp.message import AMQPMessage
from workerkit.delivery import Action
from workerkit.errors import InvalidBody


class Oversized(AMQPMessage[Any]):
    """A message whose body was discarded while it arrived. Reading the body raises.

    Attributes:
        size: The size of the body in bytes.
        setting: The name of the variable that limits it.
    """

    __slots__ = ("setting", "size")

    def __init__(
        self,
        size: int,
        setting: str,
        *,
        queue: str,
        tag: int,
        envelope: bytes,
        properties: bytes,
        acks: Acks,
    ) -> None:
        super().__init__(
            b"", queue=queue, tag=tag, envelope=envelope, properties=properties, acks=acks
        )
        del self.raw
        self.size = size
        self.setting = setting

    def __getattr__(self, name: str) -> NoReturn:
        if name == "raw":
            raise InvalidBody(f"the body has {self.size} bytes, more than {self.setting} allows")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _described(self) -> str:
        name = self.message_id or f"#{self.tag}"
        return f"{name} of {self.queue!r}, {self.size} bytes, not kept"

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of the log record; the settlement has logged a dead letter."""
        level, message = super().log_failure(action, error)
        return logging.DEBUG if self.fate is Action.DEAD_LETTER else level, message

    @cached_property
    def fingerprint(self) -> tuple[str, bytes]:
        """The fingerprint, with the size instead of the body."""
        return self.queue, b"%d %s" % (self.size, (self.message_id or "").encode())


_U64 = Struct(">Q").unpack_from
_NO_SUCH_CONSUMER = "a delivery to an unknown consumer"


class Inlet:
    """Reads the deliveries of one channel, which has one consumer of one queue.

    Args:
        take: Called with each message.
        queue: The name of the queue in the class.
        tag: The tag of the consumer.
        limit: The name of the variable that limits the size of messages.
    """

    def __init__(
        self,
        take: Callable[[AMQPMessage[Any]], None],
        acks: Acks,
        queue: str,
        tag: str,
        limit: str = "max_message_size",
    ) -> None:
        self._limit = limit
        self._take = take
        self._acks = acks
        self._queue = queue
        encoded = tag.encode()
        self._begin = bytes((len(encoded),)) + encoded
        self._end = len(self._begin)

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Take a message. The prefetch limits how many there are.

        Raises:
            MalformedFrame: The consumer is unknown, or the delivery tag is not the next one.
        """
        # The same as _expected, inlined: a call for each message would be slower.
        end = self._end
        if not method.startswith(self._begin):
            raise MalformedFrame(_NO_SUCH_CONSUMER)
        (tag,) = _U64(method, end)
        self._acks.expect(tag)
        self._take(
            AMQPMessage(
                body,
                queue=self._queue,
                tag=tag,
                envelope=method[end + 8 :],
                properties=properties,
                acks=self._acks,
            )
        )

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Take a message whose body was discarded.

        Raises:
            MalformedFrame: The consumer is unknown, or the delivery tag is not the next one.
        """
        tag = self._expected(method)
        envelope = method[self._end + 8 :]
        self._take(
            Oversized(
                size,
                self._limit,
                queue=self._queue,
                tag=tag,
                envelope=envelope,
                properties=properties,
                acks=self._acks,
            )
        )

    def empty(self) -> None:
        """Do nothing: basic.get is not used on this channel."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Do nothing: nothing is published on this channel."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Do nothing: nothing is published on this channel."""

    def closed(self) -> None:
        """Send no more acks: the broker closes the channel and ignores them."""
        self._acks.fence()

    def _expected(self, method: bytes) -> int:
        """Check the consumer, and return the delivery tag."""
        if not method.startswith(self._begin):
            raise MalformedFrame(_NO_SUCH_CONSUMER)
        (tag,) = _U64(method, self._end)
        self._acks.expect(tag)
        return int(tag)
