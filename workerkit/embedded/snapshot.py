"""What a test sees of a queue: copies, which do not change when the queue does."""

from dataclasses import dataclass
from typing import Any

from workerkit.embedded import table
from workerkit.embedded.queue import Copy, Queue


@dataclass(frozen=True, slots=True)
class MessageSnapshot:
    """A message that waits in a queue.

    Attributes:
        headers: As a client library would show them.
        properties: The other properties that it has, by name.
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
        ready: Messages that wait.
        unacked: Messages that were delivered and are not settled.
        consumers: How many there are.
        arguments: As declared.
        messages: Those that wait, in the order in which they will be delivered.
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
    """What a queue is now."""
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
