"""Take deliveries and confirms out of the byte stream, before aiormq sees them.

aio-pika and aiormq connect, authenticate, declare, beat and close. But of the 150 µs of CPU that
bare aio-pika spends on a message, its frame objects, queue hops and tasks take more than a
hundred: so the frames of consuming and publishing channels are read here, with `struct`, and
everything else goes on to aiormq untouched.
"""

import asyncio
import logging
from collections.abc import Callable
from struct import Struct
from typing import Any, Protocol

from aiormq.connection import TransportFactory
from yarl import URL

from workerkit.amqp.addresses import Attempt
from workerkit.amqp.reply_texts import readable

log = logging.getLogger(__name__)

_HEAD = Struct(">BHI").unpack_from  # frame type, channel, size
_U64 = Struct(">Q").unpack_from
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_END = 0xCE
_DELIVER, _RETURN = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x32"
_ACK, _NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
_GET_OK, _GET_EMPTY = b"\x00\x3c\x00\x47", b"\x00\x3c\x00\x48"
_CHANNEL_CLOSE = b"\x00\x14\x00\x28"
_CONNECTION_CLOSE = b"\x00\x0a\x00\x32"
_BLOCKED, _UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_LARGEST_FRAME = 2**27  # RabbitMQ's default is 128 KiB; a larger size is not a frame.
_FEED_EVERY = 1.0


class MalformedFrame(Exception):
    """The broker sent bytes that are not AMQP 0-9-1; the connection has to go."""


class Sink(Protocol):
    """Gets what is tapped off one channel, in the order in which the broker sent it."""

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A message: the arguments of basic.deliver, the property flags and values, the body.

        One that was asked for by basic.get comes as if to a consumer whose tag is empty.
        """

    def empty(self) -> None:
        """There is no message for a basic.get."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A message that could not be routed: the arguments of basic.return, and the message."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """A publish, or all up to it, that the broker has taken over or refused."""

    def closed(self) -> None:
        """The broker closes the channel: whatever is sent on it now is ignored."""


class _Content:
    """A message whose frames have not all come."""

    __slots__ = ("deliver", "method", "missing", "parts", "properties")

    def __init__(self, method: bytes, *, deliver: bool) -> None:
        self.method = method
        self.deliver = deliver
        self.properties: bytes | None = None
        self.missing = 0
        self.parts: list[bytes] = []


