"""One queue of a consumer: open a channel, consume, and do so again when either is lost."""

import asyncio
import logging
import os
import random
import socket

from workerkit.amqp.channel import Channel
from workerkit.amqp.connection import STABLE_AFTER, Link
from workerkit.amqp.handshake import EXPLAINED
from workerkit.amqp.preparation import Preparation
from workerkit.amqp.queue import Queue
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.session import Session
from workerkit.amqp.stream_position import Position
from workerkit.amqp.topology import Topology
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.errors import BrokerRefused, ConnectionLost, NoChannelLeft, QueueInUse
from workerkit.health import Part
from workerkit.tasks import Backoff

log = logging.getLogger(__name__)

_MISSING_RETRY = 2.0
_NO_CHANNEL_RETRY = 30.0
_TIMED_OUT = "delivery acknowledgement on channel"


class Subscription:
    """Feeds a receiver from one queue.

    Every queue has a channel of its own: the broker closes a channel when it refuses anything on
    it, and one queue must not take its neighbours down. Nothing outlives the loss of a channel
    but the handlers that run: their settlements go to the lost channel, that is nowhere, and the
    broker delivers their messages again.

    Args:
        prefetch: Messages that the broker sends ahead.
        preparation: Comes before it: no consumer of the connection starts earlier.
        part: Told how it is going.
    """

    def __init__(
        self,
        queue: Queue,
        prefetch: int,
        link: Link,
        preparation: Preparation,
        receiver: Receiver,
        topology: Topology,
        part: Part,
    ) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._link = link
        self._preparation = preparation
        self._receiver = receiver
        self._topology = topology
        self._part = part
        self._tag = _tag(receiver.name, queue)
        # The name at the broker; messages and logs have the name from the class.
        self._name = queue.name
        self._channel: Channel | None = None
        self._consuming = False
        self._without_channel = False
        self._since = 0.0
        self._position = Position(queue.stream_offset) if queue.is_stream else None
        self._cancelled = asyncio.Event()
        preparation.follow(self)

    async def run(self) -> None:
        """Consume until cancelled. The channel then stays open, for handlers that still run."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        await self._preparation.checked(self._topology, self._queue)
        while True:
            session = await self._link.session()
            pause = _MISSING_RETRY
            try:
                if channel := await self._set_up(session):
                    await self._consumed(channel)
                    pause = backoff.next()
            except QueueInUse as error:
                pause = _MISSING_RETRY
                self._in_use(error, pause)
            except NoChannelLeft as error:
                pause = _NO_CHANNEL_RETRY * random.uniform(0.5, 1.0)
                self._no_channel(error)
            except (BrokerRefused, ConnectionLost) as error:
                if not session.gone:
                    pause = backoff.next()
                    self._failed(error, pause)
            if self._consuming and loop.time() - self._since > STABLE_AFTER:
                backoff.reset()
            await self._discard()
            if session.gone:
                # The link logs it, and lends out a new session when there is one.
                self._part.waiting("the connection is lost")
                await asyncio.wait([session.lost])
            else:
                # A new session may have a free channel: do not wait any longer.
                await asyncio.wait([session.lost], timeout=pause)

    async def stop(self) -> None:
        """Cancel the consumer at the broker, so that it sends nothing more."""
        self._part.stopping()
        if self._channel is None or not self._consuming:
            return
        try:
            async with self._channel.turn():
                await self._channel.cancel(self._tag)
        except ConnectionLost as error:
            log.warning("consumer not cancelled", extra=self._fields(reason=str(error)))

    def close(self) -> None:
        """Settle nothing more. The connection is closed next, and its channels with it.

        Closing five hundred channels one by one would take a second.
        """
        channel, self._channel, self._consuming = self._channel, None, False
        if channel is not None:
            channel.finish_acks()
            self._receiver.forget(channel.acks)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """The connection could not be made: note why."""
        self._not_ready(error)

    async def _set_up(self, session: Session) -> Channel | None:
        """Start to consume, after waiting for a turn; None if a queue is missing.

        Raises:
            BrokerRefused: The user may not read or declare the queue.
            ConnectionLost: The channel was lost, or the whole session.
        """
        async with session.scratch.turn():
            if not await self._there(session):
                return None
            self._since = asyncio.get_running_loop().time()
            return await self._consume(session)

    async def _there(self, session: Session) -> bool:
        """Whether everything is there that has to be."""
        missing = await self._topology.missing(session, self._queue)
        if missing is None:
            self._name = self._topology.name(self._queue)
            return True
        self._part.waiting(missing.reason)
        fields = self._fields(**missing._asdict(), retry_in=_MISSING_RETRY)
        log.warning("queue is %s", missing.state, extra=fields)
        return False

    async def _consume(self, session: Session) -> Channel:
        self._cancelled.clear()
        channel = self._channel = await session.consumer_channel()
        channel.on_cancel = lambda tag: self._cancelled.set()
        channel.lost.add_done_callback(lambda lost: self._cancelled.set())
        inlet = self._receiver.inlet(channel.acks, self._queue.name, self._tag, self._position)
        channel.tap(inlet)
        await channel.prefetch(self._prefetch)
        arguments = {}
        if self._position is not None:
            arguments["x-stream-offset"] = self._position.begin(channel.acks)
        await channel.consume(self._name, self._tag, arguments)
        self._consuming, self._without_channel = True, False
        self._part.ready()
        log.info("consuming", extra=self._fields())
        return channel

    async def _consumed(self, channel: Channel) -> None:
        """Return when the broker cancels the consumer.

        basic.cancel has no reason: the queue was deleted, its leader or node failed, or from
        RabbitMQ 4.3 on a message of a quorum queue was not acknowledged in time.

        Raises:
            BrokerRefused: The broker closed the channel.
            ConnectionLost: The channel was lost, or the whole session.
        """
        await self._cancelled.wait()
        if channel.lost.done():
            raise channel.lost.result()
        reason = "the broker gave no reason; the queue may be deleted, or without a leader"
        if self._receiver.is_overdue(channel.acks):
            reason = "a handler took as long as the broker's consumer_timeout"
        self._part.waiting(
            f"the broker cancelled the consumer of queue {self._queue.name!r}: {reason}"
        )
        log.warning("consumer cancelled by the broker", extra=self._fields(reason=reason))

    def _in_use(self, error: QueueInUse, seconds: float) -> None:
        self._part.waiting(str(error))
        fields = self._fields(retry_in=seconds, error=summarize_error(error))
        log.warning("queue is used by another connection", extra=fields)

    def _no_channel(self, error: NoChannelLeft) -> None:
        """Log it once: a limit of the broker does not change from one attempt to the next."""
        total = sum(isinstance(each, Subscription) for each in self._link.followers)
        reason = (
            f"{error.limit} leaves no channel for queue {self._queue.name!r}: "
            f"{error.max_consumers} of {total} queues of connection {self._link.name!r} consume; "
            "raise the limit, or run some of the consumers in another process"
        )
        self._part.waiting(reason)
        if not self._without_channel:
            self._without_channel = True
            log.error("no channel is left for a queue", extra=self._fields(error=reason))

    def _failed(self, error: Exception, seconds: float) -> None:
        self._not_ready(error)
        fields = self._fields(retry_in=round(seconds, 2), error=summarize_error(error))
        log.error(
            "consumer is not ready",
            exc_info=without_needless_traceback(error, *EXPLAINED),
            extra=fields,
        )

    def _not_ready(self, error: Exception) -> None:
        if isinstance(error, BrokerRefused):
            self._part.refused(str(error))
        else:
            self._part.waiting(str(error))

    async def _discard(self) -> None:
        """Close the channel, and forget what came on it and nobody has begun with."""
        channel, self._channel, self._consuming = self._channel, None, False
        if channel is not None:
            lost = str(channel.lost.result()) if channel.lost.done() else ""
            suspect = _TIMED_OUT in lost or (self._cancelled.is_set() and not lost)
            async with channel.turn():
                # Nothing may be awaited in between: workers begin with what waits.
                self._receiver.before_close(channel.acks)
                await channel.close()
            self._receiver.forget(channel.acks, suspect=suspect)

    def _fields(self, **more: object) -> dict[str, object]:
        return {"consumer": self._receiver.name, "queue": self._queue.name, **more}


def _tag(consumer: str, queue: Queue) -> str:
    """What the broker's management shows: who consumes what from where."""
    tag = f"{consumer}@{socket.gethostname()}:{os.getpid()}:{queue.name}"
    return tag.encode()[:255].decode(errors="ignore")
