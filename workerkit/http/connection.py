"""One client's connection, which may be slow and may send anything."""

import asyncio
import logging
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from aiohttp import StreamReader, WSCloseCode, hdrs, web
from aiohttp.streams import EMPTY_PAYLOAD

from workerkit.delivery import Action, Outcome
from workerkit.errors import Reject, Retry
from workerkit.forking import keep_from_children
from workerkit.http.fast_response import SENT, Sending, discard, is_used, plain, send, without_body
from workerkit.http.fast_routes import route_of
from workerkit.http.malformed import answer_malformed
from workerkit.http.problem import (
    EXPECTATIONS,
    is_unknown_expectation,
    last_answer,
    of_exception,
    problem,
)
from workerkit.http.raw_request import UnsendableHeader, is_fault_of_body
from workerkit.http.request import REQUEST_ID, HTTPRequest, identify, size_of
from workerkit.http.response import UNREADABLE, answer
from workerkit.logs import request_id
from workerkit.observe import Unhandled
from workerkit.tasks import protect

log = logging.getLogger(__name__)

# Seconds for the client of a WebSocket to confirm that it is closed.
_CLOSING = 2.0

_feed = web.RequestHandler.data_received


class ClientConnection(web.RequestHandler):
    """aiohttp's protocol, made to answer with problems, and only as long as it is wanted.

    What is overridden are methods that aiohttp calls for each request, which costs less than the
    middleware and the signal that would do the same: 1 µs instead of 5.

    Args:
        signals: Somebody waits for aiohttp's signal that an answer is about to be sent.
        ended: Called with it when it is closed and nothing is done for it any more.
        unhandled: Called for each answer that no view has given; None where there are no views.

    Attributes:
        begun: The request that a middleware got, until the answer is sent.
        answering: The request that a view answers, until the answer is sent.
        last: Close it behind the next answer.
        waited_since: Since when it waits for a request, as of the last look.
        web_socket: The WebSocket that it has become.
        unreadable: What the body of the request raised when it was read.
        settled: What a view has answered, and whom to tell once it is known what the client gets:
            middlewares may change it, and the status of a file shows when it is sent.
    """

    __slots__ = (
        "_asked",
        "_closing",
        "_content",
        "_ended",
        "_heard",
        "_lost",
        "_read",
        "_reading",
        "_reading_since",
        "_signals",
        "_since",
        "_stuck_since",
        "_unhandled",
        "answering",
        "begun",
        "last",
        "settled",
        "unreadable",
        "waited_since",
        "web_socket",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        signals: bool,
        ended: Callable[["Connection"], None],
        unhandled: Callable[[Unhandled], None] | None,
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._signals = signals
        self._ended = ended
        self._unhandled = unhandled
        self._since: float | None = None
        self._lost = False
        self._heard = False
        self._reading: asyncio.Timeout | None = None
        self._reading_since: float | None = None
        self._closing: asyncio.Task[bool] | None = None
        self._stuck_since: float | None = None
        self._read = 0
        self._asked = False
        self._content: StreamReader = EMPTY_PAYLOAD
        self.begun: web.Request | None = None
        self.answering: web.Request | None = None
        self.last = False
        self.settled: tuple[HTTPRequest, Callable[[], object]] | None = None
        self.waited_since: float | None = None
        self.web_socket: web.WebSocketResponse | None = None
        self.unreadable: Exception | None = None

    @property
    def request(self) -> web.Request | None:
        """What is being answered, by a view or by a middleware before it."""
        return self.answering or self.begun

    @property
    def is_waiting(self) -> bool:
        """Whether all requests that have arrived are answered."""
        return self._waiter is not None and not self._waiter.done()

    def is_idle(self) -> bool:
        """Whether it waits for a request, and nothing has arrived that was not read yet."""
        if not self.is_waiting or self.transport is None or self.transport.is_closing():
            return False
        arrived = select.poll()
        arrived.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not arrived.poll(0)

    def is_discarding(self) -> bool:
        """Whether it has sent an answer, and reads what is left of the body of that request."""
        return self._asked and not (self._heard or self.is_waiting or self.request)

    def begin(self, request: web.Request) -> None:
        """Note that a middleware gets a request."""
        self.begun, self._since = request, perf_counter()

    def answer(self, request: web.Request) -> None:
        """Note that a view begins to answer."""
        self.answering = request
        if request.method == "HEAD":
            without_body(request.writer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the task that aiohttp makes for all requests of the connection."""
        keep_from_children(transport)
        super().connection_made(transport)
        assert self._task_handler is not None
        protect(self._task_handler)

    def data_received(self, data: bytes) -> None:
        """Note that a request begins."""
        # What is left of a body that nobody wanted is no beginning.
        if data and (self._content is EMPTY_PAYLOAD or self._content.is_eof()):
            self._heard = True
        _feed(self, data)

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Sending:
        """Complete the answer, and send what is not sent yet."""
        self._heard, self._asked, self.waited_since = False, True, None
        self._content = request.content
        known = request_id.get() or identify(request)
        if type(resp) is not web.Response:
            resp = self._answer_of(resp, request)
        if resp.prepared and is_used(request, resp):
            log.error(
                "answer could not be sent: a response can be sent once; make one for each request",
                extra={"route": route_of(request), "method": request.method},
            )
            resp = problem(500)
        if self.last:
            resp.force_close()
        if self.answering is None and self._unhandled is not None:
            self._unhandled(self._told(request, resp))
        if not self._signals and (ready := plain(request, resp, known)) is not None:
            if self.settled is not None:
                self._settle(resp)
            return self._then_discard(request, send(request, *ready, self.release))
        resp.headers[REQUEST_ID] = known
        sending = super().finish_response(request, resp, start_time)
        return self._then_discard(request, self._finish(request, sending, resp))

    def _then_discard(self, request: web.BaseRequest, sending: Sending) -> Sending:
        """Send an answer, and let aiohttp read the rest of the body if it is not compressed."""
        if request.content.is_eof() or hdrs.CONTENT_ENCODING not in request.headers:
            return sending
        self._lingering_time = 0.0  # It would hold the loop for all that time.
        return discard(request.content, sending)

    def _answer_of(self, answer: object, request: web.BaseRequest) -> web.StreamResponse:
        """What is sent for what a middleware gave."""
        if isinstance(answer, web.HTTPException):
            return of_exception(answer, request.method)
        if isinstance(answer, web.StreamResponse):
            return answer
        log.error(
            "middleware failed: it has to return the response",
            extra={"path": request.path, "returned": type(answer).__qualname__},
        )
        return problem(500)

    def _told(self, request: web.BaseRequest, answer: web.StreamResponse) -> Unhandled:
        route = route_of(request)
        extra = {"route": route, "method": request.method, "status": answer.status}
        log.debug("answered without a view", extra=extra)
        return Unhandled(
            route,
            request.method,
            answer.status,
            0.0 if self._since is None else perf_counter() - self._since,
            request.content.total_bytes,
            size_of(answer, request.method),
        )

    async def _finish(
        self,
        request: web.BaseRequest,
        sending: Sending,
        answer: web.StreamResponse,
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await sending
        except ConnectionError:
            raise
        except Exception as error:
            if request.writer.output_size or self.transport is None:
                raise
            answer = self._failed(request, error)
            return SENT, True
        finally:
            self._settle(answer)
            self.release()

    def _failed(self, request: web.BaseRequest, error: Exception) -> web.StreamResponse:
        """Send a 500 in place of an answer that cannot be sent, and close the connection."""
        extra = {"route": route_of(request), "method": request.method}
        if isinstance(error, UnsendableHeader):
            extra["header"] = error.header
            log.error("a header of the answer cannot be sent", extra=extra)
        else:
            log.error("answer could not be sent", exc_info=error, extra=extra)
        head, body = last_answer(500)
        assert self.transport is not None
        self.transport.write(head if request.method == "HEAD" else head + body)
        return problem(500)

    def _settle(self, answer: web.StreamResponse | None) -> None:
        """Tell what became of a view's answer; None where nothing was sent."""
        if self.settled is None:
            return
        (delivery, tell), self.settled = self.settled, None
        if answer is not None:
            delivery.answered(answer)
        if self._since is not None:
            delivery.seconds = perf_counter() - self._since
        tell()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and what a middleware raised; views raise nothing.

        Raises:
            ConnectionError: Half of an answer is sent already.
        """
        if request.writer.output_size:
            self.release()
            raise ConnectionResetError("it ended with half of an answer sent") from exc
        if status == 400:
            return answer_malformed(request, exc)
        if isinstance(exc, Reject | Retry):
            return answer(Outcome(Action.REJECT, exc), status, request)[0]
        if is_unknown_expectation(exc):
            return problem(417, EXPECTATIONS)
        if exc is not None and (isinstance(exc, ConnectionError) or is_fault_of_body(exc, request)):
            extra = {"client": request.remote, "error": type(exc).__qualname__}
            log.info("the body cannot be read", extra=extra)
            return problem(400, UNREADABLE)
        log.error("middleware failed", exc_info=exc, extra={"path": request.path})
        return problem(status)

    def log_exception(self, *_: Any, **options: Any) -> None:
        """Log what aiohttp could not cope with.

        What is left of a body that cannot be decoded is none of it: its answer is sent already.
        """
        error = options.get("exc_info")
        if not isinstance(error, web.RequestPayloadError):
            log.error("internal error: connection closed", exc_info=error)

    @asynccontextmanager
    async def patiently(self) -> AsyncIterator[None]:
        """Read a body inside of this block.

        Raises:
            TimeoutError: It did not come in time. The time in which the loop stood still, so that
                nobody read, does not count.
        """
        try:
            async with asyncio.timeout(None) as self._reading:
                yield
        finally:
            self._reading = self._reading_since = None

    def look(self, now: float, patience: float, keep_alive: float) -> None:
        """Close it if it has waited too long for a request, or for the rest of one.

        Args:
            now: In seconds; this is called more often than *patience* passes.
            patience: Seconds to wait for the rest of a request, or for the first one.
            keep_alive: Seconds to wait for another one.
        """
        if self._reading is not None:
            if self._reading_since is None:
                self._reading_since = now
            elif now - self._reading_since > patience and not self._reading.expired():
                self._reading.reschedule(0.0)
        if self._is_stuck():
            if now - (self._stuck_since or now) > patience and self.transport is not None:
                self.transport.abort()
            self._stuck_since = self._stuck_since or now
            return
        self._stuck_since = None
        rests = self._asked and not self._heard
        if not self.is_waiting and not self._reads_before_view():
            self.waited_since = None
        elif self.waited_since is None:
            self.waited_since = now
        elif now - self.waited_since > (keep_alive if rests else patience):
            self._give_up(now - self.waited_since)

    def _reads_before_view(self) -> bool:
        """Whether a middleware waits for the rest of a request; with all of it it has time."""
        begun = self.begun
        return begun is not None and self.answering is None and not begun.content.is_eof()

    def _give_up(self, late: float) -> None:
        if self._heard and self.transport is not None:
            head, body = last_answer(408, "the request did not come in time")
            self.transport.write(head + body)
            if self._unhandled is not None:
                self._unhandled(Unhandled("", "UNKNOWN", 408, late, 0, len(body)))
        self.force_close()

    def upgraded(self, web_socket: web.WebSocketResponse) -> None:
        """Note that its answer is a WebSocket, which is about to begin."""
        self.web_socket = web_socket
        if self.last:
            self._loop.call_soon(self.close_web_socket)

    def close_web_socket(self) -> None:
        """Tell the client of a WebSocket that the server stops; its view sees it closed."""
        if self.web_socket is not None and self._closing is None:
            closing = self.web_socket.close(code=WSCloseCode.GOING_AWAY)
            self._closing = self._loop.create_task(closing)
            self._loop.call_later(_CLOSING, self._closing.cancel)

    def _is_stuck(self) -> bool:
        """Whether the client has read nothing of what it was sent since the last look."""
        if self.transport is None or (request := self.request) is None:
            return False
        left = self.transport.get_write_buffer_size()
        read, self._read = self._read, request.writer.output_size - left
        return left > 0 and read == self._read

    def release(self) -> None:
        """Nothing is done for its request any more."""
        if self.settled is not None:
            self._settle(None)
        self.answering = self.begun = self._since = self.unreadable = None
        if self.last:
            self.close()
        if self._lost:
            self._ended(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note it; a view may go on with its request."""
        super().connection_lost(exc)
        self._lost = True
        if self.request is None:
            self._ended(self)
