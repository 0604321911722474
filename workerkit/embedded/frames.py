"""Read frames: AMQP 0-9-1, section 4.2.3."""

from struct import Struct

from workerkit.embedded.errors import Refusal, malformed

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
HEAD_SIZE, FRAME_SIZE = 7, 8  # Without and with the octet at the end.
_HEAD = Struct(">BHI").unpack_from
_END = 0xCE
_SMALLEST = {METHOD: 4, HEADER: 14, BODY: 0}


def next_frame(data: bytes, position: int, frame_max: int) -> tuple[int, int, bytes] | None:
    """Return type, channel and payload of the frame at *position*; None if it is incomplete.

    There must be more than `HEAD_SIZE` bytes.

    Raises:
        Refusal: It is too large, or has a wrong end.
    """
    kind, channel, size = _HEAD(data, position)
    start, end = position + HEAD_SIZE, position + HEAD_SIZE + size
    if size > frame_max - FRAME_SIZE:
        raise malformed(kind, b"", f"{{frame_too_large,{size},{frame_max - FRAME_SIZE}}}")
    if end >= len(data):
        return None
    if data[end] != _END:
        raise malformed(kind, data[start:end], f"{{invalid_frame_end_marker,{data[end]}}}")
    return kind, channel, data[start:end]


def check(kind: int, channel: int, payload: bytes) -> None:
    """Raise an error for a frame of an unknown type or size."""
    if kind == HEARTBEAT and channel and not payload:
        raise Refusal("UNEXPECTED_FRAME", f"type {kind}, all octets = <<>>")
    if kind not in _SMALLEST or len(payload) < _SMALLEST[kind]:
        raise malformed(kind, payload)
