"""One port: the application that answers its requests, and the connections that it has."""

import asyncio
import logging
import socket
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam, web

from workerkit.config.sections import ListenSettings
from workerkit.forking import keep_from_children
from workerkit.http.connection import ClientConnection
from workerkit.http.fast_response import LINGERING
from workerkit.http.fast_routes import FastRoutes
from workerkit.http.listener import ConnectionListener, ThrottledCounter
from workerkit.http.middleware import begun
from workerkit.http.problem import last_answer
from workerkit.http.raw_request import request_factory
from workerkit.http.response import is_event_stream
from workerkit.observe import Unhandled
from workerkit.tasks import cancel

log = logging.getLogger(__name__)

_SENDING = 2.0
_LOOK_EVERY = 1.0
_NEVER = 10 * 365 * 24 * 3600.0
_AT_EXHAUSTION = 8


class HTTPServer:
    """Serves an application of aiohttp's on one port.

    Args:
        max_connections: When there are as many, the connection that has waited longest without a
            request is closed for a new one. If all of them are in use, the new one gets a 503.
        max_body: Bytes of a request's body.
        middlewares: The user's, the outermost first.
        foreign: The application gets routes that are no views.
        unhandled: Called for each answer that no view has given; None where there are no views.

    Attributes:
        application: To add routes to, until it listens.
        url: Where it listens; empty until it does.
    """

    def __init__(
        self,
        settings: ListenSettings,
        max_connections: int,
        max_body: int,
        middlewares: Sequence[Any] = (),
        *,
        foreign: bool = False,
        unhandled: Callable[[Unhandled], None] | None,
    ) -> None:
        self._settings = settings
        self._max_connections = max_connections
        self._unhandled = unhandled
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.application = web.Application(
            middlewares=[begun, *middlewares] if middlewares or foreign else (),
            client_max_size=max_body,
        )
        # Answers that the process does not wait for any more have a moment to be sent.
        self._runner = web.AppRunner(self.application, shutdown_timeout=_SENDING)
        self.url = ""
        self._listener: ConnectionListener | None = None
        self._look: asyncio.TimerHandle | None = None
        self._look_every = min(_LOOK_EVERY, settings.read_timeout / 4)
        self._looked = self._clock = self._loop.time()
        self._refused = False
        # In the order in which they were accepted.
        self._open: dict[ClientConnection, None] = {}
        self._oldest: list[ClientConnection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = 0
        self._full = ThrottledCounter(self._loop, self._report_full)

    @property
    def is_ending(self) -> bool:
        """Whether it takes nothing new, and something is still being answered or sent."""
        return self._refused and bool(self._open)

    async def listen(self) -> None:
        """Begin to take connections.

        Raises:
            OSError: The address is in use, or not ours.
        """
        for category in (BadContentDispositionHeader, BadContentDispositionParam):
            # A form with such a part is the client's fault, and answered as one.
            warnings.filterwarnings("ignore", category=category)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_factory = request_factory(self.application)
        if not self.application.middlewares:
            shortcuts: Any = FastRoutes(self.application, server.request_handler)
            await shortcuts.learn()
            server.request_handler = shortcuts.respond
        self._listener = ConnectionListener(self._may_accept, self._accepted, self._free)
        settings = self._settings
        try:
            await self._listener.listen(
                settings.host, settings.port, reuse_port=settings.reuse_port
            )
        except OSError:
            await self._runner.cleanup()
            raise
        keep_from_children(self._listener)
        host, port = self._listener.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
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
            elif connection.web_socket is not None:
                connection.close_web_socket()
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
        if self._listener is not None:
            self._listener.close()
        self._full.close()
        await self._runner.cleanup()

    def _may_accept(self) -> bool:
        """Whether it is known which connections are in use: new ones were not read yet."""
        return len(self._open) < self._max_connections or not self._connecting

    def _accepted(self, accepted: socket.socket) -> None:
        if len(self._open) >= self._max_connections and not self._make_room():
            self._full.add()
            _refuse(accepted)
            return
        connection = self._connection()
        self._open[connection] = None
        task = self._loop.create_task(self._connect(connection, accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: ClientConnection, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            # The client has left again.
            log.debug("connection lost", extra={"error": str(error)})
            accepted.close()
            self._forget(connection)
        if self._refused:
            # It had no transport yet when all others were closed.
            connection.force_close()

    def _connection(self) -> ClientConnection:
        server = self._runner.server
        assert server is not None
        return ClientConnection(
            server,
            signals=bool(self.application.on_response_prepare),
            ended=self._forget,
            unhandled=self._unhandled,
            loop=self._loop,
            # The look closes those that rest: aiohttp's timer may run out while the loop stands
            # still, with the next request not read yet.
            keepalive_timeout=_NEVER,
            lingering_time=LINGERING,
            access_log=None,
        )

    def _forget(self, connection: ClientConnection) -> None:
        self._open.pop(connection, None)
        self._changed.set()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest without a request, if there is one."""
        for _ in range(2):
            while self._oldest:
                connection = self._oldest.pop()
                if connection in self._open and (
                    connection.is_idle() or connection.is_discarding()
                ):
                    connection.force_close()
                    self._forget(connection)
                    self._closed += 1
                    self._full.add()
                    return True
            # To sort them for each one would take too long.
            waiting = [each for each in self._open if each.is_waiting or each.is_discarding()]
            waiting.sort(key=lambda each: each.waited_since or self._clock, reverse=True)
            self._oldest = waiting
        return False

    def _free(self) -> None:
        for _ in range(_AT_EXHAUSTION):
            if not self._make_room():
                break

    def _report_full(self, count: int) -> None:
        closed, self._closed = self._closed, 0
        log.warning(
            "connection limit reached",
            extra={
                "url": self.url,
                "limit": self._max_connections,
                "closed": closed,
                "refused": count - closed,
            },
        )

    def _look_for_slow_clients(self) -> None:
        now = self._loop.time()
        # While the loop stands still, nobody reads what a client sends: that time is not its fault.
        self._clock += min(now - self._looked, self._look_every)
        self._looked = now
        settings = self._settings
        for connection in list(self._open):
            # A look later, as the loop may not have read since it went on.
            connection.look(
                self._clock,
                settings.read_timeout + self._look_every,
                settings.keep_alive + self._look_every,
            )
        self._look = self._loop.call_later(self._look_every, self._look_for_slow_clients)


def _refuse(accepted: socket.socket) -> None:
    head, body = last_answer(503, "too many connections", headers={"Retry-After": "1"})
    try:
        accepted.send(head + body)
        accepted.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # The client has left already.
    finally:
        accepted.close()
