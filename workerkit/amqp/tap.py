"""Take deliveries and confirms out of the byte stream, before aiormq sees them.

aio-pika and aiormq connect, authenticate, declare, beat and close. But of the 150 µs of CPU that
bare aio-pika spends on a message, its frame objects, queue hops and tasks take more than a
hundred: so the frames of consuming and publishing channels are read here, with `struct`, and
everything else goes on to aiormq untouched.
"""

import asyncio
import logging
from struct import Struct
from typing import Any

from aiormq.connection import TransportFactory
from yarl import URL

from workerkit.amqp.acks import Acks
from workerkit.amqp.addresses import Attempt
from workerkit.amqp.frame_reader import Tap
from workerkit.amqp.frames import MalformedFrame
from workerkit.forking import keep_from_children

_HEAD = Struct(">BHI").unpack_from  # frame type, channel, size
_METHOD = 1
_CHANNEL_CLOSE, _CONNECTION_CLOSE = b"\x00\x14\x00\x28", b"\x00\x0a\x00\x32"
_TEXT = 6  # After class, method and reply code.


def readable(frames: bytes) -> bytes:
    """Replace invalid UTF-8 in reply texts with question marks. The frames must be whole."""
    if _CHANNEL_CLOSE not in frames and _CONNECTION_CLOSE not in frames:
        return frames
    replaced = bytearray(frames)
    position = 0
    while len(frames) - position >= 8:
        kind, _, size = _HEAD(frames, position)
        start = position + 7
        position = start + size + 1
        is_close = frames[start : start + 4] in (_CHANNEL_CLOSE, _CONNECTION_CLOSE)
        if kind == _METHOD and is_close and size > _TEXT:
            first = start + _TEXT + 1
            end = min(first + frames[first - 1], start + size)
            replaced[first:end] = _without_half_characters(frames[first:end])
    return bytes(replaced)


def _without_half_characters(text: bytes) -> bytes:
    """Return the same number of bytes, all of them valid UTF-8."""
    decoded = text.decode(errors="surrogateescape")
    return b"".join(b"?" if "\udc80" <= sign <= "\udcff" else sign.encode() for sign in decoded)


log = logging.getLogger(__name__)

_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_FEED_EVERY = _NOTIFY_EVERY = 1.0
CLOSED = "the socket was closed"
"""The reason for a lost connection if nothing more is known."""


class TapProtocol(asyncio.StreamReaderProtocol):
    """asyncio's reader protocol, with a tap before the reader.

    Attributes:
        last_read: The loop's time at which the last bytes came.
        lost: Done when the socket is closed.
        unblocked: Clear while the broker blocks publishers of this connection.
        acks: The acks of its channels, notified when bytes arrive, once a second at most.
        socket: The transport, once connected.
    """

    socket: asyncio.Transport
    writer: asyncio.StreamWriter

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._clock = loop.time
        self._fed = self._notified = self.last_read = loop.time()
        self.acks: set[Acks] = set()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.tap = Tap(self._on_blocked)
        self._error: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.socket = transport
        keep_from_children(transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.last_read = now = self._clock()
        try:
            passed = self.tap.feed(data)
        except MalformedFrame as error:
            self.give_up(error)
            return
        if now - self._notified > _NOTIFY_EVERY:
            self._notified = now
            for acks in self.acks:
                acks.on_bytes_received()
        if not passed and now - self._fed > _FEED_EVERY:
            # aiormq gives a connection up on which it sees nothing, and it sees no deliveries.
            passed = _HEARTBEAT
        if passed:
            self._fed = now
            super().data_received(readable(passed))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        # asyncio keeps the error for whoever waits until the writer is closed. Where nobody does,
        # it may complain about that when the future is collected, on stderr.
        closed = getattr(self, "_closed", None)
        if closed is not None and not closed.cancelled():
            closed.exception()
        self._error = self._error or error
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def reason(self) -> str:
        """Why the socket was closed, as far as is known."""
        if self.tap.refusal:
            code, text = self.tap.refusal
            return text or f"the broker closed the connection with code {code}"
        if isinstance(self._error, MalformedFrame):
            return f"not AMQP 0-9-1: {self._error}"
        return str(self._error or CLOSED)

    def write(self, data: bytes) -> bool:
        """Send now, or when the socket takes it; False if it is closed or closing."""
        if self.socket.is_closing():
            return False
        self.socket.write(data)
        return True

    async def drained(self) -> None:
        """Wait until the socket takes more."""
        await self.writer.drain()

    def give_up(self, error: MalformedFrame) -> None:
        """Close the socket, and keep the reason."""
        self._error = error
        self.socket.abort()

    def discard(self) -> None:
        """Drop a socket whose connection never came up."""
        if socket := getattr(self, "socket", None):
            socket.abort()

    def _on_blocked(self, blocked: bool) -> None:
        if blocked:
            self.unblocked.clear()
        else:
            self.unblocked.set()


class TapTransportFactory(TransportFactory):
    """Opens the socket for aiormq with our protocol on it.

    Args:
        attempt: Connects to the server, instead of the URL that aiormq passes on.
        server_name: The name that the certificate must have; None for that of the server.

    Attributes:
        protocol: Of the socket that was opened; None until aiormq has asked for one.
    """

    def __init__(self, attempt: Attempt, server_name: str | None) -> None:
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
