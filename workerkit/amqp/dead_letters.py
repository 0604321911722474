"""Move messages that nobody can handle to `<queue>.dlq`, with the evidence in their headers."""

import dataclasses
import socket
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.consumer import Declare
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, Queue
from workerkit.delivery import Outcome
from workerkit.errors import MessageTooLarge, PublishError, PublishRefused, Reject, Unroutable

_PREFIX = "x-workerkit-"
_FIRST_FAILED_AT = f"{_PREFIX}first-failed-at"
# All headers of a message have to fit one frame of 128 KiB beside the sender's own.
_LONGEST_REASON = 2_000
_LONGEST_TRACEBACK = 16_000
_BRIEF = 200
_SMALL = 1_000
_MOST_NAMED = 50
_EMPTY = table.encode({})
_ROUTING = ("CC", "BCC")


class DeadLetters:
    """The dead letters of one consumer.

    Args:
        consumer: Its name.
        connection: The connection it reads from, to which the dead letters go as well.
        vhost: ... and its virtual host.
        declare: Whether a queue for them may be declared when the first one comes.
    """

    def __init__(
        self,
        publisher: Publisher,
        consumer: str,
        connection: str,
        vhost: str | None,
        declare: Declare,
    ) -> None:
        self._publisher = publisher
        self._consumer = consumer
        self._connection = connection
        self._vhost = vhost
        self._declare = declare
        self.seen: set[str] = set()

    async def check(self) -> None:
        """Find out whether dead letters could be moved, before the first one has to be.

        A message that must not get lost, to a queue that does not exist, comes back, and without
        the permission to publish the broker refuses it.

        Raises:
            PublishRefused: There is no such permission.
        """
        try:
            await self._publisher.send(b"", Properties(), self._to(f"workerkit.{uuid4().hex}"))
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
        to = self._to(message.queue + DEAD_LETTER_SUFFIX)
        try:
            await self._send(message, outcome, to)
        except Unroutable:
            if not self._may_declare(to.routing_key):
                raise
            await self._publisher.declare(Queue(to.routing_key), self._connection, self._vhost)
            await self._send(message, outcome, to)
        self.seen.add(to.routing_key)

    async def _send(self, message: AMQPMessage[Any], outcome: Outcome, to: Destination) -> None:
        """Send the copy, with less evidence and then fewer headers if they do not fit a frame."""
        headers = evidence(message, outcome, self._consumer)
        for properties in _copies(message, headers):
            try:
                await self._publisher.send(message.raw, properties, to)
            except MessageTooLarge:
                if properties.table == _EMPTY:
                    raise
            else:
                return

    def _may_declare(self, queue: str) -> bool:
        """One that was there and was deleted is waited for, like any other queue."""
        if self._declare == "missing":
            return queue not in self.seen
        return self._declare == "always"

    def _to(self, queue: str) -> Destination:
        return Destination(queue, "", self._connection, self._vhost)


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
    if "CC" in message.headers:
        headers["cc"] = message.headers["CC"]
    return {_PREFIX + name: value for name, value in headers.items()}


def _copies(message: AMQPMessage[Any], headers: dict[str, Any]) -> Iterator[Properties]:
    """The properties of a copy, each time with less in them.

    The sender's stay, but for those that would make the broker drop, refuse or multiply the copy:
    an expiration would run out in the dead-letter queue, a user id must be the publisher's own,
    and CC would route it back to where it came from.
    """
    brief = {
        name: _shortened(value, _BRIEF) if isinstance(value, str) else value
        for name, value in headers.items()
        if name != f"{_PREFIX}traceback"
    }
    original = message.properties.table or _EMPTY
    for told, largest in ((headers, None), (brief, None), (brief, _SMALL), (brief, 0), ({}, 0)):
        yield dataclasses.replace(
            message.properties,
            table=_merged(original, told, largest),
            delivery_mode=PERSISTENT,
            expiration=None,
            user_id=None,
        )


def _merged(original: bytes, told: dict[str, Any], largest: int | None) -> bytes:
    """The sender's headers, those of more than *largest* bytes left out, and what we tell."""
    left_out: list[str] = []

    def keep(name: str, entry: bytes) -> bool:
        if largest is not None and len(entry) > largest:
            left_out.append(name)
        return name not in _ROUTING and (largest is None or len(entry) <= largest)

    try:
        merged = table.merge(original, told, keep)
    except table.MalformedTable:
        return table.encode({**told, f"{_PREFIX}undecoded": original[:_SMALL]})
    if left_out and told:
        merged = table.merge(merged, {f"{_PREFIX}left-out": left_out[:_MOST_NAMED]})
    return merged


def _reason(error: Exception | None) -> str:
    if error is None:
        return "dead-lettered by the handler"
    try:
        return str(error) or type(error).__qualname__
    except Exception:
        # An exception class of the user's may fail to describe itself.
        return type(error).__qualname__


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
