"""What clients send, read into pamqp's classes of methods.

The reading is our own: pamqp loses the types of table values and refuses names RabbitMQ takes.
"""

from struct import error as StructError  # noqa: N812
from typing import Any, cast

from pamqp import base, commands

from workerkit.embedded import table
from workerkit.embedded.refusals import Refusal, erlang, malformed
from workerkit.embedded.table import Table

_METHOD = 1
_NUMBERS = {"octet": 1, "short": 2, "long": 4, "longlong": 8}


def read(payload: bytes) -> base.Frame:
    """Read the payload of a method frame.

    Tables are `Table`s, see `arguments`; long strings are bytes.

    Raises:
        Refusal: There is no such method, or its arguments cannot be read.
    """
    kinds: dict[int, type[base.Frame]] = commands.INDEX_MAPPING
    kind = kinds.get(int.from_bytes(payload[:4], "big"))
    if kind is None:
        raise malformed(_METHOD, payload)
    method: base.Frame = object.__new__(kind)  # Its constructor would check what RabbitMQ does not.
    try:
        _fill(method, payload)
    except (StructError, IndexError, table.MalformedTable) as error:
        raise Refusal("FRAME_ERROR", f"cannot decode {erlang(payload[4:])}") from error
    return method


def number_of(payload: bytes) -> tuple[int, int]:
    """Class and method number of a method frame's payload."""
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")


def arguments(method: Any) -> Table:
    """The table in a method's field `arguments`."""
    return cast(Table, method.arguments)


def _fill(method: base.Frame, payload: bytes) -> None:
    position, bit = 4, 0
    for name in method.attributes():
        kind = method.amqp_type(name)
        if kind == "bit":  # Up to eight neighbours share a byte.
            setattr(method, name, bool(payload[position] & (1 << bit)))
            bit += 1
            continue
        position, bit = position + (bit > 0), 0
        value, position = _value(kind, payload, position)
        setattr(method, name, value)


def _value(kind: str, payload: bytes, position: int) -> tuple[object, int]:
    if kind == "table":
        return table.read(payload, position)
    if kind == "shortstr":
        start, size = position + 1, payload[position]
    elif kind == "longstr":
        start, size = position + 4, int.from_bytes(payload[position : position + 4], "big")
    else:
        start, size = position, _NUMBERS[kind]
    raw = payload[start : start + size]
    if len(raw) < size:
        raise IndexError("cut short")
    if kind == "longstr":
        return raw, start + size
    if kind == "shortstr":
        try:
            return raw.decode(), start + size
        except UnicodeDecodeError as error:
            raise Refusal("FRAME_ERROR", "Malformed UTF-8 in shortstr") from error
    return int.from_bytes(raw, "big"), start + size
