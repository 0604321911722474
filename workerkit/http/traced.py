"""Connections whose requests have spans: used only while tracing is on.

So a connection without tracing pays nothing, not even for a check.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from workerkit.http.connection import ClientConnection
from workerkit.http.fast_response import Sending, is_used
from workerkit.http.fast_routes import route_of
from workerkit.http.problem import problem
from workerkit.http.request import HTTPRequest, assign_id
from workerkit.http.response import middleware_response
from workerkit.logs import request_id
from workerkit.observe import Settled
from workerkit.trace import RequestDetails, Served, Tracing

_MALFORMED = "UNKNOWN"  # aiohttp's method of a request that it cannot parse.


class TracedConnection(ClientConnection):
    """A connection with a span for each request, until its response is sent."""

    __slots__ = ("_delivery", "_error", "_final", "_served", "_traced_request", "_tracing")

    def __init__(self, server: web.Server, *, tracing: Tracing, **options: Any) -> None:
        super().__init__(server, **options)
        self._tracing = tracing
        self._served: Served | None = None
        self._forget_request()

    def _forget_request(self) -> None:
        self._traced_request: web.BaseRequest | None = None
        self._delivery: HTTPRequest | None = None
        self._final: web.StreamResponse | None = None
        self._error: BaseException | None = None

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Handle a request inside its span, from the first middleware to the last byte.

        aiohttp calls this in a task of its own for each request.
        """
        self._traced_request = request
        with self._tracing.serve(_headers(request), _details(request)) as served:
            self._served = served
            try:
                return await super()._handle_request(request, start_time, request_handler)
            except BaseException as error:
                if self._error is None:
                    self._error = error
                raise
            finally:
                self._end()

    def settled(self, record: Settled) -> None:
        """Note how a view has answered, as the first observer."""
        assert isinstance(record.delivery, HTTPRequest)
        self._delivery, self._error = record.delivery, record.outcome.error
        if self._served is not None and (trace := self._served.trace) is not None:
            record.delivery.trace = trace

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Sending:
        """Note the response, and send it."""
        if type(resp) is not web.Response:
            # A problem contains the id.
            request_id.get() or assign_id(request)
            resp = middleware_response(resp, request)
        self._final = problem(500) if resp.prepared and is_used(request, resp) else resp
        return super().finish_response(request, resp, start_time)

    def leave_request(self) -> None:
        """End the span if a response was sent; otherwise it ends when the request is abandoned."""
        super().leave_request()
        if self._final is not None:
            self._end()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Note the exception of a middleware."""
        response = super().handle_error(request, status, exc, message)
        self._error = exc
        return response

    def _send_500(self, request: web.BaseRequest, error: Exception) -> web.StreamResponse:
        self._error = error
        self._final = super()._send_500(request, error)
        return self._final

    def _close_slow(self, seconds: float) -> None:
        if self._request_arriving and self.transport is not None:
            with self._tracing.serve({}, None) as served:
                served.end("", 408, None)
        super()._close_slow(seconds)

    def _end(self) -> None:
        """End the span of the current request; a second call has no effect."""
        served, self._served = self._served, None
        if served is None or self._traced_request is None:
            return
        answered = self._final or self._delivery
        status = None if answered is None else answered.status
        served.end(route_of(self._traced_request), status, self._error)
        self._forget_request()


def note_settled(record: Settled) -> None:
    """Note how a view has answered: the first observer of requests."""
    delivery: Any = record.delivery
    delivery.request.protocol.settled(record)


def _headers(request: web.BaseRequest) -> Mapping[str, str]:
    """Return the headers with names in lower case; values of the same name are joined."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def _details(request: web.BaseRequest) -> RequestDetails:
    if request.method == _MALFORMED:
        return RequestDetails(client=request.remote or "")
    return RequestDetails(
        request.method,
        request.rel_url.raw_path,
        request.headers.get(hdrs.HOST, ""),
        request.remote or "",
        request.headers.get(hdrs.USER_AGENT, ""),
    )
