"""What the tests of `workerkit.testing.transport_contract` need of a transport and its source."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any

from dependency_injector import containers

from workerkit.consumer import Consumer
from workerkit.observe import Settled
from workerkit.runner import Runner

_DEADLINE = 20.0
_POLL = 0.005

Call = Callable[[Any], Awaitable[None]]


class Capability(StrEnum):
    """What a transport may or may not be able to do.

    BODIES: Deliveries have the bodies that were put, and there are no others. A transport without
    it delivers by itself, as a clock does.

    CONCURRENCY: The option `concurrency` limits the calls of `handle`.

    ON_EXCEPTION: The options `on_exception` and `on_invalid` decide about failures.

    REQUEUE: They may be `Action.REQUEUE`.

    RETRY: The option `retry` tries deliveries again.

    REDELIVERS: The source keeps a delivery until it is settled, and delivers it again otherwise.

    RECONNECTS: The connection to the source can be lost.
    """

    BODIES = "bodies"
    CONCURRENCY = "concurrency"
    ON_EXCEPTION = "on_exception"
    REQUEUE = "requeue"
    RETRY = "retry"
    REDELIVERS = "redelivers"
    RECONNECTS = "reconnects"


class ContractSource(ABC):
    """The source that a transport reads from in one test, such as an empty queue on a server.

    Attributes:
        base: The base class of the transport's consumers.
        attributes: What a consumer of this source declares, such as `{"queues": ["contract"]}`.
    """

    base: type[Consumer]
    attributes: Mapping[str, Any] = {}

    @abstractmethod
    def container(self) -> containers.Container:
        """Return a new container, with a new transport that reads from this source."""

    @abstractmethod
    async def put(self, *bodies: bytes) -> None:
        """Have the source deliver these bodies; do not wait until they are handled."""

    async def remaining(self) -> int:
        """Return the number of deliveries that are not settled; needs `REDELIVERS`."""
        raise NotImplementedError

    async def interrupt(self) -> None:
        """Break the transport's connection, once; needs `RECONNECTS`."""
        raise NotImplementedError

    def handle(self, call: Call, body: Any) -> Callable[..., Any]:
        """Return the `handle` of a consumer: it passes the body, read as *body*, to *call*.

        Override it where `handle` takes something else, and pass what stands for the body.
        """

        async def handle(self: Consumer, delivery: Any) -> None:
            await call(delivery)

        handle.__annotations__ = {"delivery": body, "return": None}
        return handle


class ContractRun:
    """One run of a consumer.

    Attributes:
        handled: What `handle` was called with.
        running: The number of calls that run.
        most: The highest number of calls at the same time.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.records: list[Settled] = []
        self.handled: list[Any] = []
        self.running = 0
        self.most = 0

    @property
    def actions(self) -> list[str]:
        """The actions of the records; `lost` where nothing could be settled."""
        return ["lost" if each.lost else each.action.value for each in self.records]

    async def until(self, condition: Callable[["ContractRun"], object], what: str) -> None:
        """Wait for a condition."""

        async def holds() -> object:
            return condition(self)

        await eventually(holds, lambda: f"{what}; {self}")

    def __str__(self) -> str:
        health = [(each.state.value, each.reason) for each in self.runner.health]
        return f"handled {len(self.handled)}, settled {self.actions}, health {health}"


async def eventually(condition: Callable[[], Awaitable[object]], what: Callable[[], str]) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: It did not hold in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DEADLINE
    while not await condition():
        assert loop.time() < deadline, f"not within {_DEADLINE:g} s: {what()}"
        await asyncio.sleep(_POLL)
