"""Replace invalid UTF-8 in reply texts, so that pamqp can decode them.

RabbitMQ truncates reply texts to 255 bytes, even inside a character of a queue's name. pamqp raises
an error for half a character, and aiormq would lose the connection instead of one channel.
"""

from struct import Struct

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
