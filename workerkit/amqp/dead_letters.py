"""Why a message is a dead letter: write the headers that say so, and read them or the broker's."""

import logging
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from workerkit.amqp.checks import check_name
from workerkit.amqp.message import ATTEMPT, EXCHANGE, OURS, ROUTING_KEY, AMQPMessage
from workerkit.delivery import Outcome
from workerkit.describe import error_location, error_text, format_traceback
from workerkit.errors import Reject, Signal
from workerkit.options import folded
from workerkit.safe_text import Redact, excerpt, redacted
from workerkit.version import __version__

log = logging.getLogger(__name__)

REPLAYS = f"{OURS}replays"
FIRST_FAILED_AT = f"{OURS}first-failed-at"
TRACEBACK = f"{OURS}traceback"
REPLAY_JOB = f"{OURS}replay-job"
"""The id of the job of the console that replayed the message."""
ORIGINAL = f"{OURS}original-"
"""Prefix of the headers with what an edit before a replay has changed."""
_DEATHS = "x-death"
_MAX_REASON = 2_000
_MAX_TRACEBACK = 16_000
_MAX_TIME = 40
_MOST_REPLAYS = 1_000_000
_NEVER = datetime.min.replace(tzinfo=UTC)


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

    def is_error(self, name: str) -> bool:
        """Return whether the exception has this class; of a nested one, the last part is enough."""
        return self.error is not None and name in (self.error, self.error.rpartition(".")[2])

    def is_of(self, consumer: str) -> bool:
        """Return whether it failed in this consumer, whose name is compared like in settings."""
        return self.consumer is not None and folded(self.consumer) == folded(consumer)

    def failed_since(self, time: datetime) -> bool:
        """Return whether it failed then or later. Without a time of failure it did not."""
        return (self.failed_at or _NEVER) >= time


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


def evidence(
    message: AMQPMessage[Any],
    outcome: Outcome,
    consumer: str,
    *,
    brief: bool = False,
    redact: Redact | None = None,
) -> dict[str, Any]:
    """Return the headers that describe where a dead letter came from, and why it failed.

    Passwords in URLs are masked.

    Args:
        brief: Without the text of the exception and its traceback.
        redact: Called with both; if it raises, they are left out as well.
    """
    failed_at = now()
    headers: dict[str, Any] = {
        **_texts(outcome.error, consumer, brief, redact),
        "consumer": consumer,
        "queue": message.queue,
        "failed-at": failed_at,
        "host": socket.gethostname(),
        "version": __version__,
    }
    ours = {OURS + name: value for name, value in headers.items()}
    return {**history(message, failed_at), ATTEMPT: message.attempt, **ours}


def _texts(
    error: Exception | None, consumer: str, brief: bool, redact: Redact | None
) -> dict[str, str]:
    """Return the headers about the failure: `reason`, `error` and `traceback`."""
    if error is None:
        return {"reason": "dead-lettered by the handler"}
    origin = _origin(error)
    kind = type(origin).__qualname__
    if not brief:
        try:
            texts = {"reason": excerpt(redacted(_reason(error), redact), _MAX_REASON)}
            if not isinstance(origin, Signal):
                # The innermost frames are the most useful, and long chains repeat themselves.
                trace = redacted(format_traceback(origin, limit=-20), redact)
                texts["traceback"] = excerpt(trace, _MAX_TRACEBACK)
            return {**texts, "error": kind}
        except Exception as failure:
            # Its text may contain what it is meant to hide.
            log.warning(
                "redact failed: the dead letter gets brief evidence",
                extra={"consumer": consumer, "reason": error_location(failure)},
            )
    return {"reason": error_location(origin), "error": kind}


def _origin(error: Exception) -> BaseException:
    """Return the exception itself, or the one that a signal was raised from."""
    if isinstance(error, Signal) and error.__cause__ is not None:
        return error.__cause__
    return error


def _reason(error: Exception) -> str:
    described = error if not isinstance(error, Signal) or error.reason else _origin(error)
    return error_text(described) or type(described).__qualname__


def history(message: AMQPMessage[Any], failed_at: str) -> dict[str, Any]:
    """Return the headers with a message's past: its first exchange, and its first failure."""
    first = message.past(FIRST_FAILED_AT)
    # Senders may write any value, also one that cannot be encoded again.
    valid = isinstance(first, str) and 0 < len(first) <= _MAX_TIME
    headers = {
        FIRST_FAILED_AT: first if valid else failed_at,
        EXCHANGE: message.exchange,
        ROUTING_KEY: message.routing_key,
    }
    if "CC" in message.sent:
        headers[f"{OURS}cc"] = message.sent["CC"]
    return headers


def now() -> str:
    """Return the time in the format of our headers."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
