"""The outcome of one delivery, for assertions of tests."""

from dataclasses import dataclass
from typing import Any

from workerkit.errors import InvalidBody
from workerkit.observe import Settled


@dataclass(frozen=True, slots=True)
class Record:
    """One settled delivery.

    Attributes:
        action: `ack`, `requeue`, `reject` or `dead_letter`; `lost` where the connection was gone.
        body: As passed to the handler; the raw bytes if they are invalid; None if they exceed
            `max_message_size`.
        attempt: The number of the attempt, from 1.
        reason: What the handler raised, or why the body is invalid; empty if neither.
    """

    consumer: str
    action: str
    body: Any
    attempt: int
    reason: str
    error: Exception | None

    @classmethod
    def of(cls, settled: Settled) -> "Record":
        """Create it from the record that observers get."""
        error = settled.outcome.error
        delivery = settled.delivery
        return cls(
            settled.consumer,
            "lost" if settled.lost else settled.action.value,
            _body(delivery),
            getattr(delivery, "attempt", 1),
            "" if error is None else str(error) or type(error).__qualname__,
            error,
        )


def _body(delivery: Any) -> Any:
    try:
        return delivery.body if hasattr(delivery, "body") else delivery.raw
    except InvalidBody:
        return None
