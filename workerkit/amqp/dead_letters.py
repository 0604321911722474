"""Move messages that nobody can handle to `<queue>.dlq`, with the evidence in their headers."""

import dataclasses
import socket
import traceback
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX
from workerkit.delivery import Outcome
from workerkit.errors import PublishError, PublishRefused, Reject

_PREFIX = "x-workerkit-"
_FIRST_FAILED_AT = f"{_PREFIX}first-failed-at"
# All headers of a message have to fit one frame of 128 KiB beside the sender's own.
_LONGEST_REASON = 2_000
_LONGEST_TRACEBACK = 16_000


class DeadLetters:
    """The dead letters of one consumer.

    Args:
        consumer: Its name.
        connection: The connection it reads from, to which the dead letters go as well.
        vhost: ... and its virtual host.
    """

    def __init__(
        self, publisher: Publisher, consumer: str, connection: str, vhost: str | None
    ) -> None:
        self._publisher = publisher
        self._consumer = consumer
        self._connection = connection
        self._vhost = vhost

    async def check(self) -> None:
        """Find out whether dead letters could be moved, before the first one has to be.

        A message that must not get lost, to a queue that does not exist, comes back, and without
        the permission to publish the broker refuses it.

        Raises:
            PublishRefused: There is no such permission.
        """
        nowhere = Destination(f"workerkit.probe.{uuid4().hex}", "", self._connection, self._vhost)
        try:
            await self._publisher.send(b"", Properties(), nowhere)
        except PublishRefused:
            raise
        except PublishError:
            # It came back; or a broker that is blocked or gone says nothing about permissions.
            return

    async def move(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Put a copy into the dead-letter queue; the caller acknowledges the original afterwards.

        Raises:
            PublishError: The copy has not safely arrived: the original must stay.
        """
        await self._publisher.send(
            message.raw,
            _copied(message, evidence(message, outcome, self._consumer)),
            Destination(
                message.queue + DEAD_LETTER_SUFFIX, connection=self._connection, vhost=self._vhost
            ),
        )


def evidence(message: AMQPMessage[Any], outcome: Outcome, consumer: str) -> dict[str, Any]:
    """The headers that tell where a dead letter came from and why it is one."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    error = outcome.error
    headers: dict[str, Any] = {
        "reason": _shortened(_reason(error), _LONGEST_REASON),
        "consumer": consumer,
        "queue": message.queue,
        "exchange": message.exchange,
        "routing-key": message.routing_key,
        "attempt": message.attempt,
        "first-failed-at": message.headers.get(_FIRST_FAILED_AT, now),
        "failed-at": now,
        "host": socket.gethostname(),
    }
    if error is not None and not isinstance(error, Reject):
        headers["error"] = type(error).__qualname__
        headers["traceback"] = _shortened(_traceback(error), _LONGEST_TRACEBACK)
    return {_PREFIX + name: value for name, value in headers.items()}


def _copied(message: AMQPMessage[Any], headers: dict[str, Any]) -> Properties:
    """The sender's properties, but for those that would make the broker drop or refuse the copy.

    An expiration would run out in the dead-letter queue; a user id must be the publisher's own.
    """
    original = message.properties.table or b"\0\0\0\0"
    try:
        merged = table.merge(original, headers)
    except table.MalformedTable:
        headers[f"{_PREFIX}undecoded"] = original[:_LONGEST_TRACEBACK]
        merged = table.encode(headers)
    return dataclasses.replace(
        message.properties,
        table=merged,
        delivery_mode=PERSISTENT,
        expiration=None,
        user_id=None,
    )


def _reason(error: Exception | None) -> str:
    if error is None:
        return "dead-lettered by the handler"
    return str(error) or type(error).__qualname__


def _traceback(error: Exception) -> str:
    # The innermost frames tell most, and long chains repeat themselves.
    return "".join(traceback.format_exception(error, limit=-20))


def _shortened(text: str, longest: int) -> str:
    """Cut in the middle, to *longest* bytes of UTF-8 and a mark of what is gone."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= longest:
        return encoded.decode()
    half = longest // 2
    gone = len(encoded) - 2 * half
    kept = encoded[:half] + f" ... {gone} bytes ... ".encode() + encoded[-half:]
    return kept.decode(errors="replace")
