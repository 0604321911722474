"""The connection on which a process publishes to one virtual host."""

import asyncio
from typing import Any

from workerkit.amqp.binding import bind
from workerkit.amqp.connection import Connection
from workerkit.amqp.declare import Created, ensure_queue
from workerkit.amqp.outgoing import OutgoingMessage, is_reply_address
from workerkit.amqp.publishing_channels import CLOSED, PublishingChannels
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.requests import Requests
from workerkit.amqp.session import Session
from workerkit.errors import (
    BrokerBlocked,
    BrokerRefused,
    ConnectionLost,
    PublishError,
    PublishOutcomeUnknown,
    PublishTimeout,
)

_LOST_PAUSE = 0.05


class PublisherConnection:
    """One connection, with channels in confirm mode.

    Attributes:
        requests: The requests that wait for replies.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task = asyncio.create_task(connection.run(), name=f"publisher to {connection}")
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None
        self._channels: PublishingChannels | None = None
        self._request_channels: PublishingChannels | None = None
        self.requests = Requests()
        connection.listeners.append(self)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Keep the reason, for publishes that reach their deadline."""
        self._failure = error

    async def publish(
        self, message: OutgoingMessage, exchange: Exchange | str
    ) -> "asyncio.Future[None]":
        """Send a message, after a check that *exchange* exists: a missing one closes the channel.

        Wait as long as the connection is down or blocked.

        Returns:
            A future that is done when the broker has confirmed the message.

        Raises:
            BrokerRefused: There is no such exchange.
            MessageTooLarge: The body exceeds the broker's limit, or the properties do not fit into
                a frame.
        """
        is_request = message.request_id is not None
        while True:
            try:
                channels = self._request_channels if is_request else self._channels
                if channels is None or channels.session.gone:
                    channels = await self._open_channels(is_request)
                if (confirm := channels.publish_now(message, exchange)) is not None:
                    return confirm
                return await channels.publish(message, exchange)
            except BrokerRefused:
                raise
            except (ConnectionLost, OSError):
                await asyncio.sleep(_LOST_PAUSE)

    async def declare(self, queue: Queue) -> bool:
        """Declare a queue if it is missing, and create its bindings.

        Returns:
            Whether it was missing.

        Raises:
            BrokerRefused: A permission is missing, or the queue exists with other arguments.
            ConnectionLost: The connection was lost.
        """
        session = await self._connection.session()
        created = Created()
        await ensure_queue(session, queue, "missing", created)
        for _, error in await bind(session, queue.name, queue.bindings, created):
            raise error
        return bool(created.queues)

    @property
    def blocked(self) -> bool:
        """Return whether the broker blocks publishers of this connection."""
        return any(each.blocked for each in self._opened)

    def decodes_reply_address(self, address: str) -> bool:
        """Return whether the broker can decode the address of a direct reply.

        RabbitMQ before 4.3 closes the connection because of an address that it cannot decode.
        """
        versions = [each.session.version for each in self._opened]
        return any(each >= (4, 3) for each in versions) or is_reply_address(address)

    def timeout_error(
        self, where: str, message_id: str, timeout: float, *, sent: bool
    ) -> PublishError:
        """Return the error for a publish that was not confirmed in time.

        A connection on which nothing is confirmed any more is dropped, so that the next publish
        goes to another server.
        """
        seconds = f"{round(timeout, 2):g} s"
        if self.blocked:
            also = "; the message may be published once the alarm is over" if sent else ""
            return BrokerBlocked(
                f"{where}: the broker blocks publishers, out of memory or disk{also}", message_id
            )
        if sent:
            for channels in self._opened:
                channels.drop_if_silent()
            return PublishOutcomeUnknown(f"{where}: no confirm within {seconds}", message_id)
        why = f": {self._failure}" if self._failure else ""
        return PublishTimeout(f"{where}: not sent within {seconds}{why}")

    async def close(self) -> None:
        """Close the connection. Publishes that are not sent yet fail."""
        if not self._closed.done():
            self._closed.set_result(None)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _session(self) -> Session:
        """Return the session of the connection.

        Raises:
            PublishTimeout: The publisher was closed before there was a session.
        """
        waiting = asyncio.ensure_future(self._connection.session())
        closed: asyncio.Future[Any] = self._closed
        try:
            await asyncio.wait([waiting, closed], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise PublishTimeout(CLOSED)
            return waiting.result()
        finally:
            waiting.cancel()

    @property
    def _opened(self) -> list[PublishingChannels]:
        both = (self._channels, self._request_channels)
        return [each for each in both if each is not None]

    async def _open_channels(self, is_request: bool) -> PublishingChannels:
        session = await self._session()
        channels = self._request_channels if is_request else self._channels
        if channels is None or channels.session is not session:
            self._failure = None
            if is_request:
                channels = PublishingChannels(session, self._closed, self.requests)
                self._request_channels = channels
            else:
                channels = self._channels = PublishingChannels(session, self._closed)
        return channels
