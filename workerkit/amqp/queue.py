"""The topology that consumers declare: queues, exchanges and what binds them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, get_args

from workerkit.amqp.checks import Check, check_name, is_whole

ExchangeType = Literal["direct", "fanout", "topic", "headers"]
QueueType = Literal["classic", "quorum", "stream"]
StreamPlace = Literal["first", "last", "next"]
StreamOffset = StreamPlace | int
Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
RetryType = Literal["quorum", "classic"]
DefaultType = Literal["quorum", "classic"]

DEAD_LETTER_SUFFIX = ".dlq"
RETRY_INFIX = ".retry."
NO_LIMIT = -1
_LONGEST_PREFIX = 150  # Of 255; the rest is for the host, the process and the connection.
_FIRST_WITH_NO_LIMIT = (4,)
# Arguments that a quorum queue refuses, or that make sense for a classic queue only.
_CLASSIC_ONLY = frozenset(
    {"x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"}
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange, as it has to be declared where it is missing.

    Attributes:
        type: One of RabbitMQ's own, or that of a plugin, such as `x-consistent-hash`.
        durable: It survives a restart of the broker.
        auto_delete: It goes when its last binding goes.
        internal: Nobody may publish to it but other exchanges.
        alternate: The exchange that gets what this one cannot route.
        arguments: What the broker is told besides, such as `alternate-exchange`.
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
        # Other types are those of plugins, and the broker knows which of them it has.
        if not str(self.type).startswith("x-"):
            check.one_of("type", get_args(ExchangeType))
        check.flags("durable", "auto_delete", "internal")
        check.text("alternate", "its name as a string", optional=True)
        check.mapping("arguments", {"x-max-length": 10})

    @property
    def declared_arguments(self) -> dict[str, Any]:
        """All arguments of `exchange.declare`."""
        alternate = {"alternate-exchange": self.alternate} if self.alternate else {}
        return {**alternate, **self.arguments}

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
    """A queue, as it has to be declared where it is missing.

    A plain name in a consumer's `queues` means `Queue(name)`: durable, without arguments.

    Attributes:
        type: Classic, replicated by Raft, or a stream, from which nothing is taken and to which
            nothing goes back: what fails is dead-lettered. None leaves it to the virtual host.
        durable: It survives a restart of the broker.
        exclusive: Only the connection that declares it may use it; it goes with that connection.
        auto_delete: It goes when its last consumer goes.
        per_process: Each process has an exclusive queue of its own. Its name is this one with a
            suffix that is new for each connection. Retries are made in place. A message that would
            be dead-lettered is rejected instead: to `dead_letter_exchange`, or dropped without one.
        ttl: Seconds after which it drops a message, or dead-letters it.
        expires: Seconds without use after which it goes, with the messages in it.
        max_length: Messages it holds; `overflow` says what happens to more.
        max_bytes: Bytes of bodies it holds.
        max_priority: Highest priority that it tells apart, 1 to 255; classic queues only.
        delivery_limit: How often a message may come back; quorum queues only, -1 for no limit.
        expected_delivery_limit: The delivery limit that a policy or another declaration gives this
            quorum queue. It is not declared. See "Delivery limits" in the documentation.
        single_active_consumer: One consumer at a time gets its messages, in order.
        dead_letter_exchange: Gets what it rejects, drops or lets run out; "" is the default
            exchange, which routes by `dead_letter_routing_key`.
        arguments: What the broker is told besides.
        bindings: What it gets, made after the queue has been declared.
        stream_offset: Where the reading of a stream begins when the process starts. When the
            connection is lost, it goes on behind the last message that was settled.
        retry_type: What the queues are in which its retries wait: `classic` for RabbitMQ before
            3.10, which may lose a retry that this queue cannot take over when it is time.
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
        twice = sorted(self._named.keys() & self.arguments.keys())
        if twice:
            raise ValueError(f"queue {self.name!r}: {twice[0]!r} is given twice")

    def __str__(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere name, so that the broker's own declaration is as good as any."""
        limit = self.expected_delivery_limit
        return self == Queue(self.name, retry_type=self.retry_type, expected_delivery_limit=limit)

    @property
    def declared_arguments(self) -> dict[str, Any]:
        """All arguments of `queue.declare`, the type among them."""
        return {**self._named, **self.arguments}

    @property
    def is_stream(self) -> bool:
        """Whether it is declared as a stream."""
        return self.declared_arguments.get("x-queue-type") == "stream"

    @property
    def known_delivery_limit(self) -> int | None:
        """How often a quorum queue takes a message back before it drops it; None where unknown."""
        limit = self.declared_arguments.get("x-delivery-limit", self.expected_delivery_limit)
        return limit if isinstance(limit, int) else None

    @property
    def dead_letters(self) -> str:
        """The name of the queue that holds its dead letters."""
        return self.name + DEAD_LETTER_SUFFIX

    @property
    def dead_letter_queue(self) -> "Queue":
        """The queue for its dead letters, replicated if this one is.

        It has no delivery limit: RabbitMQ would drop a dead letter that was read too often.
        """
        kind = self.declared_arguments.get("x-queue-type")
        if kind == "classic":
            return Queue(self.dead_letters, "classic")
        arguments = {"x-delivery-limit": NO_LIMIT}
        if kind in ("quorum", "stream"):
            return Queue(self.dead_letters, "quorum", arguments=arguments)
        return Queue(self.dead_letters, arguments=arguments)

    def of_type(self, default: DefaultType | None) -> "Queue":
        """Return the queue with a default type, if it states none and can have that type."""
        arguments = self.declared_arguments
        if default is None or "x-queue-type" in arguments:
            return self
        replicated = default == "quorum"
        if replicated and (not self.is_lasting or _CLASSIC_ONLY & arguments.keys()):
            return self
        return replace(self, type=default)

    @property
    def is_lasting(self) -> bool:
        """Whether the queue exists until a client deletes it."""
        return self.durable and not self.exclusive and not self.auto_delete

    def arguments_for(self, version: tuple[int, ...]) -> dict[str, Any]:
        """Return the arguments of `queue.declare` for a broker of a version.

        A delivery limit of -1 means "no limit" from RabbitMQ 4.0 on. Older versions have no limit
        if the argument is missing, and -1 drops a message when it is requeued for the first time.
        """
        arguments = self.declared_arguments
        if version < _FIRST_WITH_NO_LIMIT and self.has_no_limit:
            del arguments["x-delivery-limit"]
        return arguments

    @property
    def has_no_limit(self) -> bool:
        """Whether it is declared with a delivery limit of -1, which means no limit."""
        limit = self.declared_arguments.get("x-delivery-limit")
        return isinstance(limit, int) and limit < 0

    def retries(self, delay: float) -> "Queue":
        """The queue in which its messages wait for so many seconds, and from which they return.

        It never expires: it would take along what waits in it. A quorum queue keeps a message until
        this one has taken it over, while a classic one lets go of it first: where this one is full
        or gone just then, or a node fails, it would be lost.
        """
        safely: dict[str, Any] = {
            "overflow": "reject-publish",
            "arguments": {"x-dead-letter-strategy": "at-least-once"},
        }
        return Queue(
            self.name + retry_suffix(delay),
            self.retry_type,
            ttl=delay,
            dead_letter_exchange="",
            dead_letter_routing_key=self.name,
            **(safely if self.retry_type == "quorum" else {}),
        )

    def _check_arguments(self) -> None:
        """Refuse, each on its own, what is no value of its argument."""
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
            check.one_of("stream_offset", get_args(StreamPlace), ", or a whole number, 0 or more")
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
    def _named(self) -> dict[str, Any]:
        """What the attributes say, in RabbitMQ's own names and units."""
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
    """What follows the name of a queue in that of its retries: `.retry.5s`, `.retry.300ms`."""
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
            raise ValueError(f"{check.whose}: bindings has {each!r}: write {right}")
