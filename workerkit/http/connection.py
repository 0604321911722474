"""One client's connection: requests come in, responses go out.

The client may be slow and may send anything. What is overridden are methods that aiohttp calls for
each request. This costs 1 µs per request; the middleware and the signal that would do the same
cost 5.
"""

import asyncio
import logging
import select
from collections.abc import Callable
from time import perf_counter
from typing import Any

from aiohttp import StreamReader, WSCloseCode, hdrs, web
from aiohttp.streams import EMPTY_PAYLOAD

from workerkit.forking import keep_from_children
from workerkit.http.cors import CORS
from workerkit.http.fast_response import (
    SENT,
    Sending,
    discard_rest,
    fast_response,
    is_used,
    send,
    without_body,
)
from workerkit.http.fast_routes import route_of
from workerkit.http.problem import last_response, problem
from workerkit.http.raw_request import UnsendableHeader
from workerkit.http.request import REQUEST_ID, HTTPRequest, assign_id, body_size
from workerkit.http.response import error_response, middleware_response
from workerkit.http.slow_clients import BodyTimeout, UnreadResponse
from workerkit.logs import request_id
from workerkit.observe import Unhandled
from workerkit.tasks import protect

log = logging.getLogger(__name__)

# Seconds for the client of a WebSocket to confirm that it is closed.
_WEB_SOCKET_CLOSE_TIMEOUT = 2.0

# aiohttp's error for reading from a client that has disconnected.
_CLIENT_LEFT = "Connection closed."

_parse = web.RequestHandler.data_received


