"""One Server-Sent Event, as a handler gets it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic

from typing_extensions import TypeVar

from workerkit.delivery import Action, Delivery, TraceDetails

T = TypeVar("T", default=Any)

_TRACEPARENT = re.compile(
    r'"traceparent"\s{0,8}:\s{0,8}"(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})"'
)


class SSEEvent(Delivery, Generic[T]):
    """An event of a stream.

    Attributes:
        name: `message` if the server sent none.
        body: The decoded data.
        raw: The data as text.
        id: The last event id at this event, after which the stream can be resumed; "" if the
            server sent none.
        route: The route of the stream.
        attempt: The number of the attempt, from 1.
        sequence: The number of the event in the stream; each process counts from 0.
        oversized: The data was longer than `max_event_size`, and was discarded.
        connection_trace: The trace context of its connection; absent unless that was traced.
    """

    __slots__ = ("body", "connection_trace", "id", "name", "oversized", "route", "sequence")

    trace_system = "sse"

    connection_trace: Mapping[str, str]

    body: T
    raw: str

    def __init__(
        self, raw: str, *, name: str = "message", id: str = "", route: str = "", attempt: int = 1
    ) -> None:
        # The same as Delivery.__init__, without the call: there are many events.
        self.raw = raw
        self.attempt = attempt
        self.fate = self.after = None
        self.name = name
        self.id = id
        self.route = route
        self.sequence = 0
        self.oversized = False

    def __repr__(self) -> str:
        return f"<SSEEvent {self._summary()}>"

    def __str__(self) -> str:
        return f"event {self._summary()}"

    def _summary(self) -> str:
        return f"{self.name} {self.id!r} of {self.route!r}, {len(self.raw)} characters"

    def log_context(self) -> dict[str, object]:
        """Return its id, if the server sent one."""
        return {"event_id": self.id} if self.id else {}

    def trace_carrier(self) -> Mapping[str, str]:
        """Return the attribute `traceparent` of JSON data, as a CloudEvent has it."""
        # Valid JSON of any other shape costs one search.
        found = _TRACEPARENT.search(self.raw) if '"traceparent"' in self.raw else None
        return {} if found is None else {"traceparent": found[1]}

    def trace_source(self) -> str:
        """Return the route of the stream."""
        return self.route

    def trace_details(self) -> TraceDetails:
        """Return its id, and the size of its data."""
        return TraceDetails(self.route, message_id=self.id or None, size=len(self.raw))

    def trace_links(self) -> Sequence[Mapping[str, str]]:
        """Return the trace context of its connection."""
        found = getattr(self, "connection_trace", None)
        return () if found is None else (found,)

    def accept(self) -> None:
        """Settle this event as handled, even if the handler raises afterwards."""
        self.decide(Action.ACK)

    def reject(self, requeue: bool = True) -> None:
        """Reject this event, even if the handler returns normally.

        Args:
            requeue: Whether to handle it again; otherwise the stream continues after it.
        """
        self.decide(Action.REQUEUE if requeue else Action.REJECT)
