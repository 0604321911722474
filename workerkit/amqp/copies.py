"""Publish copies of messages: retries, dead letters, and copies for the same queue.

A copy is published and confirmed first. Then its caller acknowledges the original. If the process
ends in between, there are two messages, but never none.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from workerkit.amqp import table
from workerkit.amqp.consumer import AMQPOptions, DeclareMode
from workerkit.amqp.dead_letters import TRACEBACK, evidence, history, now
from workerkit.amqp.declare import log_declared
from workerkit.amqp.destination import Destination
from workerkit.amqp.message import (
    ACQUIRED_COUNT,
    ATTEMPT,
    DELIVERY_COUNT,
    OURS,
    QUEUE,
    RETURNS,
    AMQPMessage,
)
from workerkit.amqp.outgoing import DIRECT_REPLY_TO
from workerkit.amqp.properties import PERSISTENT, Properties
from workerkit.amqp.publisher import Publisher
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
from workerkit.retry import pause
from workerkit.safe_text import Redact, excerpt

log = logging.getLogger(__name__)

# All headers of a message have to fit into one frame of 128 KiB, with those of the sender.
_BRIEF = 200
_SMALL = 1_000
_MAX_NAMES = 50
_EMPTY = table.encode({})
# CC and BCC would route the copy back to where it came from. RabbitMQ takes a count of deliveries,
# and the deaths that it sees cycles in, for those of the copy, and drops it. Ours are of the queue
# that the original was in.
NOT_FOR_COPIES = frozenset({"CC", "BCC", "x-death", DELIVERY_COUNT, ACQUIRED_COUNT, RETURNS})


class CopyPublisher:
    """Publishes the copies for all consumers of one virtual host with the same `declare`.

    Args:
        connection: The name of the connection that the consumers read from.
        vhost: The virtual host; None for that of the connection.
        declare: Whether a missing queue may be declared before the first copy is published to it.

    Attributes:
        seen: Names of the queues that existed. If one of them is deleted, it is not declared again.
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
        """Check once, for all consumers, that copies can be published.

        It publishes a mandatory message to a queue that does not exist: the broker returns it, or
        refuses it if the user may not publish.

        Raises:
            PublishRefused: The user may not publish.
        """
        async with self._checking:
            if self._checked:
                return
            try:
                to = self._to(f"workerkit.{uuid4().hex}")
                await self._publisher.send(b"", Properties(), to)
            except PublishRefused:
                raise
            except PublishError:
                # It was returned, or a blocked or lost broker could not check the permission.
                pass
            self._checked = True

    async def publish(
        self, message: AMQPMessage[Any], to: Queue, copies: Iterator[Properties]
    ) -> None:
        """Publish a copy of *message*; the caller acknowledges the original afterwards.

        Args:
            to: The queue, declared like this if it is missing.
            copies: The properties of the copy; the next ones are used if these are too large.

        Raises:
            PublishError: The copy was not confirmed: the original must stay.
        """
        for properties in copies:
            try:
                return await self._publish(message, properties, to)
            except MessageTooLarge as error:
                too_large = error
        raise too_large

    async def reply(
        self, message: AMQPMessage[Any], body: bytes, properties: Properties, timeout: float
    ) -> None:
        """Publish a reply to *message*. Raises as `Publisher.send` does."""
        to = message.properties.reply_to or ""
        await self._publisher.send_observed(body, properties, self._to(to), timeout)

    async def _publish(self, message: AMQPMessage[Any], properties: Properties, to: Queue) -> None:
        destination = self._to(to.name)
        try:
            await self._send(message, properties, destination)
        except Unroutable:
            if not self._may_declare(to.name):
                raise
            if await self._publisher.declare(to, self._connection, self._vhost):
                log_declared([to.name], again=to.name in self.seen)
            await self._send(message, properties, destination)
        self.seen.add(to.name)

    async def _send(
        self, message: AMQPMessage[Any], properties: Properties, to: Destination
    ) -> None:
        """Publish, and a second time if a lost channel or connection leaves the result unknown.

        Two copies are better than a copy and the original, which would be handled again. If the
        connection of the original is lost too, it is redelivered and then recognized by its id.
        """
        try:
            await self._publisher.send(message.raw, properties, to)
        except PublishOutcomeUnknown as error:
            unrecognized = message.acks.lost and not message.message_id
            if not isinstance(error.__cause__, ConnectionLost) or unrecognized:
                raise
            await self._publisher.send(message.raw, properties, to)

    def _may_declare(self, queue: str) -> bool:
        """Return whether a missing queue may be declared; not if it was deleted meanwhile."""
        if self._declare == "missing":
            return queue not in self.seen
        return self._declare == "always"

    def _to(self, queue: str) -> Destination:
        return Destination(queue, "", self._connection, self._vhost)


