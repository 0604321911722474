"""One request, as it goes through the spine and to the observers."""

from aiohttp import web

from workerkit.delivery import Delivery


class HTTPRequest(Delivery):
    """A request that a view answers.

    Attributes:
        request: aiohttp's.
        id: Of its `X-Request-ID`, or made here.
        route: As the view declares it, such as `/orders/{order_id}`.
        body: As the view takes it; None where it takes none.
        answer: What the client gets; None before it is known.
    """

    __slots__ = ("answer", "body", "id", "request", "route")

    raw: bytes

    def __init__(self, request: web.Request, route: str, id: str) -> None:
        super().__init__(b"")
        self.request = request
        self.route = route
        self.id = id
        self.body: object = None
        self.answer: web.StreamResponse | None = None

    @property
    def method(self) -> str:
        """Such as `GET`."""
        return self.request.method

    @property
    def request_size(self) -> int:
        """Bytes of the body that have come."""
        return self.request.content.total_bytes

    @property
    def status(self) -> int:
        """Of the answer; 0 before it is known."""
        return 0 if self.answer is None else self.answer.status

    @property
    def response_size(self) -> int | None:
        """Bytes of the answer's body; None for a stream, whose size only sending it tells."""
        if self.request.method == "HEAD":
            return 0
        body = getattr(self.answer, "body", self.answer)
        return len(body) if isinstance(body, bytes) else 0 if body is None else None

    def __repr__(self) -> str:
        return f"<{self.method} {self.route} {self.id}>"
