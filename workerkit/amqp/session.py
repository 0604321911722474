"""One login at RabbitMQ: its connection of aio-pika, and its channels."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel

from workerkit.amqp.addresses import ConnectionAttempt, ServerRotation
from workerkit.amqp.channel import Channel
from workerkit.amqp.channel_numbers import HIGHEST, ChannelLimit, ChannelNumbers
from workerkit.amqp.frame_reader import Sink
from workerkit.amqp.handshake import TapConnection, failure_reason, log_in
from workerkit.amqp.replies import DiscardingSink, Replies, translate_errors
from workerkit.amqp.scratch_channels import MAX_SETUPS, ScratchChannels
from workerkit.amqp.tap import CLOSED, TapProtocol
from workerkit.config.connections import AMQPSettings
from workerkit.errors import BrokerRefused, ConnectionLost, NoChannelLeft
from workerkit.tasks import with_deadline

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_DEADLINE = 2.0  # Shorter than the time in which a process closes all its connections.
_FRAME_MAX = 131_072
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")


class Session:
    """One connection to the broker, from the login until it is lost.

    Attributes:
        default_type_has_limits: Whether a queue that is declared without a type may have a delivery
            limit. True until the broker refuses one; a client cannot read the default type.
    """

    def __init__(self, connection: TapConnection, protocol: TapProtocol) -> None:
        self._connection = connection
        self.protocol = protocol
        self.replies = Replies(protocol, self.abort)
        self.limit_channels(
            ChannelLimit(self.channel_max, f"channel_max {self.channel_max} of the broker")
        )
        self._discarding_sink = DiscardingSink()
        if aiormq_connection := connection.transport:
            # If this queue is full, aiormq does not send channel.close-ok, and the broker never
            # frees the number of the channel. A limit is not needed: each caller waits for a reply.
            queue: Any = aiormq_connection.connection.write_queue
            queue._maxsize = 0
        self.default_type_has_limits = True

    @property
    def lost(self) -> "asyncio.Future[None]":
        """Done once the socket is closed."""
        return self.protocol.lost

    @property
    def gone(self) -> bool:
        """Return whether the socket is closed or closing: nothing can be sent any more."""
        return self.protocol.socket.is_closing()

    @property
    def reason(self) -> str:
        """Return why the connection was lost, if that is known."""
        fault, known = self._connection.fault, self.protocol.reason
        return (failure_reason(fault) if fault and known == CLOSED else "") or known

    @property
    def version(self) -> tuple[int, ...]:
        """Return the broker's version, such as (4, 3, 6); empty if it states none."""
        numbers = _VERSION.match(self._stated("version"))
        return tuple(map(int, numbers[0].split("."))) if numbers else ()

    @property
    def cluster(self) -> str:
        """Return the name of the broker's cluster; empty if it states none."""
        return self._stated("cluster_name")

    def _stated(self, name: str) -> str:
        """Return a text with which the broker described itself."""
        aiormq_connection = self._connection.transport
        if aiormq_connection is None:
            return ""
        stated = aiormq_connection.connection.server_properties.get(name)
        return stated if isinstance(stated, str) else ""

    @property
    def channel_max(self) -> int:
        """Return the highest channel number that both sides agreed on."""
        aiormq_connection = self._connection.transport
        tuned = aiormq_connection.connection.connection_tune.channel_max if aiormq_connection else 0
        return int(tuned or 0) or HIGHEST

    @property
    def frame_max(self) -> int:
        """Return the largest frame, in bytes, that both sides agreed on."""
        aiormq_connection = self._connection.transport
        tuned = aiormq_connection.connection.connection_tune.frame_max if aiormq_connection else 0
        return int(tuned) or _FRAME_MAX

    def limit_channels(self, limit: ChannelLimit) -> None:
        """Limit the number of channels. Call it before the first one is opened."""
        self._limit = limit
        self.numbers = ChannelNumbers(limit.most, self._channels, MAX_SETUPS)
        self.scratch = ScratchChannels(self.channel, self.numbers.scratch)

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel, with the lowest free number.

        Raises:
            ConnectionLost: The broker did not reply in time.
            NoChannelLeft: All numbers up to the broker's limit are in use.
        """
        aiormq_connection = self._connection.transport
        if aiormq_connection is None or self.gone:
            raise ConnectionLost("the connection is lost")
        if (number := self.numbers.free()) is None:
            await self.scratch.close_idle()
            number = self.numbers.free()
        if number is None:
            raise NoChannelLeft(self._limit.text, self.numbers.max_consumers)
        opening = aiormq_connection.connection.channel(number, publisher_confirms=confirms)
        try:
            channel = await self.replies.wait("channel.open", opening)
        finally:
            self.numbers.assign(number)
        self.protocol.frame_reader.close(number, self._discarding_sink)
        return Channel(self, channel)

    async def consumer_channel(self) -> Channel:
        """Open the channel of a consumer. Some channel numbers are reserved for requests.

        Raises:
            ConnectionLost: As `channel` does.
            NoChannelLeft: The limit of consumers is reached.
        """
        if not self.numbers.reserve_consumer():
            raise NoChannelLeft(self._limit.text, self.numbers.max_consumers)
        try:
            channel = await self.channel()
        except BaseException:
            self.numbers.release_consumer()
            raise
        channel.lost.add_done_callback(lambda _: self.numbers.release_consumer())
        channel.acks.max_decoded = self.protocol.frame_reader.largest_message
        return channel

    def detach_sink(self, channel: AbstractChannel, sink: Sink) -> None:
        """Deliver nothing more to *sink* from a channel that is closed or closing."""
        self.protocol.frame_reader.close(channel.number, sink)
        if self._channels.get(channel.number) is channel and not self.gone:
            self.protocol.frame_reader.open(channel.number, self._discarding_sink)

    @property
    def _channels(self) -> Mapping[int, Any]:
        """Return by number the channels that are open, or whose close is not confirmed yet."""
        aiormq_connection = self._connection.transport
        return aiormq_connection.connection.channels if aiormq_connection else {}

    def abort(self, reason: str) -> None:
        """Close the socket immediately. The broker requeues the messages that are not settled."""
        if not self.lost.done():
            log.warning("connection dropped", extra={"reason": reason})
            self.protocol.socket.abort()

    async def close(self) -> None:
        """Close the connection; close only the socket if the broker does not reply in time."""
        if not self.protocol.unblocked.is_set():
            # A broker that blocks a connection does not read from it, not even connection.close.
            self.abort("the broker blocks this connection")
        late = ConnectionLost(f"no answer to connection.close within {_CLOSE_DEADLINE:g} s")
        closing = self._connection.close()
        try:
            await translate_errors(
                "connection.close", with_deadline(_CLOSE_DEADLINE, closing, late)
            )
        except ConnectionLost as error:
            self.abort(str(error))


@asynccontextmanager
async def scratch(session: Session) -> AsyncIterator[Channel]:
    """Provide a channel for requests. The broker closes it when it refuses one."""
    async with session.scratch.channel() as channel:
        yield channel


async def connect(settings: AMQPSettings, vhost: str | None, role: str) -> Session:
    """Open a connection to one of the servers and log in; try each server once.

    Args:
        vhost: Virtual host; None for that of the connection's settings.
        role: The purpose of the connection, shown by the broker's management.

    Raises:
        BrokerRefused: A broker refused the login, or TLS failed.
        ConnectionLost: No server can be reached, or none replies in time.
    """
    rotation = ServerRotation()
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
    attempt: ConnectionAttempt, settings: AMQPSettings, vhost: str | None, role: str
) -> Session:
    """Open a connection to the server of *attempt* and log in. Raises as `connect` does."""
    return Session(*await log_in(settings, vhost, role, attempt))
