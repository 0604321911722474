"""Publish messages that are persistent and mandatory, and wait until the broker confirms them."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, ClassVar, Protocol
from uuid import uuid4

from workerkit.amqp import outgoing
from workerkit.amqp.confirms import (
    DEFAULT_EXCHANGE,
    TOO_LARGE,
    MessageRefused,
    MessageReturned,
    NotProcessed,
)
from workerkit.amqp.connection import Connection
from workerkit.amqp.frames import NO_PERMISSION, NOT_FOUND, PRECONDITION_FAILED
from workerkit.amqp.properties import Properties
from workerkit.amqp.properties import encode as encode_properties
from workerkit.amqp.publisher_connection import PublisherConnection
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.traced_publish import traced_publish
from workerkit.config.settings import WorkerSettings
from workerkit.current_call import current_correlation_id
from workerkit.errors import (
    BrokerRefused,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from workerkit.observe import Observer, Published, notify_event
from workerkit.tasks import Deadline
from workerkit.trace import Tracing

_NOT_OPEN = "the publisher is used before the Runner has started, or after it has stopped"
_DECLARE_DEADLINE = 30.0  # For several requests, each of which has its own deadline.
_DIRECT_REPLY = f"{outgoing.DIRECT_REPLY_TO}."


class Declarations(Protocol):
    """The first declarations on one connection."""

    @property
    def is_complete(self) -> bool:
        """Return whether no publish has to wait for them any more."""

    async def wait_for_destination(self, exchange: str, routing_key: str) -> None:
        """Wait until the queues that a message may reach are declared."""


class Publisher:
    """Publishes to RabbitMQ; inject it as the container's `publisher`.

    It has its own connections: RabbitMQ blocks connections that publish when it runs out of memory
    or disk, and consumers must not be blocked. A connection is opened by the first publish and then
    kept alive.

    The arguments of `publish`, and of `publish_many` and `publish_threadsafe` as well:

    * `body`: `bytes` and `str` are sent unchanged, models and all other values as JSON.
    * `exchange`: A name, or an `Exchange` that is declared if it is missing. The default exchange
      routes to the queue that has the routing key as its name.
    * `headers`, `reply_to`, `type`, `app_id`: As defined by AMQP; texts of 255 bytes at most.
    * `correlation_id`: By default that of the message that the calling handler handles, or the
      message's id if it has none; for a view the request id.
    * `message_id`: A new one by default.
    * `content_type`: That of the body by default. Text and JSON are encoded in its `charset`.
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
        connects: Whether it publishes to a broker. The fake publisher of tests does not.
    """

    observers: Sequence[Observer] = ()
    tracing: Tracing | None = None
    connects: ClassVar[bool] = True

    def __init__(self) -> None:
        self._settings: WorkerSettings | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._connections: dict[tuple[str, str], PublisherConnection] = {}
        # By connection and vhost as they are passed: to resolve the settings takes longer.
        self._resolved: dict[tuple[str, str | None], PublisherConnection] = {}
        self._preparations: dict[tuple[str, str], Declarations] = {}

    def open(self, settings: WorkerSettings) -> None:
        """Set the settings, which have the connections. The Runner does this before the start."""
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def wait_for(self, place: tuple[str, str], preparation: "Declarations") -> None:
        """Make each publish to *place* wait, within its deadline, until its queues are declared.

        Args:
            place: A connection of the settings, in lower case, and a virtual host.
        """
        self._preparations[place] = preparation

    def blocked(self) -> list[str]:
        """Return the names of the connections whose broker blocks publishers."""
        return [name for (name, _), each in self._connections.items() if each.blocked]

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
            )  # fmt: skip
            if headers and exchange and outgoing.DELAY_HEADER in headers:
                mandatory = False
            to = Destination(routing_key, exchange, connection, vhost, mandatory)
            if self.tracing is None:
                return await self._observed(raw, properties, to, timeout)
            more = str(exchange), routing_key, connection, len(raw), properties
            with traced_publish(self.tracing, *more):
                return await self._observed(raw, properties, to, timeout)
        except (AttributeError, TypeError):
            # Only after a failure: these checks would slow down every publish.
            outgoing.check_types(locals())
            raise

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
            ExceptionGroup: The `PublishError`s. After the first one no other message was sent, and
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
        loop = self._loop
        if loop is None:
            raise ConfigurationError(_NOT_OPEN)
        if threading.get_ident() == self._thread:
            raise RuntimeError("publish_threadsafe is for other threads: await publish instead")
        publishing = self.publish(body, routing_key, **more)
        return asyncio.run_coroutine_threadsafe(publishing, loop).result()

    async def send(
        self, raw: bytes, properties: Properties, to: "Destination", timeout: float = 10.0
    ) -> str:
        """Publish an encoded body with complete properties, as `publish` does."""
        message_id = properties.message_id = properties.message_id or uuid4().hex
        exchange = to.exchange.name if isinstance(to.exchange, Exchange) else to.exchange
        key, mandatory = to.routing_key, to.mandatory
        if not exchange and key.startswith(_DIRECT_REPLY):
            mandatory = False
        encoded, user = encode_properties(properties), properties.user_id
        message = outgoing.OutgoingMessage(message_id, exchange, key, mandatory, encoded, raw, user)
        where = f"message {message_id!r} to {to}"
        publisher = self._connection_to(to)
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
            raise _public_error(where, error, exchange) from None
        except ConnectionLost as error:
            if sent:
                raise PublishOutcomeUnknown(f"{where}: {error}", message_id) from error
            code = error.code if isinstance(error, BrokerRefused) else 0
            raise _public_error(where, MessageRefused(str(error), code), exchange) from error
        return message_id

    async def _observed(
        self, raw: bytes, properties: Properties, to: "Destination", timeout: float
    ) -> str:
        """Publish as `send` does, and report the outcome to the observers."""
        began = perf_counter()

        def ended(error: PublishError | None = None) -> Published:
            name, message_id = to.connection.casefold(), properties.message_id or ""
            exchange, key, seconds = str(to.exchange), to.routing_key, perf_counter() - began
            return Published(name, exchange, key, message_id, len(raw), seconds, error)

        try:
            if self._preparations:
                timeout = await self._wait_for_queues(properties, to, timeout)
            message_id = await self.send(raw, properties, to, timeout)
        except PublishError as error:
            notify_event(self.observers, "published", ended(error))
            raise
        notify_event(self.observers, "published", ended())
        return message_id

    async def _wait_for_queues(
        self, properties: Properties, to: "Destination", timeout: float
    ) -> float:
        """Wait until the queues that the process itself consumes are declared.

        Returns:
            The seconds that are left of *timeout*.
        """
        publisher, place, began = self._connection_to(to), self._place(to), perf_counter()
        if (preparation := self._preparations.get(place)) is None:
            return timeout
        try:
            async with Deadline(timeout):
                await preparation.wait_for_destination(str(to.exchange), to.routing_key)
        except TimeoutError as error:
            message_id = properties.message_id = properties.message_id or uuid4().hex
            where = f"message {message_id!r} to {to}"
            raise publisher.timeout_error(where, message_id, timeout, sent=False) from error
        if preparation.is_complete:
            self._preparations.pop(place, None)
        return max(timeout - (perf_counter() - began), 0.0)

    async def declare(self, queue: Queue, connection: str, vhost: str | None) -> bool:
        """Declare a queue if it is missing.

        Returns:
            Whether it was missing.

        Raises:
            PublishRefused: A permission is missing, or the queue exists with other arguments.
            PublishTimeout: There is no connection.
        """
        publisher = self._connection_to(Destination(queue.name, "", connection, vhost))
        try:
            async with Deadline(_DECLARE_DEADLINE):
                return await publisher.declare(queue)
        except TimeoutError as error:
            text = f"queue {queue.name!r}: not declared within {_DECLARE_DEADLINE:g} s"
            raise PublishTimeout(text) from error
        except ConnectionLost as error:
            raise PublishRefused(f"queue {queue.name!r} cannot be declared: {error}") from error

    async def close(self) -> None:
        """Close the connections. Publishes that are not confirmed yet fail."""
        connections, self._connections, self._settings = self._connections, {}, None
        self._resolved.clear()
        self._preparations.clear()
        await asyncio.gather(*(each.close() for each in connections.values()))

    def _place(self, to: "Destination") -> tuple[str, str]:
        """Return the connection and the virtual host of a destination.

        Raises:
            ConfigurationError: There is no such connection, or the publisher is not open.
        """
        if self._settings is None:
            raise ConfigurationError(_NOT_OPEN)
        name = to.connection.casefold()
        settings = self._settings.amqp.get(name)
        if settings is None:
            known = ", ".join(sorted(self._settings.amqp))
            raise ConfigurationError(
                f"{to}: the settings have no connection {to.connection!r}, only {known}"
            )
        return name, settings.vhost_name(to.vhost)

    def _connection_to(self, to: "Destination") -> PublisherConnection:
        if (found := self._resolved.get((to.connection, to.vhost))) is not None:
            return found
        name, _ = key = self._place(to)
        if key not in self._connections:
            assert self._settings is not None
            read = partial(self._settings.connection, name)
            self._connections[key] = PublisherConnection(
                Connection(name, read, to.vhost, "publisher", self.observers)
            )
        self._resolved[to.connection, to.vhost] = self._connections[key]
        return self._connections[key]


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a message.

    Attributes:
        mandatory: Whether the broker returns the message if no queue receives it.
    """

    routing_key: str
    exchange: Exchange | str = ""
    connection: str = "default"
    vhost: str | None = None
    mandatory: bool = True

    def __str__(self) -> str:
        exchange = f"exchange {str(self.exchange)!r}" if self.exchange else "the default exchange"
        return f"{exchange} with routing key {self.routing_key!r}"


def _public_error(
    where: str, error: MessageReturned | MessageRefused, exchange: str
) -> PublishError:
    """Return the public error for a message that the broker returned or refused."""
    if isinstance(error, MessageRefused) and error.code == NO_PERMISSION:
        grant = f"grant write on {exchange or DEFAULT_EXCHANGE!r}"
        return PublishRefused(f"{where}: {error}; {grant}")
    if isinstance(error, MessageReturned):
        return Unroutable(f"{where}: no queue receives it ({error})")
    if error.code == PRECONDITION_FAILED and TOO_LARGE in str(error):
        return MessageTooLarge(f"{where}: {error}")
    return (Unroutable if error.code == NOT_FOUND else PublishRefused)(f"{where}: {error}")
