"""Consume one queue: open a channel, start a consumer, and repeat this when either is lost."""

import asyncio
import logging
import os
import random
import socket

from workerkit.amqp.channel import Channel
from workerkit.amqp.connection import STABLE_AFTER, Connection
from workerkit.amqp.handshake import SELF_EXPLANATORY
from workerkit.amqp.preparation import Preparation
from workerkit.amqp.queue import Queue
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.session import Session, scratch
from workerkit.amqp.stream_position import StreamPosition
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
    """Delivers the messages of one queue to a receiver.

    Each queue has its own channel: the broker closes a channel when it refuses a request on it,
    and that must not affect the consumers of other queues. When a channel is lost, running handlers
    continue. Their messages can no longer be settled, so the broker redelivers them.

    Args:
        prefetch: The prefetch count.
        paused: Whether it starts paused.
        preparation: The first declarations. No consumer of the connection starts before them.
        part: Notified of changes of its readiness.

    It is paused and changed in `run`, between requests: a request that is cancelled would close the
    channel, and handlers that run could not settle their messages.

    Attributes:
        paused: It was paused, and not resumed.
    """

    def __init__(
        self,
        queue: Queue,
        prefetch: int,
        paused: bool,
        connection: Connection,
        preparation: Preparation,
        receiver: Receiver,
        topology: Topology,
        part: Part,
    ) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._connection = connection
        self._preparation = preparation
        self._receiver = receiver
        self._topology = topology
        self._part = part
        self._tag = ""
        self._consumers = 0  # On the present channel, one after the other.
        # The name at the broker. Messages and logs have the name from the class.
        self._name = queue.name
        self._channel: Channel | None = None
        self.paused = paused
        self._consuming = False
        self._has_no_channel = False
        self._consuming_since = 0.0
        self._position = StreamPosition(queue.stream_offset) if queue.is_stream else None
        self._cancelled = False  # By the broker, or the channel is lost.
        self._consumer_prefetch = 0
        # Something has changed that `run` has to act on.
        self._changed = asyncio.Event()
        # The broker sends nothing.
        self._quiet = asyncio.Event()
        self._quiet.set()
        # Of the last check for a burst: the channel with the number of its messages, and the number
        # of messages in the queue.
        self._received: tuple[Channel, int] | None = None
        self._ready = 0
        preparation.add_listener(self)

    async def run(self) -> None:
        """Consume until cancelled. The channel then stays open, for running handlers."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        await self._preparation.wait_for_check(self._topology, self._queue)
        if self.paused:
            self._part.paused()
        while True:
            await self._resumed()
            session = await self._connection.session()
            if self.paused:
                continue
            pause = _MISSING_RETRY
            try:
                if channel := await self._set_up(session):
                    if await self._serve(channel):
                        continue
                    pause = backoff.next()
            except QueueInUse as error:
                pause = _MISSING_RETRY
                self._report_in_use(error, pause)
            except NoChannelLeft as error:
                pause = _NO_CHANNEL_RETRY * random.uniform(0.5, 1.0)
                self._report_no_channel(error)
            except (BrokerRefused, ConnectionLost) as error:
                if not session.gone:
                    pause = backoff.next()
                    self._report_failure(error, pause)
            if self._consuming and loop.time() - self._consuming_since > STABLE_AFTER:
                backoff.reset()
            await self._close_channel()
            if session.gone:
                # The connection logs it, and provides a new session when there is one.
                self._part.waiting("the connection is lost")
                await asyncio.wait([session.lost])
            else:
                # A new session may have a free channel: do not wait any longer.
                await asyncio.wait([session.lost], timeout=pause)

    async def remaining(self) -> str:
        """Return what its queue has for this process, in words; empty if there is nothing.

        If messages that failed fill the prefetch, the queue has nothing more for this process.
        """
        channel, received = self._channel, self._received
        if self.paused:
            return ""
        if channel is None or not self._consuming:
            return f"queue {self._queue.name!r}: {self._part.reason or 'not consumed yet'}"
        session = await self._connection.session()
        try:
            async with session.scratch.turn(), scratch(session) as requests:
                self._ready = await requests.count(self._name)
            # The reply comes after the messages that the queue had sent before it was counted.
            await channel.prefetch(self._prefetch)
        except ConnectionLost as error:
            return f"queue {self._queue.name!r}: {error}"
        self._received = (channel, channel.acks.received)
        if self._received != received:
            return f"queue {self._queue.name!r}: a message was received since the last check"
        if not self._ready or channel.acks.unsettled >= self._prefetch:
            return ""
        return f"queue {self._queue.name!r} has {self._ready} messages"

    def failure(self) -> str:
        """Return how many messages failed and are kept for the end of a burst; empty if none."""
        kept = self._channel.acks.unsettled if self._channel is not None else 0
        if not kept:
            return ""
        others = (
            f"; not tried, because these fill the prefetch: {self._ready}" if self._ready else ""
        )
        return (
            f"{self._receiver.name}: messages that failed, and are still in queue"
            f" {self._queue.name!r}: {kept}{others}"
        )

    async def stop(self) -> None:
        """Cancel the consumer at the broker, which then sends no more messages."""
        self._part.stopping()
        if self._channel is not None and self._consuming:
            try:
                await self._cancel(self._channel)
            except ConnectionLost as error:
                log.warning("consumer not cancelled", extra=self._fields(reason=str(error)))
        self._quiet.set()

    async def pause(self) -> None:
        """Cancel the consumer at the broker, and return the messages that wait for a worker.

        The channel stays open, for handlers that run.
        """
        self.paused = True
        self._part.paused()
        self._changed.set()
        await self._quiet.wait()

    def resume(self) -> None:
        """Consume again, soon."""
        self.paused = False
        self._part.resumed()
        self._changed.set()

    def change_prefetch(self, count: int) -> None:
        """Change the prefetch count, soon. Messages that were received stay."""
        self._prefetch = count
        self._changed.set()

    def close(self) -> None:
        """Send pending acks, and no more after that. The connection is closed next.

        Closing five hundred channels one by one would take a second.
        """
        channel, self._channel, self._consuming = self._channel, None, False
        if channel is not None:
            channel.finish_acks()
            self._receiver.forget(channel.acks)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Report the reason as that of the queue."""
        self._not_ready(error)

    async def _set_up(self, session: Session) -> Channel | None:
        """Check the queues and start a consumer; return None if a queue is missing.

        Raises:
            BrokerRefused: The user may not read or declare the queue.
            ConnectionLost: The channel was lost, or the whole session.
        """
        self._quiet.clear()
        async with session.scratch.turn():
            if not await self._is_available(session):
                return None
            self._consuming_since = asyncio.get_running_loop().time()
            return await self._consume(session)

    async def _is_available(self, session: Session) -> bool:
        """Return whether the queue exists, and those for its retries and dead letters."""
        missing = await self._topology.missing(session, self._queue)
        if missing is None:
            self._name = self._topology.name(self._queue)
            return True
        self._part.waiting(missing.reason)
        fields = self._fields(**missing._asdict(), retry_in=_MISSING_RETRY)
        log.warning("queue is %s", missing.state, extra=fields)
        return False

    async def _resumed(self) -> None:
        """Return when it is not paused; meanwhile notice the loss of the channel."""
        while True:
            self._changed.clear()
            if self._channel is not None and self._channel.lost.done():
                await self._close_channel()
            if not self.paused:
                return
            await self._changed.wait()

    async def _consume(self, session: Session) -> Channel:
        self._cancelled = False
        channel = self._channel
        if channel is None:
            channel = self._channel = await session.consumer_channel()
            channel.on_cancel = lambda tag: self._on_cancelled(tag == self._tag)
            channel.lost.add_done_callback(
                lambda lost: self._on_cancelled(channel is self._channel)
            )
            self._consumers = 0
        await self._start_consumer(channel)
        self._consuming, self._has_no_channel = True, False
        self._part.ready()
        log.info("consuming", extra=self._fields())
        return channel

    async def _start_consumer(self, channel: Channel) -> None:
        self._consumers += 1
        # With the tag of a previous one, it would get credit for unacknowledged messages of that.
        self._tag = _consumer_tag(self._receiver.name, self._queue, self._consumers)
        inlet = self._receiver.inlet(channel.acks, self._queue.name, self._tag, self._position)
        channel.deliver_to(inlet)
        self._consumer_prefetch = self._prefetch
        await channel.prefetch(self._consumer_prefetch)
        # Messages of a previous consumer of the channel do not count against it.
        channel.acks.prefetch += channel.acks.unsettled
        arguments = {}
        if self._position is not None:
            arguments["x-stream-offset"] = self._position.resume(channel.acks)
        await channel.consume(self._name, self._tag, arguments)

    async def _cancel(self, channel: Channel) -> None:
        async with channel.turn():
            await channel.cancel(self._tag)
        self._consuming = False

    def _on_cancelled(self, is_present: bool) -> None:
        """Note that the present consumer was cancelled, and none that was replaced."""
        if is_present:
            self._cancelled = True
            self._changed.set()

    async def _serve(self, channel: Channel) -> bool:
        """Consume until it is paused; return False if the broker cancels the consumer.

        basic.cancel has no reason: the queue was deleted, its leader or node failed, or from
        RabbitMQ 4.3 on a message of a quorum queue was not acknowledged in time.

        Raises:
            BrokerRefused: The broker closed the channel.
            ConnectionLost: The channel was lost, or the whole session.
        """
        while not self._cancelled:
            if self.paused:
                await self._pause(channel)
                return True
            if self._prefetch != self._consumer_prefetch and not self._queue.auto_delete:
                await self._restart_consumer(channel)
                continue
            await self._changed.wait()
            self._changed.clear()
        if channel.lost.done():
            raise channel.lost.result()
        self._report_cancelled(channel)
        return False

    async def _pause(self, channel: Channel) -> None:
        await self._cancel(channel)
        if not self._queue.is_stream:
            self._receiver.return_waiting(channel.acks)
        self._quiet.set()
        log.info("consumer paused", extra=self._fields())

    async def _restart_consumer(self, channel: Channel) -> None:
        """Start another consumer: basic.qos applies to those that are started after it."""
        async with channel.turn():
            await channel.cancel(self._tag)
            await self._start_consumer(channel)

    def _report_cancelled(self, channel: Channel) -> None:
        reason = "the broker gave no reason; the queue may be deleted, or without a leader"
        if self._receiver.is_overdue(channel.acks):
            reason = "a handler took as long as the broker's consumer_timeout"
        self._part.waiting(
            f"the broker cancelled the consumer of queue {self._queue.name!r}: {reason}"
        )
        log.warning("consumer cancelled by the broker", extra=self._fields(reason=reason))

    def _report_in_use(self, error: QueueInUse, seconds: float) -> None:
        self._part.waiting(str(error))
        fields = self._fields(retry_in=seconds, error=summarize_error(error))
        log.warning("queue is used by another connection", extra=fields)

    def _report_no_channel(self, error: NoChannelLeft) -> None:
        """Log the error once: a limit of the broker does not change between attempts."""
        total = sum(isinstance(each, Subscription) for each in self._connection.listeners)
        reason = (
            f"{error.limit} leaves no channel for queue {self._queue.name!r}: "
            f"{error.max_consumers} of {total} queues of connection {self._connection.name!r}"
            " consume; raise the limit, or run some of the consumers in another process"
        )
        self._part.waiting(reason)
        if not self._has_no_channel:
            self._has_no_channel = True
            log.error("no channel is left for a queue", extra=self._fields(error=reason))

    def _report_failure(self, error: Exception, seconds: float) -> None:
        self._not_ready(error)
        fields = self._fields(retry_in=round(seconds, 2), error=summarize_error(error))
        log.error(
            "consumer is not ready",
            exc_info=without_needless_traceback(error, *SELF_EXPLANATORY),
            extra=fields,
        )

    def _not_ready(self, error: Exception) -> None:
        if isinstance(error, BrokerRefused):
            self._part.refused(str(error))
        else:
            self._part.waiting(str(error))

    async def _close_channel(self) -> None:
        """Close the channel, and discard its messages that no handler has started with."""
        channel, self._channel, self._consuming = self._channel, None, False
        if channel is not None:
            lost = str(channel.lost.result()) if channel.lost.done() else ""
            suspect = _TIMED_OUT in lost or (self._cancelled and not lost)
            async with channel.turn():
                # No await between these two: a worker could start with a waiting message.
                self._receiver.before_close(channel.acks)
                await channel.close()
            self._receiver.forget(channel.acks, suspect=suspect)
        self._quiet.set()

    def _fields(self, **more: object) -> dict[str, object]:
        return {"consumer": self._receiver.name, "queue": self._queue.name, **more}


def _consumer_tag(consumer: str, queue: Queue, number: int) -> str:
    """Return the consumer tag, which the broker's management shows: name, host, process, queue."""
    tag = f"{consumer}@{socket.gethostname()}:{os.getpid()}:{queue.name}"
    suffix = f":{number}" if number > 1 else ""
    return tag.encode()[: 255 - len(suffix)].decode(errors="ignore") + suffix
