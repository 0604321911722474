"""Make sure of the queues that a consumer reads from, without doing more than it may.

Asking whether a queue is there needs no right to declare it, so a read-only user can consume.
The broker closes a channel when it refuses a request: the next request uses another channel.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workerkit.amqp.consumer import Declare
from workerkit.amqp.frames import NO_PERMISSION, NOT_FOUND, RESOURCE_LOCKED
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.session import Session, scratch
from workerkit.errors import BrokerRefused, QueueInUse

log = logging.getLogger(__name__)

# PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received ...
# The broker truncates its reply texts to 255 bytes, and a name in them may have as many.
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for (?:queue .*?: (received .*))?")


# PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'q' in vhost '/' of queue type ...
_HAS_NO_LIMITS = "invalid arg 'x-delivery-limit'"

# NOT_FOUND - no queue 'q' in vhost '/'. The names may be any text, also that of the next pattern.
_MISSING = re.compile(r"NOT_FOUND - no \w+ '")
# The replies with the same code for a queue that exists, but is not available.
_UNREACHABLE = re.compile(
    r"NOT_FOUND - home node '|NOT_FOUND - failed to perform operation on queue '"
    r"|process is stopped by supervisor|has crashed and failed to restart"
)


# RabbitMQ closes the whole connection, with 541, if it has to truncate a text inside such a name.
# Measured on 4.0.5 and 4.3.6; 3.10.8 truncates anywhere.
_CUTS_INSIDE_CHARACTERS = (4,)
_SAFE_BYTES = 150


@dataclass(slots=True)
class Made:
    """What was missing and has been declared, by name."""

    queues: list[str] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)
    bindings: list[str] = field(default_factory=list)


def log_declared(queues: Sequence[str], *, again: bool, **more: object) -> None:
    """Log that queues were missing and have been declared.

    Args:
        again: They existed before, and were deleted while this process ran.
    """
    if again:
        text = "queue was deleted and has been declared again"
        log.warning(text, extra={"queues": list(queues), **more})
    else:
        log.info("declared what was missing", extra={"queues": list(queues), **more})


class Unreachable(BrokerRefused):
    """A queue exists, but its node is down. It is not missing and is not declared again."""


class DeclaredDifferently(BrokerRefused):
    """A queue exists with other arguments than the class declares.

    Attributes:
        argument: The first argument that differs, such as `x-max-length`.
    """

    def __init__(self, text: str, code: int, argument: str) -> None:
        super().__init__(text, code)
        self.argument = argument


async def available(
    session: Session,
    queue: Queue,
    declare: Declare,
    made: Made,
    existing: Queue | None = None,
) -> bool:
    """Whether *queue* exists; declare it first if *declare* requires it, without its bindings.

    Args:
        made: Gets the names of what is declared because it is missing.
        existing: Another declaration that an existing queue may have. If it is a plain name, every
            declaration is accepted.

    Raises:
        BrokerRefused: It exists with other arguments, or a permission is missing.
        QueueInUse: Another connection has declared it as exclusive.
        Unreachable: It exists, but its node is down.
        ConnectionLost: The session was lost.
    """
    if await _exists(session, queue):
        if declare == "always" and existing in (None, queue):
            await declare_queue(session, queue, made)
        elif declare != "never":
            await _compare(session, queue, existing or queue)
        return True
    if declare == "never":
        return False
    await declare_queue(session, queue, made)
    made.queues.append(queue.name)
    return True


async def _compare(session: Session, queue: Queue, existing: Queue) -> None:
    if existing.is_plain:
        return
    error = await find_difference(session, queue)
    if error is not None and existing != queue and error.argument == "x-queue-type":
        error = await find_difference(session, existing)
    if error is not None:
        raise error


async def find_difference(session: Session, queue: Queue) -> DeclaredDifferently | None:
    """Compare a queue that exists with its declaration; None also where that is not permitted."""
    try:
        # The broker compares, and declares nothing.
        await _declare_queue(session, queue)
    except DeclaredDifferently as error:
        return error
    except BrokerRefused as error:
        if error.code != NO_PERMISSION:
            raise
    return None


async def make_sure(session: Session, exchange: Exchange | str) -> bool:
    """Declare an exchange where it is missing; of a mere name, make sure that it is there.

    Returns:
        Whether it was missing and has been declared.

    Raises:
        BrokerRefused: There is no exchange of that name, or it is declared otherwise.
    """
    _check_safe(session, "exchange", str(exchange))
    try:
        async with scratch(session) as channel:
            await channel.declare_exchange(str(exchange), passive=True)
    except BrokerRefused as error:
        if error.code != NOT_FOUND or isinstance(exchange, str):
            raise
        await _declare_exchange(session, exchange)
        return True
    return False


async def _exists(session: Session, queue: Queue) -> bool:
    _check_safe(session, "queue", queue.name)
    try:
        async with scratch(session) as channel:
            await channel.declare_queue(queue.name, passive=True)
    except BrokerRefused as error:
        if error.code == RESOURCE_LOCKED:
            text = "another connection has declared it as exclusive"
            raise QueueInUse(f"{error}: {text}") from error
        if error.code != NOT_FOUND:
            raise
        if is_unreachable(str(error)):
            raise _unreachable(queue, error) from error
        return False
    return True


def _check_safe(session: Session, kind: str, name: str) -> None:
    """Refuse a name that would make the broker close the connection when a reply contains it."""
    if (
        name.isascii()
        or session.version < _CUTS_INSIDE_CHARACTERS
        or len(name.encode()) <= _SAFE_BYTES
    ):
        return
    version = ".".join(map(str, session.version))
    raise BrokerRefused(
        f"{kind} {name!r}: RabbitMQ {version} closes the connection when a reply contains a "
        f"name of more than {_SAFE_BYTES} bytes that is not ASCII: use a shorter name",
        0,
    )


def is_unreachable(text: str) -> bool:
    """Whether a refusal with code 404 is about a queue that exists, and not about a missing one."""
    return not _MISSING.search(text) and bool(_UNREACHABLE.search(text))


def _unreachable(queue: Queue, error: BrokerRefused) -> Unreachable:
    text = f"queue {queue.name!r} exists and cannot be reached: {error}"
    return Unreachable(text, error.code)


async def declare_queue(session: Session, queue: Queue, made: Made) -> None:
    """Declare a queue, whether it exists or not, and the exchanges of its bindings.

    Raises:
        As `available` does.
    """
    for binding in queue.bindings:
        if await make_sure(session, binding.exchange):
            made.exchanges.append(str(binding.exchange))
    await _declare_queue(session, queue)


async def _declare_exchange(session: Session, exchange: Exchange) -> None:
    async with scratch(session) as channel:
        await channel.declare_exchange(
            exchange.name,
            exchange_type=exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            internal=exchange.internal,
            arguments=exchange.declared_arguments,
        )


async def _declare_queue(session: Session, queue: Queue) -> None:
    """Declare a queue; omit its limit of -1 if its default type has no delivery limits."""
    arguments = queue.arguments_for(session.version)
    by_default = queue.has_no_limit and "x-queue-type" not in arguments
    if by_default and not session.default_type_has_limits:
        arguments.pop("x-delivery-limit", None)
    try:
        await _declare_with(session, queue, arguments)
    except BrokerRefused as error:
        if not by_default or _HAS_NO_LIMITS not in str(error):
            raise
        session.default_type_has_limits = False
        del arguments["x-delivery-limit"]
        await _declare_with(session, queue, arguments)


async def _declare_with(session: Session, queue: Queue, arguments: dict[str, Any]) -> None:
    try:
        async with scratch(session) as channel:
            await channel.declare_queue(
                queue.name,
                durable=queue.durable,
                exclusive=queue.exclusive,
                auto_delete=queue.auto_delete,
                arguments=arguments,
            )
    except BrokerRefused as error:
        if error.code == NOT_FOUND and is_unreachable(str(error)):
            raise _unreachable(queue, error) from error
        if error.code == RESOURCE_LOCKED and await _exists(session, queue):
            text = "exists, and is not exclusive; change the class, or delete the queue"
            raise BrokerRefused(f"queue {queue.name!r} {text}: {error}", RESOURCE_LOCKED) from error
        if (found := _DIFFERS.search(str(error))) is None:
            raise
        argument, broker = found[1], found[2] or str(error)
        ours = arguments.get(argument, getattr(queue, argument, None))
        text = (
            f"queue {queue.name!r} exists, and differs in {argument!r}: the class says {ours!r}, "
            f"the broker: {broker}; change the class, or delete the queue"
        )
        if queue.has_no_limit and argument == "x-delivery-limit":
            text += "; RabbitMQ before 4.0 treats -1 as 0, and drops a message when it is requeued"
        raise DeclaredDifferently(text, error.code, argument) from error
