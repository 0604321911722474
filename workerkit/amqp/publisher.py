"""Publish messages so that they are known to have arrived: persistent, mandatory, confirmed."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.confirms import Confirms, Nacked, Returned, publish_method
from workerkit.amqp.connection import Connection, scratch
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.properties import encode as encode_properties
from workerkit.codec import encode
from workerkit.errors import (
    BrokerBlocked,
    BrokerRefused,
    ConfigurationError,
    ConnectionLost,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from workerkit.settings import WorkerSettings

_NOT_FOUND = 404
_LOST_PAUSE = 0.05


class Publisher:
    """Publishes to RabbitMQ; inject it as the container's `publisher`.

    Connections of its own, so that a broker which blocks publishers cannot block consumers. They
    are opened when first published to, and kept alive from then on.
    """

    def __init__(self) -> None:
        self._settings: WorkerSettings | None = None
        self._routes: dict[tuple[str, str], _Route] = {}

    def open(self, settings: WorkerSettings) -> None:
        """Say which connections there are. The Runner does this before anything starts."""
        self._settings = settings

    async def publish(
        self,
        body: object,
        routing_key: str,
        *,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        correlation_id: str | None = None,
        priority: int | None = None,
        expiration: float | None = None,
        connection: str = "default",
        vhost: str | None = None,
        mandatory: bool = True,
        timeout: float = 10.0,
    ) -> str:
        """Publish one message and wait until the broker has taken it over.

        Args:
            body: `bytes` and `str` go as they are, models and all else as JSON.
            exchange: The default exchange routes to the queue named like the routing key.
            message_id: A new one where there is none.
            priority: 0 to 255; only queues with `x-max-priority` look at it.
            expiration: Seconds after which a queue drops the message.
            connection: A named connection of the settings.
            vhost: Virtual host; None for the connection's own.
            mandatory: Fail where no queue gets the message, instead of losing it.
            timeout: Seconds for everything, a connection that has yet to be made included.

        Returns:
            The message id.

        Raises:
            PublishError: One of its children says what happened. After `PublishOutcomeUnknown`
                publish again with its message id; cancelling this call leaves the same doubt.
            TypeError: The body cannot be encoded.
        """
        raw, content_type = encode(body)
        properties = Properties(
            content_type=content_type,
            table=table.encode(headers) if headers else None,
            delivery_mode=PERSISTENT,
            priority=priority,
            correlation_id=correlation_id,
            message_id=message_id,
            expiration=None if expiration is None else str(round(expiration * 1000)),
        )
        to = Destination(routing_key, exchange, connection, vhost, mandatory)
        return await self.send(raw, properties, to, timeout)

    async def send(
        self, raw: bytes, properties: Properties, to: "Destination", timeout: float = 10.0
    ) -> str:
        """As `publish`, for a body that is encoded and properties that are complete."""
        message_id = properties.message_id = properties.message_id or uuid4().hex
        encoded = encode_properties(properties)
        method = publish_method(to.exchange, to.routing_key, mandatory=to.mandatory)
        where = f"message {message_id!r} to {to}"
        route = self._route(to)
        sent = False
        try:
            async with asyncio.timeout(timeout):
                confirms = await route.confirms(to.exchange)
                await confirms.writable()
                confirm = confirms.publish(method, encoded, raw, message_id)
                sent = True
                await confirm
        except TimeoutError as error:
            raise route.late(where, message_id, timeout, sent=sent) from error
        except ConnectionLost as error:
            if sent:
                raise PublishOutcomeUnknown(f"{where}: {error}", message_id) from error
            if isinstance(error, BrokerRefused) and error.code == _NOT_FOUND:
                raise Unroutable(f"{where}: there is no such exchange") from error
            raise PublishRefused(f"{where}: {error}") from error
        except Returned as returned:
            raise Unroutable(f"{where}: {returned}") from None
        except Nacked:
            raise PublishRefused(f"{where}: the broker did not take it over") from None
        return message_id

    async def close(self) -> None:
        """Close the connections. A publish that still waits fails."""
        routes, self._routes = self._routes, {}
        for route in routes.values():
            await route.close()

    def _route(self, to: "Destination") -> "_Route":
        if self._settings is None:
            raise ConfigurationError("the publisher is used before the Runner has started")
        name = to.connection.casefold()
        settings = self._settings.amqp.get(name)
        if settings is None:
            known = ", ".join(sorted(self._settings.amqp))
            raise ConfigurationError(
                f"{to}: the settings have no connection {to.connection!r}, only {known}"
            )
        key = (name, settings.vhost_name(to.vhost))
        if key not in self._routes:
            self._routes[key] = _Route(Connection(name, settings, to.vhost, "publisher"))
        return self._routes[key]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a message goes.

    Attributes:
        mandatory: The broker gives it back where no queue gets it.
    """

    routing_key: str
    exchange: str = ""
    connection: str = "default"
    vhost: str | None = None
    mandatory: bool = True

    def __str__(self) -> str:
        exchange = f"exchange {self.exchange!r}" if self.exchange else "the default exchange"
        return f"{exchange} with routing key {self.routing_key!r}"


class _Route:
    """One connection that publishes, with a channel that confirms."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task = asyncio.create_task(connection.run(), name=f"publisher to {connection}")
        self._failure: Exception | None = None
        self._opening = asyncio.Lock()
        self._confirms: Confirms | None = None
        self._exchanges: set[str] = set()
        connection.followers.append(self)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Remember why, for publishes that do not want to wait longer."""
        self._failure = error

    async def confirms(self, exchange: str) -> Confirms:
        """An open channel, once *exchange* is known to exist: a missing one would close it.

        Waits for as long as the connection is down.

        Raises:
            BrokerRefused: There is no such exchange.
        """
        while True:
            try:
                confirms = await self._opened()
                if exchange and exchange not in self._exchanges:
                    async with scratch(confirms.session) as channel:
                        await channel.declare_exchange(exchange, passive=True)
                    self._exchanges.add(exchange)
            except BrokerRefused:
                raise
            except ConnectionLost:
                await asyncio.sleep(_LOST_PAUSE)
            else:
                return confirms

    def late(self, where: str, message_id: str, timeout: float, *, sent: bool) -> PublishError:
        """Which error it is that nothing came of a publish in time."""
        if self._confirms is not None and self._confirms.blocked:
            also = "; it may be published once the alarm is over" if sent else ""
            return BrokerBlocked(
                f"{where}: the broker blocks publishers, out of memory or disk{also}", message_id
            )
        if sent:
            return PublishOutcomeUnknown(f"{where}: no confirm within {timeout:g} s", message_id)
        why = f": {self._failure}" if self._failure else ""
        return PublishTimeout(f"{where}: not sent within {timeout:g} s{why}")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _opened(self) -> Confirms:
        async with self._opening:
            if self._confirms is None or self._confirms.lost:
                session = await self._connection.session()
                self._confirms = Confirms(session, await session.channel(confirms=True))
                self._exchanges.clear()
                self._failure = None
            return self._confirms
