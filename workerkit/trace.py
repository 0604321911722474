"""What transports and publishers need of tracing; `workerkit.tracing` implements it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from workerkit.delivery import Delivery, TraceDetails

Carrier = Mapping[str, str]
"""Headers with a trace context, such as `traceparent`, for another process."""


class Exchanged(Protocol):
    """A request to a server that has a span, until the head of its response has arrived.

    Attributes:
        carrier: Headers for the request.
    """

    carrier: Carrier

    def responded(self, status: int) -> None:
        """Note the status of the response."""


class RequestDetails(NamedTuple):
    """What the span of a request says about it, as the client has sent it.

    Attributes:
        method: Empty if the head of the request is malformed.
        path: Without the query, which may contain secrets.
        host: The header `Host`.
        client: The address of the other end of the connection.
        user_agent: The header `User-Agent`.
    """

    method: str = ""
    path: str = ""
    host: str = ""
    client: str = ""
    user_agent: str = ""


class Served(Protocol):
    """A request that is answered inside a span.

    Attributes:
        trace: The fields `trace_id` and `span_id`; None if it is not traced.
    """

    trace: Mapping[str, str] | None

    def end(self, route: str, status: int | None, error: BaseException | None) -> None:
        """End the span; a second call has no effect.

        Args:
            route: As the view declares it; empty if no view has the path.
            status: Of the response; None if there was none.
            error: Why the request failed, or was not answered.
        """


class Tracing(Protocol):
    """Creates spans. No method raises because of a tracer, exporter or propagator that fails.

    Each context manager is a span. It records an exception that leaves the block, and lets it out.

    Attributes:
        fields: The names of the headers that hold the trace context, such as `traceparent`.
    """

    fields: frozenset[str]

    def publish(
        self, details: TraceDetails, given: Mapping[str, Any]
    ) -> AbstractContextManager[Carrier]:
        """Trace one publish; the block gets the headers to add to the message.

        Args:
            given: The headers of the caller. If they have a trace context, none is added.
        """

    def settle(
        self, delivery: Delivery, operation: str, connection: str = ""
    ) -> AbstractContextManager[Carrier]:
        """Trace the publishing of a copy; the block gets the headers to add to the copy.

        Args:
            operation: `retry`, `dead_letter`, `requeue` or `reply`.
            connection: The name of the connection in the settings.
        """

    def connect(
        self, source: str, method: str, url: str, server: tuple[str, int] | None
    ) -> AbstractContextManager[Exchanged]:
        """Trace one request that opens a stream.

        Args:
            source: The route, or another name with few different values.
            url: Without credentials.
            server: Host and port.
        """

    def serve(
        self, headers: Mapping[str, str], details: RequestDetails | None
    ) -> AbstractContextManager[Served]:
        """Trace one request of a client, and what is done for it, as a child of its trace context.

        Args:
            headers: Those of the request, with the names in lower case.
            details: None if the head of the request did not arrive.
        """

    def sampled(self, delivery: Delivery) -> Mapping[str, str] | None:
        """Return `trace_id` and `span_id` of the call for a delivery; None if it is not sampled."""

    def current(self) -> Mapping[str, str] | None:
        """Return the same of the current span."""
