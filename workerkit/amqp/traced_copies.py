"""Spans for retries, dead letters, copies for the same queue, and replies."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from workerkit.amqp import table
from workerkit.amqp.consumer import DeclareMode
from workerkit.amqp.copies import CopyPublisher
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.properties import Properties
from workerkit.amqp.publisher import Publisher
from workerkit.amqp.queue import DEAD_LETTER_SUFFIX, Queue
from workerkit.trace import Tracing

_EMPTY = table.encode({})


def copy_publisher(
    publisher: Publisher,
    connection: str,
    vhost: str | None,
    declare: DeclareMode,
    tracing: Tracing | None,
) -> CopyPublisher:
    """Return a `CopyPublisher`, which creates spans if tracing is on."""
    if tracing is None:
        return CopyPublisher(publisher, connection, vhost, declare)
    return TracedCopyPublisher(publisher, connection, vhost, declare, tracing)


class TracedCopyPublisher(CopyPublisher):
    """A publisher of copies with a span for each, which the next attempt is a child of."""

    def __init__(
        self,
        publisher: Publisher,
        connection: str,
        vhost: str | None,
        declare: DeclareMode,
        tracing: Tracing,
    ) -> None:
        super().__init__(publisher, connection, vhost, declare)
        self._tracing = tracing

    async def publish(
        self, message: AMQPMessage[Any], to: Queue, copies: Iterator[Properties]
    ) -> None:
        """Publish a copy of *message*, inside a span."""
        with self._tracing.settle(message, _operation(message, to), self._connection) as carrier:
            traced = traced_copies(copies, carrier, self._tracing.fields)
            await super().publish(message, to, traced)

    async def reply(
        self, message: AMQPMessage[Any], body: bytes, properties: Properties, timeout: float
    ) -> None:
        """Publish a reply to *message*, inside a span."""
        with self._tracing.settle(message, "reply", self._connection) as carrier:
            if carrier:
                properties.table = table.merge(properties.table or _EMPTY, carrier)
            await super().reply(message, body, properties, timeout)


def _operation(message: AMQPMessage[Any], to: Queue) -> str:
    if to.name == message.queue:
        return "requeue"
    return "dead_letter" if to.name.endswith(DEAD_LETTER_SUFFIX) else "retry"


def traced_copies(
    copies: Iterator[Properties], carrier: Mapping[str, str], fields: frozenset[str]
) -> Iterator[Properties]:
    """Yield the properties of copies, with another trace context than that of the original.

    Args:
        carrier: The headers with the trace context; if it is empty, the original's stays.
        fields: The names of all headers for it. Baggage stays unless there is a new one.
    """
    stale = fields - {"baggage"}
    for properties in copies:
        if not carrier:
            yield properties
            continue
        try:
            headers = table.merge(
                properties.table or _EMPTY, carrier, lambda name, _: name not in stale
            )
        except table.MalformedTable:
            yield properties
        else:
            yield replace(properties, table=headers)
