"""One RabbitMQ message: what a handler gets."""

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, Generic

from typing_extensions import TypeVar

from workerkit.amqp import table
from workerkit.amqp.acks import Acks
from workerkit.amqp.content import content
from workerkit.amqp.properties import Properties, RawHeaders, decode, find, readable
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX
from workerkit.codec import STRUCTURED, STRUCTURED_IN_ANY, BodyReader, CloudEventReader
from workerkit.delivery import Action, Delivery, TraceDetails
from workerkit.errors import InvalidBody, RequestExpired, UnknownMessageType

T = TypeVar("T", default=Any)

OURS = "x-workerkit-"
_OURS = OURS.encode()
ATTEMPT = f"{OURS}attempt"
QUEUE = f"{OURS}queue"
EXCHANGE, ROUTING_KEY = f"{OURS}exchange", f"{OURS}routing-key"
RETURNS, CONVERSATION = f"{OURS}returns", f"{OURS}correlation-id"
DEADLINE = f"{OURS}deadline"
"""The time until which the sender of a request waits for its reply, in milliseconds since 1970."""
_DEADLINE = DEADLINE.encode()
# Headers that a broker writes when it delivers a message again.
DELIVERY_COUNT, ACQUIRED_COUNT = "x-delivery-count", "x-acquired-count"
_MOST_ATTEMPTS = 1_000_000
# In the first byte of the property flags.
_HAS_ENCODING, _IS_LABELLED, _HAS_HEADERS = 0x40, 0xC0, 0x20
_NONE: Mapping[str, Any] = {}
_SHORT = 64  # Bytes; nothing is shorter, also compressed.
_JSON_LABEL = b"\x10application/json"


