"""The base class of consumers of RabbitMQ, and its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from workerkit.amqp.queue import Queue
from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.named_types import Types
from workerkit.options import (
    CLASS_ONLY,
    OF_BATCHES,
    Concurrency,
    Options,
    Seconds,
    Settlement,
    only_with,
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


def _as_types(found: object) -> object:
    if not isinstance(found, Mapping | None):
        raise ValueError("write a dict of types by name, such as {'order.placed': OrderPlaced}")
    if found is not None and not found:
        raise ValueError("no message would be handled: write types by name")
    for name in found or ():
        if not isinstance(name, str):
            raise ValueError(f"a name is a str, unlike {name!r}")
    return found


def _as_type_source(found: object) -> object:
    kind, _, name = found.partition(":") if isinstance(found, str) else ("", "", "")
    if found not in _TYPE_SOURCES and not (kind in ("header", "body") and name.strip()):
        named = ", ".join(map(repr, _TYPE_SOURCES))
        raise ValueError(f"should be {named}, 'header:NAME' or 'body:FIELD'")
    return found


_TYPE_SOURCES = ("type", "routing_key", "cloudevents")
_BY_TYPE = only_with("types", "the class has no types")
TypesByName = Annotated[Any, BeforeValidator(_as_types)]
TypeSource = Annotated[str, BeforeValidator(_as_type_source)]
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
        on_success: The action after `handle` has returned.
        on_invalid: The action for a body that does not match the type in `handle`.
        on_exception: The action after `handle` raised an exception and `retry` is exhausted.
        retry: The retry policy after an exception; after its last retry a message is dead-lettered.
        types: The types of bodies by the name of the type, of which `handle` takes a union.
        type_from: Where a message has the name of its type: `type` is the property, `routing_key`,
            `header:NAME`, `cloudevents`, or `body:FIELD` of a JSON object. Names of types may be
            patterns of a topic exchange if it is `routing_key`.
        on_unknown: The action for a message whose type is not in `types`, or missing; None for
            `on_invalid`.
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
    types: TypesByName = field(default=None, metadata=CLASS_ONLY)
    type_from: TypeSource = field(default="type", metadata=_BY_TYPE)
    on_unknown: Settlement | None = field(default=None, metadata=_BY_TYPE)
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
    types: ClassVar[Types | None]
    type_from: ClassVar[str]
    on_unknown: ClassVar[Action | None]
    replies: ClassVar[ReplyMode]
    _may_answer: ClassVar[bool] = True

    @classmethod
    def body_types(cls) -> Types:
        """Return `types`; none if the class has none."""
        types: Any = getattr(cls, "types", None)
        return types if isinstance(types, Mapping) else {}
