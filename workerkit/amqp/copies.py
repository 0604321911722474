"""Move messages to other queues: a confirmed copy goes there, then the original is acknowledged.

Whoever is killed in between leaves two messages behind, never none.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.consumer import DeclareMode
from workerkit.amqp.message import (
    ACQUIRED_COUNT,
    ATTEMPT,
    DELIVERY_COUNT,
    EXCHANGE,
    OURS,
    QUEUE,
    RETURNS,
    ROUTING_KEY,
    AMQPMessage,
)
from workerkit.amqp.outgoing import DIRECT_REPLY_TO
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.publisher import Destination, Publisher
from workerkit.amqp.queue import Queue
from workerkit.delivery import Outcome
from workerkit.errors import (
    ConnectionLost,
    MessageTooLarge,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    Unroutable,
)
from workerkit.retry import RetryPolicy, pause

log = logging.getLogger(__name__)

FIRST_FAILED_AT = f"{OURS}first-failed-at"

_EMPTY = table.encode({})
_SMALL = 1_000
_LONGEST_TIME = 40
_MOST_NAMED = 50
# CC and BCC would route the copy back to where it came from. RabbitMQ takes a count of deliveries,
# and the deaths that it sees cycles in, for those of the copy, and drops it. Ours are of the queue
# that the original was in.
NOT_FOR_COPIES = frozenset({"CC", "BCC", "x-death", DELIVERY_COUNT, ACQUIRED_COUNT, RETURNS})


class Moves:
    """Moves the messages of all consumers of one virtual host that may declare the same.

    Args:
        connection: The connection they read from, on which the copies go as well.
        vhost: ... and its virtual host.
        declare: Whether a queue may be declared that is missing when the first message goes there.

    Attributes:
        seen: Names of the queues that were there. One that was deleted is waited for.
    """

    def __init__(
        self, publisher: Publisher, connection: str, vhost: str | None, declare: DeclareMode
    ) -> None:
        self._publisher = publisher
        self._connection = connection
        self._vhost = vhost
        self._declare = declare
        self.seen: set[str] = set()
        self._checking = asyncio.Lock()
        self._checked = False

    async def check(self) -> None:
        """Find out, once for all consumers, whether messages could be moved.

        A message that must not get lost, to a queue that does not exist, comes back, and without
        the permission to publish the broker refuses it.

        Raises:
            PublishRefused: There is no such permission.
        """
        async with self._checking:
            if self._checked:
                return
            try:
                await self._publisher.send(b"", Properties(), self._to(f"workerkit.{uuid4().hex}"))
            except PublishRefused:
                raise
            except PublishError:
                # It was returned, or a blocked or lost broker could not check the permission.
                pass
            self._checked = True

    async def move(
        self, message: AMQPMessage[Any], to: Queue, copies: Iterator[Properties]
    ) -> None:
        """Put a copy into a queue; the caller acknowledges the original afterwards.

        Args:
            to: Declared like this where it is missing.
            copies: The properties of the copy; the next ones are used where these are too large.

        Raises:
            PublishError: The copy has not safely arrived: the original must stay.
        """
        for properties in copies:
            try:
                return await self._send(message, properties, to)
            except MessageTooLarge as error:
                too_large = error
        raise too_large

    async def _send(self, message: AMQPMessage[Any], properties: Properties, to: Queue) -> None:
        destination = self._to(to.name)
        try:
            await self._publish(message, properties, destination)
        except Unroutable:
            if not self._may_declare(to.name):
                raise
            if await self._publisher.declare(to, self._connection, self._vhost):
                log_declared([to.name], again=to.name in self.seen)
            await self._publish(message, properties, destination)
        self.seen.add(to.name)

    async def _publish(
        self, message: AMQPMessage[Any], properties: Properties, to: Destination
    ) -> None:
        """Publish, and once more if a lost channel or connection leaves the result unknown.

        Two copies are better than a copy and the original, which would be handled again. An
        original whose own connection is lost too is delivered again; its id identifies it then.
        """
        try:
            await self._publisher.send(message.raw, properties, to)
        except PublishOutcomeUnknown as error:
            cause, comes_again = error.__cause__, message.acks.lost and not message.message_id
            if not isinstance(cause, ConnectionLost) or comes_again:
                raise
            await self._publisher.send(message.raw, properties, to)

    def _may_declare(self, queue: str) -> bool:
        """One that was there and was deleted is waited for, like any other queue."""
        if self._declare == "missing":
            return queue not in self.seen
        return self._declare == "always"

    def _to(self, queue: str) -> Destination:
        return Destination(queue, "", self._connection, self._vhost)


def log_declared(queues: Sequence[str], *, again: bool, **more: object) -> None:
    """Log that queues were missing and have been declared.

    Args:
        again: They were there before: somebody has deleted them while this process ran.
    """
    if again:
        text = "queue was deleted and has been declared again"
        log.warning(text, extra={"queues": list(queues), **more})
    else:
        log.info("declared what was missing", extra={"queues": list(queues), **more})


def acknowledge_original(message: AMQPMessage[Any]) -> bool:
    """Acknowledge a message whose copy has arrived, and which can be told from that copy.

    Should it come again, because the acknowledgement did not arrive, nobody has to handle it.

    Returns:
        False if its channel is lost.
    """
    message.moved = True
    if message.acks.ack(message.tag, message):
        return True
    message.acks.unsent([message])
    return False


def history(message: AMQPMessage[Any], failed_at: str) -> dict[str, Any]:
    """The headers that tell a copy's past: where it was published to, and when it first failed."""
    first = message.past(FIRST_FAILED_AT)
    # Anybody may have sent it, as any value, even as one that cannot be written again.
    believed = isinstance(first, str) and 0 < len(first) <= _LONGEST_TIME
    told = {
        FIRST_FAILED_AT: first if believed else failed_at,
        EXCHANGE: message.exchange,
        ROUTING_KEY: message.routing_key,
    }
    if "CC" in message.sent:
        told[f"{OURS}cc"] = message.sent["CC"]
    return told


