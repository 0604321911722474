"""Read deliveries and confirms from the byte stream, before aiormq receives it.

aio-pika and aiormq connect, authenticate, declare, send heartbeats and close. But aio-pika spends
150 µs of CPU time on a message, more than 100 µs of it on frame objects, queues and tasks. So the
frames of channels that consume or publish are read here, with `struct`. All other bytes are passed
on to aiormq unchanged.
"""

import asyncio
from typing import Any

from aiormq.connection import TransportFactory
from yarl import URL

from workerkit.amqp.acks import Acks
from workerkit.amqp.addresses import ConnectionAttempt
from workerkit.amqp.frame_reader import FrameReader
from workerkit.amqp.frames import (
    CHANNEL_CLOSE,
    CONNECTION_CLOSE,
    METHOD,
    MalformedFrame,
    unpack_head,
)
from workerkit.forking import keep_from_children

_TEXT = 6  # After class, method and reply code.


def fix_reply_texts(frames: bytes) -> bytes:
    """Replace invalid UTF-8 in reply texts with question marks. The frames must be complete."""
    if CHANNEL_CLOSE not in frames and CONNECTION_CLOSE not in frames:
        return frames
    replaced = bytearray(frames)
    position = 0
    while len(frames) - position >= 8:
        kind, _, size = unpack_head(frames, position)
        start = position + 7
        position = start + size + 1
        is_close = frames[start : start + 4] in (CHANNEL_CLOSE, CONNECTION_CLOSE)
        if kind == METHOD and is_close and size > _TEXT:
            first = start + _TEXT + 1
            end = min(first + frames[first - 1], start + size)
            replaced[first:end] = _replace_invalid_utf_8(frames[first:end])
    return bytes(replaced)


def _replace_invalid_utf_8(text: bytes) -> bytes:
    """Return the same number of bytes, all of them valid UTF-8."""
    decoded = text.decode(errors="surrogateescape")
    return b"".join(b"?" if "\udc80" <= sign <= "\udcff" else sign.encode() for sign in decoded)


_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_HEARTBEAT_INTERVAL = _NOTIFY_INTERVAL = 1.0
CLOSED = "the socket was closed"
"""The reason for a lost connection if nothing more is known."""


class TapProtocol(asyncio.StreamReaderProtocol):
    """asyncio's reader protocol, with a frame reader before the stream reader.

    Attributes:
        frame_reader: Reads the frames of channels that consume or publish.
        last_read: When the last bytes arrived, in seconds of the loop's clock.
        lost: Done when the socket is closed.
        unblocked: Not set while the broker blocks publishers of this connection.
        acks: The acks of all channels, notified when bytes arrive, once a second at most.
        socket: The asyncio transport, once connected.
    """

    socket: asyncio.Transport
    writer: asyncio.StreamWriter

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._clock = loop.time
        self._passed_at = self._notified = self.last_read = loop.time()
        self.acks: set[Acks] = set()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.frame_reader = FrameReader(self._on_blocked)
        self._error: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.socket = transport
        keep_from_children(transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.last_read = now = self._clock()
        try:
            passed = self.frame_reader.feed(data)
        except MalformedFrame as error:
            self.abort(error)
            return
        if now - self._notified > _NOTIFY_INTERVAL:
            self._notified = now
            for acks in self.acks:
                acks.on_bytes_received()
        if not passed and now - self._passed_at > _HEARTBEAT_INTERVAL:
            # aiormq closes a connection on which it receives nothing, and it gets no deliveries.
            passed = _HEARTBEAT
        if passed:
            self._passed_at = now
            super().data_received(fix_reply_texts(passed))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        # asyncio keeps the error for `wait_closed` of the writer. If that is not called, asyncio
        # may log the error as never retrieved when the future is collected.
        closed = getattr(self, "_closed", None)
        if closed is not None and not closed.cancelled():
            closed.exception()
        self._error = self._error or error
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def reason(self) -> str:
        """Return why the socket was closed, if that is known."""
        if self.frame_reader.refusal:
            code, text = self.frame_reader.refusal
            return text or f"the broker closed the connection with code {code}"
        if isinstance(self._error, MalformedFrame):
            return f"not AMQP 0-9-1: {self._error}"
        return str(self._error or CLOSED)

    def write(self, data: bytes) -> bool:
        """Send bytes, or buffer them; return False if the socket is closed or closing."""
        if self.socket.is_closing():
            return False
        self.socket.write(data)
        return True

    async def drained(self) -> None:
        """Wait until the write buffer has room."""
        await self.writer.drain()

    def abort(self, error: MalformedFrame) -> None:
        """Close the socket immediately, and keep the reason."""
        self._error = error
        self.socket.abort()

    def discard(self) -> None:
        """Close the socket, if there is one, of a connection that failed during the login."""
        if socket := getattr(self, "socket", None):
            socket.abort()

    def _on_blocked(self, blocked: bool) -> None:
        if blocked:
            self.unblocked.clear()
        else:
            self.unblocked.set()


class TapTransportFactory(TransportFactory):
    """Opens the socket for aiormq, with `TapProtocol`.

    Args:
        attempt: Connects to the server, instead of the URL that aiormq passes on.
        server_name: The name that the certificate must have; None for that of the server.

    Attributes:
        protocol: The protocol of the socket; None until aiormq has called `create`.
    """

    def __init__(self, attempt: ConnectionAttempt, server_name: str | None) -> None:
        self.protocol: TapProtocol | None = None
        self._attempt = attempt
        self._server_name = server_name

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = kwargs.pop("ssl_context_provider")
        if url.scheme == "amqps":
            name = self._server_name or self._attempt.server.name
            kwargs |= {"ssl": await tls.get_context(), "server_hostname": name}
        loop = asyncio.get_running_loop()
        socket = await self._attempt.connect()
        reader = asyncio.StreamReader(loop=loop)
        protocol = self.protocol = TapProtocol(reader, loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=socket, **kwargs)
        protocol.writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return reader, protocol.writer
