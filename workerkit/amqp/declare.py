"""Check that queues and exchanges exist, and declare those that are missing.

A check needs no permission to declare, so a user with only the permission to read can consume. The
broker closes a channel when it refuses a request, so the next request uses another channel.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workerkit.amqp.consumer import DeclareMode
from workerkit.amqp.frames import NO_PERMISSION, NOT_FOUND, RESOURCE_LOCKED
from workerkit.amqp.queue import Exchange, Queue
from workerkit.amqp.session import Session, scratch
from workerkit.errors import BrokerRefused, QueueInUse

log = logging.getLogger(__name__)

# PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received ...
# The broker truncates its reply texts to 255 bytes, and a name in them may be that long.
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for (?:queue .*?: (received .*))?")


# PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'q' in vhost '/' of queue type ...
_TYPE_HAS_NO_LIMITS = "invalid arg 'x-delivery-limit'"

# NOT_FOUND - no queue 'q' in vhost '/'. The names may be any text, also that of the next pattern.
_MISSING = re.compile(r"NOT_FOUND - no \w+ '")
# The replies with the same code for a queue that exists, but is not available.
_UNREACHABLE = re.compile(
    r"NOT_FOUND - home node '|NOT_FOUND - failed to perform operation on queue '"
    r"|process is stopped by supervisor|has crashed and failed to restart"
)


# From this version on RabbitMQ closes the connection, with code 541, if it has to truncate a reply
# text inside a character of more than one byte. Seen on 4.0.5 and 4.3.6; 3.10.8 sends the text.
_UNSAFE_SINCE = (4,)
_SAFE_BYTES = 150


@dataclass(slots=True)
class Created:
    """The names of queues, exchanges and bindings that were missing and have been declared."""

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
    """A queue exists, but its node is down. It is not missing, and is not declared again."""


class DeclaredDifferently(BrokerRefused):
    """A queue exists with other arguments than the class declares.

    Attributes:
        argument: The first argument that differs, such as `x-max-length`.
    """

    def __init__(self, text: str, code: int, argument: str) -> None:
        super().__init__(text, code)
        self.argument = argument


async def ensure_queue(
    session: Session,
    queue: Queue,
    declare: DeclareMode,
    created: Created,
    existing: Queue | None = None,
) -> bool:
    """Return whether *queue* exists; declare it first, without bindings, if *declare* requires it.

    Args:
        created: The names of declared queues and exchanges that were missing are added to it.
        existing: Another declaration that an existing queue may have. If it is only a name, every
            declaration is accepted.

    Raises:
        BrokerRefused: The queue exists with other arguments, or a permission is missing.
        QueueInUse: Another connection has declared the queue as exclusive.
        Unreachable: The queue exists, but its node is down.
        ConnectionLost: The session was lost.
    """
    if await queue_exists(session, queue):
        if declare == "always" and existing in (None, queue):
            await declare_queue(session, queue, created)
        elif declare != "never":
            await _compare(session, queue, existing or queue)
        return True
    if declare == "never":
        return False
    await declare_queue(session, queue, created)
    created.queues.append(queue.name)
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
    """Compare an existing queue with its declaration; None also if a permission is missing."""
    try:
        # The queue exists, so the broker only compares.
        await _declare_queue(session, queue)
    except DeclaredDifferently as error:
        return error
    except BrokerRefused as error:
        if error.code != NO_PERMISSION:
            raise
    return None


async def ensure_exchange(session: Session, exchange: Exchange | str) -> bool:
    """Declare an exchange if it is missing. If only its name is given, check that it exists.

    Returns:
        Whether it was missing and has been declared.

    Raises:
        BrokerRefused: There is no exchange of that name, or a permission is missing.
    """
    try:
        await check_exchange(session, str(exchange))
    except BrokerRefused as error:
        if error.code != NOT_FOUND or isinstance(exchange, str):
            raise
        await _declare_exchange(session, exchange)
        return True
    return False


async def check_exchange(session: Session, name: str) -> None:
    """Check that an exchange exists.

    Raises:
        BrokerRefused: It does not, with code 404, or a permission is missing.
    """
    _check_name(session, "exchange", name)
    async with scratch(session) as channel:
        await channel.declare_exchange(name, passive=True)


async def queue_exists(session: Session, queue: Queue) -> bool:
    """Return whether a queue of that name exists.

    Raises:
        BrokerRefused, QueueInUse, Unreachable, ConnectionLost: As for `ensure_queue`.
    """
    _check_name(session, "queue", queue.name)
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


def _check_name(session: Session, kind: str, name: str) -> None:
    """Check that the broker does not close the connection when a reply contains the name.

    Raises:
        BrokerRefused: It would.
    """
    if name.isascii() or session.version < _UNSAFE_SINCE or len(name.encode()) <= _SAFE_BYTES:
        return
    version = ".".join(map(str, session.version))
    raise BrokerRefused(
        f"{kind} {name!r}: RabbitMQ {version} closes the connection when a reply contains a "
        f"name of more than {_SAFE_BYTES} bytes that is not ASCII: use a shorter name",
        0,
    )


def is_unreachable(text: str) -> bool:
    """Return whether a reply text with code 404 is about a queue that exists."""
    return not _MISSING.search(text) and bool(_UNREACHABLE.search(text))


def _unreachable(queue: Queue, error: BrokerRefused) -> Unreachable:
    text = f"queue {queue.name!r} exists and cannot be reached: {error}"
    return Unreachable(text, error.code)


async def declare_queue(session: Session, queue: Queue, created: Created) -> None:
    """Declare a queue, even if it exists, and the exchanges of its bindings.

    Raises:
        BrokerRefused, ConnectionLost: As for `ensure_queue`.
    """
    for binding in queue.bindings:
        if await ensure_exchange(session, binding.exchange):
            created.exchanges.append(str(binding.exchange))
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
    """Declare a queue; omit a limit of -1 if the default type of the broker has no limits."""
    arguments = queue.arguments_for(session.version)
    by_default = queue.has_no_limit and "x-queue-type" not in arguments
    if by_default and not session.default_type_has_limits:
        arguments.pop("x-delivery-limit", None)
    try:
        await _declare_with(session, queue, arguments)
    except BrokerRefused as error:
        if not by_default or _TYPE_HAS_NO_LIMITS not in str(error):
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
        if error.code == RESOURCE_LOCKED and await queue_exists(session, queue):
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
