"""Check and encode one message to publish, before anything is sent to the broker.

RabbitMQ closes the channel because of some invalid messages, and the connection because of others.
Other messages are published on them at the same time.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import time
from typing import Any

from workerkit.amqp import table
from workerkit.amqp.content import Content
from workerkit.amqp.frames import BASIC_PUBLISH
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.queue import Exchange
from workerkit.codec import BUILT_IN, CloudEvent, Codecs, encode, write_event

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
DELAY_HEADER = "x-delay"
# Erlang's external term format: a process (NEW_PID_EXT) of a node `reply@` and a number.
_ERLANG_PROCESS = re.compile(rb"\x83X(?:w.|[vd]\x00.)reply@[0-9]+.{12}", re.DOTALL)
LONGEST_EXPIRATION = 4_294_967.0
"""Of a message, in seconds: 2**32 milliseconds."""
_LATEST = 2**64
_RESERVED = b"\x00\x00"

_SECONDS = "seconds, such as 2.5"
# The type of each parameter of `publish`, and its name in errors.
_TYPES: dict[str, tuple[Any, str]] = {
    "routing_key": (str, "a str"),
    "exchange": (str | Exchange, "a str or an Exchange"),
    "headers": (Mapping | None, "a dict"),
    "message_id": (str | None, "a str"),
    "correlation_id": (str | None, "a str"),
    "reply_to": (str | None, "a str"),
    "content_type": (str | None, "a str"),
    "content_encoding": (str | None, "a str"),
    "type": (str | None, "a str"),
    "app_id": (str | None, "a str"),
    "user_id": (str | None, "a str"),
    "timestamp": (datetime | int | float | None, "a datetime, or seconds since 1970"),
    "priority": (int | None, "an int"),
    "expiration": (int | float | None, _SECONDS),
    "connection": (str, "a str"),
    "vhost": (str | None, "a str"),
    "timeout": (int | float | None, _SECONDS),
}


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """An encoded message with its destination.

    Attributes:
        properties: Flags and values, see `workerkit.amqp.properties`.
        user_id: The one in the properties.
        request_id: The correlation id, if the reply is expected on the channel that publishes it.
    """

    message_id: str
    exchange: str
    routing_key: str
    mandatory: bool
    properties: bytes
    body: bytes
    user_id: str | None = None
    request_id: str | None = None

    @property
    def method(self) -> bytes:
        """Return the payload of the basic.publish."""
        return publish_method(self.exchange, self.routing_key, mandatory=self.mandatory)


def check_types(given: Mapping[str, Any]) -> None:
    """Check the types of the parameters of a publish.

    Args:
        given: The parameters by name; a missing one is not checked.

    Raises:
        TypeError: States the first parameter with a wrong type, and the right type.
    """
    for name, (types, right) in _TYPES.items():
        found = given.get(name, given)
        if found is not given and not isinstance(found, types):
            what = "None" if found is None else f"of type {type(found).__qualname__}"
            raise TypeError(f"{name} is {what}: write {right}")


def encode_message(
    body: object,
    headers: Mapping[str, Any] | None = None,
    message_id: str | None = None,
    correlation_id: str | None = None,
    priority: int | None = None,
    expiration: float | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    type: str | None = None,
    reply_to: str | None = None,
    app_id: str | None = None,
    timestamp: datetime | float | None = None,
    user_id: str | None = None,
    codecs: Codecs = BUILT_IN,
) -> tuple[bytes, Properties]:
    """Encode a body, and create its properties.

    Raises:
        TypeError, ValueError: As for `Publisher.publish`.
    """
    kind: str | None
    if content_type is content_encoding is None and not isinstance(body, CloudEvent):
        raw, kind = encode(body)
    else:
        raw, kind, more = encode_body(body, content_type, content_encoding, codecs)
        headers = {**(headers or {}), **more}
    if priority is not None and not 0 <= priority <= 255:
        raise ValueError(f"priority is {priority}: it must be 0 to 255")
    if reply_to == DIRECT_REPLY_TO:
        raise ValueError(
            f"reply_to is {DIRECT_REPLY_TO!r}: RabbitMQ accepts that only on a channel that"
            " consumes from it; write publisher.request(...), or name a queue"
        )
    return raw, Properties(
        content_type=kind,
        content_encoding=content_encoding,
        table=_encode_headers(headers) if headers else None,
        delivery_mode=PERSISTENT,
        priority=priority,
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=None if expiration is None else _milliseconds(expiration),
        message_id=message_id,
        timestamp=int(time()) if timestamp is None else _seconds(timestamp),
        type=type,
        user_id=user_id,
        app_id=app_id,
    )


def encode_body(
    body: object, content_type: str | None, content_encoding: str | None, codecs: Codecs
) -> tuple[bytes, str | None, Mapping[str, Any]]:
    """Return the body in the charset of its type, and compressed; the type; further headers."""
    headers: Mapping[str, Any] = {}
    if isinstance(body, CloudEvent):
        encoded, headers = write_event(body, content_type, codecs)
        content_type = encoded.content_type
    else:
        encoded = codecs.encode(body, content_type)
    raw = encoded.raw
    if content_encoding is not None or (content_type is not None and ";" in content_type):
        content = Content(content_encoding, content_type)
        raw = content.encode(raw, is_text=encoded.is_text, is_own=encoded.is_own)
    return raw, encoded.content_type or None, headers


def is_reply_address(address: str) -> bool:
    """Return whether every version of RabbitMQ can decode the address of a direct reply.

    Such an address is the encoded id of an Erlang process and a key. RabbitMQ 3.10 to 4.0 crash,
    and close the connection, if the first of two parts is anything else. A sender could write that.
    Version 3.10 also closes it for a process of a node that it does not know.
    """
    parts = [each for each in address.removeprefix(f"{DIRECT_REPLY_TO}.").split(".") if each]
    if len(parts) != 2:
        return True  # It is not decoded, and nobody gets the reply.
    try:
        process = b64decode(parts[0], validate=True)
    except ValueError:
        return False
    return _ERLANG_PROCESS.fullmatch(process) is not None


def publish_method(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    """Return the payload of a basic.publish."""
    parts = [BASIC_PUBLISH, _RESERVED]
    for what, text in (("exchange", exchange), ("routing key", routing_key)):
        encoded = text.encode()
        if len(encoded) > 255:
            raise ValueError(f"the {what} is {len(encoded)} bytes long, and AMQP allows 255")
        parts += [bytes((len(encoded),)), encoded]
    return b"".join([*parts, b"\x01" if mandatory else b"\x00"])


def _milliseconds(expiration: float) -> str:
    if not 0 <= expiration <= LONGEST_EXPIRATION:
        raise ValueError(f"expiration is {expiration}: it must be 0 to {LONGEST_EXPIRATION:.0f} s")
    return str(round(expiration * 1000))


def _seconds(timestamp: datetime | float) -> int:
    seconds = timestamp.timestamp() if isinstance(timestamp, datetime) else timestamp
    if not 0 <= seconds < _LATEST:
        raise ValueError(f"timestamp is {timestamp}: it must not be before 1970")
    return int(seconds)


def _encode_headers(headers: Mapping[str, Any]) -> bytes:
    """Encode the headers.

    Raises:
        TypeError, ValueError: RabbitMQ 3.10 to 4.3 would close the channel or the connection
            because of them.
    """
    for name, (is_right, right) in _CHECKED_HEADERS.items():
        if name in headers and not is_right(headers[name]):
            found = headers[name]
            what = "None" if found is None else f"of type {type(found).__qualname__}"
            raise TypeError(f"header {name!r} is {what}: write {right}")
    try:
        return table.encode(headers)
    except RecursionError as error:
        raise ValueError("headers are nested too deeply") from error


def _is_list_of_str(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


# Headers that the broker reads, and their types. If a type is wrong, it closes the channel, or the
# connection if the queue is a stream.
_CHECKED_HEADERS: dict[str, tuple[Callable[[object], bool], str]] = {
    "CC": (_is_list_of_str, "a list of str"),
    "BCC": (_is_list_of_str, "a list of str"),
    "x-stream-filter-value": (lambda value: isinstance(value, str), "a str"),
}
