"""The listening socket, and the connections that it has accepted."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from workerkit.forking import keep_from_children
from workerkit.http.connection import Connection, is_event_stream
from workerkit.http.entrance import begun
from workerkit.http.shortcuts import Shortcuts
from workerkit.observe import Unhandled
from workerkit.sections import HTTPSettings
from workerkit.supervisor import cancel

KEEP_ALIVE = 75.0
"""Seconds that a connection may rest between requests: longer than proxies usually keep it."""

# For what a client still sends of a body that nobody wants, so that it comes to read the answer.
_LINGERING = 1.0
_SENDING = 2.0
_LOOK_EVERY = 1.0


class Server:
    """Serves an application of aiohttp's on one port.

    Args:
        middlewares: The user's, the outermost first.
        foreign: The application gets routes that are no views.
        unhandled: Called for each answer that no view has given.

    Attributes:
        application: To add routes to, until it listens.
    """

    def __init__(
        self,
        settings: HTTPSettings,
        middlewares: Sequence[Any] = (),
        *,
        foreign: bool = False,
        unhandled: Callable[[Unhandled], None],
    ) -> None:
        self._settings = settings
        self._unhandled = unhandled
        self._changed = asyncio.Event()
        self.application = web.Application(
            middlewares=[begun, *middlewares] if middlewares or foreign else (),
            client_max_size=settings.max_body,
        )
        # Answers that the process does not wait for any more have a moment to be sent.
        self._runner = web.AppRunner(self.application, shutdown_timeout=_SENDING)
        self._listener: asyncio.Server | None = None
        self._look: asyncio.TimerHandle | None = None
        self._refused = False
        self._open: set[Connection] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def is_ending(self) -> bool:
        """Whether it takes nothing new, and something is still being answered or sent."""
        return self._refused and bool(self._open)

    async def listen(self) -> None:
        """Begin to take connections.

        Raises:
            OSError: The address is in use, or not ours.
        """
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        if not self.application.middlewares:
            shortcuts: Any = Shortcuts(self.application, server.request_handler)
            await shortcuts.learn()
            server.request_handler = shortcuts.respond
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._connection,
            self._settings.host,
            self._settings.port,
            reuse_port=self._settings.reuse_port or None,
        )
        keep_from_children(self._listener)
        self._look_for_slow_clients()

    def refuse(self) -> None:
        """Take no new connections and no new requests."""
        self._refused = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._open):
            connection.last = True
            if (request := connection.request) is None:
                connection.force_close()
            elif is_event_stream(request):
                # It has no end of its own, and its client connects again, elsewhere.
                cancel(request.task)

    async def drain(self) -> None:
        """Return once every request is answered, and every answer is sent."""
        while self.is_ending:
            self._changed.clear()
            await self._changed.wait()

    async def cancel(self) -> None:
        """Cancel the handling of requests, drop connections that rest, and wait for both."""
        for connection in list(self._open):
            if (request := connection.request) is not None:
                cancel(request.task)
            else:
                connection.force_close()
        await self.drain()

    async def close(self) -> None:
        """Close every connection."""
        if self._look is not None:
            self._look.cancel()
        await self._runner.cleanup()

    def _connection(self) -> Connection:
        server = self._runner.server
        assert server is not None
        connection = Connection(
            server,
            signals=bool(self.application.on_response_prepare),
            ended=self._forget,
            unhandled=self._unhandled,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=_LINGERING,
            access_log=None,
        )
        self._open.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._changed.set()

    def _look_for_slow_clients(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._open):
            connection.look(loop.time(), self._settings.read_timeout)
        every = min(_LOOK_EVERY, self._settings.read_timeout / 4)
        self._look = loop.call_later(every, self._look_for_slow_clients)
