"""Frames (AMQP 0-9-1, section 4.2.3): which ones cannot be true, and what is made of them."""

from typing import NamedTuple

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_OVERHEAD = 8  # Head and end.
DEFAULT_FRAME_MAX = 131_072
"""RabbitMQ's own; what is agreed on where the broker would leave the size open."""

_LEAST_FRAME_MAX = 4_096  # Everybody has to take frames of this size.
_LONGER_HEADERS = 2**20
MIN_PROGRESS = 1024
"""Bytes of a frame. What a broken head swallows, such as heartbeats, is no progress."""


class MalformedFrame(Exception):
    """The broker sent bytes that are not AMQP 0-9-1; the connection has to go."""


class Limits:
    """How long the payload of a frame may be, by its type.

    Before the broker has proposed a size, RabbitMQ's default holds.

    Attributes:
        by_type: 256 of them, as a type is one byte; -1 for types that do not exist.
    """

    def __init__(self) -> None:
        self.by_type = [-1] * 256
        self.agree(DEFAULT_FRAME_MAX)

    def agree(self, frame_max: int) -> None:
        """Both sides agreed on the size of the largest frame.

        RabbitMQ keeps to it with bodies, which it can cut, but not with headers: it adds to those
        of a message that it moves, and passes on what was published when frames were larger.
        """
        longest = max(frame_max, _LEAST_FRAME_MAX) - FRAME_OVERHEAD
        self.by_type[METHOD] = self.by_type[BODY] = longest
        self.by_type[HEADER] = longest + _LONGER_HEADERS
        self.by_type[HEARTBEAT] = 0

    def explain(self, kind: int, length: int) -> str:
        """What is wrong with a head that the limits refuse."""
        if self.by_type[kind] < 0:
            return f"an unknown frame type {kind}: AMQP has 1, 2, 3 and 8"
        return f"a frame of type {kind} with {length} bytes: the limit is {self.by_type[kind]}"


class Unfinished(NamedTuple):
    """A frame or a message that has come in part.

    Attributes:
        key: The same as long as it is the same frame, the same message.
        received: Bytes of it.
        min_progress: More bytes of it that count as progress.
        text: What it is, for people.
    """

    key: object
    received: int
    min_progress: int
    text: str


class Content:
    """A message whose frames have not all come."""

    __slots__ = ("announced", "method", "missing", "parts", "properties", "returned")

    def __init__(self, method: bytes, *, returned: bool = False) -> None:
        self.method = method
        self.returned = returned
        self.properties: bytes | None = None
        self.announced = self.missing = 0
        self.parts: list[bytes] | None = []  # None for one that is too large to be kept.


def misplaced_frame(kind: int, channel: int) -> str:
    """What is wrong with a frame that belongs to no message."""
    return f"a frame of type {kind} on channel {channel} that belongs to no message"


def ends_with_texts(payload: bytes, position: int, number: int) -> bool:
    """Whether there are that many short strings from *position* on, and nothing else."""
    size = len(payload)
    for _ in range(number):
        if position >= size:
            return False
        position += 1 + payload[position]
    return position == size
