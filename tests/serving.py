"""Serve views in the test's own process, over real sockets, without any broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dependency_injector import providers
from yarl import URL

from tests.application import Recorder, container_of, package_of
from workerkit import HTTPView, Runner, WorkerContainer
from workerkit.testing.http_client import HTTPClient

NO_BROKER = "amqp://nobody@127.0.0.1:1/"


@asynccontextmanager
async def serving(
    *views: type[HTTPView],
    recorder: Recorder | None = None,
    middlewares: Sequence[Any] = (),
    provided: dict[str, Any] | None = None,
    grace: float = 5.0,
    **http: Any,
) -> AsyncIterator[HTTPClient]:
    """Run *views* inside the block, and yield a client.

    Args:
        provided: More providers of the container, or objects.
        http: Settings of the server, beside the port.
    """
    settings = {"http": {"port": 0, **http}, "shutdown_grace": grace}
    made = {
        name: each if isinstance(each, providers.Provider) else providers.Object(each)
        for name, each in (provided or {}).items()
    }
    container: Any = type("Container", (WorkerContainer,), made)()
    plain = container_of(NO_BROKER, recorder, **settings)
    for name in ("settings", "observers"):
        container.providers[name].override(providers.Object(plain.providers[name]()))
    container.middlewares.override(providers.Object(list(middlewares)))
    client = HTTPClient()
    async with Runner(container, packages=[package_of(*views)]).running():
        client.open(container.transports()[HTTPView].url)
        try:
            yield client
        finally:
            await client.close()


async def first_answer(client: HTTPClient, request: bytes) -> bytes:
    """Return what the server answers to these bytes first, head and body, as they come."""
    async with _connected(client) as (reader, writer):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await reader.readexactly(length)


async def everything(client: HTTPClient, request: bytes) -> bytes:
    """Send these bytes, and return the response until the server closes."""
    async with _connected(client) as (reader, writer):
        writer.write(request)
        return await reader.read()


@asynccontextmanager
async def _connected(
    client: HTTPClient,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = URL(client.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(30.0):
            yield reader, writer
    finally:
        writer.close()
