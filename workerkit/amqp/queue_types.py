"""Find out the types that queues have at the broker, which may differ from the declared ones.

AMQP 0-9-1 reports only the length of a queue that exists. RabbitMQ refuses to declare it
again with other arguments, and names the first one that differs and its current value. Where no
queue of that name exists, the broker refuses these declarations as well: they create nothing.
"""

from typing import Any, NamedTuple

from workerkit.amqp.comparison import (
    MAX_DECLARATIONS,
    NOT_CREATED,
    ONLY_STREAMS,
    TYPE,
    difference_in,
    with_argument,
)
from workerkit.amqp.frames import PRECONDITION_FAILED, RESOURCE_LOCKED
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.queue import Queue
from workerkit.amqp.session import Session, scratch
from workerkit.errors import BrokerRefused

_FLAGS = ("durable", "exclusive", "auto_delete")
_QUORUM_FLAGS = {"durable": True, "exclusive": False, "auto_delete": False}
_UNCOUNTED_SINCE = (4, 3)


class FoundQueue(NamedTuple):
    """A queue that exists.

    Attributes:
        type: `classic`, `quorum` or `stream`.
        arguments: Those of its arguments that RabbitMQ has reported.
    """

    type: str
    arguments: dict[str, Any]


class QueueTypes:
    """The known types of a consumer's queues.

    Attributes:
        version: The version of the broker; empty if it is unknown.
    """

    def __init__(self) -> None:
        self.version: tuple[int, ...] = ()
        self._types: dict[str, str] = {}

    @property
    def nack_counts(self) -> bool:
        """Whether basic.nack counts against the delivery limit of a quorum queue."""
        return self.version < _UNCOUNTED_SINCE

    def of(self, queue: str) -> str | None:
        """Return `classic`, `quorum` or `stream`; None if the type is unknown."""
        return self._types.get(queue)

    async def learn(self, session: Session, queue: Queue) -> FoundQueue | None:
        """Find out the type of a queue; return None if it is known, or that is not permitted."""
        self.version = session.version
        if queue.name in self._types:
            return None
        if (found := await look_up(session, queue)) is not None:
            self._types[queue.name] = found.type
        return found

    def add_exclusive(self, session: Session, queue: str) -> None:
        """Add an exclusive queue of this process, which is always a classic queue.

        Args:
            queue: The name in the class, which its messages have as well.
        """
        self.version = session.version
        self._types[queue] = "classic"

    def forget(self, queue: str) -> None:
        """Forget a queue that was deleted: the next one of that name may have another type."""
        self._types.pop(queue, None)

    def delivery_count(self, message: AMQPMessage[Any]) -> int:
        """Return how often *message* was requeued and counted against the delivery limit.

        The sender may have written the header: a classic queue does not change it, nor does
        RabbitMQ 4.3 before the first counted requeue. RabbitMQ 4.3 counts all deliveries in another
        header, and the result is never higher than that.
        """
        if self.of(message.queue) == "classic":
            return 0
        count = message.delivery_count
        return count if self.nack_counts else min(count, message.acquired_count)


async def look_up(session: Session, queue: Queue) -> FoundQueue | None:
    """Find out the type of a queue; return None without the permission to declare it.

    Args:
        queue: Its declaration in the class. Each argument that differs takes one more request.

    Raises:
        ConnectionLost: The session was lost.
    """
    flags: dict[str, Any] = {name: getattr(queue, name) for name in _FLAGS}
    declared = queue.declared_arguments
    # Never a stream: RabbitMQ closes the connection if a stream has such arguments.
    assumed = "quorum" if declared.get(TYPE) == "quorum" else "classic"
    arguments: dict[str, Any] = {**declared, TYPE: assumed, **NOT_CREATED}
    for _ in range(MAX_DECLARATIONS):
        try:
            async with scratch(session) as channel:
                await channel.declare_queue(queue.name, **flags, arguments=arguments)
            return FoundQueue(assumed, arguments)
        except BrokerRefused as error:
            refused = error
        differs = difference_in(str(refused)) if refused.code == PRECONDITION_FAILED else None
        if refused.code == RESOURCE_LOCKED:
            return FoundQueue("classic", {})  # Only those are exclusive.
        if differs is None:
            return None
        name, value = differs
        if (flag := name.replace("-", "_")) in flags:
            flags[flag] = not flags[flag]
            if flags[flag] != _QUORUM_FLAGS[flag]:
                return FoundQueue("classic", arguments)
        elif name == ONLY_STREAMS:
            return FoundQueue("stream", arguments)
        elif name == TYPE:
            return FoundQueue("classic" if value is None else str(value), arguments)
        elif arguments.get(name) == value:
            return None
        else:
            arguments = with_argument(arguments, name, value)
    return None