class AMQPMessage(Delivery, Generic[T]):
    """A message that `handle` is called with.

    Headers and properties are decoded when they are read first. Reading them never raises: what
    cannot be decoded is absent.

    Attributes:
        body: The decoded body.
        raw: The body as it was received, not decompressed.
        queue: The queue it was delivered from.
        redelivered_flag: The flag `redelivered` of the delivery. A copy, such as a retry, does not
            have it.
        tag: The broker's delivery tag, valid on the channel that delivered it.
        acks: Settles the message on that channel.
        moved: Whether it is acknowledged because a copy of it was confirmed.
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

    trace_system = "rabbitmq"

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
        return f"<AMQPMessage {self._described()}>"

    def __str__(self) -> str:
        return f"message {self._described()}"

    def _described(self) -> str:
        name = self.message_id or f"#{self.tag}"
        return f"{name} of {self.queue!r}, {len(self.raw)} bytes"

    def accept(self) -> None:
        """Acknowledge this message, even if the handler raises afterwards."""
        self.decide(Action.ACK)

    def reject(self, requeue: bool = True) -> None:
        """Refuse this message, even if the handler returns normally.

        Args:
            requeue: Requeue it; else it goes to the queue's dead-letter exchange, or is dropped if
                there is none.
        """
        self.decide(Action.REQUEUE if requeue else Action.REJECT)

    def log_context(self) -> dict[str, object]:
        """Return its ids."""
        ids = {"message_id": self.message_id, "correlation_id": readable(self._conversation)}
        return {name: value for name, value in ids.items() if value is not None}

    def handed_on_id(self) -> str | None:
        """Return its correlation id, or its message id if it begins a conversation."""
        return self._conversation or self.properties.message_id

    @property
    def _conversation(self) -> str | None:
        """Its correlation id; of a request, that of the message that its sender handles."""
        found = self.past(CONVERSATION)
        valid = isinstance(found, str) and 0 < len(found.encode(errors="surrogateescape")) < 256
        return found if valid else self.properties.correlation_id

    def trace_carrier(self) -> Mapping[str, Any]:
        """Return its headers."""
        properties = self._raw_properties
        return RawHeaders(properties) if properties and properties[0] & _HAS_HEADERS else _NONE

    def trace_source(self) -> str:
        """Return the name of its queue, as the class declares it."""
        return self.queue

    def trace_details(self) -> TraceDetails:
        """Return its destination, its ids and its size."""
        size = getattr(self, "size", None)  # That of an oversized message, which has no body.
        return TraceDetails(
            self.queue,
            self.exchange,
            self.routing_key,
            self.message_id,
            self.correlation_id,
            len(self.raw) if size is None else size,
        )

    @cached_property
    def properties(self) -> Properties:
        """All properties, decoded."""
        return decode(self._raw_properties)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The headers; empty if there are none or they cannot be decoded.

        A handler may change them: that has no effect on the settlement of the message.
        """
        return dict(self.sent)

    @cached_property
    def sent(self) -> dict[str, Any]:
        """The headers as they were received."""
        try:
            return table.decode(find(self._raw_properties, "table") or b"\0\0\0\0")
        except table.MalformedTable:
            return {}

    @property
    def has_deadline(self) -> bool:
        """Whether a header states until when its sender waits; this decodes no header."""
        return _DEADLINE in self._raw_properties

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of the log record.

        It is DEBUG if the class skips its type, and a WARNING for a request that is too late.
        """
        if action is Action.ACK and isinstance(error, UnknownMessageType) and error.skipped:
            return logging.DEBUG, "skipped: its type is unknown"
        if isinstance(error, RequestExpired):
            return logging.WARNING, "request has expired: not handled"
        return super().log_failure(action, error)

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

    def decoded(self, reader: BodyReader) -> Any:
        """Return the body as the type of *reader*, decoded by the codec of its content type.

        Raises:
            InvalidBody: The body does not match its properties, or the type.
        """
        properties = self._raw_properties
        # This check runs for each message: it is JSON without parameters, or nothing is stated.
        if properties[2:19] == _JSON_LABEL and not properties[0] & _HAS_ENCODING:
            return reader.json(self.raw)
        if not (properties and properties[0] & _IS_LABELLED):
            return reader.default(self.raw)
        labels = content(properties)
        decode, text = (
            reader.for_label(labels.label) if labels.label else (reader.default, reader.text)
        )
        try:
            return decode(labels.decode(self.raw, text=text, largest=self.acks.max_decoded))
        except InvalidBody as error:
            raise error.after(labels.unknown) from None

    def cloud_event(self, reader: CloudEventReader) -> Any:
        """Return the CloudEvent in binary mode, or in structured mode by the content type.

        Raises:
            InvalidBody: It is none, or its data does not match the type.
        """
        labels = content(self._raw_properties)
        if labels.label == STRUCTURED:
            return reader.structured(self.content(text=True))
        if labels.label.startswith(STRUCTURED_IN_ANY):
            raise InvalidBody(f"content type {labels.label!r} is not supported: send {STRUCTURED}")
        is_empty = len(self.raw) < _SHORT and not self.content(text=False)
        data = None if is_empty else partial(self.decoded, reader.body)
        return reader.binary(self.sent, self.content_type, data)

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
        return readable(find(self._raw_properties, "content_type"))

    @property
    def content_encoding(self) -> str | None:
        """The encoding of `raw`, according to the sender; `body` is decoded."""
        return readable(self.properties.content_encoding)

    @property
    def type(self) -> str | None:
        return readable(find(self._raw_properties, "type"))

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
        """Seconds that the message may wait in a queue; None without a valid expiration."""
        milliseconds = self.properties.expiration or ""
        is_number = milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) <= 20
        return int(milliseconds) / 1000 if is_number else None

    @property
    def timestamp(self) -> datetime | None:
        """The time of publishing in UTC, according to the sender.

        None if it exceeds the range of `datetime`, for instance because the sender wrote
        milliseconds: `properties.timestamp` is the number as it was sent.
        """
        seconds = self.properties.timestamp
        return None if seconds is None else table.to_datetime(seconds)

    @property
    def exchange(self) -> str:
        """The exchange that the message was published to; empty for the default exchange.

        A retry was published to the default exchange, and its headers have the first exchange.
        """
        first = self._first(EXCHANGE)
        return first if isinstance(first, str) else self._short_string(1)

    @property
    def routing_key(self) -> str:
        """The routing key that the message was published with."""
        first = self._first(ROUTING_KEY)
        if isinstance(first, str):
            return first
        return self._short_string(2 + self._envelope[1] if len(self._envelope) > 1 else 1)

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1, according to the header `x-workerkit-attempt`."""
        return self.__dict__.get("attempt") or sent_attempt(self)

    @attempt.setter
    def attempt(self, attempt: int) -> None:
        # The number of an immediate retry, which no header counts.
        self.__dict__["attempt"] = attempt

    def count_failure_in_place(self) -> None:
        """Count a failure of a message that stays unsettled, and allow a new decision."""
        self.__dict__["returns"] = self.returns + 1
        self.fate = self.after = None

    @cached_property
    def fingerprint(self) -> tuple[str, bytes]:
        """A digest of queue, id and body: the same for each redelivery."""
        name = blake2b((self.message_id or "").encode()).digest()
        return self.queue, blake2b(self.raw, digest_size=16, key=name).digest()

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
        """How often a copy was published to the same queue, which RabbitMQ does not count."""
        in_place: int | None = self.__dict__.get("returns")
        return _count(self.past(RETURNS), otherwise=0) if in_place is None else in_place

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before, to this process or another one, and was requeued."""
        return self.redelivered_flag or self.returns > 0

    def past(self, header: str) -> Any:
        """Return the value of a header of ours; None if it was written for another queue.

        Brokers and handlers that forward a message forward its headers.
        """
        return self.sent.get(header) if self.sent.get(QUEUE, self.queue) == self.queue else None

    def _first(self, header: str) -> Any:
        """Return the same as `past`, also for a dead letter of the other queue."""
        if _OURS not in self._raw_properties:  # To decode the headers takes ten times as long.
            return None
        before = self.sent.get(QUEUE, self.queue)
        applies = self.queue in (before, f"{before}{DEAD_LETTER_SUFFIX}")
        return self.sent.get(header) if applies else None

    def _short_string(self, position: int) -> str:
        size = self._envelope[position] if position < len(self._envelope) else 0
        return self._envelope[position + 1 : position + 1 + size].decode(errors="replace")


def sent_attempt(message: AMQPMessage[Any]) -> int:
    """Return the number of the attempt according to the header; 1 without a valid header."""
    return _count(message.past(ATTEMPT), otherwise=1)


def _count(value: object, otherwise: int) -> int:
    if type(value) is int and otherwise <= value <= _MOST_ATTEMPTS:
        return value
    return otherwise
