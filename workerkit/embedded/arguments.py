"""Check, parse and compare the arguments of queue.declare as RabbitMQ does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workerkit.embedded.behaviour import Behaviour
from workerkit.embedded.errors import Refusal, label
from workerkit.embedded.order import Backlog
from workerkit.embedded.table import Field, Table

LONGEST_TIME = 10 * 365 * 24 * 3600 * 1000  # Milliseconds: ten years.
_OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
_CLASSIC, _QUORUM = "rabbit_classic_queue", "rabbit_quorum_queue"
_CLASSIC_ONLY = {"x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"}
_QUORUM_ONLY = {
    "x-delivery-limit",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-quorum-initial-group-size",
    "x-dead-letter-strategy",
}
_NO_LOCATOR = "invalid_queue_locator_arg"
_LOCATOR, _TIMEOUT = "x-queue-leader-locator", "x-consumer-timeout"
# The rest of RabbitMQ's text does not fit into a short string.
_NO_MASTER_LOCATOR = (
    "Feature `queue_master_locator` is deprecated.\nBy default, this feature is not permitted"
    " anymore.\nThe feature will be removed from a future major RabbitMQ version, regardless of"
    " the configuration; actual version to be determined.\nTo continue using this feature"
)
_STREAM_ONLY = {"x-max-age", "x-stream-max-segment-size-bytes", "x-initial-cluster-size"}
# Compared in this order when a queue is declared again; others may differ.
_COMPARED = (
    "x-expires x-message-ttl x-dead-letter-exchange x-dead-letter-routing-key x-max-length"
    " x-max-length-bytes x-max-in-memory-length x-max-in-memory-bytes x-max-priority x-overflow"
    " x-queue-mode x-single-active-consumer x-queue-type x-queue-version x-delivery-limit"
    " x-queue-leader-locator"
).split()


@dataclass(frozen=True, slots=True)
class QueueArguments:
    """The parsed arguments of a queue; None means absent.

    Attributes:
        table: As declared.
        complete: The same, with the queue type that RabbitMQ adds.
        ttl: Seconds after which a waiting message expires.
        expires: Seconds without use after which the queue is deleted.
        overflow: One of `drop-head`, `reject-publish`, `reject-publish-dlx`.
        delivery_limit: How often a message may be requeued.
        behaviour: That of the broker of the queue.
    """

    table: Table
    complete: Table
    ttl: float | None
    expires: float | None
    max_length: int | None
    max_bytes: int | None
    overflow: str
    max_priority: int
    single_active_consumer: bool
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None
    quorum: bool
    delivery_limit: int | None
    behaviour: Behaviour

    @classmethod
    def of(
        cls, table: Table, behaviour: Behaviour, complete: Table | None = None
    ) -> "QueueArguments":
        """Parse arguments that `check` has accepted."""
        complete = table if complete is None else complete

        def value(name: str) -> Any:
            return table[name].value if name in table else None

        quorum = "x-queue-type" in complete and complete["x-queue-type"].value == "quorum"
        overflow = value("x-overflow") or "drop-head"
        ttl, expires = value("x-message-ttl"), value("x-expires")
        return cls(
            table=table,
            complete=complete,
            ttl=None if ttl is None else ttl / 1000,
            expires=None if expires is None else expires / 1000,
            max_length=value("x-max-length"),
            max_bytes=value("x-max-length-bytes"),
            # Quorum queues accept it and ignore it.
            overflow="drop-head" if quorum and overflow == "reject-publish-dlx" else overflow,
            max_priority=value("x-max-priority") or 0,
            single_active_consumer=bool(value("x-single-active-consumer")),
            dead_letter_exchange=value("x-dead-letter-exchange"),
            dead_letter_routing_key=value("x-dead-letter-routing-key"),
            quorum=quorum,
            delivery_limit=_delivery_limit(table, behaviour) if quorum else None,
            behaviour=behaviour,
        )

    def backlog(self) -> Backlog[Any]:
        """Return an empty backlog with the order of this queue."""
        if not self.quorum:
            return Backlog()
        limited = self.delivery_limit is not None
        return self.behaviour.backlog() if limited else self.behaviour.unlimited_backlog()


def check(table: Table, name: str, vhost: str, behaviour: Behaviour) -> None:
    """Raise the error of RabbitMQ if it refuses the arguments.

    Args:
        table: The arguments with the queue type that RabbitMQ adds.
    """
    place = label("queue", name, vhost)
    exchange = table.get("x-dead-letter-exchange")
    if exchange is not None and exchange.type != "longstr":
        fault = f"invalid type '{exchange.type}' for arg 'x-dead-letter-exchange' in {place}"
        raise Refusal("PRECONDITION_FAILED", fault)
    for argument, field in table.items():
        if wrong := _fault(argument, field, table, behaviour):
            raise Refusal("PRECONDITION_FAILED", f"invalid arg '{argument}' for {place}: {wrong}")
    kind = table["x-queue-type"].value if "x-queue-type" in table else "classic"
    if kind == "stream":
        raise Refusal("NOT_IMPLEMENTED", f"{place} is a stream: the embedded broker has none")
    unsupported = _unsupported(kind, behaviour)
    for argument in table:
        if argument in unsupported:
            module = _QUORUM if kind == "quorum" else _CLASSIC
            fault = f"invalid arg '{argument}' for {place} of queue type {module}"
            raise Refusal("PRECONDITION_FAILED", fault)
    if "x-queue-master-locator" in table and not behaviour.master_locator:
        raise Refusal("INTERNAL_ERROR", _NO_MASTER_LOCATOR)


def integer_fault(field: Field) -> str | None:
    """Describe an argument that is not an integer as RabbitMQ does; None if it is one."""
    return None if field.is_integer else f'"expected integer, got {field.type}"'


def _unsupported(kind: str, behaviour: Behaviour) -> set[str]:
    """Return the arguments that a queue of this type cannot have."""
    if kind == "quorum":
        return _STREAM_ONLY | _CLASSIC_ONLY
    unsupported = _STREAM_ONLY | _QUORUM_ONLY
    if behaviour.checks_consumer_timeout:
        unsupported = unsupported | {_TIMEOUT}
    return unsupported if behaviour.classic_leader_locator else unsupported | {_LOCATOR}


def _delivery_limit(table: Table, behaviour: Behaviour) -> int | None:
    field = table.get("x-delivery-limit")
    if field is None or not field.is_integer:
        return behaviour.delivery_limit
    limit = int(field.value)
    return None if limit < 0 and behaviour.negative_is_unlimited else limit


def _fault(argument: str, field: Field, table: Table, behaviour: Behaviour) -> str | None:
    if argument in _CHECKS:
        return _CHECKS[argument](field)
    if argument == "x-queue-version":
        return _version(field, behaviour.queue_versions)
    if argument == _LOCATOR:
        found = field.type == "longstr" and field.value in behaviour.locators
        # A classic queue that cannot have a locator gets another error, for any value.
        quorum = "x-queue-type" in table and table["x-queue-type"].value == "quorum"
        return None if found or not (quorum or behaviour.classic_leader_locator) else _NO_LOCATOR
    if argument == _TIMEOUT and behaviour.checks_consumer_timeout:
        return integer_fault(field)
    if argument == "x-dead-letter-routing-key":
        if field.type != "longstr":
            return f"{{unacceptable_type,{field.type}}}"
        if "x-dead-letter-exchange" not in table:
            return "routing_key_but_no_dlx_defined"
    return None


def _count(field: Field) -> str | None:
    negative = field.is_integer and field.value < 0
    return f"{{value_negative,{field}}}" if negative else integer_fault(field)


def _time(field: Field) -> str | None:
    if field.is_integer and field.value > LONGEST_TIME:
        return f"{{value_too_large,{field}}}"
    return _count(field)


def _expires(field: Field) -> str | None:
    if field.is_integer and field.value == 0:
        return "{value_zero,0}"
    return _time(field)


def _priority(field: Field) -> str | None:
    if field.is_integer and field.value > 255:
        return f"{{max_value_exceeded,{field}}}"
    return _count(field)


def _version(field: Field, known: tuple[int, ...]) -> str | None:
    if field.is_integer and field.value not in known:
        return f"\"unsupported queue version '{field}'\""
    return _count(field)


def _flag(field: Field) -> str | None:
    return None if field.type == "bool" else f"{{unacceptable_type,{field.type}}}"


def _one_of(values: tuple[str, ...], otherwise: str) -> Callable[[Field], str | None]:
    def check(field: Field) -> str | None:
        if field.type != "longstr":
            return f"{{unacceptable_type,{field.type}}}"
        return None if field.value in values else otherwise.format(field.value)

    return check


_CHECKS: dict[str, Callable[[Field], str | None]] = {
    "x-message-ttl": _time,
    "x-expires": _expires,
    "x-max-length": _count,
    "x-max-length-bytes": _count,
    "x-max-priority": _priority,
    "x-single-active-consumer": _flag,
    "x-overflow": _one_of(_OVERFLOWS, "invalid_overflow"),
    "x-queue-mode": _one_of(("default", "lazy"), "\"unsupported queue mode '{}'\""),
    "x-queue-type": _one_of(
        ("classic", "quorum", "stream"), "\"unsupported queue type '{}'\""
    ),
}  # fmt: skip


def compare(declared: Table, current: Table, place: str) -> None:
    """Raise PRECONDITION_FAILED unless a queue was declared with the same arguments.

    Arguments that queues of its type do not have are not compared.

    Args:
        place: The queue as error texts name it.
    """
    kind = current.get("x-queue-type")
    ignored = _CLASSIC_ONLY if kind is not None and kind.value == "quorum" else _QUORUM_ONLY
    for argument in _COMPARED:
        if argument in ignored:
            continue
        compare_argument(argument, declared.get(argument), current.get(argument), place)


def compare_argument(
    argument: str, declared: Field | None, current: Field | None, place: str
) -> None:
    """Raise PRECONDITION_FAILED, with RabbitMQ's text, if one argument differs."""
    if argument == "x-queue-type":  # The default may be spelt out.
        classic = (None, "classic")
        values = (each.value if each else None for each in (declared, current))
        if all(value in classic for value in values):
            return
    same = declared == current
    if declared is not None and current is not None:
        same = (declared.type_class, declared.value) == (current.type_class, current.value)
        received, is_now = f"'{declared}'", f"'{current}'"
    else:
        received, is_now = _with_type(declared), _with_type(current)
    if not same:
        raise inequivalent(argument, place, received, is_now)


def inequivalent(argument: str, place: str, received: str, current: str) -> Refusal:
    """Return the error for something that was declared with another value."""
    return Refusal(
        "PRECONDITION_FAILED",
        f"inequivalent arg '{argument}' for {place}: received {received} but current is {current}",
    )


def _with_type(field: Field | None) -> str:
    return "none" if field is None else f"the value '{field}' of type '{field.type}'"
