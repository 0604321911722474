"""A queue of RabbitMQ or of the embedded broker, as the contract of transports uses it."""

from collections.abc import Callable

from dependency_injector import containers

from tests.application import container_of
from tests.client import connected
from workerkit import AMQPConsumer
from workerkit.testing.transport_contract import ContractSource

QUEUE = "contract"


class QueueSource(ContractSource):
    """A queue.

    Args:
        url: Of the broker.
        remaining: Counts what is ready or unacknowledged in `QUEUE`.
        interrupt: Drops the connections.
    """

    base = AMQPConsumer
    attributes = {"queues": [QUEUE]}

    def __init__(
        self, url: str, remaining: Callable[[], int], interrupt: Callable[[], object]
    ) -> None:
        self._url = url
        self._remaining = remaining
        self._interrupt = interrupt

    def container(self) -> containers.Container:
        """Connect to the broker."""
        return container_of(self._url)  # type: ignore[no-any-return]

    async def put(self, *bodies: bytes) -> None:
        """Publish."""
        async with connected(self._url) as client:
            await client.send(QUEUE, *bodies)

    async def remaining(self) -> int:
        """Count what is ready or unacknowledged."""
        return self._remaining()

    async def interrupt(self) -> None:
        """Drop the connections."""
        self._interrupt()
