"""One client's connection, which may be slow and may send anything."""

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from workerkit.http.problem import PROBLEM, problem

log = logging.getLogger(__name__)

_TOO_SLOW = (
    b'{"type":"about:blank","title":"Request Timeout","status":408,'
    b'"detail":"the request did not come in time"}'
)
_TOO_SLOW_HEAD = (
    "HTTP/1.1 408 Request Timeout\r\n"
    f"Content-Type: {PROBLEM}\r\nContent-Length: {len(_TOO_SLOW)}\r\nConnection: close\r\n\r\n"
).encode()


class Connection(web.RequestHandler):
    """aiohttp's protocol of the server's side, with a limit to how long a request may take to come.

    aiohttp itself waits for the rest of a request for as long as the client likes.

    Args:
        lost: Called when it is closed.

    Attributes:
        answering: A request is being answered.
        since: When the first byte of a request came, in the time of the loop; when the connection
            was made, before that; None where there is nothing to wait for.
    """

    __slots__ = ("_clock", "_heard", "_lost", "answering", "since")

    def __init__(self, server: web.Server, *, lost: Callable[[], None], **options: Any) -> None:
        super().__init__(server, **options)
        self._clock = options["loop"].time
        self._lost = lost
        self._heard = False
        self.answering = False
        self.since: float | None = self._clock()

    def data_received(self, data: bytes) -> None:
        """Note when a request begins."""
        if not self._heard:
            self._heard = True
            if not self.answering:
                self.since = self._clock()
        super().data_received(data)

    def begin(self) -> None:
        """The head of a request is here, and somebody answers it."""
        self.answering, self.since = True, None

    def end(self) -> None:
        """The answer is there."""
        self.answering = self._heard = False

    def close_late(self, before: float) -> None:
        """Close it where a request has begun to come before that time and is not here yet."""
        if self.since is None or self.since >= before or self.transport is None:
            return
        if self._heard:
            self.transport.write(_TOO_SLOW_HEAD + _TOO_SLOW)
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Say that it is closed."""
        super().connection_lost(exc)
        self._lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP: anybody on the network may send it, so it is no ERROR."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        log.info("no HTTP request", extra={"client": request.remote, "error": type(exc).__name__})
        response = problem(400, "this is no HTTP request")
        response.force_close()
        return response
