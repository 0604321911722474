"""The transport of RabbitMQ passes the tests of every transport, on a real node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.queue_source import QUEUE, QueueSource
from tests.rabbit import PrivateRabbit
from workerkit.testing.transport_contract import ContractSource, TransportContract


class TestAMQPTransport(TransportContract):
    """The tests of the contract, all of which apply to RabbitMQ."""

    @pytest.fixture(autouse=True)
    def _node(self, rabbit: PrivateRabbit, vhost: str) -> None:
        self.rabbit = rabbit
        self.vhost = vhost

    @asynccontextmanager
    async def source(self) -> AsyncIterator[ContractSource]:
        """Yield a queue in a separate virtual host."""

        def remaining() -> int:
            queue = self.rabbit.queues(self.vhost)[QUEUE]
            return queue.ready + queue.unacked

        def interrupt() -> None:
            self.rabbit.close_all_connections("contract")

        yield QueueSource(self.rabbit.url(self.vhost), remaining, interrupt)