class ClientConnection(web.RequestHandler):
    """aiohttp's protocol for one connection, with problems as error responses and with time limits.

    Args:
        has_signals: Whether a handler waits for aiohttp's signal `on_response_prepare`.
        on_closed: Called with the connection when it is closed and no request of it is handled.
        on_unhandled: Called for each response that no view returned; None where there are no
            views.
        cors: Adds headers to each response; None if pages of other sites have no access.

    Attributes:
        cors: The same.
        middleware_request: The request that was passed to the middlewares, until the response is
            sent.
        view_request: The request that a view handles, until the response is sent.
        close_after_response: Whether the connection is closed after the next response.
        on_lost: Called when the connection is lost; None for nothing.
        waiting_since: When it began to wait for a request, as of the last check of the time limits.
        body_timeout: The time limit for reading the body of a request.
        web_socket: The WebSocket that the connection has become.
        body_error: The exception that reading the body of the request raised.
        unreported: The request that a view answered, and the function that notifies the observers.
            It is called when it is certain what the client gets: middlewares may change the
            response, and the status of a file is known when it is sent.
    """

    __slots__ = (
        "_closing_web_socket",
        "_has_responded",
        "_has_signals",
        "_is_lost",
        "_on_closed",
        "_on_unhandled",
        "_request_arriving",
        "_request_body",
        "_started_at",
        "_unread_response",
        "body_error",
        "body_timeout",
        "close_after_response",
        "cors",
        "middleware_request",
        "on_lost",
        "unreported",
        "view_request",
        "waiting_since",
        "web_socket",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        has_signals: bool,
        on_closed: Callable[["ClientConnection"], None],
        on_unhandled: Callable[[Unhandled], None] | None,
        cors: CORS | None = None,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._has_signals = has_signals
        self._on_closed = on_closed
        self._on_unhandled = on_unhandled
        self.cors = cors
        self._started_at: float | None = None
        self._is_lost = False
        self._request_arriving = False
        self._has_responded = False
        self._request_body: StreamReader = EMPTY_PAYLOAD
        self._unread_response = UnreadResponse()
        self._closing_web_socket: asyncio.Task[bool] | None = None
        self.body_timeout = BodyTimeout()
        self.middleware_request: web.Request | None = None
        self.view_request: web.Request | None = None
        self.close_after_response = False
        self.unreported: tuple[HTTPRequest, Callable[[], object]] | None = None
        self.on_lost: Callable[[], object] | None = None
        self.waiting_since: float | None = None
        self.web_socket: web.WebSocketResponse | None = None
        self.body_error: Exception | None = None

    @property
    def request(self) -> web.Request | None:
        """The request that is handled, by a view or by a middleware before it."""
        return self.view_request or self.middleware_request

    @property
    def is_waiting(self) -> bool:
        """Whether all requests that have arrived are answered."""
        return self._waiter is not None and not self._waiter.done()

    def is_idle(self) -> bool:
        """Return whether it waits for a request and its socket has no data to read."""
        if not self.is_waiting or self.transport is None or self.transport.is_closing():
            return False
        arrived = select.poll()
        arrived.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not arrived.poll(0)

    def is_discarding(self) -> bool:
        """Return whether it has sent a response and discards the rest of that request's body."""
        return self._has_responded and not (
            self._request_arriving or self.is_waiting or self.request
        )

    def may_be_sending(self) -> bool:
        """Return whether its first request has not arrived, or another one is arriving."""
        if not self._has_responded or self._request_arriving:
            return True
        return self.is_waiting and not self.is_idle()

    def enter_middlewares(self, request: web.Request) -> None:
        """Note that the middlewares get a request."""
        self.middleware_request, self._started_at = request, perf_counter()

    def enter_view(self, request: web.Request) -> None:
        """Note that a view gets a request."""
        self.view_request = request
        if request.method == "HEAD":
            without_body(request.writer)

    def leave_request(self) -> None:
        """Note that the request is finished, answered or not."""
        if self.unreported is not None:
            self._report(None)
        self.view_request = self.middleware_request = self._started_at = self.body_error = None
        if self.close_after_response:
            self.close()
        if self._is_lost:
            self._on_closed(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Protect the task that aiohttp creates for all requests of the connection."""
        keep_from_children(transport)
        super().connection_made(transport)
        assert self._task_handler is not None
        protect(self._task_handler)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the loss; a view may still handle its request."""
        super().connection_lost(exc)
        self._is_lost = True
        if self.on_lost is not None:
            self.on_lost()
        if self.request is None:
            self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        """Parse data, and note that a request has begun to arrive."""
        # The rest of a body that is discarded is not the beginning of a request.
        if data and (self._request_body is EMPTY_PAYLOAD or self._request_body.is_eof()):
            self._request_arriving = True
        _parse(self, data)

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Sending:
        """Complete the response, and send what is not sent yet."""
        self._request_arriving, self._has_responded, self.waiting_since = False, True, None
        self._request_body = request.content
        id_ = request_id.get() or assign_id(request)
        if type(resp) is not web.Response:
            resp = middleware_response(resp, request)
        if resp.prepared and is_used(request, resp):
            log.error(
                "response could not be sent: a response can be sent once; create one for each "
                "request",
                extra={"route": route_of(request), "method": request.method},
            )
            resp = problem(500)
        if self.close_after_response:
            resp.force_close()
        if self.cors is not None:
            self.cors.add_headers(request, resp)
        if self.view_request is None and self._on_unhandled is not None:
            self._on_unhandled(self._unhandled(request, resp))
        if not self._has_signals and (ready := fast_response(request, resp, id_)) is not None:
            if self.unreported is not None:
                self._report(resp)
            return self._then_discard(request, send(request, *ready, self.leave_request))
        resp.headers[REQUEST_ID] = id_
        sending = super().finish_response(request, resp, start_time)
        return self._then_discard(request, self._finish(request, sending, resp))

    def _then_discard(self, request: web.BaseRequest, sending: Sending) -> Sending:
        """Send a response; aiohttp discards the rest of the body unless it is compressed."""
        if request.content.is_eof() or hdrs.CONTENT_ENCODING not in request.headers:
            return sending
        self._lingering_time = 0.0  # aiohttp would block the event loop for all that time.
        return discard_rest(request.content, sending)

    async def _finish(
        self,
        request: web.BaseRequest,
        sending: Sending,
        response: web.StreamResponse,
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await sending
        except ConnectionError:
            raise
        except Exception as error:
            if request.writer.output_size or self.transport is None:
                raise
            response = self._send_500(request, error)
            return SENT, True
        finally:
            self._report(response)
            self.leave_request()

    def _send_500(self, request: web.BaseRequest, error: Exception) -> web.StreamResponse:
        """Send a 500 instead of a response that cannot be sent; the connection is closed then."""
        extra = {"route": route_of(request), "method": request.method}
        if isinstance(error, UnsendableHeader):
            extra["header"] = error.header
            log.error("a header of the response cannot be sent", extra=extra)
        else:
            log.error("response could not be sent", exc_info=error, extra=extra)
        head, body = last_response(500)
        assert self.transport is not None
        self.transport.write(head if request.method == "HEAD" else head + body)
        return problem(500)

    def _report(self, response: web.StreamResponse | None) -> None:
        """Notify the observers of a view's response; None where nothing was sent."""
        if self.unreported is None:
            return
        (delivery, notify), self.unreported = self.unreported, None
        if response is not None:
            delivery.set_response(response)
        if self._started_at is not None:
            delivery.seconds = perf_counter() - self._started_at
        notify()

    def _unhandled(self, request: web.BaseRequest, response: web.StreamResponse) -> Unhandled:
        """Return the observers' record of a response that no view returned."""
        route = route_of(request)
        extra = {"route": route, "method": request.method, "status": response.status}
        log.debug("answered without a view", extra=extra)
        return Unhandled(
            route,
            request.method,
            response.status,
            0.0 if self._started_at is None else perf_counter() - self._started_at,
            request.content.total_bytes,
            body_size(response, request.method),
        )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer malformed requests, and exceptions of middlewares; views raise none.

        Raises:
            ConnectionError: A part of the response is already sent.
        """
        if request.writer.output_size:
            self.leave_request()
            raise ConnectionResetError(
                "the handler ended after sending half of a response"
            ) from exc
        return error_response(request, status, exc)

    def log_exception(self, *_: Any, **options: Any) -> None:
        """Log an error of aiohttp itself.

        The rest of a body that cannot be decoded, or that its client never sends, is no such error:
        its request is answered already.
        """
        error = options.get("exc_info")
        has_left = isinstance(error, RuntimeError) and str(error) == _CLIENT_LEFT
        if not has_left and not isinstance(error, web.RequestPayloadError):
            log.error("internal error: connection closed", exc_info=error)

    def check_time_limits(self, now: float, read_timeout: float, keep_alive: float) -> None:
        """Close the connection if its client is too slow.

        Args:
            now: In seconds; the calls are less than *read_timeout* apart.
            read_timeout: Seconds for the first request to begin, for the rest of a request, and
                for a client to read something of its response.
            keep_alive: Seconds between two requests.
        """
        self.body_timeout.check(now, read_timeout)
        if self._unread_response.check(now, read_timeout, self.transport, self.request):
            return
        is_idle = self._has_responded and not self._request_arriving
        if not self.is_waiting and not self._middleware_reads_body():
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now
        elif now - self.waiting_since > (keep_alive if is_idle else read_timeout):
            self._close_slow(now - self.waiting_since)

    def _middleware_reads_body(self) -> bool:
        """Return whether a middleware waits for the body; it has no limit once all has arrived."""
        request = self.middleware_request
        return request is not None and self.view_request is None and not request.content.is_eof()

    def _close_slow(self, seconds: float) -> None:
        if self._request_arriving and self.transport is not None:
            head, body = last_response(408, "the request did not arrive in time")
            self.transport.write(head + body)
            if self._on_unhandled is not None:
                self._on_unhandled(Unhandled("", "UNKNOWN", 408, seconds, 0, len(body)))
        self.force_close()

    def upgraded(self, web_socket: web.WebSocketResponse) -> None:
        """Note that the response to the request is a WebSocket, which is about to begin."""
        self.web_socket = web_socket
        if self.close_after_response:
            self._loop.call_soon(self.close_web_socket)

    def close_web_socket(self) -> None:
        """Close a WebSocket because the server stops: its client and its view are notified."""
        if self.web_socket is not None and self._closing_web_socket is None:
            closing = self.web_socket.close(code=WSCloseCode.GOING_AWAY)
            self._closing_web_socket = self._loop.create_task(closing)
            self._loop.call_later(_WEB_SOCKET_CLOSE_TIMEOUT, self._closing_web_socket.cancel)
