"""One request, as it goes through the spine and to the observers."""

from aiohttp import web

from workerkit.delivery import Delivery


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

    def __repr__(self) -> str:
        return f"<{self.method} {self.route} {self.id}>"


def size_of(answer: web.StreamResponse, method: str) -> int | None:
    """Bytes of the body of an answer; None for a stream, whose size only sending it tells."""
    body = answer.body if isinstance(answer, web.Response) else answer
    if method == "HEAD" or body is None:
        return 0
    return len(body) if isinstance(body, bytes) else None
