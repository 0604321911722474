"""Frames of AMQP 0-9-1 (section 4.2.3): constants, size limits, and input that has not all arrived.

Pure: no I/O.
"""

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

NO_PERMISSION = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
FRAME_OVERHEAD = 8  # The head of 7 bytes and the end.
DEFAULT_FRAME_MAX = 131_072
"""RabbitMQ's default; used if the broker sets no limit."""
MIN_FRAME_MAX = 4_096
"""Every peer must accept frames of this size."""

unpack_head = Struct(">BHI").unpack_from
"""Frame type, channel, and size of the payload."""

# The ids of methods: class and method.
CONNECTION_TUNE, CONNECTION_CLOSE = b"\x00\x0a\x00\x1e", b"\x00\x0a\x00\x32"
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
CHANNEL_CLOSE = b"\x00\x14\x00\x28"
BASIC_CLASS = 60
BASIC_PUBLISH, BASIC_RETURN = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x32"
BASIC_DELIVER, BASIC_GET = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x46"
BASIC_GET_OK, BASIC_GET_EMPTY = b"\x00\x3c\x00\x47", b"\x00\x3c\x00\x48"
BASIC_ACK, BASIC_NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"

MIN_PROGRESS = 1024
"""Bytes of a frame that count as progress; heartbeats that arrive instead of its rest are fewer."""
STALL_CHECKS = 5

_LONGER_HEADERS = 2**20
_pack_head = Struct(">BHI").pack
_pack_content = Struct(">HHQ").pack  # class, a reserved short, size of the body
_END = bytes((FRAME_END,))


class MalformedFrame(Exception):
    """The broker sent bytes that are not AMQP 0-9-1; the connection must be closed."""


class FrameLimits:
    """The largest payload of a frame, by its type.

    Before the broker has proposed a size, RabbitMQ's default applies.

    Attributes:
        by_type: 256 limits, as a type is one byte; -1 for types that do not exist.
    """

    def __init__(self) -> None:
        self.by_type = [-1] * 256
        self.agree(DEFAULT_FRAME_MAX)

    def agree(self, frame_max: int) -> None:
        """Set the limits for the frame size that both sides agreed on.

        RabbitMQ splits bodies to this size, but not headers, which may be larger: it adds headers
        to a message that it dead-letters, and an older message may have had a higher limit.
        """
        longest = max(frame_max, MIN_FRAME_MAX) - FRAME_OVERHEAD
        self.by_type[METHOD] = self.by_type[BODY] = longest
        self.by_type[HEADER] = longest + _LONGER_HEADERS
        self.by_type[HEARTBEAT] = 0

    def explain(self, kind: int, length: int) -> str:
        """Explain why the limits refuse the head of a frame."""
        if self.by_type[kind] < 0:
            return f"an unknown frame type {kind}: AMQP has 1, 2, 3 and 8"
        return f"a frame of type {kind} with {length} bytes: the limit is {self.by_type[kind]}"


class UnfinishedInput(NamedTuple):
    """A frame or a message that has arrived in part.

    Attributes:
        key: The identity of the frame or the message.
        received: The bytes that have arrived.
        min_progress: How many more bytes count as progress.
        text: A description for logs.
    """

    key: object
    received: int
    min_progress: int
    text: str


class PartialMessage:
    """A message of which some frames have not arrived."""

    __slots__ = ("announced", "method", "missing", "parts", "properties", "returned")

    def __init__(self, method: bytes, *, returned: bool = False) -> None:
        self.method = method
        self.returned = returned
        self.properties: bytes | None = None
        self.announced = self.missing = 0
        self.parts: list[bytes] | None = []  # None for one that is too large to be kept.


def encode_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a whole frame."""
    return b"".join((_pack_head(kind, channel, len(payload)), payload, _END))


def content_header(properties: bytes, body: bytes) -> bytes:
    """Return the payload of the header frame of a message."""
    return _pack_content(BASIC_CLASS, 0, len(body)) + properties


def message_frames(
    channel: int, method: bytes, header: bytes, body: bytes, largest: int
) -> list[bytes]:
    """Return the frames of a message. No other frame of the channel may be between them.

    Args:
        header: As `content_header` returns it.
        largest: Bytes of a frame's payload at most.
    """
    return [
        encode_frame(METHOD, channel, method),
        encode_frame(HEADER, channel, header),
        *[
            encode_frame(BODY, channel, body[start : start + largest])
            for start in range(0, len(body), largest)
        ],
    ]


def misplaced_frame(kind: int, channel: int) -> str:
    """Describe a frame that belongs to no message, for an error."""
    return f"a frame of type {kind} on channel {channel} that belongs to no message"


def ends_with_texts(payload: bytes, position: int, number: int) -> bool:
    """Return whether the rest of *payload* consists of *number* short strings."""
    size = len(payload)
    for _ in range(number):
        if position >= size:
            return False
        position += 1 + payload[position]
    return position == size


@dataclass(slots=True)
class _Progress:
    """The progress of a frame or a message.

    Attributes:
        since: When it last made progress.
        received: The bytes that had arrived then.
        checks: How often it was checked since.
    """

    since: float
    received: int
    checks: int = 0


class StallDetector:
    """Detects frames and messages that the broker does not finish.

    A large message may take long on a slow connection, so the time without progress counts, not the
    total time. A process whose event loop was blocked could not read, so five checks in a row
    without progress are required as well.

    Args:
        seconds: The time without progress. Call `check` five times within it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[object, _Progress] = {}

    def check(self, unfinished: list[UnfinishedInput], now: float) -> str:
        """Return a description of what has stalled; empty if nothing has."""
        previous, self._seen = self._seen, {}
        for each in unfinished:
            seen = previous.get(each.key)
            if seen is None or each.received - seen.received >= each.min_progress:
                seen = _Progress(now, each.received)
            seen.checks += 1
            self._seen[each.key] = seen
            if seen.checks > STALL_CHECKS and now - seen.since >= self._seconds:
                return f"{each.text} made no progress for {now - seen.since:.1f} s"
        return ""
