"""Decode and encode field tables, such as the headers of a message, as RabbitMQ does.

The types are those of AMQP 0-9-1 section 4.2.5.5 with RabbitMQ's errata. The codec of pamqp
shortens floats to 32 bits, cannot write bytes, and raises on some values that senders may write.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

_MAX_DEPTH = 32
_SIZE = Struct(">I")
_INT32, _INT64 = Struct(">i"), Struct(">q")
_TIMESTAMP = Struct(">Q")
_DOUBLE = Struct(">d")
_DECIMAL = Struct(">Bi")
_NUMBERS = {
    tag: Struct(">" + code)
    for tag, code in {
        b"b": "b", b"B": "B", b"s": "h", b"u": "H", b"I": "i", b"i": "I",
        b"l": "q", b"L": "Q", b"f": "f", b"d": "d",
    }.items()
}  # fmt: skip


class MalformedTable(ValueError):
    """The bytes are not a valid field table."""


def decode(raw: bytes) -> dict[str, Any]:
    """Decode a table that begins with its size.

    Text that is not UTF-8 stays `bytes`. A timestamp out of the range of `datetime` stays an `int`.

    Raises:
        MalformedTable: The bytes are not a valid table. No other error is raised.
    """
    try:
        return {name: value for name, value, _ in _entries(raw, 0, 0)}
    except (StructError, IndexError, ValueError) as error:
        raise MalformedTable(str(error)) from error


def encode(table: Mapping[str, Any]) -> bytes:
    """Encode a table, beginning with its size.

    Raises:
        TypeError: AMQP has no type for a value, or a name is not a `str`.
        ValueError: A name has more than 255 bytes, or a number is out of range.
    """
    return _with_size(b"".join(_encode_entry(name, value) for name, value in table.items()))


def merge(
    raw: bytes, changes: Mapping[str, Any], keep: Callable[[str, bytes], bool] = lambda *_: True
) -> bytes:
    """Replace and add entries of an encoded table. The bytes of other entries do not change.

    Args:
        changes: The new entries.
        keep: Returns whether an entry is kept, by its name and its bytes; not called for *changes*.

    Raises:
        MalformedTable: *raw* is not a valid table.
    """
    try:
        kept = [
            entry
            for name, _, entry in _entries(raw, 0, 0)
            if name not in changes and keep(name, entry)
        ]
    except (StructError, IndexError, ValueError) as error:
        raise MalformedTable(str(error)) from error
    return _with_size(b"".join(kept) + encode(changes)[4:])


def to_datetime(timestamp: int) -> datetime | None:
    """Convert seconds since 1970 to an aware `datetime`; None if out of range."""
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _entries(raw: bytes, start: int, depth: int) -> Iterator[tuple[str, Any, bytes]]:
    """Yield name, value and bytes of each entry of the table at *start*."""
    position, end = _span(raw, start)
    while position < end:
        began = position
        name_end = position + 1 + raw[position]
        name = raw[position + 1 : name_end].decode(errors="replace")
        value, position = _decode_value(raw, name_end, depth)
        yield name, value, raw[began:position]
    if position != end:
        raise MalformedTable("an entry exceeds its table")


def _span(raw: bytes, start: int) -> tuple[int, int]:
    """Return the start of a value that begins with its size, and its end."""
    (size,) = _SIZE.unpack_from(raw, start)
    end = start + 4 + size
    if end > len(raw):
        raise MalformedTable("a size beyond the end")
    return start + 4, end


def _decode_value(raw: bytes, position: int, depth: int) -> tuple[Any, int]:
    """Decode a value that begins with its type; return it and the position after it."""
    tag, position = raw[position : position + 1], position + 1
    if number := _NUMBERS.get(tag):
        return number.unpack_from(raw, position)[0], position + number.size
    match tag:
        case b"S" | b"x":
            start, end = _span(raw, position)
            return _decode_text(raw[start:end]) if tag == b"S" else raw[start:end], end
        case b"t":
            return raw[position] != 0, position + 1
        case b"V":
            return None, position
        case b"T":
            (seconds,) = _TIMESTAMP.unpack_from(raw, position)
            return to_datetime(seconds) or seconds, position + 8
        case b"D":
            scale, unscaled = _DECIMAL.unpack_from(raw, position)
            return Decimal(unscaled).scaleb(-scale), position + 5
        case b"F" | b"A" if depth < _MAX_DEPTH:
            return _decode_nested(raw, position, depth + 1, table=tag == b"F")
    raise MalformedTable(f"a value of type {tag!r}")


def _decode_nested(raw: bytes, position: int, depth: int, *, table: bool) -> tuple[Any, int]:
    start, end = _span(raw, position)
    if table:
        return {name: value for name, value, _ in _entries(raw, position, depth)}, end
    values = []
    while start < end:
        value, start = _decode_value(raw, start, depth)
        values.append(value)
    if start != end:
        raise MalformedTable("a value exceeds its array")
    return values, end


def _decode_text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _with_size(content: bytes) -> bytes:
    return _SIZE.pack(len(content)) + content


def _encode_entry(name: str, value: Any) -> bytes:
    try:
        encoded = name.encode()
    except AttributeError as error:
        kind = type(name).__qualname__
        raise TypeError(f"headers has a name of type {kind}: write a str") from error
    if len(encoded) > 255:
        raise ValueError(f"header {name[:40]!r}... has a name longer than 255 bytes")
    try:
        return bytes((len(encoded),)) + encoded + _encode_value(value)
    except StructError as error:
        raise ValueError(f"header {name!r} is a number out of range: {error}") from error


def _encode_value(value: Any) -> bytes:
    """Encode a value, beginning with its type."""
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            small = -(2**31) <= value < 2**31
            return b"I" + _INT32.pack(value) if small else b"l" + _INT64.pack(value)
        case float():
            return b"d" + _encode_float(value)
        case str():
            return b"S" + _with_size(value.encode(errors="replace"))
        case bytes() | bytearray():
            return b"x" + _with_size(bytes(value))
        case Decimal():
            return b"D" + _encode_decimal(value)
        case datetime():
            return b"T" + _TIMESTAMP.pack(int(value.timestamp()))
        case Mapping():
            return b"F" + encode(value)
        case list() | tuple():
            return b"A" + _with_size(b"".join(_encode_value(each) for each in value))
    raise TypeError(f"a header cannot be a {type(value).__qualname__}")


def _encode_float(value: float) -> bytes:
    if not isfinite(value):
        # Erlang has no such numbers: RabbitMQ closes the connection with an internal error.
        raise StructError(f"{value} is not finite")
    return _DOUBLE.pack(value)


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"a header cannot be {value}")
    unscaled = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
    return _DECIMAL.pack(max(-exponent, 0), -unscaled if sign else unscaled)
