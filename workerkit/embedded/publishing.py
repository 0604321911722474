"""The methods basic.publish, confirm.* and tx.*."""

import re
from functools import partial

from pamqp.commands import Confirm, Tx

from workerkit.embedded import methods, properties
from workerkit.embedded.arguments import LONGEST_TIME
from workerkit.embedded.channel import Channel
from workerkit.embedded.errors import Refusal, erlang, malformed, unexpected
from workerkit.embedded.message import Message, routing_keys, without_bcc
from workerkit.embedded.methods import Reply
from workerkit.embedded.properties import FLAGS
from workerkit.embedded.table import MalformedTable
from workerkit.embedded.vhost import REPLY_TO

_HEADER, _BODY = 2, 3
_BASIC = 60
_RETURN = b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE"  # With code 312.
_USER_ID, _EXPIRATION, _REPLY_TO = FLAGS["user_id"], FLAGS["expiration"], FLAGS["reply_to"]
_CHECKED = _USER_ID | _EXPIRATION | _REPLY_TO


class Incoming:
    """A message that is being received.

    Args:
        payload: The payload of basic.publish.
        sorts_headers: Sort the headers by name.
    """

    __slots__ = (
        "_sorts_headers",
        "address",
        "immediate",
        "mandatory",
        "missing",
        "parts",
        "properties",
    )

    def __init__(self, payload: bytes, *, sorts_headers: bool = False) -> None:
        # Method number, two reserved bytes, exchange and routing key, two bits.
        self.address = payload[6:-1]
        bits = payload[-1]
        self.mandatory = bool(bits & 1)
        self.immediate = bool(bits & 2)
        self.properties: bytes | None = None
        self._sorts_headers = sorts_headers
        self.missing = 0
        self.parts: list[bytes] = []

    def take(self, kind: int, payload: bytes) -> bool:
        """Add a frame; return whether it was the last one."""
        if self.properties is None:
            if kind != _HEADER:
                raise _no_header("non content header frame")
            self._take_header(payload)
        elif kind != _BODY:
            raise unexpected("content body", "non content body frame")
        else:
            self.parts.append(payload)
            self.missing -= len(payload)
            if self.missing < 0:
                raise malformed(kind, b"", "a body longer than its header says")
        return self.missing == 0

    def message(self) -> Message:
        """Return the message when it is complete."""
        address = self.address
        try:
            middle = 1 + address[0]
            if len(address) != middle + 1 + address[middle]:
                raise IndexError("too long or too short")
        except IndexError as error:
            raise Refusal("FRAME_ERROR", f"cannot decode {erlang(address)}") from error
        assert self.properties is not None
        parts = self.parts
        return Message(
            address[1:middle].decode(errors="surrogateescape"),
            address[middle + 1 :].decode(errors="surrogateescape"),
            self.properties,
            parts[0] if len(parts) == 1 else b"".join(parts),
            address=address,
        )

    def _take_header(self, payload: bytes) -> None:
        if len(payload) < 14:
            raise malformed(_HEADER, payload)
        number = int.from_bytes(payload[:2], "big")
        if number != _BASIC:
            raise _no_header(f"one for class {number}")
        self.missing = int.from_bytes(payload[4:12], "big")
        try:
            self.properties = properties.checked(payload[12:], sort=self._sorts_headers)
        except MalformedTable as error:
            # Clients could not decode it. RabbitMQ gives no reason either.
            raise Refusal("INTERNAL_ERROR") from error


def publish(channel: Channel, incoming: Incoming) -> None:
    """Route a complete message, or hold it until tx.commit."""
    message = incoming.message()
    _check(channel, message, incoming.immediate)
    if message.flags & _CHECKED:
        message = _checked(channel, message)
    if channel.transaction is None:
        _route(channel, message, incoming.mandatory)
    else:
        routing = partial(_route, channel, message, incoming.mandatory)
        channel.transaction.publishes.append(routing)


def check_size(channel: Channel, size: int) -> None:
    """Raise PRECONDITION_FAILED, before the body is received, if it is too large."""
    limit = channel.vhost.behaviour.max_message
    if size > limit:
        text = f"message size {size} is larger than configured max size {limit}"
        raise Refusal("PRECONDITION_FAILED", text)


def select_confirms(channel: Channel, method: Confirm.Select) -> Reply:
    """Handle confirm.select."""
    if channel.transaction is not None:
        raise Refusal("PRECONDITION_FAILED", "cannot switch from tx to confirm mode")
    if channel.confirmed is None:
        channel.confirmed = 0
    return methods.CONFIRM_SELECT_OK


def select_transactions(channel: Channel, method: Tx.Select) -> Reply:
    """Handle tx.select."""
    if channel.confirmed is not None:
        raise Refusal("PRECONDITION_FAILED", "cannot switch from confirm to tx mode")
    channel.begin()
    return methods.TX_SELECT_OK


def commit(channel: Channel, method: Tx.Commit) -> Reply:
    """Handle tx.commit."""
    channel.commit()
    return methods.TX_COMMIT_OK


def rollback(channel: Channel, method: Tx.Rollback) -> Reply:
    """Handle tx.rollback."""
    channel.rollback()
    return methods.TX_ROLLBACK_OK


def _route(channel: Channel, message: Message, mandatory: bool) -> None:
    published = channel.vhost.publish(message)
    if mandatory and not published.routed:
        returned, reply = without_bcc(message), Reply("basic.return", _RETURN + message.address)
        channel.outbox.content(channel.number, reply, returned.properties, returned.body)
    if channel.confirmed is not None:
        channel.confirmed += 1
        channel.outbox.confirm(channel.number, channel.confirmed, accepted=published.accepted)


def _check(channel: Channel, message: Message, immediate: bool) -> None:
    exchange = channel.vhost.exchange(message.exchange)
    if exchange.internal:
        raise Refusal("ACCESS_REFUSED", f"cannot publish to internal {exchange.label}")
    if immediate:
        raise Refusal("NOT_IMPLEMENTED", "immediate=true")
    if message.has_copies:
        routing_keys(message)


def _checked(channel: Channel, message: Message) -> Message:
    """Check user and expiration, and set the address of direct replies."""
    read, user = message.read_properties(), channel.session.user
    if read.user_id is not None and read.user_id != user:
        text = f"user_id property set to '{read.user_id}' but authenticated user was '{user}'"
        raise Refusal("PRECONDITION_FAILED", text)
    if read.expiration is not None:
        _check_expiration(read.expiration)
    if read.reply_to != REPLY_TO:
        return message
    if channel.reply_tag is None:
        raise Refusal("PRECONDITION_FAILED", "fast reply consumer does not exist")
    read.reply_to = channel.reply_name
    return message.changed(read)


def _check_expiration(expiration: str) -> None:
    """Raise the error of RabbitMQ unless *expiration* is a number of milliseconds."""
    found = re.match(r"[+-]?[0-9]+", expiration)
    if found is None:
        fault = "no_integer"
    elif found.end() < len(expiration):
        fault = f'{{leftover_string,"{expiration[found.end() :]}"}}'
    elif int(expiration) < 0:
        fault = f"{{value_negative,{int(expiration)}}}"
    elif int(expiration) > LONGEST_TIME:
        fault = f"{{value_too_large,{int(expiration)}}}"
    else:
        return
    raise Refusal("PRECONDITION_FAILED", f"invalid expiration '{expiration}': {fault}")


def _no_header(got: str) -> Refusal:
    return unexpected(f"content header for class {_BASIC}", got)
