"""One consumer's channel: open it, consume from its queues, and do so again when it is lost."""

import asyncio
import logging
import os
import socket

from workerkit.amqp.connection import Channel, Session
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.link import Link
from workerkit.amqp.queue import Queue
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.topology import Topology
from workerkit.endpoint import Endpoint
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.health import Health
from workerkit.supervisor import Backoff

log = logging.getLogger(__name__)

_MISSING_RETRY = 2.0


class Subscription:
    """Feeds one receiver from one connection.

    Nothing outlives the loss of a channel but the handlers that run: their settlements go to the
    lost channel, that is nowhere, and the broker delivers their messages again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AMQPOptions,
        link: Link,
        receiver: Receiver,
        topology: Topology,
        health: Health,
    ) -> None:
        self.health = health
        self._endpoint = endpoint
        self._prefetch = options.prefetch_count
        self._link = link
        self._receiver = receiver
        self._topology = topology
        self._tags = {_tag(options.name, queue): queue for queue in options.queues}
        self._consuming: set[str] = set()
        self._changed = asyncio.Event()
        self._channel: Channel | None = None
        self._hooks: set[asyncio.Task[None]] = set()
        link.followers.append(self)

    async def run(self) -> None:
        """Consume until cancelled. The channel then stays open, for handlers that still run."""
        backoff = Backoff()
        while True:
            session = await self._link.session()
            pause = 0.0
            try:
                await self._consume(session, backoff)
            except (BrokerRefused, ConnectionLost) as error:
                if not session.gone:
                    pause = backoff.next()
                    self._failed(error, pause)
            self._receiver.forget()
            await self._discard()
            if session.gone:
                # The link logs it, and lends out a new session when there is one.
                self.health.waiting("the connection is lost")
                await asyncio.wait([session.lost])
            else:
                await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Cancel the consumers, then put back what no handler has begun with."""
        self.health.stopping()
        self._receiver.stop()
        try:
            if self._channel is not None and not self._channel.lost.done():
                for tag in sorted(self._consuming):
                    await self._channel.cancel(tag)
        except ConnectionLost as error:
            log.warning(
                "consumer not cancelled",
                extra={"consumer": self.health.consumer, "reason": str(error)},
            )
        finally:
            self._receiver.put_back()

    async def close(self) -> None:
        """Close the channel; the broker puts back what is not settled."""
        for hook in self._hooks:
            hook.cancel()
        await self._discard()

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """The connection could not be made: note why, and tell the consumer."""
        self._not_ready(error)
        hook = asyncio.create_task(self._endpoint.connection_failed(error, attempt))
        self._hooks.add(hook)
        hook.add_done_callback(self._hooks.discard)

    async def _consume(self, session: Session, backoff: Backoff) -> None:
        """Return when the channel is lost."""
        self._consuming.clear()
        channel = self._channel = await session.channel()
        channel.on_cancel = self._cancelled
        channel.lost.add_done_callback(lambda _: self._changed.set())
        self._receiver.attach(
            channel.acks, {tag.encode(): queue.name for tag, queue in self._tags.items()}
        )
        channel.tap(self._receiver)
        await channel.prefetch(self._prefetch)
        while not channel.lost.done():
            self._changed.clear()
            pause = await self._complete(session, channel, backoff)
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue
        if not session.lost.done():
            raise channel.lost.result()

    async def _complete(self, session: Session, channel: Channel, backoff: Backoff) -> float | None:
        """Consume from every queue that is there; seconds until the next look, None for no need."""
        pauses = []
        for tag, queue in self._tags.items():
            if tag in self._consuming:
                continue
            try:
                missing = await self._topology.missing(session, queue)
            except BrokerRefused as error:
                pauses.append(backoff.next())
                self._failed(error, pauses[-1])
                continue
            if missing is not None:
                pauses.append(_MISSING_RETRY)
                self._missing(missing)
                continue
            await channel.consume(queue.name, tag)
            self._consuming.add(tag)
            log.info("consuming", extra={"consumer": self.health.consumer, "queue": queue.name})
        if pauses:
            return min(pauses)
        backoff.reset()
        self.health.ready()
        return None

    def _missing(self, queue: Queue) -> None:
        self.health.waiting(f"queue {queue.name!r} is missing")
        log.warning(
            "queue is missing",
            extra={
                "consumer": self.health.consumer,
                "queue": queue.name,
                "retry_in": _MISSING_RETRY,
            },
        )

    def _failed(self, error: Exception, seconds: float) -> None:
        self._not_ready(error)
        log.error(
            "consumer is not ready",
            exc_info=error,
            extra={"consumer": self.health.consumer, "retry_in": round(seconds, 2)},
        )

    def _not_ready(self, error: Exception) -> None:
        if isinstance(error, BrokerRefused) and not self._consuming:
            self.health.refused(str(error))
        else:
            self.health.waiting(str(error))

    def _cancelled(self, tag: str) -> None:
        """The broker has cancelled a consumer: its queue was deleted, or lost its leader."""
        queue = self._tags.get(tag)
        if queue is None or self.health.state == "stopping":
            return
        self._consuming.discard(tag)
        self.health.waiting(f"queue {queue.name!r} was deleted")
        log.warning(
            "consumer cancelled by the broker",
            extra={"consumer": self.health.consumer, "queue": queue.name},
        )
        self._changed.set()

    async def _discard(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def _tag(consumer: str, queue: Queue) -> str:
    """What the broker's management shows: who consumes what from where."""
    return f"{consumer}:{queue.name}@{socket.gethostname()}:{os.getpid()}"[:255]
