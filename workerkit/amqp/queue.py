"""The topology that consumers declare: queues, exchanges and what binds them. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ExchangeType = Literal["direct", "fanout", "topic", "headers"]
QueueType = Literal["classic", "quorum"]

DEAD_LETTER_SUFFIX = ".dlq"
# RabbitMQ takes any text; pamqp, which aio-pika declares with, takes no other characters.
_NAME = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]{1,255}")


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange, as it has to be declared where it is missing.

    Attributes:
        durable: It survives a restart of the broker.
        auto_delete: It goes when its last binding goes.
        internal: Nobody may publish to it but other exchanges.
        arguments: What the broker is told besides, such as `alternate-exchange`.
    """

    name: str
    type: ExchangeType = "direct"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("exchange", self.name)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash((self.name, self.type))


@dataclass(frozen=True, slots=True)
class Binding:
    """What a queue gets of an exchange.

    Attributes:
        exchange: Its declaration, or the name of one that exists.
        arguments: For exchanges of type headers.
    """

    exchange: Exchange | str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, as it has to be declared where it is missing.

    A plain name in a consumer's `queues` means `Queue(name)`: durable, without arguments.

    Attributes:
        type: Classic, or replicated by Raft; None leaves it to the virtual host's default.
        durable: It survives a restart of the broker.
        exclusive: Only the connection that declares it may use it; it goes with that connection.
        auto_delete: It goes when its last consumer goes.
        arguments: What the broker is told besides, such as `x-message-ttl`.
        bindings: What it gets, made after the queue has been declared.
    """

    name: str
    type: QueueType | None = None
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: Sequence[Binding] = ()

    def __post_init__(self) -> None:
        _check_name("queue", self.name)

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere name, so that the broker's own declaration is as good as any."""
        return self == Queue(self.name)

    @property
    def declared_arguments(self) -> dict[str, Any]:
        """All arguments of `queue.declare`, the type among them."""
        kind = {"x-queue-type": self.type} if self.type else {}
        return {**kind, **self.arguments}

    @property
    def delivery_limit(self) -> int | None:
        """How often a quorum queue takes a message back before it drops it; None where unknown."""
        limit = self.arguments.get("x-delivery-limit")
        return limit if isinstance(limit, int) else None

    @property
    def dead_letters(self) -> str:
        """The name of the queue that holds its dead letters."""
        return self.name + DEAD_LETTER_SUFFIX


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a {kind}: write 1 to 255 letters, digits, spaces "
            "or any of -_.:@#,/+"
        )
