"""One client's connection, which may be slow and may send anything."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD

from workerkit.delivery import Action, Outcome
from workerkit.errors import Reject, Retry
from workerkit.forking import keep_from_children
from workerkit.http.answer import answer
from workerkit.http.problem import of_exception, problem, too_slow
from workerkit.http.request import HTTPRequest, size_of
from workerkit.http.request_ids import REQUEST_ID, identify
from workerkit.http.sending import plain, send, without_body
from workerkit.logs import request_id
from workerkit.observe import Unhandled
from workerkit.places import said
from workerkit.supervisor import own

log = logging.getLogger(__name__)

_feed = web.RequestHandler.data_received


class Connection(web.RequestHandler):
    """aiohttp's protocol, made to answer with problems, and only as long as it is wanted.

    What is overridden are methods that aiohttp calls for each request, which costs less than the
    middleware and the signal that would do the same: 1 µs instead of 5.

    Args:
        signals: Somebody waits for aiohttp's signal that an answer is about to be sent.
        ended: Called with it when it is closed and nothing is done for it any more.
        unhandled: Called for each answer that no view has given.

    Attributes:
        begun: The request that a middleware got, until the answer is sent.
        answering: The request that a view answers, until the answer is sent.
        last: Close it behind the next answer.
        settled: What a view has answered, and whom to tell once it is known what the client gets:
            middlewares may change it, and the status of a file shows when it is sent.
    """

    __slots__ = (
        "_asked",
        "_content",
        "_ended",
        "_heard",
        "_lost",
        "_read",
        "_signals",
        "_since",
        "_stuck_since",
        "_unhandled",
        "_waiting",
        "answering",
        "begun",
        "last",
        "settled",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        signals: bool,
        ended: Callable[["Connection"], None],
        unhandled: Callable[[Unhandled], None],
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self._signals = signals
        self._ended = ended
        self._unhandled = unhandled
        self._since: float | None = None
        self._lost = False
        self._heard = False
        self._waiting: float | None = None
        self._stuck_since: float | None = None
        self._read = 0
        self._asked = False
        self._content: StreamReader = EMPTY_PAYLOAD
        self.begun: web.Request | None = None
        self.answering: web.Request | None = None
        self.last = False
        self.settled: tuple[HTTPRequest, Callable[[], object]] | None = None

    @property
    def request(self) -> web.Request | None:
        """What is being answered, by a view or by a middleware before it."""
        return self.answering or self.begun

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
        own(self._task_handler)

    def data_received(self, data: bytes) -> None:
        """Note that a request begins."""
        # What is left of a body that nobody wanted is no beginning.
        if data and (self._content is EMPTY_PAYLOAD or self._content.is_eof()):
            self._heard = True
        _feed(self, data)

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Complete the answer, and send what is not sent yet."""
        self._heard, self._asked = False, True
        self._content = request.content
        known = request_id.get() or identify(request)
        if type(resp) is not web.Response:
            resp = self._answer_of(resp, request)
        if self.last:
            resp.force_close()
        if self.answering is None:
            self._unhandled(self._told(request, resp))
        if not self._signals and (ready := plain(request, resp, known)) is not None:
            if self.settled is not None:
                self._settle(resp)
            return send(request, *ready, self.release)
        resp.headers[REQUEST_ID] = known
        return self._finish(super().finish_response(request, resp, start_time), resp)

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
        # What is no HTTP request was never compared with a route.
        match = getattr(request, "_match_info", None)
        resource = None if match is None else match.route.resource
        return Unhandled(
            "" if resource is None else resource.canonical,
            request.method,
            answer.status,
            0.0 if self._since is None else perf_counter() - self._since,
            request.content.total_bytes,
            size_of(answer, request.method),
        )

    async def _finish(
        self, sending: Coroutine[Any, Any, tuple[web.StreamResponse, bool]], answer: Any
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await sending
        finally:
            self._settle(answer)
            self.release()

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
            # Anybody on the network may send it, so it is no ERROR.
            kind = type(exc).__name__
            identify(request)
            log.info("no HTTP request", extra={"client": request.remote, "error": kind})
            too_long = isinstance(exc, LineTooLong)
            text = "a line of its head is too long" if too_long else "this is no HTTP request"
            response = problem(400, text)
            response.force_close()
            return response
        if isinstance(exc, Reject | Retry):
            return answer(Outcome(Action.REJECT, exc), status, request)[0]
        if isinstance(exc, web.RequestPayloadError | ConnectionError):
            log.info("request broken off", extra={"client": request.remote, "error": said(exc)})
            return problem(400, "the body is broken off, or encoded wrongly")
        log.error("middleware failed", exc_info=exc, extra={"path": request.path})
        return problem(status)

    def look(self, now: float, patience: float) -> None:
        """Close it if it has waited too long for the rest of a request, or for the first one.

        Args:
            now: In seconds; this is called more often than *patience* passes.
            patience: Seconds to wait.
        """
        begun = self.begun
        # A middleware that has all of a request may take its time, and none to read the rest of it.
        is_asked = begun is not None and begun.content.is_eof()
        if self._is_stuck():
            if now - (self._stuck_since or now) > patience and self.transport is not None:
                self.transport.abort()
            self._stuck_since = self._stuck_since or now
            return
        self._stuck_since = None
        if is_asked or self.answering is not None or (self._asked and not self._heard):
            self._waiting = None
        elif self._waiting is None:
            self._waiting = now
        elif now - self._waiting > patience and self.transport is not None:
            if self._heard:
                begin, body = too_slow()
                self.transport.write(begin + body)
                late = now - self._waiting
                self._unhandled(Unhandled("", "UNKNOWN", 408, late, 0, len(body)))
            self.force_close()

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
        self.answering = self.begun = self._since = None
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


def is_event_stream(request: web.Request) -> bool:
    """Whether a stream of Server-Sent Events is being sent in answer."""
    asked = "text/event-stream" in request.headers.get("Accept", "")
    return asked and request.writer.output_size > 0
