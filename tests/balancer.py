"""A TCP load balancer for tests, like those in front of clusters.

async with Balancer([node.port for node in cluster.nodes]) as balancer:
    ...connect to 127.0.0.1:balancer.port...
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.ports import free_port

_CHUNK = 2**16


class Balancer:
    """Gives each connection to the next server in turn that accepts one.

    A server that refuses is passed over; where all of them refuse, the client's connection is
    closed without a byte, as by haproxy without a server. A frozen server accepts, because its
    kernel does.

    Args:
        ports: Of the servers, on 127.0.0.1.

    Attributes:
        port: Where clients connect to, on 127.0.0.1.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        self._ports = list(ports)
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for left in reversed(range(3)):
            self.port = free_port()
            try:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
                break
            except OSError:
                if not left:
                    raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until one side closes."""
        writers = [writer]
        try:
            if (server := await self._next_server()) is None:
                return
            writers.append(server[1])
            ways = [
                asyncio.ensure_future(_copy(reader, server[1])),
                asyncio.ensure_future(_copy(server[0], writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        finally:
            for each in writers:
                each.close()

    async def _next_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._ports:
            self._turn += 1
            port = self._ports[self._turn % len(self._ports)]
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
