"""Where a scenario takes place: a fresh virtual host on RabbitMQ or on the embedded broker."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tests.contract.line import Line, Login, connect
from tests.contract.peer import Channel, Peer, opened

Scenario = Callable[["Site"], Awaitable[object]]
VERSIONS = ("3.10", "4.0", "4.3")


@dataclass(frozen=True, slots=True)
class Row:
    """One behaviour of the contract.

    Attributes:
        scenario: Does something, and returns what it observed; its docstring is the behaviour.
        expected: What RabbitMQ 3.10 lets it observe.
        since: What later versions let it observe, by the version that changed it.
    """

    scenario: Scenario
    expected: object
    since: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scenario's name, with spaces."""
        return self.scenario.__name__.replace("_", " ")

    def expected_of(self, version: str) -> object:
        """What one of `VERSIONS` lets the scenario observe."""
        expected = self.expected
        for each in VERSIONS[: VERSIONS.index(version) + 1]:
            expected = self.since.get(each, expected)
        return expected


class Broker(Protocol):
    """What a scenario needs of a broker, apart from AMQP."""

    @property
    def behaves_as(self) -> str:
        """The one of `VERSIONS` whose behaviour is due."""

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""

    def add_vhost(self, name: str, *, default_queue_type: str | None = None) -> None:
        """Create a virtual host."""

    def delete_vhost(self, name: str) -> None:
        """Forget a virtual host."""

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm."""


@dataclass(slots=True)
class Site:
    """A fresh virtual host.

    Attributes:
        vhost: Its name; in texts of the broker, scenarios see V in its place.
    """

    broker: Broker
    vhost: str
    _peers: list[Peer] = field(default_factory=list)
    _lines: list[Line] = field(default_factory=list)

    @property
    def login(self) -> Login:
        """A login to this virtual host that is accepted."""
        return Login(vhost=self.vhost)

    async def line(self) -> Line:
        """A socket to the broker, on which nothing was said."""
        line = await connect("127.0.0.1", self.broker.port)
        self._lines.append(line)
        return line

    async def peer(self, **changes: Any) -> Peer:
        """A connection; *changes* to the login, if any."""
        peer = await opened("127.0.0.1", self.broker.port, replace(self.login, **changes))
        self._peers.append(peer)
        return peer

    async def channel(self, confirms: bool = False) -> Channel:
        """A channel on a connection of its own."""
        return await (await self.peer()).channel(confirms=confirms)

    def add_vhost(self, default_queue_type: str | None = None) -> str:
        """Create another virtual host; its name."""
        name = f"{self.vhost}-other"
        self.broker.add_vhost(name, default_queue_type=default_queue_type)
        return name

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """The broker is short of memory inside the block."""
        self.broker.memory_alarm(True)
        try:
            yield
        finally:
            self.broker.memory_alarm(False)

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(peer.close() for peer in self._peers))
        for line in self._lines:
            line.abort()
