"""The queues that the classes of an application declare, compared with each other."""

import dataclasses
from collections.abc import Iterator

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.queue import Queue
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.describe import describe_class

# Two classes may differ in the others, which are not arguments of the queue at the broker.
_COMPARED = [
    each.name
    for each in dataclasses.fields(Queue)
    if each.name not in ("stream_offset", "bindings", "expected_delivery_limit")
]


class DeclaredQueues:
    """Each queue as the first class declares it."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str, str], tuple[type[Consumer], Queue]] = {}

    def contradictions(
        self, class_: type[Consumer], options: AMQPOptions, settings: WorkerSettings
    ) -> Iterator[str]:
        """Yield an error for each queue that another consumer declares differently."""
        name = options.connection.casefold()
        connection = settings.amqp.get(name)
        if connection is None or (options.declare or connection.declare) == "never":
            return
        for queue in options.queues:
            key = (name, connection.vhost_name(options.vhost), queue.name)
            other, declared = self._queues.setdefault(key, (class_, queue))
            found = [
                f"{each} is {getattr(queue, each)!r} and {getattr(declared, each)!r}"
                for each in _COMPARED
                if getattr(queue, each) != getattr(declared, each)
            ]
            if other is not class_ and found:
                yield (
                    f"{describe_class(class_)} and {describe_class(other)} declare queue"
                    f" {queue.name!r} differently: {', '.join(found)}; write the same Queue in both"
                )
