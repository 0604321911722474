"""The connections on which a process publishes: one for each connection and virtual host."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol

from workerkit.amqp.connection import Connection
from workerkit.amqp.destination import Destination
from workerkit.amqp.publisher_connection import PublisherConnection
from workerkit.amqp.queue import Queue
from workerkit.config.settings import WorkerSettings
from workerkit.errors import (
    ConfigurationError,
    ConnectionLost,
    PublishRefused,
    PublishTimeout,
)
from workerkit.observe import Observer
from workerkit.tasks import Deadline

_DECLARE_DEADLINE = 30.0  # For several requests, each of which has its own deadline.
NOT_OPEN = "the publisher is used before the Runner has started, or after it has stopped"


class Declarations(Protocol):
    """The first declarations on one connection."""

    @property
    def is_complete(self) -> bool:
        """Return whether no publish has to wait for them any more."""

    async def wait_for_destination(self, exchange: str, routing_key: str) -> None:
        """Wait until the queues that a message may reach are declared."""


class Preparations:
    """The declarations that publishes wait for, by connection and virtual host."""

    def __init__(self) -> None:
        self._by_place: dict[tuple[str, str], Declarations] = {}

    def __bool__(self) -> bool:
        """Return whether any publish has to wait."""
        return bool(self._by_place)

    def add(self, place: tuple[str, str], preparation: Declarations) -> None:
        """Make each publish to *place* wait."""
        self._by_place[place] = preparation

    def clear(self) -> None:
        """Make no publish wait any more."""
        self._by_place.clear()

    async def wait(
        self,
        connection: PublisherConnection,
        place: tuple[str, str],
        to: Destination,
        message_id: str,
        timeout: float,
    ) -> float:
        """Wait until the queues that the process itself consumes are declared.

        Returns:
            The seconds that are left of *timeout*.

        Raises:
            PublishError: They were not declared in time.
        """
        began = perf_counter()
        if (preparation := self._by_place.get(place)) is None:
            return timeout
        try:
            async with Deadline(timeout):
                await preparation.wait_for_destination(str(to.exchange), to.routing_key)
        except TimeoutError as error:
            where = f"message {message_id!r} to {to}"
            raise connection.timeout_error(where, message_id, timeout, sent=False) from error
        if preparation.is_complete:
            self._by_place.pop(place, None)
        return max(timeout - (perf_counter() - began), 0.0)


class PublisherConnections:
    """The connections of one publisher. Each is opened when it is first used.

    Args:
        observers: Returns the observers of a new connection.

    Attributes:
        settings: Have the connections; None while the publisher is not open.
    """

    def __init__(self, observers: Callable[[], Sequence[Observer]]) -> None:
        self._observers = observers
        self.settings: WorkerSettings | None = None
        self._connections: dict[tuple[str, str], PublisherConnection] = {}
        # By connection and vhost as they are passed: to resolve the settings takes longer.
        self._resolved: dict[tuple[str, str | None], PublisherConnection] = {}

    def to(self, to: Destination) -> PublisherConnection:
        """Return the connection to a destination.

        Raises:
            ConfigurationError: There is no such connection, or the publisher is not open.
        """
        if (found := self._resolved.get((to.connection, to.vhost))) is not None:
            return found
        name, _ = key = self.place(to)
        if key not in self._connections:
            assert self.settings is not None
            read = partial(self.settings.connection, name)
            self._connections[key] = PublisherConnection(
                Connection(name, read, to.vhost, "publisher", self._observers())
            )
        self._resolved[to.connection, to.vhost] = self._connections[key]
        return self._connections[key]

    def place(self, to: Destination) -> tuple[str, str]:
        """Return the connection and the virtual host of a destination.

        Raises:
            ConfigurationError: There is no such connection, or the publisher is not open.
        """
        if self.settings is None:
            raise ConfigurationError(NOT_OPEN)
        name = to.connection.casefold()
        settings = self.settings.amqp.get(name)
        if settings is None:
            known = ", ".join(sorted(self.settings.amqp))
            raise ConfigurationError(
                f"{to}: the settings have no connection {to.connection!r}, only {known}"
            )
        return name, settings.vhost_name(to.vhost)

    async def declare(self, queue: Queue, connection: str, vhost: str | None) -> bool:
        """Declare a queue if it is missing, as `Publisher.declare` does."""
        publisher = self.to(Destination(queue.name, "", connection, vhost))
        try:
            async with Deadline(_DECLARE_DEADLINE):
                return await publisher.declare(queue)
        except TimeoutError as error:
            text = f"queue {queue.name!r}: not declared within {_DECLARE_DEADLINE:g} s"
            raise PublishTimeout(text) from error
        except ConnectionLost as error:
            raise PublishRefused(f"queue {queue.name!r} cannot be declared: {error}") from error

    def blocked(self) -> list[str]:
        """Return the names of the connections whose broker blocks publishers."""
        return [name for (name, _), each in self._connections.items() if each.blocked]

    async def close(self) -> None:
        """Close all connections; until `settings` is set again, none is opened."""
        connections, self._connections, self.settings = self._connections, {}, None
        self._resolved.clear()
        await asyncio.gather(*(each.close() for each in connections.values()))
