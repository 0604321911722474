"""One request, as it goes through the spine and to the observers."""

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

# A client may choose it, and it stands in logs.
_SOUND = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
# One for the process and one for the request: uuid4() would take ten times as long.
_START = token_hex(6)
_NUMBERS = count(1)


def identify(request: web.BaseRequest) -> str:
    """Give a request the id that its client sent, or a new one, for the rest of its task."""
    given = request.headers.get(REQUEST_ID)
    if given is None or not _SOUND.fullmatch(given):
        given = f"{_START}-{next(_NUMBERS):x}"
    request_id.set(given)
    return given


class HTTPRequest(Delivery):
    """A request that a view answers.

    Attributes:
        request: aiohttp's.
        id: Of its `X-Request-ID`, or made here.
        route: As the view declares it, such as `/orders/{order_id}`.
        method: Such as `GET`.
        body: As the view takes it; None where it takes none.
        answer: What the client gets; None before it is known.
        status: Of the answer; 0 before it is known.
        request_size: Bytes of the body that have come; None before the answer is known.
        response_size: Bytes of the answer's body; None for a stream, and before it is known.
        seconds: From the request to the answer, with what middlewares have done in between.
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

    raw: bytes
    seconds: float

    def __init__(self, request: web.Request, route: str, id: str) -> None:
        # As Delivery does, without the call.
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

    def answered(self, answer: web.StreamResponse) -> None:
        """Note what the client gets."""
        self.answer = answer
        self.status = answer.status
        self.request_size = self.request.content.total_bytes
        self.response_size = size_of(answer, self.method)

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of its log record when it was not done.

        A request that is refused is nobody's fault here. One that may be sent again later, with
        503, is a WARNING, and so is one whose handler ends the process, which is logged by itself.
        """
        if isinstance(error, InvalidRequest | Reject):
            return logging.INFO, "request refused"
        unavailable = isinstance(error, web.HTTPException) and error.status == 503
        if unavailable or isinstance(error, Retry | HandlerExit):
            return logging.WARNING, "request failed"
        return logging.ERROR, "request failed"

    def log_fields(self, source: str, action: str) -> dict[str, object]:
        """Return what its log record tells."""
        return {
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "request_id": self.id,
        }

    def __repr__(self) -> str:
        return f"<{self.method} {self.route} {self.id}>"


def size_of(answer: web.StreamResponse, method: str) -> int | None:
    """Bytes of the body of an answer; None for a stream, whose size only sending it tells."""
    body = answer.body if isinstance(answer, web.Response) else answer
    if method == "HEAD" or body is None:
        return 0
    return len(body) if isinstance(body, bytes) else None
