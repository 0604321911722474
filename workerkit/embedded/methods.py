"""Decode the methods of clients, and encode those of the broker.

Decoding fills the classes of pamqp, but does not use its decoder, which loses the types of table
values and rejects names that RabbitMQ accepts.
"""

from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, NamedTuple, cast

from pamqp import base, commands

from workerkit.embedded import table
from workerkit.embedded.errors import Refusal, erlang, malformed
from workerkit.embedded.table import Table

_METHOD = 1
_NUMBERS = {"octet": 1, "short": 2, "long": 4, "longlong": 8}


def read(payload: bytes) -> base.Frame:
    """Decode the payload of a method frame.

    Tables are `Table`s, see `arguments`; long strings are bytes.

    Raises:
        Refusal: The method does not exist, or its arguments cannot be decoded.
    """
    kinds: dict[int, type[base.Frame]] = commands.INDEX_MAPPING
    kind = kinds.get(int.from_bytes(payload[:4], "big"))
    if kind is None:
        raise malformed(_METHOD, payload)
    # Not with the constructor, which rejects values that RabbitMQ accepts.
    method: base.Frame = object.__new__(kind)
    try:
        _fill(method, payload)
    except (StructError, IndexError, table.MalformedTable) as error:
        raise Refusal("FRAME_ERROR", f"cannot decode {erlang(payload[4:])}") from error
    return method


def number_of(payload: bytes) -> tuple[int, int]:
    """Return class and method number of the payload of a method frame."""
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")


def arguments(method: Any) -> Table:
    """Return the field `arguments` of a method, a table."""
    return cast(Table, method.arguments)


def _fill(method: base.Frame, payload: bytes) -> None:
    position, bit = 4, 0
    for name in method.attributes():
        kind = method.amqp_type(name)
        if kind == "bit":  # Up to eight consecutive bits share a byte.
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


_REQUEUE = 2  # RabbitMQ sets this bit in a confirm, where it has no meaning.
_U16, _U32, _U64 = Struct(">H").pack, Struct(">I").pack, Struct(">Q").pack


class Reply(NamedTuple):
    """A method to send.

    Attributes:
        name: The name in the specification, such as `queue.declare-ok`.
        payload: The payload of its frame.
    """

    name: str
    payload: bytes


def short(text: str) -> bytes:
    """Encode text as a short string, cut after 255 bytes."""
    raw = text.encode(errors="surrogateescape")[:255]
    return bytes((len(raw),)) + raw


def _reply(name: str, class_number: int, method_number: int, *arguments: bytes) -> Reply:
    return Reply(name, b"".join((_U16(class_number), _U16(method_number), *arguments)))


CLOSE_OK = _reply("connection.close-ok", 10, 51)
UNBLOCKED = _reply("connection.unblocked", 10, 61)
UPDATE_SECRET_OK = _reply("connection.update-secret-ok", 10, 71)
CONNECTION_OPEN_OK = _reply("connection.open-ok", 10, 41, b"\x00")
CHANNEL_OPEN_OK = _reply("channel.open-ok", 20, 11, _U32(0))
CHANNEL_FLOW_OK = _reply("channel.flow-ok", 20, 21, b"\x01")
CHANNEL_CLOSE_OK = _reply("channel.close-ok", 20, 41)
EXCHANGE_DECLARE_OK = _reply("exchange.declare-ok", 40, 11)
EXCHANGE_DELETE_OK = _reply("exchange.delete-ok", 40, 21)
EXCHANGE_BIND_OK = _reply("exchange.bind-ok", 40, 31)
EXCHANGE_UNBIND_OK = _reply("exchange.unbind-ok", 40, 51)
QUEUE_BIND_OK = _reply("queue.bind-ok", 50, 21)
QUEUE_UNBIND_OK = _reply("queue.unbind-ok", 50, 51)
QOS_OK = _reply("basic.qos-ok", 60, 11)
GET_EMPTY = _reply("basic.get-empty", 60, 72, b"\x00")
RECOVER_OK = _reply("basic.recover-ok", 60, 111)
CONFIRM_SELECT_OK = _reply("confirm.select-ok", 85, 11)
TX_SELECT_OK = _reply("tx.select-ok", 90, 11)
TX_COMMIT_OK = _reply("tx.commit-ok", 90, 21)
TX_ROLLBACK_OK = _reply("tx.rollback-ok", 90, 31)


def start(properties: Table, mechanisms: bytes) -> Reply:
    """Encode connection.start."""
    fields = table.write(properties), _U32(len(mechanisms)), mechanisms, _U32(5), b"en_US"
    return _reply("connection.start", 10, 10, b"\x00\x09", *fields)


def tune(channel_max: int, frame_max: int, heartbeat: int) -> Reply:
    """Encode connection.tune."""
    limits = _U16(channel_max), _U32(frame_max), _U16(heartbeat)
    return _reply("connection.tune", 10, 30, *limits)


def connection_close(code: int, text: str, number: tuple[int, int]) -> Reply:
    """Encode connection.close; *number* is the method that caused it."""
    return _reply("connection.close", 10, 50, _U16(code), short(text), *map(_U16, number))


def channel_close(code: int, text: str, number: tuple[int, int]) -> Reply:
    """Encode channel.close; *number* is the method that caused it."""
    return _reply("channel.close", 20, 40, _U16(code), short(text), *map(_U16, number))


def blocked(reason: str) -> Reply:
    """Encode connection.blocked."""
    return _reply("connection.blocked", 10, 60, short(reason))


def queue_declare_ok(name: str, messages: int, consumers: int) -> Reply:
    """Encode queue.declare-ok; *messages* are those that are ready."""
    return _reply("queue.declare-ok", 50, 11, short(name), _U32(messages), _U32(consumers))


def queue_purge_ok(messages: int) -> Reply:
    """Encode queue.purge-ok; *messages* is the number of deleted ones."""
    return _reply("queue.purge-ok", 50, 31, _U32(messages))


def queue_delete_ok(messages: int) -> Reply:
    """Encode queue.delete-ok; *messages* is the number of deleted ones."""
    return _reply("queue.delete-ok", 50, 41, _U32(messages))


def consume_ok(tag: str) -> Reply:
    """Encode basic.consume-ok."""
    return _reply("basic.consume-ok", 60, 21, short(tag))


def cancel(tag: str) -> Reply:
    """Encode basic.cancel, for a consumer whose queue was deleted."""
    return _reply("basic.cancel", 60, 30, short(tag), b"\x01")


def cancel_ok(tag: str) -> Reply:
    """Encode basic.cancel-ok."""
    return _reply("basic.cancel-ok", 60, 31, short(tag))


def confirm(tag: int, *, accepted: bool, multiple: bool) -> Reply:
    """Encode basic.ack for a publish, or basic.nack if a queue refused it."""
    if accepted:
        return _reply("basic.ack", 60, 80, _U64(tag), bytes((multiple,)))
    return _reply("basic.nack", 60, 120, _U64(tag), bytes((multiple | _REQUEUE,)))
