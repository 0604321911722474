"""A connection to an event stream with a span, which its events link to."""

from typing import Any

from multidict import CIMultiDict

from workerkit.errors import StreamRefused
from workerkit.sse.connection import StreamConnection
from workerkit.sse.event import SSEEvent
from workerkit.sse.redirects import Hop
from workerkit.trace import Carrier, Tracing


class TracedStreamConnection(StreamConnection):
    """A `StreamConnection` whose span ends with the head of the response.

    A stream may be open for months, so the span does not last as long. The request carries the
    trace context of the span.

    Args:
        route: The route of the stream.
    """

    def __init__(self, tracing: Tracing, route: str, *args: Any) -> None:
        super().__init__(*args)
        self._tracing = tracing
        self._route = route
        self._carrier: Carrier = {}

    async def connect(self, retry: int = 0) -> None:
        """Connect, inside a span."""
        request = self._request
        url = request.url
        server = None if url.host is None or url.port is None else (url.host, url.port)
        span = self._tracing.connect(self._route, request.method, request.display, server)
        with span as exchanged:
            self._carrier = exchanged.carrier
            try:
                await super().connect(retry)
            except StreamRefused as error:
                exchanged.responded(error.status)
                raise
            exchanged.responded(204 if self.has_ended else 200)

    async def __anext__(self) -> list[SSEEvent[Any]]:
        events = await super().__anext__()
        if self._carrier:
            for event in events:
                event.connection_trace = self._carrier
        return events

    def _headers(self, hop: Hop) -> CIMultiDict[str]:
        headers = super()._headers(hop)
        for name, text in self._carrier.items():
            headers.setdefault(name, text)
        return headers
