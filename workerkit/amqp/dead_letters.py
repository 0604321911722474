"""Read why a message is a dead letter: the headers of `amqp.copies`, or those of the broker."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from workerkit.amqp.checks import check_name
from workerkit.amqp.message import ATTEMPT, OURS, AMQPMessage
from workerkit.errors import Reject

REPLAYS = f"{OURS}replays"
_DEATHS = "x-death"
_MOST_REPLAYS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a message is a dead letter.

    Attributes:
        queue: The queue that it was in, and is replayed to.
        error: The class of the exception; `Reject` if the handler rejected the message without
            raising, which leaves no class in its headers; None if the broker dead-lettered it.
        attempt: The number of the last attempt.
        replays: How often it was replayed before.
        failed_at: The time of the last failure; in whole seconds if the broker wrote it.
    """

    queue: str | None = None
    consumer: str | None = None
    error: str | None = None
    reason: str | None = None
    traceback: str | None = None
    attempt: int | None = None
    replays: int = 0
    failed_at: datetime | None = None
    first_failed_at: datetime | None = None

    @classmethod
    def of(cls, message: AMQPMessage[Any]) -> Self:
        """Return the evidence in the headers of *message*."""
        headers = message.sent

        def text(name: str) -> str | None:
            value = headers.get(OURS + name)
            return value if isinstance(value, str) else None

        reason = text("reason")
        # Our headers always have a reason, and no class if a handler decided without raising.
        error = text("error") or (None if reason is None else Reject.__qualname__)
        death = _last_death(headers.get(_DEATHS))
        attempt, replays = headers.get(ATTEMPT), headers.get(REPLAYS)
        return cls(
            queue=_name(text("queue")),
            consumer=text("consumer"),
            error=error,
            reason=reason or _reason_of(death),
            traceback=text("traceback"),
            attempt=attempt if type(attempt) is int and attempt > 0 else None,
            replays=replays if type(replays) is int and 0 < replays <= _MOST_REPLAYS else 0,
            failed_at=moment(text("failed-at")) or _time(death),
            first_failed_at=moment(text("first-failed-at")),
        )


def _name(text: str | None) -> str | None:
    """Return the name of a queue; None if it is not a valid name."""
    try:
        check_name("queue", text)
    except ValueError:
        return None
    return text


def moment(text: str | None) -> datetime | None:
    """Parse a time in ISO 8601, in UTC without a time zone; return None if it is invalid."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _last_death(deaths: object) -> dict[str, Any]:
    """Return the entry that the broker added last, which is the first of the list."""
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}


def _reason_of(death: dict[str, Any]) -> str | None:
    why, queue = death.get("reason"), death.get("queue")
    if not isinstance(why, str):
        return None
    return f"dead-lettered by the broker: {why}" + (f" in {queue!r}" if queue else "")


def _time(death: dict[str, Any]) -> datetime | None:
    time = death.get("time")
    return time if isinstance(time, datetime) else None
