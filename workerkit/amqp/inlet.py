"""Create messages from the deliveries of one channel, for the workers."""

from collections.abc import Callable
from struct import Struct
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.frames import MalformedFrame
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.oversized import Oversized

_U64 = Struct(">Q").unpack_from
_NO_SUCH_CONSUMER = "a delivery to an unknown consumer"


class Inlet:
    """The messages of one channel, which has one consumer of one queue.

    Args:
        tag: Of the consumer.
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
        """Queue a message for the next free worker. The prefetch bounds how many there are.

        Raises:
            MalformedFrame: It is for no consumer of this channel, or its tag is not the next one.
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
        """Queue a message whose body was discarded.

        Raises:
            MalformedFrame: As above.
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
        """Nothing: basic.get is not used on this channel."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Nothing is published on this channel."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published on this channel."""

    def closed(self) -> None:
        """Send no more acks: the broker closes the channel and ignores them."""
        self._acks.fence()

    def _expected(self, method: bytes) -> int:
        """The delivery tag."""
        if not method.startswith(self._begin):
            raise MalformedFrame(_NO_SUCH_CONSUMER)
        (tag,) = _U64(method, self._end)
        self._acks.expect(tag)
        return int(tag)
