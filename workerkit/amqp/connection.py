"""Connect to RabbitMQ by aio-pika, and ask it things with a deadline on every answer."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPChannelError
from pamqp.commands import Channel as ChannelMethods

from workerkit.amqp.acks import Acks
from workerkit.amqp.addresses import Attempt, Rotation
from workerkit.amqp.codes import NO_PERMISSION
from workerkit.amqp.gets import Gets
from workerkit.amqp.handshake import TapConnection, log_in
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.numbers import Limit, Numbers
from workerkit.amqp.replies import Nowhere, Replies, refusal, translated
from workerkit.amqp.scratch import AT_A_TIME, Scratch
from workerkit.amqp.tap import Sink, TapProtocol
from workerkit.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost, NoChannelLeft
from workerkit.supervisor import within

log = logging.getLogger(__name__)

T = TypeVar("T")

RPC_DEADLINE = 10.0
CANCEL_DEADLINE = 3.0
_CLOSE_DEADLINE = 2.0  # Shorter than what a process has for closing everything.
_FRAME_MAX = 131_072
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


class Channel:
    """One channel of a session, with a deadline on everything that waits for the broker.

    Attributes:
        lost: Done once the channel is closed, by whomever, with the reason.
        acks: Settles deliveries of this channel, and of no other.
    """

    def __init__(self, session: "Session", channel: AbstractChannel) -> None:
        self._session = session
        self._channel = channel
        self._sink: Sink | None = None
        self._gets: Gets | None = None
        self.number: int = channel.number
        loop = asyncio.get_running_loop()
        self.acks = Acks(self.number, session.protocol.write, loop.call_soon)
        self.lost: asyncio.Future[ConnectionLost] = loop.create_future()
        self.on_cancel: Callable[[str], None] = lambda _: None
        channel.closing.add_done_callback(self._on_closing)
        session.protocol.lost.add_done_callback(self._on_closing)
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self.on_cancel(str(frame.consumer_tag))
        )

    def tap(self, sink: Sink) -> None:
        """Give what comes on this channel to *sink* from now on."""
        self._sink = sink
        self._session.protocol.tap.open(self.number, sink)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until it is this channel's turn to ask for something that others ask for too."""
        return self._session.scratch.turn()

    async def prefetch(self, count: int) -> None:
        """Limit the unacknowledged messages of each consumer that is started later."""
        await self._ask("basic.qos", self._channel.basic_qos(prefetch_count=count))

    async def consume(self, queue: str, tag: str, arguments: dict[str, Any]) -> None:
        """Start a consumer. Its messages may come before this returns."""
        await self._ask(
            f"basic.consume of {queue!r}",
            self._channel.basic_consume(
                queue, self._untapped, consumer_tag=tag, arguments=arguments
            ),
            needs=f"read on {queue!r}",
        )

    async def cancel(self, tag: str) -> None:
        """Stop a consumer. Its messages may come until this returns.

        Raises:
            ConnectionLost: No answer in time; the channel is given up then.
        """
        await self._ask("basic.cancel", self._channel.basic_cancel(tag), CANCEL_DEADLINE)

    async def get(self, queue: str) -> AMQPMessage[Any] | None:
        """Ask for the first message of a queue; None where it has none.

        What is not settled goes back to its place when the channel closes. Nothing else can be
        received on a channel that is used for this.
        """
        if self._gets is None:
            self._gets = Gets(self.number, self.acks, self._session.protocol.write, self.lost)
            self.tap(self._gets)
        what = f"basic.get of {queue!r}"
        return await self._ask(what, self._gets.ask(queue), needs=f"read on {queue!r}")

    async def count(self, queue: str) -> int:
        """How many messages wait in a queue.

        Raises:
            BrokerRefused: With code 404 where there is no such queue.
        """
        what = f"passive queue.declare of {queue!r}"
        declared = await self._ask(what, self._channel.queue_declare(queue, passive=True))
        return int(getattr(declared, "message_count", None) or 0)

    async def declare_queue(self, name: str, **declared: Any) -> None:
        """Declare a queue, or with `passive=True` ask whether it is there."""
        await self._ask(
            f"queue.declare of {name!r}",
            self._channel.queue_declare(name, **declared),
            needs=_needs(name, declared.get("arguments") or {}),
        )

    async def bind_queue(
        self, queue: str, exchange: str, routing_key: str, arguments: dict[str, Any]
    ) -> None:
        """Bind a queue to an exchange that exists."""
        await self._ask(
            f"queue.bind of {queue!r} to {exchange!r}",
            self._channel.queue_bind(queue, exchange, routing_key, arguments=arguments),
            needs=f"write on {queue!r} and read on {exchange!r}",
        )

    async def declare_exchange(self, name: str, **declared: Any) -> None:
        """Declare an exchange, or with `passive=True` ask whether it is there."""
        await self._ask(
            f"exchange.declare of {name!r}",
            self._channel.exchange_declare(name, **declared),
            needs=f"configure on {name!r}",
        )

    def leave(self) -> None:
        """Send pending acks, and none after that."""
        self.acks.flush()
        self.acks.fence()

    async def close(self) -> None:
        """Send pending acks, then close."""
        self.leave()
        if not self.lost.done() and not self._session.gone:
            try:
                await self._ask("channel.close", self._closed())
            except ConnectionLost as error:
                log.info("channel given up", extra={"reason": str(error)})
        if self._sink is not None:
            self._session.let_go(self._channel, self._sink)

    async def _closed(self) -> None:
        """Close the channel. Cancelling this only ends the waiting.

        aiormq's own `close` sends channel.close once more when it is cancelled, and when it waits
        longer than the heartbeat. RabbitMQ closes the connection over the second one.
        """
        underlay: Any = self._channel
        request = underlay.rpc(ChannelMethods.Close(reply_code=200, class_id=0, method_id=0))
        closing: asyncio.Future[Any] = asyncio.ensure_future(request)
        # It ends with an exception, as all that waits for a channel does that is closed.
        closing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        either: list[asyncio.Future[Any]] = [closing, self.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _ask(
        self,
        what: str,
        request: Awaitable[T],
        seconds: float | None = None,
        *,
        needs: str = "",
    ) -> T:
        seconds = RPC_DEADLINE if seconds is None else seconds
        try:
            return await self._session.replies.wait(what, request, seconds)
        except BrokerRefused as error:
            if error.code != NO_PERMISSION or not needs:
                raise
            raise BrokerRefused(f"{error}; grant {needs}", error.code) from error
        except (ConnectionLost, asyncio.CancelledError):
            # aiormq has sent channel.close: an ack behind it would close the connection.
            self.acks.fence()
            raise

    async def _untapped(self, message: object) -> None:
        """aiormq's own consumer callback: the tap leaves it nothing to do.

        A message that nobody handles would block its place in the prefetch for ever.
        """
        self._session.abort("a message went past the tap")

    def _on_closing(self, closing: "asyncio.Future[Any]") -> None:
        self.acks.fence()
        # The session outlives its channels, and must not keep them.
        self._session.protocol.lost.remove_done_callback(self._on_closing)
        if not self.lost.done():
            failed = None if closing.cancelled() else closing.exception()
            self.lost.set_result(
                refusal("the broker closed the channel", failed)
                if isinstance(failed, AMQPChannelError)
                else ConnectionLost(self._session.protocol.reason)
            )


class Session:
    """One incarnation of a connection, from connected to lost.

    Attributes:
        default_type_has_limits: Whether a queue that is declared without a type may be one that has
            a delivery limit. True until the broker denies it: nothing else tells that type.
    """

    def __init__(self, connection: TapConnection, protocol: TapProtocol) -> None:
        self._connection = connection
        self.protocol = protocol
        self.replies = Replies(protocol, self.abort)
        self.limit_channels(
            Limit(self.channel_max, f"channel_max {self.channel_max} of the broker")
        )
        self._nowhere = Nowhere()
        if underlay := connection.transport:
            # Where its queue is full, aiormq does not confirm that a channel was closed: the broker
            # would never take its number for free. All that is queued waits for a reply anyway.
            queue: Any = underlay.connection.write_queue
            queue._maxsize = 0
        self.default_type_has_limits = True

    @property
    def lost(self) -> "asyncio.Future[None]":
        """Done once the socket is closed."""
        return self.protocol.lost

    @property
    def gone(self) -> bool:
        """Whether the socket is closed or about to be: nothing is sent any more."""
        return self.protocol.socket.is_closing()

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version, such as (4, 3, 6); empty where it states none that can be read."""
        underlay = self._connection.transport
        stated = underlay.connection.server_properties.get("version") if underlay else None
        numbers = _VERSION.match(stated) if isinstance(stated, str) else None
        return tuple(map(int, numbers[0].split("."))) if numbers else ()

    @property
    def frame_max(self) -> int:
        """The largest frame, in bytes, that both sides agreed on."""
        underlay = self._connection.transport
        tuned = underlay.connection.connection_tune.frame_max if underlay else 0
        return int(tuned) or _FRAME_MAX

    @property
    def channel_max(self) -> int:
        """The highest channel number that both sides agreed on; 0 where there is no limit."""
        underlay = self._connection.transport
        return int(underlay.connection.connection_tune.channel_max or 0) if underlay else 0

    def limit_channels(self, limit: Limit) -> None:
        """Open no more than *limit* channels, before the first one is opened."""
        self._limit = limit
        self.numbers = Numbers(limit.most, self._channels, AT_A_TIME)
        self.scratch = Scratch(self.channel, self.numbers.scratch)

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel, with the lowest number that is free.

        Raises:
            ConnectionLost: The broker did not answer in time.
            NoChannelLeft: All numbers up to the broker's limit are in use.
        """
        underlay = self._connection.transport
        if underlay is None or self.gone:
            raise ConnectionLost("the connection is lost")
        if (number := self.numbers.free()) is None:
            await self.scratch.close_idle()
            number = self.numbers.free()
        if number is None:
            raise NoChannelLeft(self._limit.text, self.numbers.room)
        opening = underlay.connection.channel(number, publisher_confirms=confirms)
        try:
            channel = await self.replies.wait("channel.open", opening, RPC_DEADLINE)
        finally:
            self.numbers.give(number)
        self.protocol.tap.close(number, self._nowhere)
        return Channel(self, channel)

    async def consumer_channel(self) -> Channel:
        """Open a channel that stays, unless too few would be left to ask for things on.

        Raises:
            ConnectionLost: As `channel` does.
            NoChannelLeft: There is no room for another one.
        """
        if not self.numbers.take_room():
            raise NoChannelLeft(self._limit.text, self.numbers.room)
        try:
            channel = await self.channel()
        except BaseException:
            self.numbers.leave_room()
            raise
        channel.lost.add_done_callback(lambda _: self.numbers.leave_room())
        return channel

    def let_go(self, channel: AbstractChannel, sink: Sink) -> None:
        """Take nothing more for *sink* off a channel that is closed, or about to be."""
        self.protocol.tap.close(channel.number, sink)
        if self._channels.get(channel.number) is channel and not self.gone:
            self.protocol.tap.open(channel.number, self._nowhere)

    @property
    def _channels(self) -> Mapping[int, Any]:
        """By number, those that are open, or whose closing the broker has not confirmed."""
        underlay = self._connection.transport
        return underlay.connection.channels if underlay else {}

    def abort(self, reason: str) -> None:
        """Drop the socket at once. The broker requeues what was not settled."""
        if not self.lost.done():
            log.warning("connection dropped", extra={"reason": reason})
            self.protocol.socket.abort()

    async def close(self) -> None:
        """Close in the orderly way, and by dropping the socket where that takes too long."""
        if not self.protocol.unblocked.is_set():
            # A broker that blocks does not read, not even that somebody leaves.
            self.abort("the broker blocks this connection")
        late = ConnectionLost(f"no answer to connection.close within {_CLOSE_DEADLINE:g} s")
        closing = self._connection.close()
        try:
            await translated("connection.close", within(_CLOSE_DEADLINE, closing, late))
        except ConnectionLost as error:
            self.abort(str(error))


@asynccontextmanager
async def scratch(session: Session) -> AsyncIterator[Channel]:
    """A channel to ask questions on: the broker closes it when it says no."""
    async with session.scratch.channel() as channel:
        yield channel


async def connect(settings: AMQPSettings, vhost: str | None, role: str) -> Session:
    """Open a connection to any of the servers and log in: each is tried once.

    Args:
        vhost: Virtual host; None for the connection's own.
        role: What it is for; shown by the broker's management.

    Raises:
        BrokerRefused: A broker refused the login, or TLS cannot be agreed on.
        ConnectionLost: None can be reached, or answers in time.
        StartError: aio-pika has changed so much that the tap does not work with it.
    """
    rotation = Rotation()
    failures: list[ConnectionLost] = []
    while True:
        attempt = rotation.attempt(settings.servers)
        try:
            return await connect_to(attempt, settings, vhost, role)
        except ConnectionLost as error:
            failures.append(error)
            if not rotation.failed(attempt, settings.servers):
                continue
            text = "; ".join(dict.fromkeys(map(str, failures)))
            for each in failures:
                if isinstance(each, BrokerRefused):
                    raise BrokerRefused(text, each.code) from each
            raise ConnectionLost(text) from error


async def connect_to(
    attempt: Attempt, settings: AMQPSettings, vhost: str | None, role: str
) -> Session:
    """Open a connection to the server of *attempt* and log in. Raises as `connect` does."""
    return Session(*await log_in(settings, vhost, role, attempt))


def _needs(queue: str, arguments: Mapping[str, Any]) -> str:
    """The permissions to declare a queue: where it dead-letters, those of an exchange too."""
    exchange = arguments.get("x-dead-letter-exchange")
    if exchange is None:
        return f"configure on {queue!r}"
    return f"configure and read on {queue!r} and write on {exchange or 'amq.default'!r}"
