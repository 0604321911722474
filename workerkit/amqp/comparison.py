"""Compare queues and exchanges that exist with their declarations, without creating anything.

RabbitMQ compares a declaration with what exists, and names the first argument that differs. Where
nothing of that name exists, it would create it. So each declaration here also has an argument that
no broker creates anything with, and that it does not compare (queues) or compares last (exchanges).
A passive declaration is no alternative: RabbitMQ compares nothing then.

Seen on RabbitMQ 3.10.8, 4.0.5 and 4.3.6.
"""

import re
from typing import Any, NamedTuple

from workerkit.amqp.frames import NO_PERMISSION, PRECONDITION_FAILED
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.session import Session, scratch
from workerkit.errors import BrokerRefused

TYPE = "x-queue-type"
ONLY_STREAMS = "x-max-age"
"""Only streams have it. RabbitMQ does not compare it for others, and creates none with it."""

# None of them is a value of that argument.
NOT_CREATED: dict[str, Any] = {ONLY_STREAMS: "impossible"}
# RabbitMQ closes the connection if a stream has the argument above; it ignores this one.
_STREAM_NOT_CREATED: dict[str, Any] = {"x-max-priority": 1}
ALTERNATE = "alternate-exchange"
_EXCHANGE_NOT_CREATED: dict[str, Any] = {ALTERNATE: 1}

MAX_DECLARATIONS = 20
"""The most arguments that are compared: each takes a request."""

_DIFFERS = re.compile(
    r"inequivalent arg '([^']+)' for (?:queue|exchange) .*?: received .*? but current is (.*)"
)
# PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q' in vhost '/' of queue type ...
_NOTHING_CREATED = re.compile(r"invalid (arg|type) '")
_VALUE = re.compile(r"(?:the value )?'(.*?)'(?: of type '(\w+)')?$")


class Difference(NamedTuple):
    """An argument or a flag that exists with another value than the class declares.

    Attributes:
        name: Such as `x-max-length` or `durable`.
        have: The value at the broker; None if it has none.
        want: The value of the class; None if it declares none.
    """

    name: str
    have: Any
    want: Any

    def __str__(self) -> str:
        return f"{self.name}: have {_shown(self.have)}, want {_shown(self.want)}"


class Vanished(Exception):
    """What should be compared does not exist any more."""


async def queue_differences(session: Session, queue: Queue) -> list[Difference] | None:
    """Compare a queue that exists with its declaration; return None without permission for it.

    If the types differ, the arguments after it are not compared.

    Raises:
        BrokerRefused: The broker refuses it for another reason.
        ConnectionLost: The session was lost.
        Vanished: There is no such queue.
    """
    flags = {name: getattr(queue, name) for name in ("durable", "exclusive", "auto_delete")}
    arguments = queue.arguments_for(session.version)
    creates_none = _STREAM_NOT_CREATED if queue.is_stream else NOT_CREATED
    found: list[Difference] = []
    for _ in range(MAX_DECLARATIONS):
        try:
            async with scratch(session) as channel:
                await channel.declare_queue(
                    queue.name, **flags, arguments={**arguments, **creates_none}
                )
            break
        except BrokerRefused as error:
            if error.code == NO_PERMISSION:
                return None
            name, value = _reported(error)
        if (flag := name.replace("-", "_")) in flags:
            found.append(Difference(flag, not flags[flag], flags[flag]))
            flags[flag] = not flags[flag]
        elif name == ONLY_STREAMS and name in creates_none:
            return [*found, Difference(TYPE, "stream", arguments.get(TYPE))]
        elif name in creates_none:
            # No stream, or it would not be compared.
            creates_none = NOT_CREATED
        else:
            found.append(Difference(name, value, arguments.get(name)))
            if name == TYPE or arguments.get(name) == value:
                break
            arguments = with_argument(arguments, name, value)
    return found


async def exchange_differences(session: Session, exchange: Exchange) -> list[Difference] | None:
    """Compare an exchange that exists with its declaration; return None without permission for it.

    Raises:
        BrokerRefused, ConnectionLost, Vanished: As for `queue_differences`.
    """
    declared: dict[str, Any] = {
        "exchange_type": str(exchange.type),
        **{name: getattr(exchange, name) for name in ("durable", "auto_delete", "internal")},
    }
    found: list[Difference] = []
    for _ in range(MAX_DECLARATIONS):
        try:
            async with scratch(session) as channel:
                await channel.declare_exchange(
                    exchange.name, **declared, arguments=_EXCHANGE_NOT_CREATED
                )
        except BrokerRefused as error:
            if error.code == NO_PERMISSION:
                return None
            name, value = _reported(error)
        else:
            break
        if name == ALTERNATE:
            wanted = exchange.declared_arguments.get(ALTERNATE)
            return [*found, Difference(name, value, wanted)] if value != wanted else found
        key = "exchange_type" if name == "type" else name
        if key not in declared:
            break
        have = value if name == "type" else not declared[key]
        found.append(Difference(name, have, declared[key]))
        declared[key] = have
    return found


def _reported(error: BrokerRefused) -> tuple[str, Any]:
    """Return the argument that differs, and its value at the broker.

    Raises:
        BrokerRefused: It is another error.
        Vanished: It does not exist any more.
    """
    text = str(error)
    if error.code == PRECONDITION_FAILED and (reported := difference_in(text)) is not None:
        return reported
    if error.code == PRECONDITION_FAILED and _NOTHING_CREATED.search(text):
        raise Vanished from error
    raise error


def difference_in(text: str) -> tuple[str, Any] | None:
    """Parse a refusal: return the argument that differs, and its value at the broker."""
    found = _DIFFERS.search(text)
    return (found[1], _value(found[2])) if found else None


def with_argument(arguments: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return *arguments* with another value for one of them; None removes it."""
    kept = {each: old for each, old in arguments.items() if each != name}
    return kept if value is None else {**kept, name: value}


def _value(text: str) -> str | int | bool | None:
    """Parse the value of an argument: `none`, `'5'`, `the value '5' of type 'byte'`."""
    found = _VALUE.match(text)
    if found is None:
        return None
    value, kind = found.groups()
    if kind == "bool":
        return bool(value == "true")
    return int(value) if kind != "longstr" and re.fullmatch(r"-?\d+", value) else str(value)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else repr(value)
