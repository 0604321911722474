"""What consumers need at the broker, as data: queues, exchanges, bindings. Pure: no I/O.

A worker checks and declares exactly this at its start (`amqp.topology`), and the command `topology`
plans, applies and exports it. So the two cannot differ.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from workerkit.amqp.consumer import AMQPOptions, DeclareMode
from workerkit.amqp.queue import Binding, Exchange, Queue
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import WorkerSettings
from workerkit.delivery import Action
from workerkit.transport import ReadQueue

Purpose = Literal["messages", "retries", "dead letters", "lease"]


@dataclass(frozen=True, slots=True)
class NeededQueue:
    """A queue that a consumer needs.

    Attributes:
        existing: The declaration that is accepted if the queue exists. If it is only a name, every
            declaration is.
        purpose: What is in it: `messages` for the consumer, their `retries`, their `dead letters`,
            or the `lease` of a task.
        instead: The option with which it is not needed; empty for the consumer's own queue.
    """

    queue: Queue
    existing: Queue
    purpose: Purpose
    instead: str = ""


def with_default_types(options: AMQPOptions, settings: AMQPSettings) -> AMQPOptions:
    """Return options whose queues have the default type of the connection, where they can."""
    typed = tuple(queue.with_default_type(settings.queue_type) for queue in options.queues)
    return dataclasses.replace(options, queues=typed)


def needed_queues(options: AMQPOptions, queue: Queue, written: Queue) -> Iterator[NeededQueue]:
    """Yield a queue of a consumer, then those that its retries and dead letters go to.

    Args:
        queue: One of the queues of *options*, with the default type.
        written: The same queue as the class has it.
    """
    yield NeededQueue(queue, written, "messages")
    if queue.per_process:
        return
    if options.retry is not None and not queue.is_stream:
        for step in options.retry.steps:
            retries = queue.retry_queue(step)
            yield NeededQueue(retries, retries, "retries", "retry = None")
    actions = (options.on_success, options.on_exception, options.on_invalid)
    if Action.DEAD_LETTER in actions or options.retry is not None:
        letters, instead = queue.dead_letter_queue, "on_invalid = Action.REJECT"
        yield NeededQueue(letters, Queue(letters.name), "dead letters", instead)


def reported_queues(
    options: AMQPOptions, settings: WorkerSettings, name: Callable[[Queue], str]
) -> list[ReadQueue]:
    """Return the queues that a consumer reads, as operators know them.

    Args:
        name: Returns the name of a queue at the broker.
    """
    connection = options.connection.casefold()
    found = settings.amqp[connection]
    vhost, broker = found.vhost_name(options.vhost), found.display(options.vhost)
    return [
        ReadQueue(
            name(queue),
            connection,
            vhost,
            broker,
            _dead_letters(options, queue),
            queue.is_stream,
            queue.per_process,
        )
        for queue in options.queues
    ]


def _dead_letters(options: AMQPOptions, queue: Queue) -> str | None:
    for each in needed_queues(options, queue, queue):
        if each.purpose == "dead letters":
            return each.queue.name
    return None


@dataclass(frozen=True, slots=True)
class ConsumerQueue:
    """A needed queue, and the consumer that needs it.

    Attributes:
        consumer: Its name.
        declare: The option of its class; None if it leaves that to the connection.
    """

    needed: NeededQueue
    consumer: str
    declare: DeclareMode | None = None

    @property
    def queue(self) -> Queue:
        """The queue, with the default type."""
        return self.needed.queue

    @property
    def at_run_time(self) -> bool:
        """Whether only a worker can declare it: the broker deletes it with its connection or its
        consumers, or at a restart."""
        return not self.queue.is_permanent


@dataclass(slots=True)
class Needs:
    """All that the consumers of a package need on one virtual host.

    Attributes:
        connection: The name of the connection in the settings.
        vhost: The name of the virtual host.
        uses: Each use of a queue, in the order of the consumers; several may use one queue.
        publishes: Whether something is published to the default exchange: copies, replies, tokens
            of leases, or what the code publishes to a queue.
        targets: The other exchanges that classes name in `publishes`.
    """

    connection: str
    vhost: str
    uses: list[ConsumerQueue] = field(default_factory=list)
    publishes: bool = False
    targets: list[Exchange | str] = field(default_factory=list)

    def add(
        self, needed: Iterable[NeededQueue], consumer: str, declare: DeclareMode | None
    ) -> None:
        """Add the queues of a consumer."""
        for each in needed:
            self.uses.append(ConsumerQueue(each, consumer, declare))
            self.publishes |= each.purpose != "messages"

    @property
    def queues(self) -> list[ConsumerQueue]:
        """Each queue once, with a declaration of more than its name if any use has one."""
        found: dict[str, ConsumerQueue] = {}
        for each in self.uses:
            known = found.get(each.queue.name)
            if known is None or known.queue.is_plain:
                found[each.queue.name] = each
        return list(found.values())

    @property
    def bindings(self) -> list[tuple[Queue, Binding]]:
        """The bindings of all queues, each once: classes may bind the same queue differently."""
        found: dict[tuple[str, str, str, str], tuple[Queue, Binding]] = {}
        for each in self.uses:
            for binding in each.queue.bindings:
                arguments = repr(sorted(binding.arguments.items()))
                key = each.queue.name, str(binding.exchange), binding.routing_key, arguments
                found.setdefault(key, (each.queue, binding))
        return list(found.values())

    @property
    def exchanges(self) -> dict[str, Exchange | str]:
        """All exchanges by name: of bindings, and that classes publish to.

        It is a name alone if no class declares it.
        """
        bound = (binding.exchange for each in self.uses for binding in each.queue.bindings)
        found: dict[str, Exchange | str] = {}
        for exchange in (*bound, *self.targets):
            name = str(exchange)
            if isinstance(found.get(name, name), str):
                found[name] = exchange
        return found
