"""A server of event streams for one test."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit.sse.scripted import SSEServer


@asynccontextmanager
async def sse_server(
    port: int = 0, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SSEServer]:
    """A scripted server of event streams on the loopback; `server.url` is its address.

    Args:
        port: 0 for any free one.
        tls: Serve HTTPS with the certificate in it.
    """
    async with SSEServer(port, tls) as server:
        yield server