class Copies:
    """The copies of the messages of one consumer.

    Args:
        redact: Called with the texts of exceptions before they are written into headers.
    """

    def __init__(
        self, options: AMQPOptions, publisher: CopyPublisher, redact: Redact | None = None
    ) -> None:
        self._consumer = options.name
        self._policy = options.retry
        self._brief = options.evidence == "brief"
        self._redact = redact
        self._publisher = publisher
        self._queues = {queue.name: queue for queue in options.queues}
        self._dead_letters = {queue.name: queue.dead_letter_queue for queue in options.queues}
        # Built once for each delay: to check a declaration takes half as long as a whole retry.
        self._retries: dict[tuple[str, float], Queue] = {}

    async def retry(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Publish a copy to a retry queue, which returns it after the delay of the outcome.

        Raises:
            MessageTooLarge: The headers do not fit together with those of the sender.
            PublishError: The copy was not confirmed: the original must stay.
        """
        key = message.queue, outcome.delay
        queue = self._retries.get(key)
        if queue is None:
            # There are few delays: those of a policy, or the default ones.
            queue = self._retries[key] = self._queues[message.queue].retry_queue(outcome.delay)
        headers = {
            ATTEMPT: message.attempt + 1,
            QUEUE: message.queue,
            **history(message, now()),
        }
        properties = copied(message, headers, expiration=pause(outcome, self._policy))
        await self._publisher.publish(message, queue, iter([properties]))

    async def dead_letter(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Publish a copy with evidence to the dead-letter queue.

        Raises:
            PublishError: The copy was not confirmed: the original must stay.
        """
        headers = evidence(message, outcome, self._consumer, brief=self._brief, redact=self._redact)
        copies = _dead_letter_copies(message, headers)
        await self._publisher.publish(message, self._dead_letters[message.queue], copies)


def log_failure(
    consumer: str, message: AMQPMessage[Any], error: Exception, *, harmless: bool = False
) -> None:
    """Log why a copy could not be published.

    It is a WARNING if no action is needed: the connection is lost, so the broker redelivers the
    message, or the failure is *harmless*.
    """
    log.log(
        logging.WARNING if harmless or message.acks.lost else logging.ERROR,
        "message could not be copied and stays in its queue",
        exc_info=error,
        extra={"consumer": consumer, "delivery": str(message)},
    )


def acknowledge_original(message: AMQPMessage[Any]) -> bool:
    """Acknowledge a message whose copy was confirmed and can be distinguished from it.

    If the acknowledgement does not arrive, the message is redelivered, and acknowledged then
    without being handled.

    Returns:
        False if its channel is lost.
    """
    message.moved = True
    if message.acks.ack(message.tag, message):
        return True
    message.acks.unsent([message])
    return False


def copied(
    message: AMQPMessage[Any],
    headers: Mapping[str, Any],
    *,
    largest: int | None = None,
    expiration: float | None = None,
) -> Properties:
    """Return the properties of a copy: the sender's, and *headers*.

    Properties are left out that would make the broker drop, refuse or multiply the copy: the
    sender's expiration would run out in the other queue, a user id must be the publisher's own, and
    a direct reply without an address is possible only where replies are consumed.

    Args:
        largest: Leave out the sender's headers of more bytes.
        expiration: Seconds that the copy may stay in its queue.
    """
    sent = message.properties
    return dataclasses.replace(
        sent,
        table=_merged(sent.table or _EMPTY, headers, largest),
        delivery_mode=PERSISTENT,
        expiration=None if expiration is None else str(max(round(expiration * 1000), 1)),
        user_id=None,
        reply_to=None if sent.reply_to == DIRECT_REPLY_TO else sent.reply_to,
    )


def _merged(original: bytes, headers: Mapping[str, Any], largest: int | None) -> bytes:
    left_out: list[str] = []

    def keep(name: str, entry: bytes) -> bool:
        if largest is not None and len(entry) > largest:
            left_out.append(name)
        return name not in NOT_FOR_COPIES and (largest is None or len(entry) <= largest)

    try:
        merged = table.merge(original, headers, keep)
    except table.MalformedTable:
        return table.encode({**headers, f"{OURS}undecoded": original[:_SMALL]})
    if left_out and headers:
        merged = table.merge(merged, {f"{OURS}left-out": left_out[:_MAX_NAMES]})
    return merged


def _dead_letter_copies(message: AMQPMessage[Any], headers: dict[str, Any]) -> Iterator[Properties]:
    """Yield the properties of a dead letter, each smaller than the ones before.

    The evidence is shortened first, then the sender's headers are left out.
    """
    brief = {
        name: excerpt(value, _BRIEF) if isinstance(value, str) else value
        for name, value in headers.items()
        if name != TRACEBACK
    }
    for ours, largest in ((headers, None), (brief, None), (brief, _SMALL), (brief, 0), ({}, 0)):
        yield copied(message, ours, largest=largest)
