"""Decode and encode the properties of a message (AMQP 0-9-1, section 2.3.5.2, class `basic`).

Decoding never raises, because the sender determines these bytes. Encoding decoded properties
returns the same bytes, so a copy of a message has the properties of the original.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

from workerkit.amqp.table import MalformedTable
from workerkit.amqp.table import decode as decode_table

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")

PERSISTENT = 2


@dataclass(slots=True, kw_only=True)
class Properties:
    """The fourteen properties; None means absent.

    Bytes that are not UTF-8 are lone surrogates in a text; see `readable`.

    Attributes:
        table: The encoded headers, beginning with their size.
        expiration: Milliseconds, as decimal text.
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
    """Decode property flags and values. Never raises.

    After the first invalid value, all properties are absent.
    """
    properties = Properties()
    position = 2
    try:
        (flags,) = _U16.unpack_from(raw)
        for name, flag in _FLAGS.items():
            if flags & flag:
                value, position = _decode_value(name, raw, position)
                setattr(properties, name, value)
    except (StructError, IndexError):
        pass
    return properties


def content_labels(raw: bytes) -> tuple[str | None, str | None]:
    """Decode only the first two properties, `content_type` and `content_encoding`. Never raises."""
    found: list[str | None] = [None, None]
    position = 2
    try:
        for place, flag in enumerate((0x80, 0x40)):
            if raw[0] & flag:
                found[place], position = _decode_value("label", raw, position)
    except IndexError:
        pass
    return found[0], found[1]


def encode(properties: Properties) -> bytes:
    """Encode property flags and values.

    Raises:
        ValueError: A text is longer than 255 bytes, or a number is out of range.
    """
    flags = 0
    parts = [b""]
    for name, flag in _FLAGS.items():
        value = getattr(properties, name)
        if value is not None:
            flags |= flag
            parts.append(_encode_value(name, value))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


class RawHeaders(Mapping[str, Any]):
    """The headers in encoded properties; a text is found without decoding the others.

    To decode all of them takes 10 µs and more. A search finds the bytes of an entry, wherever they
    are, so a sender can hide a text in the value of another header. Trust the result no more than
    any header.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def get(self, key: str, default: Any = None) -> Any:
        """Return the text of a header; *default* if it is absent or no text."""
        entry = _TEXT_ENTRIES.get(key) or _text_entry(key)
        raw = self._raw
        start = raw.find(entry)
        if start < 0:
            return default
        start += len(entry)
        try:
            (size,) = _U32.unpack_from(raw, start)
            return raw[start + 4 : start + 4 + size].decode()
        except (StructError, UnicodeDecodeError):
            return default

    def __getitem__(self, key: str) -> Any:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        try:
            return iter(decode_table(decode(self._raw).table or _NO_TABLE))
        except MalformedTable:
            return iter(())

    def __len__(self) -> int:
        return len(list(iter(self)))


_NO_TABLE = b"\0\0\0\0"
# The bytes before the size of a text, by the name of the header. Few names are ever asked for.
_TEXT_ENTRIES: dict[str, bytes] = {}
_MOST_ENTRIES = 100


def _text_entry(name: str) -> bytes:
    encoded = name.encode()[:255]
    entry = bytes((len(encoded),)) + encoded + b"S"
    if len(_TEXT_ENTRIES) < _MOST_ENTRIES:
        _TEXT_ENTRIES[name] = entry
    return entry


def readable(text: str | None) -> str | None:
    """Return a text property for display: bytes that are not UTF-8 become U+FFFD."""
    if text is None:
        return None
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _decode_value(name: str, raw: bytes, position: int) -> tuple[Any, int]:
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
        raise IndexError(f"{name} exceeds the frame")
    value = raw[position:end]
    return value if name == "table" else value.decode(errors="surrogateescape"), end


def _encode_value(name: str, value: Any) -> bytes:
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
