"""Move messages that nobody can handle to `<queue>.dlq`, with the evidence in their headers."""

import socket
from collections.abc import Iterator
from typing import Any

from workerkit.amqp.message import ATTEMPT, OURS, AMQPMessage
from workerkit.amqp.moving import Moves, copied, history, now
from workerkit.amqp.properties import Properties
from workerkit.amqp.queue import Queue
from workerkit.delivery import Outcome
from workerkit.errors import Signal
from workerkit.places import formatted, text_of
from workerkit.version import __version__

# All headers of a message have to fit one frame of 128 KiB beside the sender's own.
_LONGEST_REASON = 2_000
_LONGEST_TRACEBACK = 16_000
_BRIEF = 200
_SMALL = 1_000
_TRACEBACK = f"{OURS}traceback"


class DeadLetters:
    """The dead letters of one consumer."""

    def __init__(self, moves: Moves, queues: tuple[Queue, ...], consumer: str) -> None:
        self._moves = moves
        self._queues = {queue.name: queue.dead_letter_queue for queue in queues}
        self._consumer = consumer

    async def bury(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Put a copy into the dead-letter queue; the caller acknowledges the original afterwards.

        Raises:
            PublishError: The copy has not safely arrived: the original must stay.
        """
        headers = evidence(message, outcome, self._consumer)
        await self._moves.move(message, self._queues[message.queue], _copies(message, headers))


def evidence(message: AMQPMessage[Any], outcome: Outcome, consumer: str) -> dict[str, Any]:
    """The headers that tell where a dead letter came from and why it is one."""
    error, failed_at = outcome.error, now()
    headers: dict[str, Any] = {
        "reason": _shortened(_reason(error), _LONGEST_REASON),
        "consumer": consumer,
        "queue": message.queue,
        "failed-at": failed_at,
        "host": socket.gethostname(),
        "version": __version__,
    }
    if error is not None:
        origin = _origin(error)
        headers["error"] = type(origin).__qualname__
        if not isinstance(origin, Signal):
            # The innermost frames tell most, and long chains repeat themselves.
            headers["traceback"] = _shortened(formatted(origin, limit=-20), _LONGEST_TRACEBACK)
    told = {OURS + name: value for name, value in headers.items()}
    return {**history(message, failed_at), ATTEMPT: message.attempt, **told}


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


def _reason(error: Exception | None) -> str:
    if error is None:
        return "dead-lettered by the handler"
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
