"""One RabbitMQ message, as a handler sees it."""

import dataclasses
from datetime import datetime
from functools import cached_property
from hashlib import blake2b
from typing import Any, Generic

from typing_extensions import TypeVar

from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.content import content
from workerkit.amqp.properties import Properties, decode, readable
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX
from workerkit.delivery import Action, Delivery

T = TypeVar("T", default=Any)

OURS = "x-workerkit-"
ATTEMPT = f"{OURS}attempt"
QUEUE = f"{OURS}queue"
EXCHANGE, ROUTING_KEY = f"{OURS}exchange", f"{OURS}routing-key"
RETURNS = f"{OURS}returns"
# Headers that a broker writes when it delivers a message again.
DELIVERY_COUNT, ACQUIRED_COUNT = "x-delivery-count", "x-acquired-count"
_COUNTS = frozenset({DELIVERY_COUNT, ACQUIRED_COUNT})
_MOST_ATTEMPTS = 1_000_000
_HAS_ENCODING = 0x40  # In the first byte of the property flags.


class AMQPMessage(Delivery, Generic[T]):
    """A message that `handle` is called with.

    Headers and properties are decoded when first asked for, and whatever the sender wrote, asking
    never raises: what cannot be decoded is absent.

    Attributes:
        body: The decoded body.
        raw: The body as it was received, not decompressed.
        queue: The queue it came from.
        redelivered_flag: The flag `redelivered` of the delivery. A copy, such as a retry, does not
            have it.
        tag: The broker's delivery tag, valid on the channel that delivered it.
        acks: Settles it on that channel.
        moved: Whether a copy of it has arrived elsewhere, and it is acknowledged for that reason.
    """

    __slots__ = (
        "__dict__",
        "_envelope",
        "_raw_properties",
        "acks",
        "body",
        "queue",
        "redelivered_flag",
        "tag",
    )

    body: T
    raw: bytes
    moved = False

    def __init__(
        self,
        raw: bytes,
        *,
        queue: str,
        tag: int,
        envelope: bytes,
        properties: bytes,
        acks: Acks,
    ) -> None:
        self.raw = raw
        self.fate = self.after = None
        self.queue = queue
        self.tag = tag
        self.acks = acks
        # basic.deliver from the redelivered bit on: bit, exchange, routing key (short strings).
        self._envelope = envelope
        self._raw_properties = properties
        self.redelivered_flag = envelope[:1] == b"\x01"

    def __repr__(self) -> str:
        return f"<AMQPMessage {self._said()}>"

    def __str__(self) -> str:
        return f"message {self._said()}"

    def _said(self) -> str:
        name = self.message_id or f"#{self.tag}"
        return f"{name} of {self.queue!r}, {len(self.raw)} bytes"

    def accept(self) -> None:
        """Acknowledge this message, even if the handler raises afterwards."""
        self.decide(Action.ACK)

    def reject(self, requeue: bool = True) -> None:
        """Refuse this message, even if the handler returns normally.

        Args:
            requeue: Back into the queue; else to the queue's dead-letter exchange, or dropped
                where it has none.
        """
        self.decide(Action.REQUEUE if requeue else Action.REJECT)

    @cached_property
    def properties(self) -> Properties:
        """All properties at once."""
        return decode(self._raw_properties)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The headers; empty where there are none or they cannot be decoded.

        They are the handler's: what becomes of the message does not depend on what it does to them.
        """
        return dict(self.sent)

    @cached_property
    def sent(self) -> dict[str, Any]:
        """The headers as they came."""
        try:
            return table.decode(self.properties.table or b"\0\0\0\0")
        except table.MalformedTable:
            return {}

    def content(self, *, text: bool) -> bytes:
        """Return the body without its `content_encoding`; text also as UTF-8, by its charset.

        Raises:
            InvalidBody: The body does not match its properties, or is too large decompressed.
        """
        properties = self._raw_properties
        # This check runs for each message: the flag of content_encoding, and the semicolon before a
        # parameter of the content type. Decoding the properties would take 20 times as long.
        if b";" not in properties and not (properties and properties[0] & _HAS_ENCODING):
            return self.raw
        largest = self.acks.max_decoded
        return content(properties).decode(self.raw, text=text, largest=largest)

    @property
    def unknown_content(self) -> str:
        """A `content_encoding` or charset that is not known; empty for most messages."""
        return content(self._raw_properties).unknown

    @property
    def message_id(self) -> str | None:
        return readable(self.properties.message_id)

    @property
    def correlation_id(self) -> str | None:
        return readable(self.properties.correlation_id)

    @property
    def reply_to(self) -> str | None:
        return readable(self.properties.reply_to)

    @property
    def content_type(self) -> str | None:
        return readable(self.properties.content_type)

    @property
    def content_encoding(self) -> str | None:
        """The encoding of `raw`, as the sender states it; `body` is decoded."""
        return readable(self.properties.content_encoding)

    @property
    def type(self) -> str | None:
        return readable(self.properties.type)

    @property
    def priority(self) -> int | None:
        return self.properties.priority

    @property
    def app_id(self) -> str | None:
        return readable(self.properties.app_id)

    @property
    def user_id(self) -> str | None:
        """The broker's user who published it; the broker has verified it."""
        return readable(self.properties.user_id)

    @property
    def expiration(self) -> float | None:
        """Seconds that it may wait in a queue; None without a valid expiration."""
        milliseconds = self.properties.expiration or ""
        is_number = milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) <= 20
        return int(milliseconds) / 1000 if is_number else None

    @property
    def timestamp(self) -> datetime | None:
        """The time of publishing in UTC, as the sender states it.

        None if it exceeds the range of `datetime`, for instance because the sender wrote
        milliseconds: `properties.timestamp` is the number as it was sent.
        """
        seconds = self.properties.timestamp
        return None if seconds is None else table.to_datetime(seconds)

    @property
    def exchange(self) -> str:
        """The exchange it was published to; empty for the default exchange.

        A retry comes by way of the default exchange, and its headers know the first one.
        """
        first = self._first(EXCHANGE)
        return first if isinstance(first, str) else self._short_string(1)

    @property
    def routing_key(self) -> str:
        """The routing key it was published with."""
        first = self._first(ROUTING_KEY)
        if isinstance(first, str):
            return first
        return self._short_string(2 + self._envelope[1] if len(self._envelope) > 1 else 1)

    @property
    def attempt(self) -> int:
        """Which try this is, from 1, as the header `x-workerkit-attempt` counts."""
        return self.__dict__.get("attempt") or sent_attempt(self)

    @attempt.setter
    def attempt(self, attempt: int) -> None:
        # Of a try in place, which no header counts.
        self.__dict__["attempt"] = attempt

    def count_failure_in_place(self) -> None:
        """Count a failure, and allow a new decision: the message is handled again unsettled."""
        self.__dict__["returns"] = self.returns + 1
        self.fate = self.after = None

    @cached_property
    def fingerprint(self) -> tuple[str, bytes]:
        """What it has in common with itself when it comes again, and with hardly any other."""
        name = blake2b((self.message_id or "").encode()).digest()
        return self.queue, blake2b(self.raw, digest_size=16, key=name).digest()

    @property
    def metadata_digest(self) -> bytes:
        """A digest of everything but the body and counts; the same for each redelivery."""
        headers = sorted((name, each) for name, each in self.sent.items() if name not in _COUNTS)
        properties = dataclasses.replace(self.properties, table=None)
        metadata = repr((self.exchange, self.routing_key, properties, headers))
        return blake2b(metadata.encode(), digest_size=16).digest()

    @property
    def delivery_count(self) -> int:
        """How often a quorum queue has requeued and counted the message; 0 on a first delivery.

        A classic queue counts nothing, and delivers the header that the sender wrote.
        """
        return _count(self.sent.get(DELIVERY_COUNT), otherwise=0) if self.redelivered_flag else 0

    @property
    def acquired_count(self) -> int:
        """How often a quorum queue of RabbitMQ 4.3 has delivered it before, counted or not."""
        return _count(self.sent.get(ACQUIRED_COUNT), otherwise=0) if self.redelivered_flag else 0

    @property
    def returns(self) -> int:
        """How often a copy of it was published to this queue, which RabbitMQ does not count."""
        in_place: int | None = self.__dict__.get("returns")
        return _count(self.past(RETURNS), otherwise=0) if in_place is None else in_place

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before, to this process or another one, and was requeued."""
        return self.redelivered_flag or self.returns > 0

    def past(self, header: str) -> Any:
        """What a header of ours tells of its past; None if that was in another queue.

        Whoever forwards a message, broker or handler, forwards its headers.
        """
        return self.sent.get(header) if self.sent.get(QUEUE, self.queue) == self.queue else None

    def _first(self, header: str) -> Any:
        """The same, of a dead letter too: it tells of the queue that it comes from."""
        before = self.sent.get(QUEUE, self.queue)
        is_told = self.queue in (before, f"{before}{DEAD_LETTER_SUFFIX}")
        return self.sent.get(header) if is_told else None

    def _short_string(self, position: int) -> str:
        size = self._envelope[position] if position < len(self._envelope) else 0
        return self._envelope[position + 1 : position + 1 + size].decode(errors="replace")


def sent_attempt(message: AMQPMessage[Any]) -> int:
    """Which try a message is, as its header says; 1 where it has none that can be believed."""
    return _count(message.past(ATTEMPT), otherwise=1)


def _count(value: object, otherwise: int) -> int:
    if type(value) is int and otherwise <= value <= _MOST_ATTEMPTS:
        return value
    return otherwise