class Tap:
    """Splits what the broker sends. Pure: bytes in, bytes and calls of sinks out.

    Args:
        on_blocked: Told when the broker begins or ends to block publishers of this connection.

    Attributes:
        refusal: Reply code and text of the connection.close that the broker sent.
    """

    def __init__(self, on_blocked: Callable[[bool], None]) -> None:
        self.refusal: tuple[int, str] | None = None
        self._on_blocked = on_blocked
        self._sinks: dict[int, Sink] = {}
        self._contents: dict[int, _Content] = {}
        self._rest = b""
        self._foreign = False

    def open(self, channel: int, sink: Sink) -> None:
        """From now on *sink* gets the deliveries, returns and confirms of *channel*."""
        self._sinks[channel] = sink
        self._contents.pop(channel, None)

    def close(self, channel: int, sink: Sink) -> None:
        """Leave what comes on *channel* to aiormq again, if it still goes to *sink*.

        The broker may have closed the channel, and its number belong to another one by now.
        """
        if self._sinks.get(channel) is sink:
            del self._sinks[channel]
            self._contents.pop(channel, None)

    def feed(self, data: bytes) -> bytes:
        """Read what has come; what is not for a sink is returned.

        Raises:
            MalformedFrame: The stream cannot be read on.
        """
        if self._foreign:
            return data
        buffer = self._rest + data if self._rest else data
        size, position, kept = len(buffer), 0, 0
        passed: list[bytes] = []
        sinks = self._sinks
        while size - position >= 8:
            kind, channel, length = _HEAD(buffer, position)
            start, end = position + 7, position + 7 + length
            if length > _LARGEST_FRAME:
                if buffer.startswith(b"AMQP", position):
                    # A broker of another version names its own, and closes.
                    self._foreign, position = True, size
                    break
                raise MalformedFrame(f"a frame of {length} bytes")
            if end >= size:
                break
            if buffer[end] != _FRAME_END:
                raise MalformedFrame("a frame without its end")
            sink = sinks.get(channel)
            if sink is not None and self._take(sink, kind, channel, buffer[start:end]):
                if kept < position:
                    passed.append(buffer[kept:position])
                kept = end + 1
            elif channel == 0 and kind == _METHOD:
                self._notice(buffer[start:end])
            position = end + 1
        if kept < position:
            passed.append(buffer[kept:position])
        self._rest = buffer[position:] if position < size else b""
        return b"".join(passed)

    def _take(self, sink: Sink, kind: int, channel: int, payload: bytes) -> bool:
        """Whether the frame was for *sink*, and is done with."""
        if kind == _METHOD:
            return self._take_method(sink, channel, payload)
        content = self._contents.get(channel)
        if content is None or kind not in (_HEADER, _BODY):
            return False
        if kind == _BODY:
            if content.properties is None:
                raise MalformedFrame("a body before its header")
            content.missing -= len(payload)
            content.parts.append(payload)
        elif content.properties is not None or len(payload) < 14:
            raise MalformedFrame("a header in the wrong place, or cut short")
        else:
            (content.missing,) = _U64(payload, 4)
            content.properties = payload[12:]
        if content.missing < 0:
            raise MalformedFrame("a body longer than its header says")
        if content.missing == 0:
            self._finish(sink, channel, content)
        return True

    def _take_method(self, sink: Sink, channel: int, payload: bytes) -> bool:
        method = payload[:4]
        if channel in self._contents:
            raise MalformedFrame("a method within a message")
        if method in (_DELIVER, _RETURN):
            # Consumer tag, delivery tag, a bit, exchange and routing key.
            if method == _DELIVER and (len(payload) < 5 or len(payload) < 16 + payload[4]):
                raise MalformedFrame("a delivery that is cut short")
            self._contents[channel] = _Content(payload[4:], deliver=method == _DELIVER)
            return True
        if method in (_ACK, _NACK):
            if len(payload) < 13:
                raise MalformedFrame("a confirm that is cut short")
            (tag,) = _U64(payload, 4)
            sink.confirmed(tag, multiple=bool(payload[12] & 1), accepted=method == _ACK)
            return True
        if method == _GET_OK:
            # Delivery tag, a bit, exchange and routing key, messages left.
            if len(payload) < 19:
                raise MalformedFrame("an answer to basic.get that is cut short")
            self._contents[channel] = _Content(b"\0" + payload[4:], deliver=True)
            return True
        if method == _GET_EMPTY:
            sink.empty()
            return True
        if method == _CHANNEL_CLOSE:
            sink.closed()
        return False

    def _finish(self, sink: Sink, channel: int, content: _Content) -> None:
        del self._contents[channel]
        parts = content.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        assert content.properties is not None
        take = sink.delivered if content.deliver else sink.returned
        take(content.method, content.properties, body)

    def _notice(self, payload: bytes) -> None:
        method = payload[:4]
        if method == _CONNECTION_CLOSE and len(payload) > 7:
            text = payload[7 : 7 + payload[6]].decode(errors="replace")
            self.refusal = int.from_bytes(payload[4:6], "big"), text
        elif method == _BLOCKED:
            self._on_blocked(True)
        elif method == _UNBLOCKED:
            self._on_blocked(False)


class TapProtocol(asyncio.StreamReaderProtocol):
    """asyncio's reader protocol, with a tap before the reader.

    Attributes:
        last_read: The loop's time at which the last bytes came.
        lost: Done when the socket is closed.
        unblocked: Clear while the broker blocks publishers of this connection.
        socket: The transport, once connected.
    """

    socket: asyncio.Transport
    writer: asyncio.StreamWriter

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._clock = loop.time
        self._fed = self.last_read = loop.time()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.tap = Tap(self._on_blocked)
        self._error: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.socket = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.last_read = now = self._clock()
        try:
            passed = self.tap.feed(data)
        except MalformedFrame as error:
            self._error = error
            self.socket.abort()
            return
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
        if (closed := getattr(self, "_closed", None)) is not None:
            closed.exception()
        self._error = self._error or error
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def reason(self) -> str:
        """Why the socket was closed, as far as is known."""
        if self.tap.refusal:
            return self.tap.refusal[1]
        if isinstance(self._error, MalformedFrame):
            return f"not AMQP 0-9-1: {self._error}"
        return str(self._error or "the socket was closed")

    def write(self, data: bytes) -> bool:
        """Send now, or when the socket takes it; False if it is closed or closing."""
        if self.socket.is_closing():
            return False
        self.socket.write(data)
        return True

    async def drained(self) -> None:
        """Wait until the socket takes more."""
        await self.writer.drain()

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
        attempt: Knows the server, in place of the URL that aiormq hands on.
        server_name: That the certificate must have; None for the name of the server.

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
