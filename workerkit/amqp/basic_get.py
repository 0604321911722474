"""Get messages one by one with basic.get, on a separate channel."""

import asyncio
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.frames import BASIC_GET, METHOD, MalformedFrame, encode_frame
from workerkit.amqp.message import AMQPMessage
from workerkit.errors import ConnectionLost, InvalidBody

_RESERVED, _WITH_ACK = b"\x00\x00", b"\x00"
_unpack_u64 = Struct(">Q").unpack_from

GetReply = asyncio.Future[AMQPMessage[Any] | None]


class GetRequests:
    """The basic.get requests of one channel; the broker replies in their order.

    aiormq's basic.get is not used: it decodes headers, and fails on some that senders may write.

    Args:
        channel: The number of the channel.
        acks: Settles the messages.
        write: Sends bytes; returns False if nothing can be sent any more.
        lost: Done when the channel is closed.
    """

    def __init__(
        self,
        channel: int,
        acks: Acks,
        write: Callable[[bytes], bool],
        lost: "asyncio.Future[ConnectionLost]",
    ) -> None:
        self._channel = channel
        self._acks = acks
        self._write = write
        self._lost = lost
        self._pending: deque[tuple[str, GetReply]] = deque()
        lost.add_done_callback(self._on_lost)

    def request(self, queue: str) -> GetReply:
        """Request the first message of *queue*; the reply is None if the queue is empty.

        Raises:
            ConnectionLost: The channel is closed.
            ValueError: The name is too long.
        """
        if self._lost.done():
            raise self._lost.result()
        frame = _get_frame(self._channel, queue)
        reply: GetReply = asyncio.get_running_loop().create_future()
        self._pending.append((queue, reply))
        self._write(frame)
        return reply

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Resolve the oldest request with a message.

        Raises:
            MalformedFrame: There is no request.
        """
        if not self._has_request():
            return  # The channel is lost, so this message is requeued.
        queue, reply = self._pending.popleft()
        (tag,) = _unpack_u64(method, 1)  # After an empty consumer tag.
        self._acks.expect(tag)
        message: AMQPMessage[Any] = AMQPMessage(
            body,
            queue=queue,
            tag=tag,
            envelope=method[9:],
            properties=properties,
            acks=self._acks,
        )
        if not reply.done():
            reply.set_result(message)

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Fail the oldest request: the message is larger than allowed."""
        if self._has_request():
            _, reply = self._pending.popleft()
            self._acks.expect(_unpack_u64(method, 1)[0])
            if not reply.done():
                reply.set_exception(InvalidBody(f"a message of {size} bytes is too large"))

    def empty(self) -> None:
        """Resolve the oldest request with None: the queue is empty.

        Raises:
            MalformedFrame: There is no request.
        """
        if self._has_request():
            _, reply = self._pending.popleft()
            if not reply.done():
                reply.set_result(None)

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Do nothing: nothing is published on this channel."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Do nothing: nothing is published on this channel."""

    def closed(self) -> None:
        """Stop sending acks: the broker ignores everything after its channel.close."""
        self._acks.fence()

    def _has_request(self) -> bool:
        """Return whether there is a request; there is none once the channel is lost."""
        if not self._pending and not self._lost.done():
            raise MalformedFrame("a reply to basic.get without a request")
        return bool(self._pending)

    def _on_lost(self, lost: "asyncio.Future[ConnectionLost]") -> None:
        for _, reply in self._pending:
            if not reply.done():
                reply.set_exception(lost.result())
        self._pending.clear()


def _get_frame(channel: int, queue: str) -> bytes:
    name = queue.encode()
    if len(name) > 255:
        raise ValueError(f"the name of the queue is {len(name)} bytes long, and AMQP allows 255")
    payload = BASIC_GET + _RESERVED + bytes((len(name),)) + name + _WITH_ACK
    return encode_frame(METHOD, channel, payload)
