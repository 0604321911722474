"""Snapshots of queues for tests, which do not change with the queue."""

from dataclasses import dataclass
from typing import Any

from workerkit.embedded import table
from workerkit.embedded.queue import Copy, Queue


@dataclass(frozen=True, slots=True)
class MessageSnapshot:
    """A message that waits in a queue.

    Attributes:
        headers: As plain values, like those of a client library.
        properties: The other properties by name.
    """

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    redelivered: bool


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A queue at one moment.

    Attributes:
        ready: The number of waiting messages.
        unacked: The number of unacknowledged messages.
        consumers: The number of consumers.
        arguments: As declared.
        messages: The waiting messages, in order of delivery.
    """

    name: str
    ready: int
    unacked: int
    consumers: int
    durable: bool
    exclusive: bool
    auto_delete: bool
    arguments: dict[str, Any]
    messages: list[MessageSnapshot]


def of_queue(queue: Queue) -> QueueSnapshot:
    """Return a snapshot of a queue."""
    return QueueSnapshot(
        name=queue.name,
        ready=len(queue.waiting),
        unacked=queue.unacked,
        consumers=len(queue.consumers),
        durable=queue.durable,
        exclusive=queue.owner is not None,
        auto_delete=queue.auto_delete,
        arguments=table.plain(queue.arguments.table),
        messages=[_of_copy(copy) for copy in queue.waiting],
    )


def _of_copy(copy: Copy) -> MessageSnapshot:
    read = copy.message.read_properties()
    names = [name for name in read.__slots__ if name != "headers"]
    values = {name: getattr(read, name) for name in names}
    return MessageSnapshot(
        body=copy.message.body,
        headers=table.plain(read.headers or {}),
        properties={name: value for name, value in values.items() if value is not None},
        exchange=copy.message.exchange,
        routing_key=copy.message.routing_key,
        redelivered=copy.redelivered,
    )
