"""The properties of a message on the wire: AMQP 0-9-1, section 2.3.5.2 and the class `basic`.

Decoding is total: a sender decides what these bytes are, so no bytes may raise.
"""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")

PERSISTENT = 2


@dataclass(slots=True, kw_only=True)
class Properties:
    """The fourteen properties; None is absent.

    Attributes:
        headers: Empty where there are none, or where they cannot be decoded.
        expiration: Milliseconds, as the decimal text that AMQP has.
        timestamp: Seconds since 1970, as sent; it may be out of the range of `datetime`.
        undecoded: The bytes of a headers table that cannot be decoded, and of all that could not
            be read behind it; empty when all is well.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
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
    undecoded: bytes = b""


# In the order of the flags, the highest bit first.
_NAMES = tuple(each.name for each in fields(Properties) if each.name != "undecoded")
_FLAGS = {name: 1 << (15 - position) for position, name in enumerate(_NAMES)}
_OCTETS = ("delivery_mode", "priority")


def decode(raw: bytes) -> Properties:
    """Read property flags and the values behind them. Never raises.

    Text that is not UTF-8 keeps its readable part, with U+FFFD for the rest.
    """
    properties = Properties()
    position = 2
    try:
        (flags,) = _U16.unpack_from(raw)
        for name, flag in _FLAGS.items():
            if flags & flag:
                value, position = _read(name, raw, position)
                if name == "headers":
                    value = _table(value, properties)
                setattr(properties, name, value)
    except (StructError, IndexError, ValueError):
        properties.undecoded = properties.undecoded or raw[position:]
    return properties


def encode(properties: Properties) -> bytes:
    """Write property flags and values; `undecoded` is left out.

    Raises:
        ValueError: A short text is longer than 255 bytes.
        TypeError: A header has a type that AMQP does not know.
    """
    flags = 0
    parts = [b""]
    for name, flag in _FLAGS.items():
        value = getattr(properties, name)
        if value is None or (name == "headers" and not value):
            continue
        flags |= flag
        parts.append(_write(name, value))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


def moment(timestamp: int | None) -> datetime | None:
    """A timestamp as an aware `datetime`; None where there is none or no `datetime` can hold it."""
    if timestamp is None:
        return None
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _read(name: str, raw: bytes, position: int) -> tuple[Any, int]:
    if name in _OCTETS:
        return raw[position], position + 1
    if name == "timestamp":
        return _U64.unpack_from(raw, position)[0], position + 8
    if name == "headers":
        (size,) = _U32.unpack_from(raw, position)
        end = position + 4 + size
    else:
        position += 1
        end = position + raw[position - 1]
    if end > len(raw):
        raise ValueError(f"{name} ends behind the frame")
    value = raw[position:end]
    return value if name == "headers" else value.decode(errors="replace"), end


def _table(raw: bytes, properties: Properties) -> dict[str, Any]:
    try:
        _, headers = pamqp_decode.field_table(raw)
    except Exception:
        # pamqp raises whatever its struct and datetime calls raise; the table is the sender's.
        properties.undecoded = raw
        return {}
    return headers


def _write(name: str, value: Any) -> bytes:
    if name in _OCTETS:
        return bytes((value,))
    if name == "timestamp":
        return _U64.pack(value)
    if name == "headers":
        return bytes(pamqp_encode.field_table(value))
    text: bytes = value.encode()
    if len(text) > 255:
        raise ValueError(f"{name} is {len(text)} bytes long, and AMQP allows 255")
    return bytes((len(text),)) + text
