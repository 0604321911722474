"""Fake messages, events and publisher, for tests without a broker."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from typing_extensions import Unpack

from workerkit.amqp import outgoing, table
from workerkit.amqp.acks import Acks
from workerkit.amqp.message import ATTEMPT, AMQPMessage
from workerkit.amqp.properties import Properties
from workerkit.amqp.properties import encode as encode_properties
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.requests import Reply, RequestOptions, encode_request, reply_reader
from workerkit.codec import encode
from workerkit.config.settings import WorkerSettings
from workerkit.sse.event import SSEEvent

_PUBLISH = inspect.signature(Publisher.publish)
# Parameters of the publish itself; the others belong to the message.
_DELIVERY_PARAMETERS = ("exchange", "connection", "vhost", "mandatory", "timeout")
_NAMED = ("exchange", "headers", "message_id")


def fake_message(
    body: Any = None,
    *,
    queue: str = "test",
    headers: Mapping[str, Any] | None = None,
    message_id: str | None = "fake",
    correlation_id: str | None = None,
    reply_to: str | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    type: str | None = None,
    app_id: str | None = None,
    user_id: str | None = None,
    priority: int | None = None,
    expiration: float | None = None,
    timestamp: datetime | None = None,
    exchange: str = "",
    routing_key: str | None = None,
    redelivered: bool = False,
    attempt: int = 1,
) -> AMQPMessage[Any]:
    """Create a message without a broker.

    `accept()` and `reject()` are recorded in its `fate`, as in a real one: None while the handler
    has not decided.

    Args:
        body: The value of `message.body`; `message.raw` is its encoded form, compressed if
            *content_encoding* requires it.
        routing_key: The name of the queue by default.
    """
    all_headers = {**(headers or {}), **({ATTEMPT: attempt} if attempt > 1 else {})}
    raw, properties = outgoing.encode_message(
        body, all_headers, message_id, correlation_id, priority, expiration,
        content_type, content_encoding, type, reply_to, app_id, timestamp, user_id,
    )  # fmt: skip
    if timestamp is None:
        properties.timestamp = None
    key = (queue if routing_key is None else routing_key).encode()
    name = exchange.encode()
    message: AMQPMessage[Any] = AMQPMessage(
        raw,
        queue=queue,
        tag=1,
        envelope=bytes((redelivered, len(name))) + name + bytes((len(key),)) + key,
        properties=encode_properties(properties),
        acks=Acks(1, lambda frames: True, lambda flush: None),
    )
    message.body = body
    return message


def fake_event(
    body: Any = None,
    *,
    name: str = "message",
    id: str = "",
    route: str = "/",
    attempt: int = 1,
) -> SSEEvent[Any]:
    """Create a Server-Sent Event without a server; its `fate` records the decision."""
    event: SSEEvent[Any] = SSEEvent(
        encode(body)[0].decode(), name=name, id=id, route=route, attempt=attempt
    )
    event.body = body
    return event


@dataclass(frozen=True, slots=True)
class Published:
    """One message that was published to a `FakePublisher`.

    Attributes:
        options: All other parameters of `publish` that differ from their defaults, by name.
    """

    body: Any
    routing_key: str
    exchange: str = ""
    headers: Mapping[str, Any] | None = None
    message_id: str = ""
    options: Mapping[str, Any] | None = None


class FakePublisher(Publisher):
    """A replacement of the container's `publisher` that records what was published.

    Attributes:
        published: The messages and requests, in order.
        error: If set, each publish and each request raises it.
        replies: The replies to requests, by routing key: a value, an exception to raise, or a
            function that gets the body of the request and returns either.
    """

    connects = False

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Published] = []
        self.error: Exception | None = None
        self.replies: dict[str, Any] = {}

    def open(self, settings: WorkerSettings) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def publish(
        self,
        body: object,
        routing_key: str,
        *,
        exchange: Exchange | str = "",
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        type: str | None = None,
        app_id: str | None = None,
        user_id: str | None = None,
        timestamp: datetime | float | None = None,
        priority: int | None = None,
        expiration: float | None = None,
        connection: str = "default",
        vhost: str | None = None,
        mandatory: bool = True,
        timeout: float = 10.0,
    ) -> str:
        """Record a message.

        Raises:
            TypeError, ValueError: A real publisher would not accept it either.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return self._record(**given)

    async def publish_many(
        self, bodies: Iterable[object], routing_key: str, *, window: int = 100, **more: Any
    ) -> list[str]:
        """Record many messages."""
        return [await self.publish(body, routing_key, **more) for body in bodies]

    def publish_threadsafe(self, body: object, routing_key: str, **more: Any) -> str:
        """Record a message."""
        return self._record(body, routing_key, **more)

    async def request(
        self,
        body: object,
        routing_key: str,
        *,
        returns: Any = bytes,
        timeout: float = 30.0,
        **more: Unpack[RequestOptions],
    ) -> Any:
        """Record a request, and return the reply to it from `replies`, read as *returns*.

        Raises:
            LookupError: `replies` has none for this routing key.
            InvalidReply: The reply does not match *returns*.
            TypeError, ValueError: A real publisher would not accept the request, or nobody could
                send the reply.
        """
        return self._reply(body, routing_key, returns, timeout, more)

    def request_threadsafe(
        self, body: object, routing_key: str, *, returns: Any, timeout: float = 30.0, **more: Any
    ) -> Any:
        """Record a request, and return the reply to it, as `request` does."""
        return self._reply(body, routing_key, returns, timeout, more)

    async def declare(self, queue: Queue, connection: str, vhost: str | None) -> bool:
        """Declare nothing: no queue is missing."""
        return False

    def _record(self, body: object, routing_key: str, **given: Any) -> str:
        _PUBLISH.bind(self, body, routing_key, **given)
        outgoing.check_types({**given, "routing_key": routing_key})
        of_message = {
            name: value for name, value in given.items() if name not in _DELIVERY_PARAMETERS
        }
        encode_properties(outgoing.encode_message(body, **of_message, codecs=self.codecs)[1])
        if self.error is not None:
            raise self.error
        options = {
            name: value
            for name, value in given.items()
            if name not in _NAMED and value != _PUBLISH.parameters[name].default
        }
        message_id = given.get("message_id") or uuid4().hex
        self.published.append(
            Published(
                body,
                routing_key,
                str(given.get("exchange", "")),
                given.get("headers"),
                message_id,
                options,
            )
        )
        return message_id

    def _reply(
        self, body: object, routing_key: str, returns: Any, timeout: float, more: Mapping[str, Any]
    ) -> Any:
        read = reply_reader(returns, self.codecs)
        _, properties, to = encode_request(body, routing_key, timeout, more, self.codecs)
        encode_properties(properties)
        if self.error is not None:
            raise self.error
        if routing_key not in self.replies:
            text = f"there is no reply to requests to {routing_key!r}"
            raise LookupError(f"{text}: set FakePublisher.replies[{routing_key!r}]")
        options = {name: value for name, value in more.items() if name not in _NAMED}
        message_id, headers = properties.message_id or "", more.get("headers")
        self.published.append(
            Published(body, routing_key, str(to.exchange), headers, message_id, options)
        )
        reply = self.replies[routing_key]
        if callable(reply):
            reply = reply(body)
        if isinstance(reply, BaseException):
            raise reply
        raw, content_type, event = outgoing.encode_body(reply, None, None, self.codecs)
        labels = Properties(content_type=content_type, table=table.encode(event) if event else None)
        sent = Reply(encode_properties(labels), raw, len(raw))
        return read(sent, f"request {message_id!r} to {to}")
