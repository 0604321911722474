"""One request, as it goes through the spine and to the observers."""

from aiohttp import web

from workerkit.delivery import Delivery
from workerkit.logs import request_id


class HTTPRequest(Delivery):
    """A request that a view answers.

    Attributes:
        request: aiohttp's.
        id: Of its `X-Request-ID`, or made here.
        method: Such as `GET`.
        route: As the view declares it, such as `/orders/{order_id}`.
        body: As the view takes it; None where it takes none.
        status: Of the answer; 0 before there is one.
        response_size: Bytes of the answer's body; None for a stream, whose size nobody knows.
    """

    __slots__ = ("body", "id", "method", "request", "response_size", "route", "status")

    raw: bytes

    def __init__(self, request: web.Request) -> None:
        super().__init__(b"")
        resource = request.match_info.route.resource
        self.request = request
        self.id = request_id.get()
        self.method = request.method
        self.route = "" if resource is None else resource.canonical
        self.body: object = None
        self.status = 0
        self.response_size: int | None = None

    @property
    def request_size(self) -> int:
        """Bytes of the body; what the client has announced, where nobody has read it."""
        return len(self.raw) or self.request.content_length or 0

    def __repr__(self) -> str:
        return f"<{self.method} {self.route} {self.id}>"
