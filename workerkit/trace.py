"""What transports and publishers need of tracing; `workerkit.tracing` implements it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

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

    def settle(self, delivery: Delivery, operation: str) -> AbstractContextManager[Carrier]:
        """Trace the publishing of a copy; the block gets the headers to add to the copy.

        Args:
            operation: `retry`, `dead_letter` or `requeue`.
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
