"""A server of event streams for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit.sse.scripted import SSEServer


@asynccontextmanager
async def sse_server(port: int = 0) -> AsyncIterator[SSEServer]:
    """A scripted server of event streams on the loopback; `server.url` is its address.

    Args:
        port: 0 for any free one.
    """
    async with SSEServer(port) as server:
        yield server
