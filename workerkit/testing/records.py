"""What became of one delivery, as a test wants to read it."""

from dataclasses import dataclass
from typing import Any

from workerkit.errors import InvalidBody
from workerkit.observe import Settled


@dataclass(frozen=True, slots=True)
class Record:
    """One settled delivery.

    Attributes:
        action: `ack`, `requeue`, `reject` or `dead_letter`; `lost` where the connection was gone.
        body: As the handler got it; the raw bytes where they did not fit; None where there were
            more than `max_message_size` allows.
        attempt: Which try it was, from 1.
        reason: What the handler raised, or why the body did not fit; empty when all went well.
    """

    consumer: str
    action: str
    body: Any
    attempt: int
    reason: str
    error: Exception | None

    @classmethod
    def of(cls, settled: Settled) -> "Record":
        """Read it off what observers get."""
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
