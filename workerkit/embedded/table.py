"""Field tables: AMQP 0-9-1, section 4.2.5.5, with the errata of RabbitMQ.

A value keeps its encoded type. RabbitMQ compares types and names them in errors, and a decoded
table is encoded again byte for byte; the codec of pamqp does neither.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, NamedTuple

_MAX_DEPTH = 32
_SIZE = Struct(">I")
_DECIMAL = Struct(">Bi")
_LONG = Struct(">q")
# Encoded tag, RabbitMQ's name of the type, layout.
_NUMBERS = {
    b"b": ("byte", Struct(">b")),
    b"B": ("unsignedbyte", Struct(">B")),
    b"s": ("short", Struct(">h")),
    b"u": ("unsignedshort", Struct(">H")),
    b"I": ("signedint", Struct(">i")),
    b"i": ("unsignedint", Struct(">I")),
    b"l": ("long", _LONG),
    b"L": ("unsignedlong", Struct(">Q")),
    b"T": ("timestamp", Struct(">Q")),
    b"f": ("float", Struct(">f")),
    b"d": ("double", Struct(">d")),
}
_NUMBER_TAGS = {name: tag for tag, (name, _) in _NUMBERS.items()}
_INTEGERS = (
    "byte unsignedbyte short unsignedshort signedint unsignedint long unsignedlong"
).split()
_FLOATS = ("float", "double")


class Field(NamedTuple):
    """A value and its type.

    Attributes:
        type: RabbitMQ's name of the type: `longstr`, `signedint`, `table`, ...
        value: Text has lone surrogates if it is not UTF-8. A timestamp is in seconds since 1970.
            Tables and arrays hold fields.
    """

    type: str
    value: Any

    @property
    def type_class(self) -> str:
        """The class within which RabbitMQ compares values: all numbers are one class."""
        return "number" if self.type in _INTEGERS or self.type in _FLOATS else self.type

    @property
    def is_integer(self) -> bool:
        """Whether it is valid for an argument that has to be an integer."""
        return self.type in _INTEGERS

    def __str__(self) -> str:
        """Return the value as RabbitMQ prints it in an error."""
        return str(self.value).lower() if self.type == "bool" else str(self.value)


Table = dict[str, Field]


class MalformedTable(ValueError):
    """Bytes that are not a field table."""


def text(value: str) -> Field:
    """Return a text field."""
    return Field("longstr", value)


def number(value: int) -> Field:
    """Return a field for a 64-bit integer."""
    return Field("long", value)


def read(raw: bytes, start: int = 0) -> tuple[Table, int]:
    """Decode the table at *start*, which begins with its size; return it and its end.

    Raises:
        MalformedTable: The bytes are not a table. No other error is raised.
    """
    try:
        return _table(raw, start, 0)
    except (StructError, IndexError) as error:
        raise MalformedTable(str(error)) from error


def write(table: Mapping[str, Field]) -> bytes:
    """Encode a table, which begins with its size."""
    return _sized(b"".join(_short(name) + _encoded(field) for name, field in table.items()))


def plain(table: Mapping[str, Field]) -> dict[str, Any]:
    """Return the values without types, like a client library."""
    return {name: _plain(field) for name, field in table.items()}


def _plain(field: Field) -> Any:
    match field.type:
        case "table":
            return plain(field.value)
        case "array":
            return [_plain(each) for each in field.value]
        case "timestamp":
            return moment(field.value) or field.value
    return field.value


def moment(timestamp: int) -> datetime | None:
    """Return seconds since 1970 as an aware `datetime`; None if it is out of range."""
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _span(raw: bytes, start: int) -> tuple[int, int]:
    """Return start and end of content that follows its size."""
    (size,) = _SIZE.unpack_from(raw, start)
    end = start + 4 + size
    if end > len(raw):
        raise MalformedTable("a size exceeds the data")
    return start + 4, end


def _table(raw: bytes, start: int, depth: int) -> tuple[Table, int]:
    position, end = _span(raw, start)
    table: Table = {}
    while position < end:
        name_end = position + 1 + raw[position]
        name = raw[position + 1 : name_end].decode(errors="surrogateescape")
        table[name], position = _field(raw, name_end, depth)
    if position != end:
        raise MalformedTable("an entry exceeds its table")
    return table, end


def _array(raw: bytes, start: int, depth: int) -> tuple[list[Field], int]:
    position, end = _span(raw, start)
    fields = []
    while position < end:
        field, position = _field(raw, position, depth)
        fields.append(field)
    if position != end:
        raise MalformedTable("a value exceeds its array")
    return fields, end


def _field(raw: bytes, position: int, depth: int) -> tuple[Field, int]:
    """Decode a value that follows its type; return it and its end."""
    tag, position = raw[position : position + 1], position + 1
    if found := _NUMBERS.get(tag):
        name, layout = found
        return Field(name, layout.unpack_from(raw, position)[0]), position + layout.size
    match tag:
        case b"S" | b"x":
            start, end = _span(raw, position)
            content = raw[start:end]
            if tag == b"x":
                return Field("binary", content), end
            return Field("longstr", content.decode(errors="surrogateescape")), end
        case b"t":
            return Field("bool", raw[position] != 0), position + 1
        case b"V":
            return Field("void", None), position
        case b"D":
            scale, unscaled = _DECIMAL.unpack_from(raw, position)
            return Field("decimal", Decimal(unscaled).scaleb(-scale)), position + 5
        case b"F" if depth < _MAX_DEPTH:
            table, end = _table(raw, position, depth + 1)
            return Field("table", table), end
        case b"A" if depth < _MAX_DEPTH:
            array, end = _array(raw, position, depth + 1)
            return Field("array", array), end
    raise MalformedTable(f"unknown type {tag!r}")


def _encoded(field: Field) -> bytes:
    """Encode a value after its type."""
    value = field.value
    if tag := _NUMBER_TAGS.get(field.type):
        return tag + _NUMBERS[tag][1].pack(value)
    match field.type:
        case "longstr":
            return b"S" + _sized(value.encode(errors="surrogateescape"))
        case "binary":
            return b"x" + _sized(value)
        case "bool":
            return b"t\x01" if value else b"t\x00"
        case "decimal":
            return b"D" + _decimal(value)
        case "table":
            return b"F" + write(value)
        case "array":
            return b"A" + _sized(b"".join(map(_encoded, value)))
    return b"V"


def _decimal(value: Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    scale = -exponent if isinstance(exponent, int) else 0
    return _DECIMAL.pack(scale, int(value.scaleb(scale)))


def _short(name: str) -> bytes:
    raw = name.encode(errors="surrogateescape")
    return bytes((len(raw),)) + raw


def _sized(content: bytes) -> bytes:
    return _SIZE.pack(len(content)) + content
