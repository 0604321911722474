"""Move messages that nobody can handle to `<queue>.dlq`, with the evidence in their headers."""

import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from workerkit.amqp.checks import check_name
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import Moves, copied, history, now
from workerkit.amqp.message import ATTEMPT, OURS, AMQPMessage
from workerkit.amqp.properties import Properties
from workerkit.delivery import Outcome
from workerkit.describe import error_location, error_text, format_traceback
from workerkit.errors import Reject, Signal
from workerkit.safe_text import Redact, redacted
from workerkit.version import __version__

log = logging.getLogger(__name__)

# All headers of a message have to fit one frame of 128 KiB beside the sender's own.
_LONGEST_REASON = 2_000
_LONGEST_TRACEBACK = 16_000
_BRIEF = 200
_SMALL = 1_000
_TRACEBACK = f"{OURS}traceback"


class DeadLetters:
    """The dead letters of one consumer."""

    def __init__(self, moves: Moves, options: AMQPOptions, redact: Redact | None = None) -> None:
        self._moves = moves
        self._queues = {queue.name: queue.dead_letter_queue for queue in options.queues}
        self._consumer = options.name
        self._brief = options.evidence == "brief"
        self._redact = redact

    async def bury(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Put a copy into the dead-letter queue; the caller acknowledges the original afterwards.

        Raises:
            PublishError: The copy has not safely arrived: the original must stay.
        """
        headers = evidence(message, outcome, self._consumer, brief=self._brief, redact=self._redact)
        await self._moves.move(message, self._queues[message.queue], _copies(message, headers))


def evidence(
    message: AMQPMessage[Any],
    outcome: Outcome,
    consumer: str,
    *,
    brief: bool = False,
    redact: Redact | None = None,
) -> dict[str, Any]:
    """The headers that tell where a dead letter came from and why it is one.

    Passwords in URLs are masked.

    Args:
        brief: Without the text of the exception and its traceback.
        redact: Called with both; where it raises, they are left out as well.
    """
    error, failed_at = outcome.error, now()
    headers: dict[str, Any] = {
        **_texts(error, consumer, brief, redact),
        "consumer": consumer,
        "queue": message.queue,
        "failed-at": failed_at,
        "host": socket.gethostname(),
        "version": __version__,
    }
    told = {OURS + name: value for name, value in headers.items()}
    return {**history(message, failed_at), ATTEMPT: message.attempt, **told}


def _texts(
    error: Exception | None, consumer: str, brief: bool, redact: Redact | None
) -> dict[str, str]:
    """The headers about the failure: `reason`, `error` and `traceback`."""
    if error is None:
        return {"reason": "dead-lettered by the handler"}
    origin = _origin(error)
    kind = type(origin).__qualname__
    if not brief:
        try:
            told = {"reason": _shortened(redacted(_reason(error), redact), _LONGEST_REASON)}
            if not isinstance(origin, Signal):
                # The innermost frames tell most, and long chains repeat themselves.
                trace = redacted(format_traceback(origin, limit=-20), redact)
                told["traceback"] = _shortened(trace, _LONGEST_TRACEBACK)
            return {**told, "error": kind}
        except Exception as failure:
            # Its text may contain what it is meant to hide.
            log.warning(
                "redact failed: the dead letter gets brief evidence",
                extra={"consumer": consumer, "reason": error_location(failure)},
            )
    return {"reason": error_location(origin), "error": kind}


def _copies(message: AMQPMessage[Any], headers: dict[str, Any]) -> Iterator[Properties]:
    """The properties of a dead letter, each time with less in them, so that they fit a frame.

    First the evidence gives way, then the sender's own headers.
    """
    brief = {
        name: _shortened(value, _BRIEF) if isinstance(value, str) else value
        for name, value in headers.items()
        if name != _TRACEBACK
    }
    for told, largest in ((headers, None), (brief, None), (brief, _SMALL), (brief, 0), ({}, 0)):
        yield copied(message, told, largest=largest)


def _origin(error: Exception) -> BaseException:
    """What went wrong: *error*, or what a signal was raised from."""
    if isinstance(error, Signal) and error.__cause__ is not None:
        return error.__cause__
    return error


def _reason(error: Exception) -> str:
    told = error if not isinstance(error, Signal) or error.reason else _origin(error)
    return error_text(told) or type(told).__qualname__


def _shortened(text: str, longest: int) -> str:
    """Cut in the middle, to *longest* bytes of UTF-8 and a mark of what is gone."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= longest:
        return encoded.decode()
    half = longest // 2
    gone = len(encoded) - 2 * half
    kept = encoded[:half] + f" ... {gone} bytes ... ".encode() + encoded[-half:]
    return kept.decode(errors="replace")


REPLAYS = f"{OURS}replays"
_DEATHS = "x-death"
_MOST_REPLAYS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a message is a dead letter.

    Attributes:
        queue: The one it was in, and goes back to.
        error: The class of the exception; `Reject` where the handler gave the message up without
            one, which leaves no class in its headers; None where the broker dead-lettered it.
        attempt: The try that was the last.
        replays: How often it was replayed before.
        failed_at: The last time; to the second where the broker says it.
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
        """Read the headers of *message*."""
        headers = message.sent

        def text(name: str) -> str | None:
            value = headers.get(OURS + name)
            return value if isinstance(value, str) else None

        reason = text("reason")
        # Ours always have a reason, and no class where a handler decided without raising.
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
    """The name of a queue; None where no queue can be called so."""
    try:
        check_name("queue", text)
    except ValueError:
        return None
    return text


def moment(text: str | None) -> datetime | None:
    """A time in ISO 8601, in UTC where it does not say; None where it is none."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _last_death(deaths: object) -> dict[str, Any]:
    """The entry that the broker added last: it stands first."""
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
