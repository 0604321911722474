"""One request, as endpoints handle it and observers get it."""

import logging
import re
from itertools import count
from secrets import token_hex
from typing import ClassVar

from aiohttp import web
from multidict import istr

from workerkit.delivery import Action, Delivery
from workerkit.errors import HandlerExit, InvalidRequest, Reject, Retry
from workerkit.logs import request_id

REQUEST_ID = istr("X-Request-ID")

# A client may choose the id, and it appears in logs.
_VALID_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
# A random prefix for the process and a number for the request: uuid4() takes ten times as long.
_PREFIX = token_hex(6)
_NUMBERS = count(1)


def assign_id(request: web.BaseRequest) -> str:
    """Set the request id of the current task to the one that the client sent, or to a new one."""
    id_ = request.headers.get(REQUEST_ID)
    if id_ is None or not _VALID_ID.fullmatch(id_):
        id_ = f"{_PREFIX}-{next(_NUMBERS):x}"
    request_id.set(id_)
    return id_


class HTTPRequest(Delivery):
    """A request that a view handles.

    Attributes:
        request: aiohttp's request.
        id: The value of its `X-Request-ID`, or a new id.
        route: As the view declares it, such as `/orders/{order_id}`.
        method: Such as `GET`.
        body: The parsed body; None if the view takes none.
        answer: The response; None before it is known.
        status: Of the response; 0 before it is known.
        request_size: Bytes of the body that have arrived; None before the response is known.
        response_size: Bytes of the response's body; None for a stream, and before it is known.
        seconds: From the request to the response, including the time in middlewares.
    """

    __slots__ = (
        "answer",
        "body",
        "id",
        "method",
        "request",
        "request_size",
        "response_size",
        "route",
        "seconds",
        "status",
    )

    log_success: ClassVar[str] = "request handled"
    trace_operation: ClassVar[str] = ""

    raw: bytes
    seconds: float

    def __init__(self, request: web.Request, route: str, id: str) -> None:
        # The same as Delivery.__init__, without the call.
        self.raw = b""
        self.attempt = 1
        self.fate = self.after = None
        self.request = request
        self.method = request.method
        self.status = 0
        self.request_size: int | None = None
        self.response_size: int | None = None
        self.route = route
        self.id = id
        self.body: object = None
        self.answer: web.StreamResponse | None = None

    def log_context(self) -> dict[str, object]:
        """Return its id."""
        return {"request_id": self.id}

    def handed_on_id(self) -> str | None:
        """Return the request id, as the correlation id of what the view publishes."""
        return self.id

    def set_response(self, response: web.StreamResponse) -> None:
        """Set the response that the client gets."""
        self.answer = response
        self.status = response.status
        self.request_size = self.request.content.total_bytes
        self.response_size = body_size(response, self.method)

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of the log record of a request that failed or was refused.

        A request is refused because of its client, which is INFO. A 503 allows the client to try
        again, which is a WARNING; so is a handler that ends the process, which has a log record of
        its own.
        """
        if isinstance(error, InvalidRequest | Reject):
            return logging.INFO, "request refused"
        unavailable = isinstance(error, web.HTTPException) and error.status == 503
        if unavailable or isinstance(error, Retry | HandlerExit):
            return logging.WARNING, "request failed"
        return logging.ERROR, "request failed"

    def log_fields(self, source: str, action: str) -> dict[str, object]:
        """Return the fields of the log record."""
        return {
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "request_id": self.id,
        }

    def __repr__(self) -> str:
        return f"<{self.method} {self.route} {self.id}>"


def body_size(response: web.StreamResponse, method: str) -> int | None:
    """Return the bytes of a response's body; None for a stream, whose size is not known."""
    body = response.body if isinstance(response, web.Response) else response
    if method == "HEAD" or body is None:
        return 0
    return len(body) if isinstance(body, bytes) else None
