"""Messages that are asked for one by one, by basic.get, on a channel of their own."""

import asyncio
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.frames import MalformedFrame
from workerkit.amqp.message import AMQPMessage
from workerkit.errors import ConnectionLost, InvalidBody

_HEAD = Struct(">BHI").pack
_U64 = Struct(">Q").unpack_from
_GET = b"\x00\x3c\x00\x46\x00\x00"  # class, method, a reserved short
_METHOD, _WITH_ACK, _FRAME_END = 1, b"\x00", b"\xce"

Answer = asyncio.Future[AMQPMessage[Any] | None]


class Gets:
    """The questions on one channel; the broker answers them in order.

    Not by aiormq, which decodes headers: what senders may write there would end the connection.

    Args:
        channel: Its number.
        acks: Settles what comes.
        write: Sends bytes; False once nothing can be sent.
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
        self._asked: deque[tuple[str, Answer]] = deque()
        lost.add_done_callback(self._on_lost)

    def ask(self, queue: str) -> Answer:
        """Ask for the first message of *queue*: None if it has none.

        Raises:
            ConnectionLost: The channel is closed.
            ValueError: No queue can have this name.
        """
        if self._lost.done():
            raise self._lost.result()
        frame = _frame(self._channel, queue)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._asked.append((queue, answer))
        self._write(frame)
        return answer

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Answer the oldest request with a message.

        Raises:
            MalformedFrame: There is no request.
        """
        if not self._expected():
            return  # The channel is lost, so this message is requeued.
        queue, answer = self._asked.popleft()
        (tag,) = _U64(method, 1)  # Behind an empty consumer tag.
        self._acks.expect(tag)
        message: AMQPMessage[Any] = AMQPMessage(
            body,
            queue=queue,
            tag=tag,
            envelope=method[9:],
            properties=properties,
            acks=self._acks,
        )
        if not answer.done():
            answer.set_result(message)

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Answer the oldest request: the message is larger than allowed."""
        if self._expected():
            _, answer = self._asked.popleft()
            self._acks.expect(_U64(method, 1)[0])
            if not answer.done():
                answer.set_exception(InvalidBody(f"a message of {size} bytes is too large"))

    def empty(self) -> None:
        """Answer the oldest request: the queue is empty.

        Raises:
            MalformedFrame: There is no request.
        """
        if self._expected():
            _, answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(None)

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Nothing is published on this channel."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published on this channel."""

    def closed(self) -> None:
        """The broker closes the channel, and hears nothing that is sent on it from now on."""
        self._acks.fence()

    def _expected(self) -> bool:
        """Whether there is a request; there is none once the channel is lost."""
        if not self._asked and not self._lost.done():
            raise MalformedFrame("an answer to basic.get without a request")
        return bool(self._asked)

    def _on_lost(self, lost: "asyncio.Future[ConnectionLost]") -> None:
        for _, answer in self._asked:
            if not answer.done():
                answer.set_exception(lost.result())
        self._asked.clear()


def _frame(channel: int, queue: str) -> bytes:
    name = queue.encode()
    if len(name) > 255:
        raise ValueError(f"the name of the queue is {len(name)} bytes long, and AMQP allows 255")
    payload = _GET + bytes((len(name),)) + name + _WITH_ACK
    return _HEAD(_METHOD, channel, len(payload)) + payload + _FRAME_END
