"""Publish messages that are persistent and mandatory, and wait until the broker confirms them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, ClassVar, TypeVar, overload
from uuid import uuid4

from typing_extensions import Unpack

from workerkit.amqp import outgoing
from workerkit.amqp.confirms import MessageRefused, MessageReturned, NotProcessed
from workerkit.amqp.destination import Destination, public_error
from workerkit.amqp.properties import Properties
from workerkit.amqp.properties import encode as encode_properties
from workerkit.amqp.publisher_connections import (
    NOT_OPEN,
    Declarations,
    Preparations,
    PublisherConnections,
)
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.requests import RequestOptions, encode_request, reply_reader
from workerkit.amqp.traced_publish import traced_publish
from workerkit.codec import BUILT_IN, Codecs
from workerkit.config.settings import WorkerSettings
from workerkit.current_call import current_correlation_id
from workerkit.errors import (
    BrokerRefused,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    Unroutable,
)
from workerkit.observe import Observer, Published, notify_event
from workerkit.tasks import Deadline
from workerkit.trace import Tracing

T = TypeVar("T")

_DIRECT_REPLY = f"{outgoing.DIRECT_REPLY_TO}."


class Publisher:
    """Publishes to RabbitMQ; inject it as the container's `publisher`.

    It has its own connections: RabbitMQ blocks connections that publish when it runs out of memory
    or disk, and consumers must not be blocked. A connection is opened by the first publish and then
    kept alive.

    The arguments of `publish`, and of `publish_many` and `publish_threadsafe` as well:

    * `body`: `bytes` are sent unchanged, all others in the format of `content_type`. Without one,
      `str` is text, a protobuf message binary, models and all other values JSON; a `CloudEvent` is
      written in binary mode.
    * `exchange`: A name, or an `Exchange` that is declared if it is missing. The default exchange
      routes to the queue that has the routing key as its name.
    * `headers`, `reply_to`, `type`, `app_id`: As defined by AMQP; texts of 255 bytes at most.
    * `correlation_id`: By default that of the message that the calling handler handles, or the
      message's id if it has none; for a view the request id.
    * `message_id`: A new one by default.
    * `content_type`: That of the body by default. A codec of the container's `codecs` or a built-in
      one encodes the body. Text and JSON are encoded in its `charset`.
    * `content_encoding`: `gzip` and `deflate` compress the body, except for `bytes` that are
      compressed already. With any other value, `bytes` are sent unchanged.
    * `user_id`: The broker accepts only the user that the connection has logged in with.
    * `timestamp`: A `datetime`, or seconds since 1970; now by default.
    * `priority`: 0 to 255; only queues with `x-max-priority` use it.
    * `expiration`: Seconds after which a queue drops the message.
    * `connection`, `vhost`: The connection to use; a vhost of None is that of the connection.
    * `mandatory`: Fail if no queue receives the message, instead of losing it. Ignored for a direct
      reply, to `amq.rabbitmq.reply-to.…`, and for a message with `x-delay` to an exchange: the
      broker returns those although it delivers them.
    * `timeout`: Seconds for the whole call, including a new connection.

    Attributes:
        observers, tracing: Called for each publish, observers for connections too. Set at start.
        codecs: Those of the container, set at start.
        connects: Whether it publishes to a broker. The fake publisher of tests does not.
    """

    observers: Sequence[Observer] = ()
    codecs: Codecs = BUILT_IN
    tracing: Tracing | None = None
    connects: ClassVar[bool] = True

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._connections = PublisherConnections(lambda: self.observers)
        self._preparations = Preparations()

    def open(self, settings: WorkerSettings) -> None:
        """Set the settings, which have the connections. The Runner does this before the start."""
        self._connections.settings = settings
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def wait_for(self, place: tuple[str, str], preparation: "Declarations") -> None:
        """Make each publish to *place* wait, within its deadline, until its queues are declared.

        Args:
            place: A connection of the settings, in lower case, and a virtual host.
        """
        self._preparations.add(place, preparation)

    def blocked(self) -> list[str]:
        """Return the names of the connections whose broker blocks publishers."""
        return self._connections.blocked()

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
        """Publish one message, and return its id once the broker has confirmed it.

        Raises:
            PublishError: A subclass for each cause. After `PublishOutcomeUnknown`, publish again
                with its message id. If this call is cancelled, the outcome is unknown as well.
            TypeError, ValueError: The body cannot be encoded, a parameter has the wrong type, or a
                number is out of range.
        """
        if correlation_id is None:
            correlation_id = current_correlation_id()
        try:
            raw, properties = outgoing.encode_message(
                body, headers, message_id, correlation_id, priority, expiration,
                content_type, content_encoding, type, reply_to, app_id, timestamp, user_id,
                self.codecs,
            )  # fmt: skip
            if headers and exchange and outgoing.DELAY_HEADER in headers:
                mandatory = False
            to = Destination(routing_key, exchange, connection, vhost, mandatory)
            send = self.send_observed if self.tracing is None else self._send_traced
            return await send(raw, properties, to, timeout)
        except (AttributeError, TypeError):
            # Only after a failure: these checks would slow down every publish.
            outgoing.check_types(locals())
            raise

    @overload
    async def request(
        self,
        body: object,
        routing_key: str,
        *,
        timeout: float = 30.0,
        **more: Unpack[RequestOptions],
    ) -> bytes: ...

    @overload
    async def request(
        self,
        body: object,
        routing_key: str,
        *,
        returns: type[T],
        timeout: float = 30.0,
        **more: Unpack[RequestOptions],
    ) -> T: ...

    @overload
    async def request(
        self,
        body: object,
        routing_key: str,
        *,
        returns: Any,
        timeout: float = 30.0,
        **more: Unpack[RequestOptions],
    ) -> Any: ...

    async def request(
        self,
        body: object,
        routing_key: str,
        *,
        returns: Any = bytes,
        timeout: float = 30.0,
        **more: Unpack[RequestOptions],
    ) -> Any:
        """Publish a request, and return the reply to it.

        Any number of requests wait at the same time. A request that is cancelled or late is
        forgotten, and its reply ignored.

        Args:
            returns: The type of the reply, with the same meaning as that of the body in `handle`;
                `Any` reads any JSON value.
            timeout: Seconds for the whole call. A queue drops the request after them, and a
                consumer of workerkit does not begin with it.
            **more: As for `publish`, except `correlation_id` and `reply_to`.

        Raises:
            PublishError: The request was not published, as for `publish`.
            RequestFailed: The reply is a problem.
            RequestTimeout, ReplyLost: There was no reply. The request may have been handled.
            InvalidReply: The reply does not match *returns*.
            TypeError, ValueError: As for `publish`, or *returns* is no type of a body.
        """
        began = perf_counter()
        read = reply_reader(returns, self.codecs)
        raw, properties, to = encode_request(body, routing_key, timeout, more, self.codecs)
        assert properties.correlation_id is not None
        where = f"request {properties.message_id!r} to {to}"
        with self._connections.to(to).requests.waiting(properties.correlation_id) as waiter:
            try:
                await self._send_traced(raw, properties, to, timeout)
            except PublishOutcomeUnknown:
                if waiter.reply is None:
                    raise
            left = timeout - (perf_counter() - began)
            reply = await waiter.wait(where, timeout, left)
        return read(reply, where)

    async def publish_many(
        self, bodies: Iterable[object], routing_key: str, *, window: int = 100, **more: Any
    ) -> list[str]:
        """Publish many messages with the same options, several at a time.

        Args:
            bodies: Read as the window allows, so it may be infinite, or larger than memory.
            window: Messages that wait for their confirm at the same time.
            **more: As for `publish`, except `message_id`.

        Returns:
            The message ids, in the order of *bodies*.

        Raises:
            ExceptionGroup: Each `PublishError`. After the first one no other message was sent, and
                this call waited for those that had been sent.
        """
        if window < 1:
            raise ValueError(f"window is {window}: it must be at least 1")
        remaining = iter(bodies)
        ids: dict[int, str] = {}
        errors: list[Exception] = []

        async def publish_next(numbers: Iterator[int]) -> None:
            for body in remaining:
                number = next(numbers)
                try:
                    ids[number] = await self.publish(body, routing_key, **more)
                except PublishError as error:
                    errors.append(error)
                if errors:
                    return

        numbers = count()
        async with asyncio.TaskGroup() as group:
            for _ in range(window):
                group.create_task(publish_next(numbers))
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(ids) + len(errors)} failed", errors)
        return [ids[number] for number in sorted(ids)]

    def publish_threadsafe(self, body: object, routing_key: str, **more: Any) -> str:
        """Publish from the thread of a handler that is not `async`; block until confirmed.

        Raises:
            RuntimeError: It was called in the event loop's own thread, which it would block.
        """
        call = partial(self.publish, body, routing_key, **more)
        return str(self._from_thread("publish", call))

    def request_threadsafe(
        self, body: object, routing_key: str, *, returns: type[T], **more: Any
    ) -> T:
        """Request from the thread of a handler that is not `async`; block until there is a reply.

        Raises:
            RuntimeError: It was called in the event loop's own thread, which it would block.
        """
        call = partial(self.request, body, routing_key, returns=returns, **more)
        found: T = self._from_thread("request", call)
        return found

    def _from_thread(self, name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        loop = self._loop
        if loop is None:
            raise ConfigurationError(NOT_OPEN)
        if threading.get_ident() == self._thread:
            raise RuntimeError(f"{name}_threadsafe is for other threads: await {name} instead")
        return asyncio.run_coroutine_threadsafe(call(), loop).result()

    async def send(
        self, raw: bytes, properties: Properties, to: Destination, timeout: float = 10.0
    ) -> str:
        """Publish an encoded body with complete properties, as `publish` does."""
        message_id = properties.message_id = properties.message_id or uuid4().hex
        exchange = to.exchange.name if isinstance(to.exchange, Exchange) else to.exchange
        key, mandatory = to.routing_key, to.mandatory
        where = f"message {message_id!r} to {to}"
        publisher = self._connections.to(to)
        if not exchange and key.startswith(_DIRECT_REPLY):
            mandatory = False
            if not publisher.decodes_reply_address(key):
                raise Unroutable(f"{where}: this is not the address of a direct reply")
        encoded, user = encode_properties(properties), properties.user_id
        is_request = properties.reply_to == outgoing.DIRECT_REPLY_TO
        message = outgoing.OutgoingMessage(
            message_id, exchange, key, mandatory, encoded, raw, user,
            properties.correlation_id if is_request else None,
        )  # fmt: skip
        sent = False
        try:
            async with Deadline(timeout):
                while not sent:
                    confirm = await publisher.publish(message, to.exchange)
                    sent = True
                    try:
                        await confirm
                    except NotProcessed:
                        sent = False
        except TimeoutError as error:
            raise publisher.timeout_error(where, message_id, timeout, sent=sent) from error
        except MessageTooLarge as error:
            raise MessageTooLarge(f"{where}: {error}") from None
        except (MessageReturned, MessageRefused) as error:
            raise public_error(where, error, exchange) from None
        except ConnectionLost as error:
            if sent:
                raise PublishOutcomeUnknown(f"{where}: {error}", message_id) from error
            code = error.code if isinstance(error, BrokerRefused) else 0
            raise public_error(where, MessageRefused(str(error), code), exchange) from error
        return message_id

    async def send_observed(
        self, raw: bytes, properties: Properties, to: Destination, timeout: float = 10.0
    ) -> str:
        """Publish as `send` does, and report the outcome to the observers."""
        began = perf_counter()

        def ended(error: PublishError | None = None) -> Published:
            name, message_id = to.connection.casefold(), properties.message_id or ""
            exchange, key, seconds = str(to.exchange), to.routing_key, perf_counter() - began
            return Published(name, exchange, key, message_id, len(raw), seconds, error)

        try:
            if self._preparations:
                message_id = properties.message_id = properties.message_id or uuid4().hex
                connection, place = self._connections.to(to), self._connections.place(to)
                timeout = await self._preparations.wait(connection, place, to, message_id, timeout)
            message_id = await self.send(raw, properties, to, timeout)
        except PublishError as error:
            notify_event(self.observers, "published", ended(error))
            raise
        notify_event(self.observers, "published", ended())
        return message_id

    async def _send_traced(
        self, raw: bytes, properties: Properties, to: Destination, timeout: float
    ) -> str:
        if self.tracing is None:
            return await self.send_observed(raw, properties, to, timeout)
        with traced_publish(self.tracing, properties, to, len(raw)):
            return await self.send_observed(raw, properties, to, timeout)

    async def declare(self, queue: Queue, connection: str, vhost: str | None) -> bool:
        """Declare a queue if it is missing.

        Returns:
            Whether it was missing.

        Raises:
            PublishRefused: A permission is missing, or the queue exists with other arguments.
            PublishTimeout: There is no connection.
        """
        return await self._connections.declare(queue, connection, vhost)

    async def close(self) -> None:
        """Close the connections. Publishes that are not confirmed yet fail."""
        self._preparations.clear()
        await self._connections.close()
