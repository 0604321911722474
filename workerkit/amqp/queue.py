"""Declarations of queues, exchanges and bindings. Pure: no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, get_args

from workerkit.amqp.checks import Check, check_name, is_whole

ExchangeType = Literal["direct", "fanout", "topic", "headers"]
QueueType = Literal["classic", "quorum", "stream"]
StreamStart = Literal["first", "last", "next"]
StreamOffset = StreamStart | int
Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
RetryType = Literal["quorum", "classic"]
DefaultQueueType = Literal["quorum", "classic"]

DEAD_LETTER_SUFFIX = ".dlq"
RETRY_INFIX = ".retry."
NO_LIMIT = -1
_LONGEST_PREFIX = 150  # Of 255 bytes; the rest is for the host, the process and the connection.
_NO_LIMIT_SINCE = (4,)
# Arguments that a quorum queue refuses, or that have no effect except on a classic queue.
_CLASSIC_ONLY = frozenset(
    {"x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"}
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The declaration of an exchange, used if the exchange is missing.

    Attributes:
        type: A type of RabbitMQ, or of a plugin, such as `x-consistent-hash`.
        durable: The exchange survives a restart of the broker.
        auto_delete: The broker deletes the exchange when its last binding is removed.
        internal: Only other exchanges can publish to it.
        alternate: The exchange that receives messages which this one cannot route.
        arguments: Other arguments of the declaration, such as `alternate-exchange`.
    """

    name: str
    type: ExchangeType | str = "direct"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    alternate: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("exchange", self.name)
        check = Check(f"exchange {self.name!r}", self)
        # Other types belong to plugins. The broker refuses those that it does not have.
        if not str(self.type).startswith("x-"):
            check.one_of("type", get_args(ExchangeType))
        check.flags("durable", "auto_delete", "internal")
        check.text("alternate", "its name as a string", optional=True)
        check.mapping("arguments", {"x-max-length": 10})

    @property
    def declared_arguments(self) -> dict[str, Any]:
        """Return all arguments of `exchange.declare`."""
        alternate = {"alternate-exchange": self.alternate} if self.alternate else {}
        return {**alternate, **self.arguments}

    @property
    def is_built_in(self) -> bool:
        """Return whether each virtual host has it: no client can declare one of these names."""
        return self.name.startswith("amq.")

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash((self.name, self.type))


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue to an exchange.

    Attributes:
        exchange: The declaration of the exchange, or the name of one that exists.
        arguments: The arguments of the binding, for exchanges of type headers.
    """

    exchange: Exchange | str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.exchange, Exchange | str):
            raise ValueError(
                f"binding: exchange is {self.exchange!r}: write an Exchange, or its name"
            )
        check = Check(f"binding to {self.exchange}", self)
        check.text("routing_key", "a string")
        if isinstance(self.exchange, str) and self.exchange:
            check_name("exchange", self.exchange)
        check.mapping("arguments", {"x-match": "all"})


@dataclass(frozen=True, slots=True)
class Queue:
    """The declaration of a queue, used if the queue is missing.

    A plain name in a consumer's `queues` means `Queue(name)`: durable, without arguments.

    Attributes:
        type: `classic`, `quorum` (replicated), or `stream`. Messages are not removed from a stream
            and cannot be requeued to it, so a message that fails is dead-lettered. With None the
            virtual host determines the type.
        durable: The queue survives a restart of the broker.
        exclusive: Only the connection that declares the queue may use it. The broker deletes the
            queue when that connection closes.
        auto_delete: The broker deletes the queue when its last consumer is cancelled.
        per_process: Each process has a separate, exclusive queue. Its name is this one with a
            suffix that is new for each connection. Retries are made in place. A message that would
            be dead-lettered is rejected instead: it goes to `dead_letter_exchange`, or is dropped
            if there is none.
        ttl: Seconds after which the queue drops a message, or dead-letters it.
        expires: Seconds without use after which the broker deletes the queue and its messages.
        max_length: The largest number of messages; `overflow` determines what happens to more.
        max_bytes: The largest total size of the bodies, in bytes.
        max_priority: The highest priority, 1 to 255; classic queues only.
        delivery_limit: How often a message may be redelivered; quorum queues only, -1 for no limit.
        expected_delivery_limit: The delivery limit that a policy or another declaration gives this
            quorum queue. It is not declared. See "Delivery limits" in the documentation.
        single_active_consumer: One consumer at a time receives the messages, in order.
        dead_letter_exchange: Receives messages that the queue rejects or drops, or that expire; ""
            is the default exchange, which routes by `dead_letter_routing_key`.
        arguments: Other arguments of the declaration.
        bindings: Bindings, created after the queue has been declared.
        stream_offset: The position in a stream at which the process starts to read. When the
            connection was lost, reading continues after the last message that was settled.
        retry_type: The type of the queues in which retries wait. `classic` is for RabbitMQ before
            3.10; such a queue may lose a retry that this queue cannot accept when it is due.
    """

    name: str
    type: QueueType | None = None
    _: KW_ONLY
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    per_process: bool = False
    ttl: float | None = None
    expires: float | None = None
    max_length: int | None = None
    max_bytes: int | None = None
    overflow: Overflow | None = None
    max_priority: int | None = None
    delivery_limit: int | None = None
    expected_delivery_limit: int | None = None
    single_active_consumer: bool = False
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    stream_offset: StreamOffset = "next"
    retry_type: RetryType = "quorum"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: Sequence[Binding] = ()

    def __post_init__(self) -> None:
        check_name("queue", self.name)
        self._check_arguments()
        if self.per_process:
            self._check_per_process()
            object.__setattr__(self, "exclusive", True)
        replicated = self.type in ("quorum", "stream")
        if replicated and (not self.durable or self.exclusive or self.auto_delete):
            raise ValueError(
                f"queue {self.name!r}: a {self.type} queue is durable, not exclusive, "
                "not auto_delete"
            )
        if replicated and self.max_priority is not None:
            raise ValueError(f"queue {self.name!r}: max_priority is for classic queues")
        if self.delivery_limit is not None and self.type != "quorum":
            raise ValueError(f"queue {self.name!r}: delivery_limit is for quorum queues")
        if self.expected_delivery_limit is not None:
            self._check_expected_limit()
        twice = sorted(self._named_arguments.keys() & self.arguments.keys())
        if twice:
            raise ValueError(f"queue {self.name!r}: {twice[0]!r} is given twice")

    def __str__(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        """Return whether it is only a name, so that any declaration at the broker is accepted."""
        limit = self.expected_delivery_limit
        return self == Queue(self.name, retry_type=self.retry_type, expected_delivery_limit=limit)

    @property
    def declared_arguments(self) -> dict[str, Any]:
        """Return all arguments of `queue.declare`, including the type."""
        return {**self._named_arguments, **self.arguments}

    @property
    def is_stream(self) -> bool:
        """Return whether it is declared as a stream."""
        return self.declared_arguments.get("x-queue-type") == "stream"

    @property
    def known_delivery_limit(self) -> int | None:
        """Return the delivery limit of a quorum queue; None if it is not known."""
        limit = self.declared_arguments.get("x-delivery-limit", self.expected_delivery_limit)
        return limit if isinstance(limit, int) else None

    @property
    def dead_letters(self) -> str:
        """Return the name of the queue for its dead letters."""
        return self.name + DEAD_LETTER_SUFFIX

    @property
    def dead_letter_queue(self) -> "Queue":
        """Return the queue for its dead letters, which is replicated if this one is.

        It has no delivery limit: RabbitMQ would drop a dead letter that was read too often.
        """
        kind = self.declared_arguments.get("x-queue-type")
        if kind == "classic":
            return Queue(self.dead_letters, "classic")
        arguments = {"x-delivery-limit": NO_LIMIT}
        if kind in ("quorum", "stream"):
            return Queue(self.dead_letters, "quorum", arguments=arguments)
        return Queue(self.dead_letters, arguments=arguments)

    def with_default_type(self, default: DefaultQueueType | None) -> "Queue":
        """Return the queue with a default type, if it has no type and can have that one."""
        arguments = self.declared_arguments
        if default is None or "x-queue-type" in arguments:
            return self
        replicated = default == "quorum"
        if replicated and (not self.is_permanent or _CLASSIC_ONLY & arguments.keys()):
            return self
        return replace(self, type=default)

    @property
    def is_permanent(self) -> bool:
        """Return whether the queue exists until a client deletes it."""
        return self.durable and not self.exclusive and not self.auto_delete

    def arguments_for(self, version: tuple[int, ...]) -> dict[str, Any]:
        """Return the arguments of `queue.declare` for a version of the broker.

        A delivery limit of -1 means "no limit" from RabbitMQ 4.0 on. Older versions have no limit
        if the argument is missing, and -1 drops a message when it is requeued for the first time.
        """
        arguments = self.declared_arguments
        if version < _NO_LIMIT_SINCE and self.has_no_limit:
            del arguments["x-delivery-limit"]
        return arguments

    @property
    def has_no_limit(self) -> bool:
        """Return whether it is declared with a delivery limit of -1, which means no limit."""
        limit = self.declared_arguments.get("x-delivery-limit")
        return isinstance(limit, int) and limit < 0

    def retry_queue(self, delay: float) -> "Queue":
        """Return the queue in which messages wait *delay* seconds before they return to this one.

        It has no `expires`, because waiting messages would be deleted with it. A quorum queue keeps
        a message until this queue has confirmed it. A classic queue removes it before, so a message
        is lost if this queue is full or deleted at that moment, or if a node fails.
        """
        at_least_once: dict[str, Any] = {
            "overflow": "reject-publish",
            "arguments": {"x-dead-letter-strategy": "at-least-once"},
        }
        return Queue(
            self.name + retry_suffix(delay),
            self.retry_type,
            ttl=delay,
            dead_letter_exchange="",
            dead_letter_routing_key=self.name,
            **(at_least_once if self.retry_type == "quorum" else {}),
        )

    def _check_arguments(self) -> None:
        """Check the value of each argument."""
        check = Check(f"queue {self.name!r}", self)
        if self.type is not None:
            check.one_of("type", get_args(QueueType))
        check.flags("durable", "exclusive", "auto_delete", "per_process", "single_active_consumer")
        check.seconds("ttl", 0)
        check.seconds("expires", 0.001)
        check.whole("max_length", 0)
        check.whole("max_bytes", 0)
        check.whole("max_priority", 1, 255)
        check.whole("delivery_limit", -1)
        check.whole("expected_delivery_limit", -1)
        if self.overflow is not None:
            check.one_of("overflow", get_args(Overflow))
        check.one_of("retry_type", get_args(RetryType))
        check.text("dead_letter_exchange", "its name as a string", optional=True)
        check.text("dead_letter_routing_key", "a string", optional=True)
        if not is_whole(self.stream_offset, 0):
            check.one_of("stream_offset", get_args(StreamStart), ", or a whole number, 0 or more")
        check.mapping("arguments", {"x-max-length": 10})
        _check_bindings(check, self.bindings)

    def _check_per_process(self) -> None:
        if self.declared_arguments.get("x-queue-type", "classic") != "classic":
            raise ValueError(
                f"queue {self.name!r}: a queue per process is deleted with its connection, so it "
                "must be a classic queue: omit the type"
            )
        if len(self.name.encode()) > _LONGEST_PREFIX:
            raise ValueError(
                f"queue {self.name!r}: write at most {_LONGEST_PREFIX} bytes before the suffix "
                "that each process adds"
            )

    def for_process(self, suffix: str) -> "Queue":
        """Return the queue with its name in one process."""
        return replace(self, name=f"{self.name}.{suffix}", per_process=False)

    def _check_expected_limit(self) -> None:
        if self.type not in (None, "quorum"):
            raise ValueError(f"queue {self.name!r}: expected_delivery_limit is for quorum queues")
        if "x-delivery-limit" in self.declared_arguments:
            text = "expected_delivery_limit is for limits that others declare: write one limit"
            raise ValueError(f"queue {self.name!r}: {text}")

    @property
    def _named_arguments(self) -> dict[str, Any]:
        """Return the arguments that attributes set, with RabbitMQ's names and units."""
        arguments = {
            "x-queue-type": self.type,
            "x-message-ttl": _milliseconds(self.ttl),
            "x-expires": _milliseconds(self.expires),
            "x-max-length": self.max_length,
            "x-max-length-bytes": self.max_bytes,
            "x-overflow": self.overflow,
            "x-max-priority": self.max_priority,
            "x-delivery-limit": self.delivery_limit,
            "x-single-active-consumer": self.single_active_consumer or None,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": self.dead_letter_routing_key,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def retry_suffix(delay: float) -> str:
    """Return the suffix of the queue for retries, such as `.retry.5s` or `.retry.300ms`."""
    milliseconds = round(delay * 1000)
    if milliseconds % 1000:
        return f"{RETRY_INFIX}{milliseconds}ms"
    return f"{RETRY_INFIX}{milliseconds // 1000}s"


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _check_bindings(check: Check, found: Any) -> None:
    if isinstance(found, str) or not isinstance(found, Sequence):
        check.refuse("bindings", "write a list, such as [Binding(exchange, routing_key)]")
    for each in found:
        if not isinstance(each, Binding):
            named = isinstance(each, Exchange | str)
            right = f"Binding({each!r})" if named else "Binding(exchange, routing_key)"
            raise ValueError(f"{check.subject}: bindings has {each!r}: write {right}")
