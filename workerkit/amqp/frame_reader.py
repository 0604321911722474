"""Read the frames of the channels on which workerkit consumes and publishes. Pure: no I/O."""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Protocol

from workerkit.amqp.frames import (
    BASIC_ACK,
    BASIC_DELIVER,
    BASIC_GET_EMPTY,
    BASIC_GET_OK,
    BASIC_NACK,
    BASIC_RETURN,
    BODY,
    CHANNEL_CLOSE,
    CONNECTION_BLOCKED,
    CONNECTION_CLOSE,
    CONNECTION_TUNE,
    CONNECTION_UNBLOCKED,
    DEFAULT_FRAME_MAX,
    FRAME_END,
    HEADER,
    METHOD,
    MIN_PROGRESS,
    FrameLimits,
    MalformedFrame,
    PartialMessage,
    UnfinishedInput,
    ends_with_texts,
    misplaced_frame,
    unpack_head,
)

_unpack_u64, _unpack_u32 = Struct(">Q").unpack_from, Struct(">I").unpack_from
_UNLIMITED = 2**64


class Sink(Protocol):
    """Receives the frames of one channel, in the order in which the broker sent them."""

    def delivered(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Handle a message.

        Args:
            method: The arguments of basic.deliver. For a basic.get the consumer tag is empty.
            properties: The property flags and values.
        """

    def oversized(self, method: bytes, properties: bytes, size: int) -> None:
        """Handle a message whose body of *size* bytes was too large and was discarded."""

    def empty(self) -> None:
        """Handle a basic.get-empty: the queue has no message."""

    def returned(self, method: bytes, properties: bytes, body: bytes) -> None:
        """Handle a message that could not be routed. *method* has the arguments of basic.return."""

    def confirmed(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Handle the ack or nack of a publish; with *multiple*, of all publishes up to it."""

    def closed(self) -> None:
        """Handle a channel.close of the broker, which ignores everything sent after it."""


class FrameReader:
    """Splits the bytes from the broker into frames for sinks and bytes for aiormq.

    Args:
        on_blocked: Called when the broker blocks or unblocks publishers of this connection.

    Attributes:
        refusal: Reply code and text of the connection.close that the broker sent; None until then.
        largest_message: The largest body in bytes; a larger one is discarded and reported to its
            sink as oversized.
    """

    def __init__(self, on_blocked: Callable[[bool], None]) -> None:
        self.refusal: tuple[int, str] | None = None
        self._on_blocked = on_blocked
        self._sinks: dict[int, Sink] = {}
        self._contents: dict[int, PartialMessage] = {}
        self.largest_message = _UNLIMITED
        self._limits = FrameLimits()
        self._rest: list[bytes] = []  # The parts of a frame that has not all arrived.
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
        buffer = self._complete_frame(data) if self._rest else data
        size, position, kept = len(buffer), 0, 0
        passed: list[bytes] = []
        sinks, limits = self._sinks, self._limits.by_type
        while size - position >= 7:
            kind, channel, length = unpack_head(buffer, position)
            if length > limits[kind]:
                self._check_other_protocol(buffer, position, kind, length)
                position = size
                break
            start, end = position + 7, position + 7 + length
            if end >= size:
                self._check_first_part(kind, channel, length)
                break
            if buffer[end] != FRAME_END:
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

    def unfinished(self) -> Iterator[UnfinishedInput]:
        """Yield the frame that has arrived in part; if there is none, the messages that have."""
        if self._rest:
            what = f"a frame with {self._received} of at least {self._needed} bytes"
            yield UnfinishedInput(self._frame_key, self._received, MIN_PROGRESS, what)
            return
        for channel, content in self._contents.items():
            received = 0 if content.properties is None else content.announced - content.missing
            what = f"a message on channel {channel} with {received} bytes received"
            yield UnfinishedInput(content, received, 1, what)

    def _complete_frame(self, chunk: bytes) -> bytes:
        """Return the complete frame and the bytes after it; nothing until it is complete."""
        self._rest.append(chunk)
        self._received += len(chunk)
        if self._received < self._needed:
            return b""
        whole, self._rest = b"".join(self._rest), []
        return whole

    def _check_other_protocol(self, buffer: bytes, position: int, kind: int, length: int) -> None:
        """Accept the header that a broker of another AMQP version sends before it closes.

        Raises:
            MalformedFrame: The buffer starts with a frame that is too large.
        """
        if self._began or position or not buffer.startswith(b"AMQP"):
            raise MalformedFrame(self._limits.explain(kind, length))
        self._other_protocol = True

    def _keep_rest(self, rest: bytes) -> None:
        self._rest, self._received = [rest], len(rest)
        self._needed = 8 + unpack_head(rest, 0)[2] if len(rest) >= 7 else 7
        self._frame_key += 1

    def _check_first_part(self, kind: int, channel: int, length: int) -> None:
        """Check the head of a frame before the rest of it has arrived."""
        if kind == METHOD or channel not in self._sinks:
            return
        content = self._contents.get(channel)
        if content is None or kind not in (HEADER, BODY):
            raise MalformedFrame(misplaced_frame(kind, channel))
        if kind == BODY and content.properties is not None and length > content.missing:
            raise MalformedFrame("a body longer than its header states")

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
            raise MalformedFrame("a misplaced or incomplete header")
        else:
            (size,) = _unpack_u64(payload, 4)
            content.announced = content.missing = size
            content.properties = payload[12:]
            if size > self.largest_message:
                content.parts = None
        if content.missing <= 0:
            if content.missing < 0:
                raise MalformedFrame("a body longer than its header states")
            self._finish(sink, channel, content)
        return True

    def _take_method(self, sink: Sink, channel: int, payload: bytes) -> bool:
        method = payload[:4]
        if channel in self._contents:
            raise MalformedFrame("a method inside a message")
        if method == BASIC_DELIVER:
            try:
                # Consumer tag, delivery tag, a bit, exchange and routing key.
                position = 14 + payload[4]
                position += payload[position] + 1
                is_whole = position + payload[position] + 1 == len(payload)
            except IndexError:
                is_whole = False
            if not is_whole:
                raise MalformedFrame("an incomplete basic.deliver")
            self._contents[channel] = PartialMessage(payload[4:])
            return True
        if method in (BASIC_ACK, BASIC_NACK):
            if len(payload) != 13:
                raise MalformedFrame("an incomplete confirm")
            (tag,) = _unpack_u64(payload, 4)
            sink.confirmed(tag, multiple=bool(payload[12] & 1), accepted=method == BASIC_ACK)
            return True
        return self._take_rare_method(sink, channel, payload)

    def _take_rare_method(self, sink: Sink, channel: int, payload: bytes) -> bool:
        method = payload[:4]
        if method == BASIC_RETURN:
            # Reply code and text, exchange and routing key.
            if not ends_with_texts(payload, 6, 3):
                raise MalformedFrame("an incomplete basic.return")
            self._contents[channel] = PartialMessage(payload[4:], returned=True)
            return True
        if method == BASIC_GET_OK:
            # Delivery tag, a bit, exchange, routing key and message count.
            if not ends_with_texts(payload[:-4], 13, 2):
                raise MalformedFrame("an incomplete basic.get-ok")
            self._contents[channel] = PartialMessage(b"\0" + payload[4:])
            return True
        if method == BASIC_GET_EMPTY:
            sink.empty()
            return True
        if method == CHANNEL_CLOSE:
            sink.closed()
        return False

    def _finish(self, sink: Sink, channel: int, content: PartialMessage) -> None:
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
        """Read a method of the connection; return a replacement for aiormq, or None."""
        method = payload[:4]
        if method == CONNECTION_CLOSE and len(payload) > 7:
            text = payload[7 : 7 + payload[6]].decode(errors="replace")
            self.refusal = int.from_bytes(payload[4:6], "big"), text
        elif method == CONNECTION_BLOCKED:
            self._on_blocked(True)
        elif method == CONNECTION_UNBLOCKED:
            self._on_blocked(False)
        elif method == CONNECTION_TUNE and len(payload) == 12:
            return self._tune(payload)
        return None

    def _tune(self, payload: bytes) -> bytes | None:
        """Store the largest frame size. If the broker sets no limit, workerkit sets one."""
        (frame_max,) = _unpack_u32(payload, 6)
        self._limits.agree(frame_max or DEFAULT_FRAME_MAX)
        if frame_max:
            return None
        return payload[:6] + DEFAULT_FRAME_MAX.to_bytes(4, "big") + payload[10:]
