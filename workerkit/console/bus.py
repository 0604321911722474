"""The exchange over which the processes of one application reach each other.

Each process has an exclusive queue, bound to a fanout exchange of the application. A message to the
exchange reaches all processes, one to the default exchange with the name of a queue reaches one.
Both exist only as long as processes do, and hold a message for seconds at most.

The queue is read on the connection that consumers have. Nothing is published there: during an alarm
the broker reads nothing more from a connection that publishes, so no acks of consumers either.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from secrets import token_hex
from time import monotonic
from typing import Any

from workerkit.amqp.channel import Channel
from workerkit.amqp.connection import Connection
from workerkit.amqp.frames import NO_PERMISSION
from workerkit.amqp.incoming import Inlet
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.session import Session
from workerkit.console.messages import LARGEST
from workerkit.console.sending import Sending
from workerkit.errors import BrokerRefused, ConnectionLost, NoChannelLeft
from workerkit.tasks import Backoff

log = logging.getLogger(__name__)

_PREFIX = "workerkit."
_TAG = "fleet"
_PREFETCH = 200
_REFUSED_RETRY = 300.0
_ARGUMENTS = {
    "x-max-length": 1000,
    "x-max-length-bytes": 16 * LARGEST,
    "x-message-ttl": 10_000,
    "x-overflow": "drop-head",
}
_LONGEST_NAME = 255
_WARN_EVERY = 60.0


def exchange_of(app: str) -> str:
    """Return the name of the exchange of an application."""
    return f"{_PREFIX}{app}"


def queue_prefix_of(app: str) -> str:
    """Return how the names of the queues of an application begin."""
    return f"{_PREFIX}{app}."


class Bus:
    """The queue of this process, and the means to publish.

    It is opened again after each loss of its channel or connection. Nothing else is affected by
    what happens to it.

    Args:
        connection: The one that the consumers have, or one for the console alone.
        receive: Called with the body of each message, and with its `reply_to`.
        opened: Called each time when messages can be sent.
        warns: Log a WARNING where the permissions do not allow it.

    Attributes:
        queue: The name of the queue of this process.
    """

    def __init__(
        self,
        app: str,
        connection: Connection,
        receive: Callable[[bytes, str], None],
        opened: Callable[[], None],
        *,
        warns: bool,
    ) -> None:
        self._exchange = exchange_of(app)
        unique = f".{os.getpid()}.{token_hex(4)}"
        host = socket.gethostname()
        name = f"{queue_prefix_of(app)}{host}"
        self.queue = name.encode()[: _LONGEST_NAME - len(unique)].decode(errors="ignore") + unique
        self._connection = connection
        self._receive = receive
        self._opened = opened
        self._warns = warns
        self._channel: Channel | None = None
        self._sending = Sending(connection, self.queue, self._failed)
        self._deleted = asyncio.Event()
        self._warned_at = -_WARN_EVERY
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why no message can be received or sent; empty if there is no reason."""
        return self._problem or self._sending.problem

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        channel = self._channel
        return channel is not None and not channel.lost.done()

    async def run(self) -> None:
        """Keep the queue open, and send, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sending.run(), name="fleet: send")
            tasks.create_task(self._receive_all(), name="fleet: receive")

    async def _receive_all(self) -> None:
        backoff = Backoff()
        while True:
            session = await self._connection.session()
            pause = 0.0
            try:
                await self._open(session)
                backoff.reset()
                raise await self._lost()
            except NoChannelLeft as error:
                pause = _REFUSED_RETRY
                self._lost_queue(str(error), refused=True)
            except BrokerRefused as error:
                refused = error.code == NO_PERMISSION
                pause = _REFUSED_RETRY if refused else backoff.next()
                self._lost_queue(str(error), refused=refused)
            except ConnectionLost as error:
                pause = backoff.next()
                self._lost_queue(str(error), refused=False)
            finally:
                await self._close_channel()
            await asyncio.wait([session.lost], timeout=pause)

    async def close(self) -> None:
        """Close the channel; the broker deletes the queue."""
        await self._close_channel()

    def broadcast(self, body: bytes) -> bool:
        """Send a message to all processes, this one included; return False if that cannot be."""
        return self.is_open and self._sending.put(self._exchange, "", body)

    def send(self, queue: str, body: bytes) -> bool:
        """Send a message to one process."""
        return self._sending.put("", queue, body)

    async def flush(self) -> None:
        """Wait until all messages are sent, for a moment."""
        await self._sending.flush()

    async def _open(self, session: Session) -> None:
        channel = self._channel = await session.channel()
        exchange = {"exchange_type": "fanout", "durable": False, "auto_delete": True}
        await channel.declare_exchange(self._exchange, **exchange)
        await channel.declare_queue(
            self.queue, exclusive=True, auto_delete=True, arguments=dict(_ARGUMENTS)
        )
        # The last other process may have left meanwhile: then this fails, and is tried again.
        await channel.bind_queue(self.queue, self._exchange, "", {})
        self._deleted.clear()
        channel.on_cancel = lambda _: self._deleted.set()
        channel.deliver_to(Inlet(self._take, channel.acks, self.queue, _TAG))
        await channel.prefetch(_PREFETCH)
        await channel.consume(self.queue, _TAG, {})
        self._problem = ""
        self._opened()

    async def _lost(self) -> ConnectionLost:
        """Return why the queue cannot be used any more, once that is so."""
        channel = self._channel
        assert channel is not None
        channel.lost.add_done_callback(lambda _: self._deleted.set())
        await self._deleted.wait()
        if channel.lost.done():
            return channel.lost.result()
        return ConnectionLost("the queue was deleted")

    def _take(self, message: AMQPMessage[Any]) -> None:
        message.acks.ack(message.tag)
        try:
            if len(message.raw) <= LARGEST:
                self._receive(message.raw, message.properties.reply_to or "")
        except Exception:
            # Whoever may publish to the exchange may have sent it.
            if monotonic() - self._warned_at >= _WARN_EVERY:
                self._warned_at = monotonic()
                log.warning("malformed message of another process ignored", exc_info=True)

    def _lost_queue(self, reason: str, *, refused: bool) -> None:
        self._problem = reason
        self._failed(reason, refused=refused)

    def _failed(self, reason: str, *, refused: bool) -> None:
        level = logging.DEBUG
        if refused and self._warns and monotonic() - self._warned_at >= _WARN_EVERY:
            self._warned_at = monotonic()
            level = logging.WARNING
        log.log(level, "other processes cannot be found", extra={"reason": reason})

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
