"""The HTTP server of one port: its application, its connections and their limits."""

import asyncio
import logging
import socket
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam, web

from workerkit.config.sections import ListenSettings
from workerkit.forking import keep_from_children
from workerkit.http.connection import ClientConnection
from workerkit.http.cors import CORS
from workerkit.http.fast_response import LINGERING
from workerkit.http.fast_routes import FastRoutes
from workerkit.http.listener import ListeningSockets, ThrottledCounter
from workerkit.http.middleware import prepare_request
from workerkit.http.problem import last_response
from workerkit.http.raw_request import request_factory
from workerkit.http.response import is_event_stream
from workerkit.http.traced import TracedConnection
from workerkit.observe import Unhandled
from workerkit.tasks import cancel
from workerkit.trace import Tracing

log = logging.getLogger(__name__)

_SEND_TIMEOUT = 2.0
_CHECK_INTERVAL = 1.0
_LAST_REQUESTS = 1.0  # Seconds for a client to send a request that it may have begun.
_NEVER = 10 * 365 * 24 * 3600.0
_CLOSED_AT_EXHAUSTION = 8


class HTTPServer:
    """A server of an aiohttp application on one port.

    Args:
        max_connections: When this number is reached, the connection that has been idle longest is
            closed for a new one. If all connections are in use, the new one gets a 503.
        max_body: Bytes of a request's body.
        middlewares: The user's, the outermost first.
        has_other_routes: Whether the application has routes without a view.
        on_unhandled: Called for each response that no view returned; None where there are no
            views.
        tracing: Creates a span for each request; None for none.
        cors: Gives pages of other sites access; None for none.

    Attributes:
        application: Routes can be added to it until the server listens.
        url: The address on which the server listens; empty before it does.
    """

    def __init__(
        self,
        settings: ListenSettings,
        max_connections: int,
        max_body: int,
        middlewares: Sequence[Any] = (),
        *,
        has_other_routes: bool = False,
        on_unhandled: Callable[[Unhandled], None] | None,
        tracing: Tracing | None = None,
        cors: CORS | None = None,
    ) -> None:
        self._settings = settings
        self._max_connections = max_connections
        self._on_unhandled = on_unhandled
        self._cors = cors
        self._create: Callable[..., ClientConnection] = (
            ClientConnection if tracing is None else partial(TracedConnection, tracing=tracing)
        )
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.application = web.Application(
            middlewares=[prepare_request, *middlewares] if middlewares or has_other_routes else (),
            client_max_size=max_body,
        )
        # Responses that are still being sent when the server closes have this long.
        self._runner = web.AppRunner(self.application, shutdown_timeout=_SEND_TIMEOUT)
        self.url = ""
        self._listener: ListeningSockets | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._check_interval = min(_CHECK_INTERVAL, settings.read_timeout / 4)
        self._checked_at = self._clock = self._loop.time()
        self._refused = False
        self._refusing: asyncio.TimerHandle | None = None
        # In the order in which they were accepted; a dict because a set has no order.
        self._open: dict[ClientConnection, None] = {}
        self._idle_longest: list[ClientConnection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed_idle = 0
        self._limit_reports = ThrottledCounter(self._loop, self._report_limit)

    @property
    def is_draining(self) -> bool:
        """Whether the server has stopped accepting and still has open connections."""
        return self._refused and bool(self._open)

    @property
    def addresses(self) -> list[Any]:
        """The addresses of the listening sockets, as `getsockname` returns them."""
        return [] if self._listener is None else [s.getsockname() for s in self._listener.sockets]

    async def listen(self) -> None:
        """Begin to accept connections.

        Raises:
            OSError: The address is in use, or is not one of this machine.
        """
        for category in (BadContentDispositionHeader, BadContentDispositionParam):
            # A form with such a part is an error of the client, which gets a 400.
            warnings.filterwarnings("ignore", category=category)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_factory = request_factory(self.application)
        if not self.application.middlewares:
            fast_routes: Any = FastRoutes(self.application, server.request_handler)
            await fast_routes.load()
            server.request_handler = fast_routes.respond
        if self._cors is not None:
            handler: Any = self._cors.answering(server.request_handler)
            server.request_handler = handler
        self._listener = ListeningSockets(
            self._may_accept, self._on_accepted, self._free_descriptors
        )
        try:
            await self._listener.listen(self._settings)
        except OSError:
            await self._runner.cleanup()
            raise
        keep_from_children(self._listener)
        host, port = self._listener.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._check_time_limits()

    def stop_accepting(self) -> None:
        """Stop accepting connections and requests; requests in progress continue.

        A client that has just connected, or whose request is on its way, does not know of this: its
        connection is closed after that request, or after a second. Where another process keeps the
        port open, that is so for idle connections as well: clients go on using them.
        """
        self._refused = True
        self._refusing = self._loop.call_later(_LAST_REQUESTS, self._close_waiting)
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._open):
            connection.close_after_response = True
            if (request := connection.request) is None:
                if not (self._settings.fds or connection.may_be_sending()):
                    connection.force_close()
            elif connection.web_socket is not None:
                connection.close_web_socket()
            elif is_event_stream(request):
                # Such a stream has no end, and its client reconnects to another process.
                cancel(request.task)

    async def drain(self) -> None:
        """Wait until every request is answered and every response is sent."""
        while self.is_draining:
            self._changed.clear()
            await self._changed.wait()

    async def cancel(self) -> None:
        """Cancel the handlers of requests, close idle connections, and wait for both."""
        for connection in list(self._open):
            if (request := connection.request) is not None:
                cancel(request.task)
            else:
                connection.force_close()
        await self.drain()

    async def close(self) -> None:
        """Close every connection."""
        for timer in (self._check_timer, self._refusing):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._listener.close()
        self._limit_reports.close()
        await self._runner.cleanup()

    def _close_waiting(self) -> None:
        for connection in list(self._open):
            if connection.request is None:
                connection.force_close()

    def _may_accept(self) -> bool:
        """Return whether another connection can be accepted now.

        At the limit it waits for connections that are being set up: they may turn out to be idle.
        """
        return len(self._open) < self._max_connections or not self._connecting

    def _on_accepted(self, accepted: socket.socket) -> None:
        if len(self._open) >= self._max_connections and not self._close_idle_connection():
            self._limit_reports.add()
            _reject_connection(accepted)
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
            # The client has disconnected.
            log.debug("connection lost", extra={"error": str(error)})
            accepted.close()
            self._forget(connection)
        # It may have had no transport yet when the others were closed.
        connection.close_after_response = self._refused

    def _connection(self) -> ClientConnection:
        server = self._runner.server
        assert server is not None
        return self._create(
            server,
            has_signals=bool(self.application.on_response_prepare),
            on_closed=self._forget,
            on_unhandled=self._on_unhandled,
            cors=self._cors,
            loop=self._loop,
            # `_check_time_limits` closes idle connections: aiohttp's timer may expire while the
            # event loop is blocked and the next request is not read yet.
            keepalive_timeout=_NEVER,
            lingering_time=LINGERING,
            access_log=None,
        )

    def _forget(self, connection: ClientConnection) -> None:
        self._open.pop(connection, None)
        self._changed.set()

    def _close_idle_connection(self) -> bool:
        """Close the connection that has been idle longest; return whether there was one."""
        for _ in range(2):
            while self._idle_longest:
                connection = self._idle_longest.pop()
                if connection in self._open and (
                    connection.is_idle() or connection.is_discarding()
                ):
                    connection.force_close()
                    self._forget(connection)
                    self._closed_idle += 1
                    self._limit_reports.add()
                    return True
            # Sorted once for many connections: sorting them for each one would take too long.
            waiting = [each for each in self._open if each.is_waiting or each.is_discarding()]
            waiting.sort(key=lambda each: each.waiting_since or self._clock, reverse=True)
            self._idle_longest = waiting
        return False

    def _free_descriptors(self) -> None:
        for _ in range(_CLOSED_AT_EXHAUSTION):
            if not self._close_idle_connection():
                break

    def _report_limit(self, count: int) -> None:
        closed, self._closed_idle = self._closed_idle, 0
        log.warning(
            "connection limit reached",
            extra={
                "url": self.url,
                "limit": self._max_connections,
                "closed": closed,
                "refused": count - closed,
            },
        )

    def _check_time_limits(self) -> None:
        now = self._loop.time()
        # While the event loop is blocked, nothing is read: this time does not count.
        self._clock += min(now - self._checked_at, self._check_interval)
        self._checked_at = now
        settings = self._settings
        for connection in list(self._open):
            # One interval more: the event loop may not have read since it was blocked.
            connection.check_time_limits(
                self._clock,
                settings.read_timeout + self._check_interval,
                settings.keep_alive + self._check_interval,
            )
        self._check_timer = self._loop.call_later(self._check_interval, self._check_time_limits)


def _reject_connection(accepted: socket.socket) -> None:
    head, body = last_response(503, "too many connections", headers={"Retry-After": "1"})
    try:
        accepted.send(head + body)
        accepted.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # The client has disconnected.
    finally:
        accepted.close()
