"""Bytes of message properties, valid or not (AMQP 0-9-1, 4.2.5)."""

from struct import pack

HEADERS = 1 << 13
CORRELATION_ID = 1 << 10
MESSAGE_ID = 1 << 7
TYPE = 1 << 5


def properties(flags: int, *values: bytes) -> bytes:
    """Property flags and the values behind them."""
    return pack(">H", flags) + b"".join(values)


def short(text: bytes) -> bytes:
    """Return a short string, of any bytes."""
    return bytes((len(text),)) + text


def long(text: bytes) -> bytes:
    """Return a long string, of any bytes, as the value of a header."""
    return b"S" + pack(">I", len(text)) + text


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """Return a table: names, and values with their type in front."""
    content = b"".join(short(name) + value for name, value in entries)
    return pack(">I", len(content)) + content


def array(*values: bytes) -> bytes:
    """Return an array, as the value of a header."""
    content = b"".join(values)
    return b"A" + pack(">I", len(content)) + content
