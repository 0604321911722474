"""Connect to RabbitMQ by aio-pika, and ask it things with a deadline on every answer."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from workerkit.amqp.acks import Acks
from workerkit.amqp.addresses import Attempt, Rotation
from workerkit.amqp.codes import NO_PERMISSION
from workerkit.amqp.gets import Gets
from workerkit.amqp.handshake import TapConnection, log_in
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.methods import BindQueue, Consume, DeclareExchange, DeclareQueue
from workerkit.amqp.tap import Sink, TapProtocol
from workerkit.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.supervisor import within

log = logging.getLogger(__name__)

T = TypeVar("T")

RPC_DEADLINE = 10.0
CANCEL_DEADLINE = 3.0
_CLOSE_DEADLINE = 5.0
_FRAME_MAX = 131_072
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")
_CODES: dict[type[AMQPChannelError], int] = {
    ChannelAccessRefused: 403,
    ChannelNotFoundEntity: 404,
    ChannelLockedResource: 405,
    ChannelPreconditionFailed: 406,
}


class Channel:
    """One channel of a session, with a deadline on everything that waits for the broker.

    Attributes:
        lost: Done once the channel is closed, by whomever, with the reason.
        acks: Settles deliveries of this channel, and of no other.
    """

    def __init__(self, session: "Session", channel: AbstractChannel) -> None:
        self._session = session
        # aiormq opens no other. What it declares as abstract lacks `rpc`.
        assert isinstance(channel, aiormq.Channel)
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

    async def prefetch(self, count: int) -> None:
        """Limit the unacknowledged messages of each consumer that is started later."""
        await self._ask("basic.qos", self._channel.basic_qos(prefetch_count=count))

    async def consume(self, queue: str, tag: str, arguments: dict[str, Any]) -> None:
        """Start a consumer. Its messages may come before this returns."""
        self._channel.consumers[tag] = self._untapped
        await self._ask(
            f"basic.consume of {queue!r}",
            self._channel.rpc(Consume(queue=queue, consumer_tag=tag, arguments=arguments)),
            needs=f"read on {queue!r}",
        )

    async def cancel(self, tag: str) -> None:
        """Stop a consumer. Its messages may come until this returns.

        Raises:
            ConnectionLost: No answer in time; the session is given up then, as the process stops.
        """
        late = ConnectionLost(f"no answer to basic.cancel within {CANCEL_DEADLINE:g} s")
        cancelling = within(CANCEL_DEADLINE, self._channel.basic_cancel(tag), late)
        try:
            await _translated("basic.cancel", cancelling)
        except ConnectionLost as error:
            self._session.abort(str(error))
            raise

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
        declared = await self._ask(what, self._channel.rpc(DeclareQueue(queue=queue, passive=True)))
        return int(getattr(declared, "message_count", None) or 0)

    async def declare_queue(self, name: str, **declared: Any) -> None:
        """Declare a queue, or with `passive=True` ask whether it is there."""
        await self._ask(
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
        await self._ask(
            f"queue.bind of {queue!r} to {exchange!r}",
            self._channel.rpc(method),
            needs=f"write on {queue!r} and read on {exchange!r}",
        )

    async def declare_exchange(self, name: str, **declared: Any) -> None:
        """Declare an exchange, or with `passive=True` ask whether it is there."""
        await self._ask(
            f"exchange.declare of {name!r}",
            self._channel.rpc(DeclareExchange(exchange=name, **declared)),
            needs=f"configure on {name!r}",
        )

    async def close(self) -> None:
        """Send pending acks, then close; a channel that will not close costs the session."""
        self.acks.flush()
        self.acks.fence()
        if not self.lost.done() and not self._session.gone:
            try:
                await self._ask("channel.close", self._channel.close())
            except (ConnectionLost, BrokerRefused) as error:
                self._session.abort(f"a channel would not close: {error}")
        if self._sink is not None:
            self._session.protocol.tap.close(self.number, self._sink)

    async def _ask(self, what: str, awaitable: Awaitable[T], needs: str = "") -> T:
        late = ConnectionLost(f"no answer to {what} within {RPC_DEADLINE:g} s, or the channel went")
        try:
            return await _translated(what, within(RPC_DEADLINE, awaitable, late))
        except BrokerRefused as error:
            if error.code != NO_PERMISSION or not needs:
                raise
            raise BrokerRefused(f"{error}; grant {needs}", error.code) from error

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
                _refusal("the broker closed the channel", failed)
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

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel.

        Raises:
            ConnectionLost: The broker did not answer in time; the session is given up then.
        """
        underlay = self._connection.transport
        if underlay is None or self.gone:
            raise ConnectionLost("the connection is lost")
        late = ConnectionLost(f"no answer to channel.open within {RPC_DEADLINE:g} s")
        opening = underlay.connection.channel(publisher_confirms=confirms)
        try:
            channel = await _translated("channel.open", within(RPC_DEADLINE, opening, late))
        except ConnectionLost as error:
            self.abort(str(error))
            raise
        return Channel(self, channel)

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
            await _translated("connection.close", within(_CLOSE_DEADLINE, closing, late))
        except ConnectionLost as error:
            self.abort(str(error))


@asynccontextmanager
async def scratch(session: Session) -> AsyncIterator[Channel]:
    """A channel to ask questions on: the broker closes it when it says no."""
    channel = await session.channel()
    try:
        yield channel
    finally:
        await channel.close()


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


async def _translated(what: str, call: Awaitable[T]) -> T:
    """Await an aiormq call and raise our errors for its own."""
    try:
        return await call
    except AMQPChannelError as error:
        raise _refusal(what, error) from error
    except (ValueError, TypeError) as error:
        # pamqp refuses what it cannot write, before the broker could.
        raise BrokerRefused(f"{what}: {error}", 0) from error
    except (AMQPError, OSError, RuntimeError) as error:
        raise ConnectionLost(f"{what}: {str(error) or type(error).__name__}") from error


def _refusal(what: str, error: AMQPChannelError) -> BrokerRefused:
    return BrokerRefused(f"{what}: {error}", _CODES.get(type(error), 0))