def now() -> str:
    """The time, as our headers have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def copied(
    message: AMQPMessage[Any],
    told: Mapping[str, Any],
    *,
    largest: int | None = None,
    expiration: float | None = None,
) -> Properties:
    """The properties of a copy: the sender's, and what we tell.

    Those are left out that would make the broker drop, refuse or multiply the copy: the sender's
    expiration would run out in the other queue, a user id must be the publisher's own, and a direct
    reply without an address is possible only where replies are consumed.

    Args:
        told: Headers, by name.
        largest: Leave out the sender's headers of more bytes.
        expiration: Seconds that the copy may stay there.
    """
    sent = message.properties
    return dataclasses.replace(
        sent,
        table=_merged(sent.table or _EMPTY, told, largest),
        delivery_mode=PERSISTENT,
        expiration=None if expiration is None else str(max(round(expiration * 1000), 1)),
        user_id=None,
        reply_to=None if sent.reply_to == DIRECT_REPLY_TO else sent.reply_to,
    )


def _merged(original: bytes, told: Mapping[str, Any], largest: int | None) -> bytes:
    left_out: list[str] = []

    def keep(name: str, entry: bytes) -> bool:
        if largest is not None and len(entry) > largest:
            left_out.append(name)
        return name not in NOT_FOR_COPIES and (largest is None or len(entry) <= largest)

    try:
        merged = table.merge(original, told, keep)
    except table.MalformedTable:
        return table.encode({**told, f"{OURS}undecoded": original[:_SMALL]})
    if left_out and told:
        merged = table.merge(merged, {f"{OURS}left-out": left_out[:_MOST_NAMED]})
    return merged


class Retries:
    """The messages of one consumer that wait for their next try."""

    def __init__(self, moves: Moves, queues: tuple[Queue, ...], policy: RetryPolicy | None) -> None:
        self._moves = moves
        self._queues = {queue.name: queue for queue in queues}
        self._policy = policy
        # Built once for each delay: to check a declaration takes half as long as to retry.
        self._waiting: dict[tuple[str, float], Queue] = {}

    async def postpone(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Have a message come again when its outcome says.

        Raises:
            MessageTooLarge: Its headers leave no room for what has to be remembered.
            PublishError: The copy has not safely arrived: the original must stay.
        """
        key = message.queue, outcome.delay
        waiting = self._waiting.get(key)
        if waiting is None:
            # Delays are steps of a policy or of the ladder, so there are few.
            waiting = self._waiting[key] = self._queues[message.queue].retry_queue(outcome.delay)
        told = {
            ATTEMPT: message.attempt + 1,
            QUEUE: message.queue,
            **history(message, now()),
        }
        properties = copied(message, told, expiration=pause(outcome, self._policy))
        await self._moves.move(message, waiting, iter([properties]))
