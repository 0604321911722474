"""Move messages that nobody can handle to `<queue>.dlq`, with the evidence in their headers."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.message import ATTEMPT, OURS, AMQPMessage
from workerkit.amqp.moving import Moves, copied, history, now
from workerkit.amqp.properties import Properties
from workerkit.delivery import Outcome
from workerkit.describe import formatted, raised_at, text_of
from workerkit.errors import Signal
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
                trace = redacted(formatted(origin, limit=-20), redact)
                told["traceback"] = _shortened(trace, _LONGEST_TRACEBACK)
            return {**told, "error": kind}
        except Exception as failure:
            # Its text may contain what it is meant to hide.
            log.warning(
                "redact failed: the dead letter gets brief evidence",
                extra={"consumer": consumer, "reason": raised_at(failure)},
            )
    return {"reason": raised_at(origin), "error": kind}


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
    return text_of(told) or type(told).__qualname__


def _shortened(text: str, longest: int) -> str:
    """Cut in the middle, to *longest* bytes of UTF-8 and a mark of what is gone."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= longest:
        return encoded.decode()
    half = longest // 2
    gone = len(encoded) - 2 * half
    kept = encoded[:half] + f" ... {gone} bytes ... ".encode() + encoded[-half:]
    return kept.decode(errors="replace")
