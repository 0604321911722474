"""Frames (AMQP 0-9-1, section 4.2.3): their limits, and the messages that consist of them."""

from typing import NamedTuple

NO_PERMISSION = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406


METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_OVERHEAD = 8  # Head and end.
DEFAULT_FRAME_MAX = 131_072
"""RabbitMQ's default; used if the broker sets no limit."""

_LEAST_FRAME_MAX = 4_096  # Every peer must accept frames of this size.
_LONGER_HEADERS = 2**20
MIN_PROGRESS = 1024
"""Bytes of a frame that count as progress. Heartbeats that a broken head takes in do not."""


class MalformedFrame(Exception):
    """The broker sent bytes that are not AMQP 0-9-1; the connection must be closed."""


class Limits:
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

        RabbitMQ splits bodies to this size, but not headers: it adds to the headers of a message
        that it dead-letters, and a message may have been published when the limit was higher.
        """
        longest = max(frame_max, _LEAST_FRAME_MAX) - FRAME_OVERHEAD
        self.by_type[METHOD] = self.by_type[BODY] = longest
        self.by_type[HEADER] = longest + _LONGER_HEADERS
        self.by_type[HEARTBEAT] = 0

    def explain(self, kind: int, length: int) -> str:
        """Explain why the limits refuse the head of a frame."""
        if self.by_type[kind] < 0:
            return f"an unknown frame type {kind}: AMQP has 1, 2, 3 and 8"
        return f"a frame of type {kind} with {length} bytes: the limit is {self.by_type[kind]}"


class Unfinished(NamedTuple):
    """A frame or a message that has arrived in part.

    Attributes:
        key: Identifies the frame or the message.
        received: The bytes that have arrived.
        min_progress: How many more bytes count as progress.
        text: A description for logs.
    """

    key: object
    received: int
    min_progress: int
    text: str


class Content:
    """A message whose frames have not all arrived."""

    __slots__ = ("announced", "method", "missing", "parts", "properties", "returned")

    def __init__(self, method: bytes, *, returned: bool = False) -> None:
        self.method = method
        self.returned = returned
        self.properties: bytes | None = None
        self.announced = self.missing = 0
        self.parts: list[bytes] | None = []  # None for one that is too large to be kept.


def misplaced_frame(kind: int, channel: int) -> str:
    """Explain what is wrong with a frame that belongs to no message."""
    return f"a frame of type {kind} on channel {channel} that belongs to no message"


def ends_with_texts(payload: bytes, position: int, number: int) -> bool:
    """Whether *number* short strings follow from *position* on, and nothing else."""
    size = len(payload)
    for _ in range(number):
        if position >= size:
            return False
        position += 1 + payload[position]
    return position == size
