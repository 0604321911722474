"""A Publisher without an application around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit import Publisher, WorkerSettings


@asynccontextmanager
async def publishing(url: str) -> AsyncIterator[Publisher]:
    """A publisher to *url*, open inside the block."""
    publisher = Publisher()
    publisher.open(WorkerSettings.model_validate({"amqp": {"default": {"url": url}}}))
    try:
        yield publisher
    finally:
        await publisher.close()
