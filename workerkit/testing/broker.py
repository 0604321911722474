"""A broker for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit.embedded import EmbeddedBroker


@asynccontextmanager
async def embedded_broker() -> AsyncIterator[EmbeddedBroker]:
    """An in-process AMQP broker on a free port of the loopback; `broker.url` is its address."""
    async with EmbeddedBroker() as broker:
        yield broker
