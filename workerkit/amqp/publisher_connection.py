"""A way to one virtual host, for everything that is published to it."""

import asyncio
from typing import Any

from workerkit.amqp.binding import bind
from workerkit.amqp.confirms import Outgoing
from workerkit.amqp.connection import Link
from workerkit.amqp.declare import Made, available
from workerkit.amqp.publishing_channels import CLOSED, PublishingChannels
from workerkit.amqp.queue import Exchange, Queue
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


class Route:
    """One connection that publishes, with a channel that confirms."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._task = asyncio.create_task(link.run(), name=f"publisher to {link}")
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None
        self._channels: PublishingChannels | None = None
        link.followers.append(self)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Remember why, for publishes that do not want to wait longer."""
        self._failure = error

    async def publish(self, message: Outgoing, exchange: Exchange | str) -> "asyncio.Future[None]":
        """Send a message, once *exchange* is known to exist: a missing one closes the channel.

        Waits for as long as the connection is down or blocked.

        Returns:
            Done when the broker has confirmed it.

        Raises:
            BrokerRefused: There is no such exchange.
            MessageTooLarge: The broker takes none of that size, or its properties do not fit.
        """
        while True:
            try:
                channels = self._channels
                if channels is None or channels.session.gone:
                    channels = await self._opened()
                if (confirm := channels.publish_now(message, exchange)) is not None:
                    return confirm
                return await channels.publish(message, exchange)
            except BrokerRefused:
                raise
            except (ConnectionLost, OSError):
                await asyncio.sleep(_LOST_PAUSE)

    async def declare(self, queue: Queue) -> bool:
        """Declare a queue where it is missing, and create its bindings.

        Returns:
            Whether it was missing.

        Raises:
            BrokerRefused: It may not be declared or bound, or exists otherwise.
            ConnectionLost: The connection went meanwhile.
        """
        session = await self._link.session()
        made = Made()
        await available(session, queue, "missing", made)
        for _, error in await bind(session, queue.name, queue.bindings, made):
            raise error
        return bool(made.queues)

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishers of this connection."""
        return self._channels is not None and self._channels.blocked

    def late(self, where: str, message_id: str, timeout: float, *, sent: bool) -> PublishError:
        """Which error it is that nothing came of a publish in time.

        A connection on which nothing is confirmed any more is dropped, so that the next publish
        goes to another server.
        """
        seconds = f"{round(timeout, 2):g} s"
        if self.blocked:
            also = "; it may be published once the alarm is over" if sent else ""
            return BrokerBlocked(
                f"{where}: the broker blocks publishers, out of memory or disk{also}", message_id
            )
        if sent:
            if self._channels is not None:
                self._channels.drop_if_silent()
            return PublishOutcomeUnknown(f"{where}: no confirm within {seconds}", message_id)
        why = f": {self._failure}" if self._failure else ""
        return PublishTimeout(f"{where}: not sent within {seconds}{why}")

    async def close(self) -> None:
        """Close the connection; publishes that are not sent yet fail."""
        if not self._closed.done():
            self._closed.set_result(None)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _session(self) -> Session:
        """The link's session, unless the route is closed while there is none."""
        waiting = asyncio.ensure_future(self._link.session())
        closed: asyncio.Future[Any] = self._closed
        try:
            await asyncio.wait([waiting, closed], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise PublishTimeout(CLOSED)
            return waiting.result()
        finally:
            waiting.cancel()

    async def _opened(self) -> PublishingChannels:
        session = await self._session()
        if self._channels is None or self._channels.session is not session:
            self._channels = PublishingChannels(session, self._closed)
            self._failure = None
        return self._channels
