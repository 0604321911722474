"""Read the frames of the channels that workerkit consumes and publishes on. Pure: no I/O."""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Protocol

from workerkit.amqp.frames import (
    BODY,
    DEFAULT_FRAME_MAX,
    HEADER,
    METHOD,
    MIN_PROGRESS,
    Content,
    Limits,
    MalformedFrame,
    Unfinished,
    ends_with_texts,
    misplaced_frame,
)

_HEAD = Struct(">BHI").unpack_from  # frame type, channel, size
_U64, _U32 = Struct(">Q").unpack_from, Struct(">I").unpack_from
_FRAME_END = 0xCE
_DELIVER, _RETURN = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x32"
_ACK, _NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
_GET_OK, _GET_EMPTY = b"\x00\x3c\x00\x47", b"\x00\x3c\x00\x48"
_CHANNEL_CLOSE = b"\x00\x14\x00\x28"
_TUNE, _CONNECTION_CLOSE = b"\x00\x0a\x00\x1e", b"\x00\x0a\x00\x32"
_BLOCKED, _UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
_UNLIMITED = 2**64


class Sink(Protocol):
    """Receives the frames of one channel, in the order in which the broker sent them."""

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A message: the arguments of basic.deliver, the property flags and values, the body.

        A message for a basic.get has an empty consumer tag.
        """

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """A message as above, whose body of *size* bytes was too large and was discarded."""

    def empty(self) -> None:
        """There is no message for a basic.get."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A message that could not be routed: the arguments of basic.return, and the message."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """A publish, or all up to it, that the broker has acked or nacked."""

    def closed(self) -> None:
        """The broker closes the channel, and ignores what is sent on it from now on."""


