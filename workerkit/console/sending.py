"""What a process sends to the other ones: published on a connection of its own."""

import asyncio
from typing import Any, Protocol

from workerkit.amqp.channel import Channel
from workerkit.amqp.connection import Connection
from workerkit.amqp.frames import FRAME_OVERHEAD, NO_PERMISSION, content_header, message_frames
from workerkit.amqp.outgoing import publish_method
from workerkit.amqp.properties import Properties, encode
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.tasks import Backoff

_BLOCKED = "the broker blocks publishers: it is out of memory or disk space"
_IDLE = 30.0
_CHECK = 5.0
_FLUSH_DEADLINE = 1.0
_REFUSED_RETRY = 300.0
_MOST_UNSENT = 100

Unsent = tuple[str, str, bytes]


class Failed(Protocol):
    """Called when nothing can be sent for some time."""

    def __call__(self, reason: str, *, refused: bool) -> None:
        """Note the reason, and whether an operator must change something."""


class Sending:
    """Publishes messages on a connection that is open only while there are some.

    Messages are dropped, and not sent late, while it cannot connect or the broker blocks it.

    Args:
        connection: The one of the consumers: this one logs in at the same broker.
        reply_to: The queue for answers.
        failed: Called when it cannot send.
    """

    def __init__(self, connection: Connection, reply_to: str, failed: Failed) -> None:
        self._connection = connection
        self._properties = encode(Properties(content_type="application/json", reply_to=reply_to))
        self._notify_failed = failed
        self._unsent: asyncio.Queue[Unsent] = asyncio.Queue(_MOST_UNSENT)
        self._session: Session | None = None
        self._failure = ""

    @property
    def problem(self) -> str:
        """Why nothing can be sent; empty if there is no reason."""
        return self._failure or (_BLOCKED if self._is_blocked else "")

    def put(self, exchange: str, routing_key: str, body: bytes) -> bool:
        """Send a message soon; return False if nothing can be sent, or too many wait."""
        if self.problem or self._unsent.full():
            return False
        self._unsent.put_nowait((exchange, routing_key, body))
        return True

    async def run(self) -> None:
        """Send what was put, until cancelled."""
        backoff = Backoff()
        while True:
            message = await self._unsent.get()
            try:
                await self._send_all(message)
                backoff.reset()
            except ConnectionLost as error:
                refused = isinstance(error, BrokerRefused) and error.code == NO_PERMISSION
                self._failure = str(error)
                self._drop_all()
                self._notify_failed(self._failure, refused=refused)
                await asyncio.sleep(_REFUSED_RETRY if refused else backoff.next())
                self._failure = ""

    async def flush(self) -> None:
        """Wait until what was put is sent or dropped, for a moment."""
        waiting = asyncio.ensure_future(self._unsent.join())
        await asyncio.wait([waiting], timeout=_FLUSH_DEADLINE)
        waiting.cancel()

    @property
    def _is_blocked(self) -> bool:
        return self._session is not None and not self._session.protocol.unblocked.is_set()

    async def _send_all(self, first: Unsent) -> None:
        """Connect, and send messages until there was none for some time.

        Raises:
            ConnectionLost: It cannot connect, or the broker closed the channel.
        """
        message: Unsent | None = first
        session: Session | None = None
        try:
            session = self._session = await self._connection.open_another("fleet")
            channel = await session.channel()
            while message is not None:
                self._send(session, channel, message)
                self._unsent.task_done()
                message = None
                message = await self._next(session, channel)
        finally:
            if message is not None:
                self._unsent.task_done()
            self._session = None
            if session is not None:
                await session.close()

    def _send(self, session: Session, channel: Channel, message: Unsent) -> None:
        """Write a message, unless the broker does not read it."""
        if channel.lost.done():
            raise channel.lost.result()
        exchange, routing_key, body = message
        if not self._is_blocked:
            method = publish_method(exchange, routing_key, mandatory=False)
            header = content_header(self._properties, body)
            largest = session.frame_max - FRAME_OVERHEAD
            frames = message_frames(channel.number, method, header, body, largest)
            session.protocol.write(b"".join(frames))

    async def _next(self, session: Session, channel: Channel) -> Unsent | None:
        """Return the next message; None if there was none for some time.

        Raises:
            ConnectionLost: The channel was closed, or nothing arrives from the broker.
        """
        idle = 0.0
        getting = asyncio.ensure_future(self._unsent.get())
        try:
            while not getting.done():
                either: list[asyncio.Future[Any]] = [getting, channel.lost]
                await asyncio.wait(either, timeout=_CHECK, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    break
                if channel.lost.done():
                    raise channel.lost.result()
                self._connection.check_silence(session)
                # The broker would not read connection.close from a connection that it blocks.
                idle = 0.0 if self._is_blocked else idle + _CHECK
                if idle >= _IDLE:
                    return None
            return getting.result()
        finally:
            getting.cancel()

    def _drop_all(self) -> None:
        while not self._unsent.empty():
            self._unsent.get_nowait()
            self._unsent.task_done()
