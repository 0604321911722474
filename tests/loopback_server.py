"""A server that a test implements, on a loopback port."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class LoopbackServer:
    """Serves connections until the end of its block, which drops those that are open.

    Attributes:
        port: On 127.0.0.1; a free one.
    """

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. It is reset when this returns or the client has closed it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.serve(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass  # The client, or the test, has ended it.
        finally:
            writer.transport.abort()
            # Else asyncio complains of a client's reset when it collects the writer.
            with suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)
