"""The properties of a message as encoded: AMQP 0-9-1, section 2.3.5.2 and the class `basic`.

Decoding is total: a sender decides what these bytes are, so no bytes may raise. Encoding what was
decoded gives the same bytes, so a message that is moved stays what it was.
"""

from dataclasses import dataclass, fields
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")

PERSISTENT = 2


@dataclass(slots=True, kw_only=True)
class Properties:
    """The fourteen properties; None is absent.

    Text keeps bytes that are no UTF-8 as lone surrogates, see `readable`.

    Attributes:
        table: The headers as they are encoded, preceded by their size.
        expiration: Milliseconds, as the decimal text that AMQP has.
        timestamp: Seconds since 1970, as sent; it may be out of the range of `datetime`.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    table: bytes | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


# In the order of the flags, the highest bit first.
_FLAGS = {each.name: 1 << (15 - position) for position, each in enumerate(fields(Properties))}
_OCTETS = ("delivery_mode", "priority")


def decode(raw: bytes) -> Properties:
    """Read property flags and the values behind them. Never raises.

    From the first value on that does not fit in, the properties are absent.
    """
    properties = Properties()
    position = 2
    try:
        (flags,) = _U16.unpack_from(raw)
        for name, flag in _FLAGS.items():
            if flags & flag:
                value, position = _read(name, raw, position)
                setattr(properties, name, value)
    except (StructError, IndexError):
        pass
    return properties


def content_labels(raw: bytes) -> tuple[str | None, str | None]:
    """Read `content_type` and `content_encoding` alone, the first two. Never raises."""
    found: list[str | None] = [None, None]
    position = 2
    try:
        for place, flag in enumerate((0x80, 0x40)):
            if raw[0] & flag:
                found[place], position = _read("label", raw, position)
    except IndexError:
        pass
    return found[0], found[1]


def encode(properties: Properties) -> bytes:
    """Write property flags and values.

    Raises:
        ValueError: A short text is longer than 255 bytes, or a number out of range.
    """
    flags = 0
    parts = [b""]
    for name, flag in _FLAGS.items():
        value = getattr(properties, name)
        if value is not None:
            flags |= flag
            parts.append(_written(name, value))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def readable(text: str | None) -> str | None:
    """A text property for people: what is no UTF-8 in it becomes U+FFFD."""
    if text is None:
        return None
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _read(name: str, raw: bytes, position: int) -> tuple[Any, int]:
    if name in _OCTETS:
        return raw[position], position + 1
    if name == "timestamp":
        return _U64.unpack_from(raw, position)[0], position + 8
    if name == "table":
        end = position + 4 + int(_U32.unpack_from(raw, position)[0])
    else:
        position += 1
        end = position + raw[position - 1]
    if end > len(raw):
        raise IndexError(f"{name} ends behind the frame")
    value = raw[position:end]
    return value if name == "table" else value.decode(errors="surrogateescape"), end


def _written(name: str, value: Any) -> bytes:
    if name in _OCTETS:
        return bytes((value,))
    if name == "timestamp":
        return _U64.pack(value)
    if name == "table":
        return bytes(value)
    text: bytes = value.encode(errors="surrogateescape")
    if len(text) > 255:
        raise ValueError(f"{name} is {len(text)} bytes long, and AMQP allows 255")
    return bytes((len(text),)) + text
