"""A broker for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit.embedded import LATEST, EmbeddedBroker


@asynccontextmanager
async def embedded_broker(*, behaves_as: str = LATEST) -> AsyncIterator[EmbeddedBroker]:
    """An in-process AMQP broker on a free port of the loopback; `broker.url` is its address.

    Args:
        behaves_as: The version of RabbitMQ to behave as: "3.10", "4.0" or "4.3".

    Raises:
        ConfigurationError: *behaves_as* is none of these.
    """
    async with EmbeddedBroker(behaves_as=behaves_as) as broker:
        yield broker
