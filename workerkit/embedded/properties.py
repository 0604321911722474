"""The properties of a message: AMQP 0-9-1, section 4.2.6 and the class `basic`.

Messages carry them as bytes. They are decoded only when a message is dead-lettered, inspected or
routed by its headers; `FLAGS` shows with the first two bytes whether that is needed.
"""

from dataclasses import dataclass, fields
from struct import Struct

from workerkit.embedded import table
from workerkit.embedded.methods import short
from workerkit.embedded.table import MalformedTable, Table

_U16, _U64 = Struct(">H"), Struct(">Q")


@dataclass(slots=True, kw_only=True)
class Properties:
    """The fourteen properties; None means absent.

    Attributes:
        expiration: Milliseconds, as decimal text.
        timestamp: Seconds since 1970.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Table | None = None
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
FLAGS = {each.name: 1 << (15 - position) for position, each in enumerate(fields(Properties))}
_OCTETS = ("delivery_mode", "priority")


def flags_of(raw: bytes) -> int:
    """Return the flags: `flags_of(raw) & FLAGS["headers"]` is not 0 if there are headers."""
    return raw[0] << 8 | raw[1]


def read(raw: bytes) -> Properties:
    """Decode properties.

    Raises:
        MalformedTable: The bytes are not properties.
    """
    properties, position = Properties(), 2
    for name, flag in FLAGS.items():
        if not flags_of(raw) & flag:
            continue
        value: object
        if name == "headers":
            value, position = table.read(raw, position)
        elif name in _OCTETS:
            value, position = _cut(raw, position, 1)[0], position + 1
        elif name == "timestamp":
            value, position = int.from_bytes(_cut(raw, position, 8), "big"), position + 8
        else:
            (size,) = _cut(raw, position, 1)
            value = _cut(raw, position + 1, size).decode(errors="surrogateescape")
            position += 1 + size
        setattr(properties, name, value)
    if position != len(raw):
        raise MalformedTable("the properties and their frame differ in length")
    return properties


def write(properties: Properties) -> bytes:
    """Encode properties as in a header frame."""
    flags, values = 0, []
    for name, flag in FLAGS.items():
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= flag
        if name == "headers":
            values.append(table.write(value))
        elif name in _OCTETS:
            values.append(bytes((value,)))
        elif name == "timestamp":
            values.append(_U64.pack(value))
        else:
            values.append(short(value))
    return b"".join((_U16.pack(flags), *values))


def _cut(raw: bytes, start: int, size: int) -> bytes:
    part = raw[start : start + size]
    if len(part) < size:
        raise MalformedTable("a property is cut short")
    return part


def checked(raw: bytes, *, sort: bool = False) -> bytes:
    """Check that the properties can be decoded; this is faster than `read`.

    Args:
        sort: Sort the headers by name.

    Returns:
        The properties.

    Raises:
        MalformedTable: They cannot be decoded.
    """
    flags, position, size = flags_of(raw), 2, len(raw)
    layout = _layouts.get(flags)
    if layout is None:
        layout = _layouts[flags] = _layout(flags)
    try:
        for step in layout:
            if step > 0:
                position += step
            elif step == 0:
                position += 1 + raw[position]
            elif raw[position : position + 4] == _EMPTY:
                position += 4
            else:
                headers, end = table.read(raw, position)
                if sort and (names := sorted(headers)) != list(headers):
                    ordered = table.write({name: headers[name] for name in names})
                    raw = raw[:position] + ordered + raw[end:]
                    size, end = len(raw), position + len(ordered)
                position = end
    except IndexError as error:
        raise MalformedTable("a property is cut short") from error
    if position != size:
        raise MalformedTable("the properties and their frame differ in length")
    return raw


# Sizes of consecutive properties, by flags: 0 is a short string, -1 a table. There are at most
# 16,384 combinations of flags.
_layouts: dict[int, tuple[int, ...]] = {}
_EMPTY = bytes(4)


def _layout(flags: int) -> tuple[int, ...]:
    if flags & 0b11:
        raise MalformedTable("unknown flags")
    sizes = {"headers": -1, "timestamp": 8} | dict.fromkeys(_OCTETS, 1)
    return tuple(sizes.get(name, 0) for name, flag in FLAGS.items() if flags & flag)
