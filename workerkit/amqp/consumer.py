"""What a user's class declares about RabbitMQ."""

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

Declare = Literal["missing", "always", "never"]
EvidenceStyle = Literal["full", "brief"]
HIGHEST_PREFETCH = 65_535


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
        queues: What it reads from.
        connection: A named connection of `settings.amqp`.
        vhost: Virtual host; None for the connection's own.
        prefetch: Messages that the broker sends ahead, per queue; None for twice `concurrency`,
            or for what batches need.
        batch_size: Messages of a full batch, where `handle` takes a list.
        batch_interval: Seconds that the first message of a batch waits for others.
        on_exception: What becomes of a message that `handle` raised for; `retry` comes first.
        retry: Tries such a message again, and dead-letters it in the end.
        evidence: What the headers of its dead letters say about the failure: `full` is the text of
            the exception and its traceback, `brief` its class and place without any text; None
            leaves it to the connection's setting.
        declare: `missing` declares queues that are not there, `always` also those that were
            deleted later, `never` none; None leaves it to the connection's setting.
    """

    concurrency: Concurrency = 16
    timeout: Seconds | None = 300.0
    queues: Queues
    connection: str = "default"
    vhost: str | None = None
    prefetch: Annotated[int, Field(ge=1, le=HIGHEST_PREFETCH)] | None = None
    declare: Declare | None = None
    evidence: EvidenceStyle | None = None
    batch_size: Annotated[int, Field(ge=1, le=HIGHEST_PREFETCH)] = field(
        default=100, metadata=OF_BATCHES
    )
    batch_interval: Seconds = field(default=1.0, metadata=OF_BATCHES)
    on_success: Settlement = Action.ACK
    on_exception: Settlement = field(
        default=Action.REQUEUE, metadata=unless_retried(Action.DEAD_LETTER)
    )
    on_invalid: Settlement = Action.DEAD_LETTER
    retry: Retries = None

    @property
    def prefetch_count(self) -> int:
        """The prefetch in force."""
        wanted = 2 * self.concurrency
        if self.batch:
            wanted = self.batch_size * (self.concurrency + 1)
        return self.prefetch or min(wanted, HIGHEST_PREFETCH)

    @property
    def full_batch(self) -> int:
        """The batch size in force: no more messages come than are prefetched."""
        return min(self.batch_size, self.prefetch_count)


class AMQPConsumer(Consumer, abstract=True):
    """Handles the messages of one or more queues.

    ```python
    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: Order) -> None: ...
    ```

    The first parameter of `handle` takes the body, read as its annotation says, or the
    `AMQPMessage` with the body in it. A class attribute named like an option sets it; see
    `AMQPOptions` for all of them. A message is acknowledged when `handle` returns and goes back
    to its queue when it raises.

    Attributes:
        queues: Names, or `Queue` declarations.
    """

    options: ClassVar[type[Options]] = AMQPOptions
    queues: ClassVar[Sequence[str | Queue]]
    connection: ClassVar[str]
    vhost: ClassVar[str | None]
    prefetch: ClassVar[int | None]
    declare: ClassVar[Declare | None]
    evidence: ClassVar[EvidenceStyle | None]
    batch_size: ClassVar[int]
    batch_interval: ClassVar[float]
    on_success: ClassVar[Action]
    on_exception: ClassVar[Action]
    on_invalid: ClassVar[Action]
    retry: ClassVar[RetryPolicy | None]
