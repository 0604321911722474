"""The environment of a scenario: a new virtual host on RabbitMQ or on the embedded broker."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tests.contract.client import Channel, Client, opened
from tests.contract.raw_client import Login, RawClient, connect

Scenario = Callable[["Environment"], Awaitable[object]]
VERSIONS = ("3.10", "4.0", "4.3")


@dataclass(frozen=True, slots=True)
class Row:
    """One behaviour of the contract.

    Attributes:
        scenario: A function that returns what it observed; its docstring states the behaviour.
        expected: The observation on RabbitMQ 3.10.
        since: The observations on later versions, by the version that changed them.
    """

    scenario: Scenario
    expected: object
    since: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scenario's name, with spaces."""
        return self.scenario.__name__.replace("_", " ")

    def expected_of(self, version: str) -> object:
        """Return the expected observation on one of `VERSIONS`."""
        expected = self.expected
        for each in VERSIONS[: VERSIONS.index(version) + 1]:
            expected = self.since.get(each, expected)
        return expected


class Broker(Protocol):
    """A broker as a scenario uses it, apart from AMQP."""

    @property
    def behaves_as(self) -> str:
        """The one of `VERSIONS` whose behaviour is expected."""

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""

    def add_vhost(self, name: str, *, default_queue_type: str | None = None) -> None:
        """Create a virtual host."""

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host."""

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm."""


@dataclass(slots=True)
class Environment:
    """A new virtual host.

    Attributes:
        vhost: Its name, which scenarios see as V in texts of the broker.
    """

    broker: Broker
    vhost: str
    _clients: list[Client] = field(default_factory=list)
    _raw_clients: list[RawClient] = field(default_factory=list)

    @property
    def login(self) -> Login:
        """A login to this virtual host that is accepted."""
        return Login(vhost=self.vhost)

    async def raw_client(self) -> RawClient:
        """Open a socket to the broker, without a handshake."""
        raw = await connect("127.0.0.1", self.broker.port)
        self._raw_clients.append(raw)
        return raw

    async def client(self, **changes: Any) -> Client:
        """Open a connection; *changes* are those to the login."""
        client = await opened("127.0.0.1", self.broker.port, replace(self.login, **changes))
        self._clients.append(client)
        return client

    async def channel(self, confirms: bool = False) -> Channel:
        """Open a channel on a new connection."""
        return await (await self.client()).channel(confirms=confirms)

    def add_vhost(self, default_queue_type: str | None = None) -> str:
        """Create another virtual host and return its name."""
        name = f"{self.vhost}-other"
        self.broker.add_vhost(name, default_queue_type=default_queue_type)
        return name

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Raise the memory alarm inside the block."""
        self.broker.memory_alarm(True)
        try:
            yield
        finally:
            self.broker.memory_alarm(False)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.close() for client in self._clients))
        for raw in self._raw_clients:
            raw.abort()
