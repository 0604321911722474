"""One AMQP channel, with a deadline for each request to the broker.

pamqp refuses most characters in the names of queues and exchanges. RabbitMQ accepts all characters
except line breaks, which it drops. So some methods are redefined here, without that check.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPChannelError
from pamqp.base import Frame
from pamqp.commands import Basic, Exchange, Queue
from pamqp.commands import Channel as ChannelMethods

from workerkit.amqp.acks import Acks
from workerkit.amqp.basic_get import GetReply, GetRequests
from workerkit.amqp.frame_reader import Sink
from workerkit.amqp.frames import NO_PERMISSION
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.replies import Replies, refusal
from workerkit.amqp.scratch_channels import ScratchChannels
from workerkit.amqp.tap import TapProtocol
from workerkit.errors import BrokerRefused, ConnectionLost

log = logging.getLogger(__name__)

T = TypeVar("T")

CANCEL_DEADLINE = 3.0
_MAX_SHORT_STRING = 255


class ParentSession(Protocol):
    """The part of a session that a channel uses."""

    protocol: TapProtocol
    replies: Replies
    scratch: ScratchChannels[Any]

    @property
    def gone(self) -> bool:
        """Return whether the socket is closed or closing."""

    def abort(self, reason: str) -> None:
        """Close the socket immediately."""

    def detach_sink(self, channel: AbstractChannel, sink: Sink) -> None:
        """Deliver nothing more to *sink* from a channel that is closed or closing."""


class Channel:
    """One channel of a session, with a deadline for each request to the broker.

    Attributes:
        lost: Done once the channel is closed, by either side, with the reason.
        acks: Settles deliveries of this channel, and of no other.
    """

    def __init__(self, session: ParentSession, channel: AbstractChannel) -> None:
        self._session = session
        # aiormq opens no other class of channel. The abstract class that it declares lacks `rpc`.
        assert isinstance(channel, aiormq.Channel)
        self._channel = channel
        self._sink: Sink | None = None
        self._gets: GetRequests | None = None
        self.number: int = channel.number
        loop = asyncio.get_running_loop()
        self.acks = Acks(self.number, session.protocol.write, loop.call_soon)
        session.protocol.acks.add(self.acks)
        self.lost: asyncio.Future[ConnectionLost] = loop.create_future()
        self.on_cancel: Callable[[str], None] = lambda _: None
        channel.closing.add_done_callback(self._on_closing)
        session.protocol.lost.add_done_callback(self._on_closing)
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self.on_cancel(str(frame.consumer_tag))
        )

    def deliver_to(self, sink: Sink) -> None:
        """Deliver everything that arrives on this channel to *sink* from now on."""
        self._sink = sink
        self._session.protocol.frame_reader.open(self.number, sink)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for permission to send requests; a limited number of callers has it at a time."""
        return self._session.scratch.turn()

    async def prefetch(self, count: int) -> None:
        """Limit the unacknowledged messages of the consumer that is started after this."""
        self.acks.prefetch = count
        await self._request("basic.qos", self._channel.basic_qos(prefetch_count=count))

    async def consume(
        self, queue: str, tag: str, arguments: dict[str, Any], *, no_ack: bool = False
    ) -> None:
        """Start a consumer. Its messages may arrive before this returns.

        Args:
            no_ack: Its messages are not acknowledged.
        """
        self._channel.consumers[tag] = self._on_bypassed_delivery
        await self._request(
            f"basic.consume of {queue!r}",
            self._channel.rpc(
                Consume(queue=queue, consumer_tag=tag, no_ack=no_ack, arguments=arguments)
            ),
            needs=f"read on {queue!r}",
        )

    async def cancel(self, tag: str) -> None:
        """Stop a consumer. Its messages may arrive until this returns.

        Raises:
            ConnectionLost: The broker did not reply in time; the channel is closed.
        """
        await self._request("basic.cancel", self._channel.basic_cancel(tag), CANCEL_DEADLINE)

    async def get(self, queue: str) -> AMQPMessage[Any] | None:
        """Get the first message of a queue with basic.get; return None if the queue is empty.

        Messages that are not settled are requeued when the channel closes. A channel that is used
        for this cannot have a consumer.
        """
        return await self.wait_for_get(queue, self.request_get(queue))

    def request_get(self, queue: str) -> GetReply:
        """Send the request of `get`. Several may be on their way at a time."""
        if self._gets is None:
            self._gets = GetRequests(
                self.number, self.acks, self._session.protocol.write, self.lost
            )
            self.deliver_to(self._gets)
        return self._gets.request(queue)

    async def wait_for_get(self, queue: str, reply: GetReply) -> AMQPMessage[Any] | None:
        """Wait for the reply to `request_get`."""
        return await self._request(f"basic.get of {queue!r}", reply, needs=f"read on {queue!r}")

    async def count(self, queue: str) -> int:
        """Return the number of ready messages in a queue.

        Raises:
            BrokerRefused: With code 404 if there is no such queue.
        """
        what = f"passive queue.declare of {queue!r}"
        declared = await self._request(
            what, self._channel.rpc(DeclareQueue(queue=queue, passive=True))
        )
        return int(getattr(declared, "message_count", None) or 0)

    async def declare_queue(self, name: str, **declared: Any) -> None:
        """Declare a queue, or with `passive=True` check that it exists."""
        await self._request(
            f"queue.declare of {name!r}",
            self._channel.rpc(DeclareQueue(queue=name, **declared)),
            needs=_needs(name, declared.get("arguments") or {}),
        )

    async def bind_queue(
        self, queue: str, exchange: str, routing_key: str, arguments: dict[str, Any]
    ) -> None:
        """Bind a queue to an exchange that exists."""
        method = BindQueue(
            queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments
        )
        await self._request(
            f"queue.bind of {queue!r} to {exchange!r}",
            self._channel.rpc(method),
            needs=f"write on {queue!r} and read on {exchange!r}",
        )

    async def declare_exchange(self, name: str, **declared: Any) -> None:
        """Declare an exchange, or with `passive=True` check that it exists."""
        await self._request(
            f"exchange.declare of {name!r}",
            self._channel.rpc(DeclareExchange(exchange=name, **declared)),
            needs=f"configure on {name!r}",
        )

    def finish_acks(self) -> None:
        """Send pending acks; no ack is sent after that."""
        self.acks.finish()

    async def close(self) -> None:
        """Send pending acks, then close."""
        self.finish_acks()
        if not self.lost.done() and not self._session.gone:
            try:
                await self._request("channel.close", self._request_close())
                self.acks.mark_received()
            except ConnectionLost as error:
                log.info("channel not closed in time", extra={"reason": str(error)})
        self.acks.fence()
        if self._sink is not None:
            self._session.detach_sink(self._channel, self._sink)

    async def _request_close(self) -> None:
        """Close the channel. Cancelling this only stops waiting for the reply.

        aiormq's own `close` sends channel.close once more when it is cancelled, and when it waits
        longer than the heartbeat. RabbitMQ closes the connection when it receives the second one.
        """
        underlay: Any = self._channel
        request = underlay.rpc(ChannelMethods.Close(reply_code=200, class_id=0, method_id=0))
        closing: asyncio.Future[Any] = asyncio.ensure_future(request)
        # It ends with an exception, as every request on a closed channel does.
        closing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        either: list[asyncio.Future[Any]] = [closing, self.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _request(
        self,
        what: str,
        request: Awaitable[T],
        seconds: float | None = None,
        *,
        needs: str = "",
    ) -> T:
        try:
            return await self._session.replies.wait(what, request, seconds)
        except BrokerRefused as error:
            if error.code != NO_PERMISSION or not needs:
                raise
            raise BrokerRefused(f"{error}; grant {needs}", error.code) from error
        except (ConnectionLost, asyncio.CancelledError):
            # aiormq has sent channel.close: an ack after it would close the connection.
            self.acks.fence()
            raise

    async def _on_bypassed_delivery(self, message: object) -> None:
        """Drop the connection because aiormq received a delivery.

        The frame reader reads all deliveries. Such a message would never be settled, and would
        count against the prefetch for ever.
        """
        self._session.abort("internal error: delivery bypassed the frame reader")

    def _on_closing(self, closing: "asyncio.Future[Any]") -> None:
        if closing is self._session.protocol.lost or not self.acks.lost:
            # Otherwise workerkit closes it, and the reply shows that the acks were received.
            self.acks.fence()
        # The session lives longer than its channels, and must not keep them in memory.
        self._session.protocol.acks.discard(self.acks)
        self._session.protocol.lost.remove_done_callback(self._on_closing)
        if not self.lost.done():
            failed = None if closing.cancelled() else closing.exception()
            self.lost.set_result(
                refusal("the broker closed the channel", failed)
                if isinstance(failed, AMQPChannelError)
                else ConnectionLost(self._session.protocol.reason)
            )


def _needs(queue: str, arguments: Mapping[str, Any]) -> str:
    """Return the permissions to declare a queue, including those for its dead-letter exchange."""
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is None:
        return f"configure on {queue!r}"
    return f"configure and read on {queue!r} and write on {exchange or 'amq.default'!r}"


class _AnyName(Frame):
    """A method that accepts every name that can be encoded."""

    def validate(self) -> None:
        """Check the length of short strings, which is encoded as one byte.

        Raises:
            ValueError: A short string has more than 255 bytes.
        """
        for name in self.attributes():
            value = getattr(self, name)
            if self.amqp_type(name) == "shortstr" and len(value.encode()) > _MAX_SHORT_STRING:
                size = len(value.encode())
                raise ValueError(
                    f"{name} is {size} bytes long, and AMQP allows {_MAX_SHORT_STRING}"
                )


class Consume(_AnyName, Basic.Consume):
    """`basic.consume` of any queue."""


class DeclareQueue(_AnyName, Queue.Declare):
    """`queue.declare` of any name."""


class BindQueue(_AnyName, Queue.Bind):
    """`queue.bind` of any queue to any exchange."""


class DeclareExchange(_AnyName, Exchange.Declare):
    """`exchange.declare` of any name."""