class Tap:
    """Splits what the broker sends. Pure: bytes in, bytes and calls of sinks out.

    Args:
        on_blocked: Called when the broker blocks or unblocks publishers of this connection.

    Attributes:
        refusal: Reply code and text of the connection.close that the broker sent.
        largest_message: The largest body in bytes; a larger one is discarded and reported to its
            sink as oversized.
    """

    def __init__(self, on_blocked: Callable[[bool], None]) -> None:
        self.refusal: tuple[int, str] | None = None
        self._on_blocked = on_blocked
        self._sinks: dict[int, Sink] = {}
        self._contents: dict[int, Content] = {}
        self.largest_message = _UNLIMITED
        self._limits = Limits()
        self._rest: list[bytes] = []  # Of a frame that has not all come.
        self._received = self._needed = self._frame_key = 0
        self._began = self._other_protocol = False

    def open(self, channel: int, sink: Sink) -> None:
        """Deliver the messages, returns and confirms of *channel* to *sink* from now on."""
        self._sinks[channel] = sink
        self._contents.pop(channel, None)

    def close(self, channel: int, sink: Sink) -> None:
        """Pass the frames of *channel* to aiormq again, if *sink* still receives them.

        The broker may have closed the channel, and another one may have its number by now.
        """
        if self._sinks.get(channel) is sink:
            del self._sinks[channel]
            self._contents.pop(channel, None)

    def feed(self, data: bytes) -> bytes:
        """Read the bytes that arrived; return those that are not for a sink.

        Raises:
            MalformedFrame: The bytes are not AMQP 0-9-1.
        """
        if self._other_protocol:
            return data
        buffer = self._whole_frame(data) if self._rest else data
        size, position, kept = len(buffer), 0, 0
        passed: list[bytes] = []
        sinks, limits = self._sinks, self._limits.by_type
        while size - position >= 7:
            kind, channel, length = _HEAD(buffer, position)
            if length > limits[kind]:
                self._check_other_protocol(buffer, position, kind, length)
                position = size
                break
            start, end = position + 7, position + 7 + length
            if end >= size:
                self._check_first_part(kind, channel, length)
                break
            if buffer[end] != _FRAME_END:
                raise MalformedFrame("a frame without its end")
            sink = sinks.get(channel)
            if sink is not None and self._take(sink, kind, channel, buffer[start:end]):
                if kept < position:
                    passed.append(buffer[kept:position])
                kept = end + 1
            elif channel == 0 and kind == METHOD:
                instead = self._read_connection_method(buffer[start:end])
                if instead is not None:
                    passed += [buffer[kept:start], instead, buffer[end : end + 1]]
                    kept = end + 1
            position = end + 1
        if kept < position:
            passed.append(buffer[kept:position])
        self._began |= position > 0
        if position < size:
            self._keep_rest(buffer[position:])
        return b"".join(passed)

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the frame that has arrived in part, else the messages that have."""
        if self._rest:
            what = f"a frame with {self._received} of at least {self._needed} bytes"
            yield Unfinished(self._frame_key, self._received, MIN_PROGRESS, what)
            return
        for channel, content in self._contents.items():
            received = 0 if content.properties is None else content.announced - content.missing
            what = f"a message on channel {channel} with {received} bytes received"
            yield Unfinished(content, received, 1, what)

    def _whole_frame(self, chunk: bytes) -> bytes:
        """Return the frame that had arrived in part, and the rest; nothing until it is whole."""
        self._rest.append(chunk)
        self._received += len(chunk)
        if self._received < self._needed:
            return b""
        whole, self._rest = b"".join(self._rest), []
        return whole

    def _check_other_protocol(self, buffer: bytes, position: int, kind: int, length: int) -> None:
        """Accept the header that a broker of another AMQP version sends before it closes.

        Raises:
            MalformedFrame: It is a frame that is too large.
        """
        if self._began or position or not buffer.startswith(b"AMQP"):
            raise MalformedFrame(self._limits.explain(kind, length))
        self._other_protocol = True

    def _keep_rest(self, rest: bytes) -> None:
        self._rest, self._received = [rest], len(rest)
        self._needed = 8 + _HEAD(rest, 0)[2] if len(rest) >= 7 else 7
        self._frame_key += 1

    def _check_first_part(self, kind: int, channel: int, length: int) -> None:
        """Check the head of a frame before the rest of it has arrived."""
        if kind == METHOD or channel not in self._sinks:
            return
        content = self._contents.get(channel)
        if content is None or kind not in (HEADER, BODY):
            raise MalformedFrame(misplaced_frame(kind, channel))
        if kind == BODY and content.properties is not None and length > content.missing:
            raise MalformedFrame("a body longer than its header says")

    def _take(self, sink: Sink, kind: int, channel: int, payload: bytes) -> bool:
        """Deliver the frame to *sink*; False if it is for aiormq."""
        if kind == METHOD:
            return self._take_method(sink, channel, payload)
        content = self._contents.get(channel)
        if content is None or kind not in (HEADER, BODY):
            raise MalformedFrame(misplaced_frame(kind, channel))
        if kind == BODY:
            if content.properties is None:
                raise MalformedFrame("a body before its header")
            content.missing -= len(payload)
            if content.parts is not None:
                content.parts.append(payload)
        elif content.properties is not None or len(payload) < 14:
            raise MalformedFrame("a header in the wrong place, or cut short")
        else:
            (size,) = _U64(payload, 4)
            content.announced = content.missing = size
            content.properties = payload[12:]
            if size > self.largest_message:
                content.parts = None
        if content.missing <= 0:
            if content.missing < 0:
                raise MalformedFrame("a body longer than its header says")
            self._finish(sink, channel, content)
        return True

    def _take_method(self, sink: Sink, channel: int, payload: bytes) -> bool:
        method = payload[:4]
        if channel in self._contents:
            raise MalformedFrame("a method within a message")
        if method == _DELIVER:
            try:
                # Consumer tag, delivery tag, a bit, exchange and routing key.
                position = 14 + payload[4]
                position += payload[position] + 1
                is_whole = position + payload[position] + 1 == len(payload)
            except IndexError:
                is_whole = False
            if not is_whole:
                raise MalformedFrame("a delivery that is cut short")
            self._contents[channel] = Content(payload[4:])
            return True
        if method in (_ACK, _NACK):
            if len(payload) != 13:
                raise MalformedFrame("a confirm that is cut short")
            (tag,) = _U64(payload, 4)
            sink.confirmed(tag, multiple=bool(payload[12] & 1), accepted=method == _ACK)
            return True
        return self._take_rare_method(sink, channel, payload)

    def _take_rare_method(self, sink: Sink, channel: int, payload: bytes) -> bool:
        method = payload[:4]
        if method == _RETURN:
            # Reply code and text, exchange and routing key.
            if not ends_with_texts(payload, 6, 3):
                raise MalformedFrame("a returned message that is cut short")
            self._contents[channel] = Content(payload[4:], returned=True)
            return True
        if method == _GET_OK:
            # Delivery tag, a bit, exchange and routing key, messages left.
            if not ends_with_texts(payload[:-4], 13, 2):
                raise MalformedFrame("an answer to basic.get that is cut short")
            self._contents[channel] = Content(b"\0" + payload[4:])
            return True
        if method == _GET_EMPTY:
            sink.empty()
            return True
        if method == _CHANNEL_CLOSE:
            sink.closed()
        return False

    def _finish(self, sink: Sink, channel: int, content: Content) -> None:
        del self._contents[channel]
        parts = content.parts
        assert content.properties is not None
        if content.returned:
            sink.returned(content.method, content.properties, b"".join(parts or ()))
        elif parts is None:
            sink.oversized(content.method, content.properties, content.announced)
        else:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            sink.delivered(content.method, content.properties, body)

    def _read_connection_method(self, payload: bytes) -> bytes | None:
        """Read a method of the connection; return the one that aiormq receives instead, if any."""
        method = payload[:4]
        if method == _CONNECTION_CLOSE and len(payload) > 7:
            text = payload[7 : 7 + payload[6]].decode(errors="replace")
            self.refusal = int.from_bytes(payload[4:6], "big"), text
        elif method == _BLOCKED:
            self._on_blocked(True)
        elif method == _UNBLOCKED:
            self._on_blocked(False)
        elif method == _TUNE and len(payload) == 12:
            return self._tune(payload)
        return None

    def _tune(self, payload: bytes) -> bytes | None:
        """Note the largest frame. If the broker sets no limit, workerkit sets one."""
        (frame_max,) = _U32(payload, 6)
        self._limits.agree(frame_max or DEFAULT_FRAME_MAX)
        if frame_max:
            return None
        return payload[:6] + DEFAULT_FRAME_MAX.to_bytes(4, "big") + payload[10:]
