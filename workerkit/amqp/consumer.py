"""The base class of consumers of RabbitMQ, and its options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from workerkit.amqp.queue import Queue
from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.options import (
    OF_BATCHES,
    Concurrency,
    Options,
    Seconds,
    Settlement,
    unless_retried,
)
from workerkit.retry import Retries, RetryPolicy

DeclareMode = Literal["missing", "always", "never"]
EvidenceMode = Literal["full", "brief"]
ReplyMode = Literal["any", "direct", "off"]
MAX_PREFETCH = 65_535


def _as_queues(found: object) -> object:
    if isinstance(found, str | Queue):
        raise ValueError("write a list, such as ['orders']")
    if isinstance(found, Sequence):
        return tuple(Queue(each) if isinstance(each, str) else each for each in found)
    return found


Queues = Annotated[tuple[Queue, ...], BeforeValidator(_as_queues), Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AMQPOptions(Options):
    """The options of an `AMQPConsumer`.

    Attributes:
        queues: The queues to consume.
        connection: A named connection of `settings.amqp`.
        vhost: The virtual host; None for that of the connection's settings.
        prefetch: The largest number of unacknowledged messages per queue; None for twice
            `concurrency`, or for the number that batches need.
        batch_size: The number of messages in a full batch, if `handle` takes a list.
        batch_interval: Seconds that the first message of a batch waits for others.
        on_exception: The action after `handle` raised an exception and `retry` is exhausted.
        retry: The retry policy after an exception; after its last retry a message is dead-lettered.
        evidence: The headers of dead letters about the failure: `full` has the text of the
            exception and its traceback, `brief` its class and place without any text; None for the
            connection's setting.
        replies: Where replies may go: `any` is each `reply_to`, `direct` only the addresses of
            direct replies, which name no queue, `off` is nowhere.
        declare: `missing` declares queues that do not exist, `always` also those that are deleted
            later, `never` none; None for the connection's setting.
    """

    concurrency: Concurrency = 16
    timeout: Seconds | None = 300.0
    queues: Queues
    connection: str = "default"
    vhost: str | None = None
    prefetch: Annotated[int, Field(ge=1, le=MAX_PREFETCH)] | None = None
    declare: DeclareMode | None = None
    evidence: EvidenceMode | None = None
    batch_size: Annotated[int, Field(ge=1, le=MAX_PREFETCH)] = field(
        default=100, metadata=OF_BATCHES
    )
    batch_interval: Seconds = field(default=1.0, metadata=OF_BATCHES)
    on_success: Settlement = Action.ACK
    on_exception: Settlement = field(
        default=Action.REQUEUE, metadata=unless_retried(Action.DEAD_LETTER)
    )
    on_invalid: Settlement = Action.DEAD_LETTER
    retry: Retries = None
    replies: ReplyMode = "any"

    @property
    def prefetch_count(self) -> int:
        """Return the prefetch count."""
        wanted = 2 * self.concurrency
        if self.batch:
            wanted = self.batch_size * (self.concurrency + 1)
        return self.prefetch or min(wanted, MAX_PREFETCH)

    @property
    def full_batch(self) -> int:
        """Return the batch size, which the prefetch count limits."""
        return min(self.batch_size, self.prefetch_count)


class AMQPConsumer(Consumer, abstract=True):
    """Handles the messages of one or more queues.

    ```python
    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None: ...
    ```

    The first parameter of `handle` receives the body, decoded to the type of its annotation, or the
    `AMQPMessage` that contains the body. A class attribute with the name of an option sets it; see
    `AMQPOptions` for all options. A message is acknowledged when `handle` returns, and requeued
    when it raises. A value that `handle` returns is the reply to a message with `reply_to`.

    Attributes:
        queues: Names, or `Queue` declarations.
    """

    options: ClassVar[type[Options]] = AMQPOptions
    queues: ClassVar[Sequence[str | Queue]]
    connection: ClassVar[str]
    vhost: ClassVar[str | None]
    prefetch: ClassVar[int | None]
    declare: ClassVar[DeclareMode | None]
    evidence: ClassVar[EvidenceMode | None]
    batch_size: ClassVar[int]
    batch_interval: ClassVar[float]
    on_success: ClassVar[Action]
    on_exception: ClassVar[Action]
    on_invalid: ClassVar[Action]
    retry: ClassVar[RetryPolicy | None]
    replies: ClassVar[ReplyMode]
    _may_answer: ClassVar[bool] = True
