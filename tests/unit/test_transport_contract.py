"""Our own transports pass the tests of every transport; that of RabbitMQ on the embedded broker."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from dependency_injector import containers, providers
from pydantic import BaseModel

from tests.application import container_of
from tests.queue_source import QUEUE, QueueSource
from workerkit import (
    Action,
    Consumer,
    HTTPView,
    PeriodicTask,
    SimpleConsumer,
    SimpleDelivery,
    SimpleOptions,
    SimpleTransport,
    SSEConsumer,
)
from workerkit.sse.cursor import MemoryCursors
from workerkit.testing import SSEServer, embedded_broker, sse_server
from workerkit.testing.transport_contract import (
    Call,
    Capability,
    ContractSource,
    TransportContract,
)
from workerkit.transport import Outcome

NO_BROKER = "amqp://127.0.0.1:1/"


# A list in memory, which keeps what is not settled as a server would


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions(SimpleOptions):
    """The options of a `MemoryConsumer`."""


class MemoryConsumer(SimpleConsumer, abstract=True):
    """Handles the items of a list in memory."""

    options = MemoryOptions


class Memory:
    """What stands for a server."""

    def __init__(self) -> None:
        self.waiting: deque[SimpleDelivery] = deque()
        self.unsettled: list[SimpleDelivery] = []
        self.added = asyncio.Event()
        self.broken = False

    def put(self, *deliveries: SimpleDelivery) -> None:
        """Add deliveries."""
        self.waiting.extend(deliveries)
        self.added.set()


class MemoryTransport(SimpleTransport[MemoryOptions]):
    """Receives from a list in memory."""

    kind = "memory"

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    async def receive(self, options: MemoryOptions) -> AsyncIterator[SimpleDelivery | None]:
        """Take items off the list."""
        yield None
        memory = self.memory
        while True:
            await memory.added.wait()
            if memory.broken:
                memory.broken = False
                raise ConnectionError("the list is torn")
            if not memory.waiting:
                memory.added.clear()
                continue
            memory.unsettled.append(memory.waiting.popleft())
            yield memory.unsettled[-1]

    async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
        """Put requeued items back."""
        self.memory.unsettled.remove(delivery)
        if outcome.action is Action.REQUEUE:
            delivery.again()
            self.memory.put(delivery)


class MemorySource(ContractSource):
    """A list in memory."""

    base = MemoryConsumer

    def __init__(self) -> None:
        self.memory = Memory()

    def container(self) -> containers.Container:
        """Read from it; what was not settled is delivered again."""
        memory = self.memory
        memory.waiting.extend(map(SimpleDelivery, [each.raw for each in memory.unsettled]))
        memory.unsettled.clear()
        memory.added = asyncio.Event()
        memory.added.set()
        container = container_of(NO_BROKER)
        transport = providers.Singleton(MemoryTransport, memory)
        container.extra_transports.override(providers.Dict({MemoryConsumer: transport}))
        return container  # type: ignore[no-any-return]

    async def put(self, *bodies: bytes) -> None:
        """Add items."""
        self.memory.put(*map(SimpleDelivery, bodies))

    async def remaining(self) -> int:
        """What waits or is not settled."""
        return len(self.memory.waiting) + len(self.memory.unsettled)

    async def interrupt(self) -> None:
        """Have `receive` raise."""
        self.memory.broken = True
        self.memory.added.set()


class TestSimpleTransport(TransportContract):
    """A `SimpleTransport` can do everything that the contract knows."""

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """An empty list."""
        yield MemorySource()


# RabbitMQ


class TestAMQPTransport(TransportContract):
    """RabbitMQ can do everything that the contract knows."""

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """A broker of its own."""
        async with embedded_broker() as broker:

            def remaining() -> int:
                queue = broker.queue(QUEUE)
                return queue.ready + queue.unacked

            yield QueueSource(broker.url, remaining, broker.drop_connections)


# Event streams


class StreamSource(ContractSource):
    """A stream of a server; the cursor says what is settled."""

    base = SSEConsumer
    attributes = {"connection": "server", "routes": ["/contract"]}

    def __init__(self, server: SSEServer) -> None:
        self.server = server
        self.cursors = MemoryCursors()
        self.sent = 0

    def container(self) -> containers.Container:
        """Connect to the server."""
        container = container_of(NO_BROKER, sse={"server": {"url": self.server.url}})
        container.cursors.override(providers.Object(self.cursors))
        return container  # type: ignore[no-any-return]

    async def put(self, *bodies: bytes) -> None:
        """Send events."""
        for body in bodies:
            self.sent = int(await self.server.send(body.decode()))

    async def remaining(self) -> int:
        """The events after the cursor."""
        return self.sent - int(await self.cursors.load("Contract", "/contract") or 0)

    async def interrupt(self) -> None:
        """Reset the connections."""
        self.server.cut()


class TestSSETransport(TransportContract):
    """A stream can do everything that the contract knows, as its cursor stays where it was."""

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """A server of its own."""
        async with sse_server() as server:
            yield StreamSource(server)


# HTTP


class Contract(BaseModel):
    """The body of a request."""

    id: int


class RequestSource(ContractSource):
    """Requests of a client."""

    base = HTTPView
    attributes = {"routes": ["/contract"], "methods": ["POST"]}

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.requests: list[asyncio.Task[None]] = []
        self.views: Callable[[], Any] = dict

    def container(self) -> containers.Container:
        """Serve on a free port."""
        container = container_of(NO_BROKER, http={"port": 0})
        self.views = container.transports
        return container  # type: ignore[no-any-return]

    def handle(self, call: Call, body: Any) -> Callable[..., Any]:
        """Take a request for bytes, and a model for the invalid one."""
        if body is not bytes:

            async def handle_model(self: Consumer, contract: Contract) -> None:
                await call(contract)

            return handle_model

        async def handle(self: Consumer, request: web.Request) -> None:
            await call(await request.read())

        return handle

    async def put(self, *bodies: bytes) -> None:
        """Send requests."""
        self.requests += [asyncio.create_task(self._post(body)) for body in bodies]

    async def _post(self, body: bytes) -> None:
        url = f"{self.views()[HTTPView].url}/contract"
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=body, headers=headers) as response:
            await response.read()


class TestHTTPTransport(TransportContract):
    """A request is answered or not, by a handler for each: nothing is kept, limited or requeued."""

    capabilities = frozenset({Capability.BODIES})

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """A client of its own."""
        async with aiohttp.ClientSession() as session:
            source = RequestSource(session)
            yield source
            # Requests that came while the server was stopping have failed.
            await asyncio.gather(*source.requests, return_exceptions=True)


# The clock


class ClockSource(ContractSource):
    """The clock, which puts by itself."""

    base = PeriodicTask
    attributes = {"every": 0.02}

    def container(self) -> containers.Container:
        """There is nothing to connect to."""
        return container_of(NO_BROKER)  # type: ignore[no-any-return]

    def handle(self, call: Call, body: Any) -> Callable[..., Any]:
        """Take no body."""

        async def handle(self: Consumer) -> None:
            await call(b"")

        return handle

    async def put(self, *bodies: bytes) -> None:
        """Wait for nothing: the clock ticks."""


class TestPeriodicTransport(TransportContract):
    """A tick has no body and is not kept; there is no connection to lose."""

    capabilities = frozenset({Capability.CONCURRENCY, Capability.RETRY})

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """The clock."""
        yield ClockSource()


def test_what_a_transport_cannot_do_is_not_collected() -> None:
    """A test whose capability is missing is no test, and is not skipped either."""
    tests = {name for name, each in vars(TestPeriodicTransport).items() if each is None}

    assert "test_an_invalid_body" in tests
    assert "test_the_concurrency_is_reached_and_not_exceeded" not in tests


def test_a_transport_that_breaks_the_contract_fails() -> None:
    """The contract finds a transport that cannot settle."""

    class Failing(MemoryTransport):
        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            await super().settle(delivery, outcome)
            raise ConnectionError("the list is torn")

    class FailingSource(MemorySource):
        def container(self) -> containers.Container:
            container: Any = super().container()
            transport = providers.Singleton(Failing, self.memory)
            container.extra_transports.override(providers.Dict({MemoryConsumer: transport}))
            return container  # type: ignore[no-any-return]

    class Broken(TransportContract):
        @asynccontextmanager
        async def source(self) -> AsyncIterator[ContractSource]:
            yield FailingSource()

    with pytest.raises(AssertionError, match="lost"):
        Broken().test_deliveries_are_acknowledged()
