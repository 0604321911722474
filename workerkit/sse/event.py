"""One Server-Sent Event, as a handler sees it."""

from typing import Any, Generic

from typing_extensions import TypeVar

from workerkit.delivery import Action, Delivery

T = TypeVar("T", default=Any)


class SSEEvent(Delivery, Generic[T]):
    """An event that `handle` is called with.

    Attributes:
        name: `message` where the server sent none.
        body: The decoded data.
        raw: The data as text.
        id: The id that was in force, with which the stream can be resumed; empty if none was sent.
        route: The stream that it came from.
        attempt: Which try this is, from 1.
        sequence: Its place in the stream, counted anew by each process.
        oversized: Its data was longer than `max_event_size`, and was not kept.
    """

    __slots__ = ("body", "id", "name", "oversized", "route", "sequence")

    body: T
    raw: str

    def __init__(
        self, raw: str, *, name: str = "message", id: str = "", route: str = "", attempt: int = 1
    ) -> None:
        # As Delivery does, without the call: there are many events.
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

    def accept(self) -> None:
        """Count this event as handled, even if the handler raises afterwards."""
        self.decide(Action.ACK)

    def reject(self, requeue: bool = True) -> None:
        """Refuse this event, even if the handler returns normally.

        Args:
            requeue: Handle it again; else go on behind it.
        """
        self.decide(Action.REQUEUE if requeue else Action.REJECT)
