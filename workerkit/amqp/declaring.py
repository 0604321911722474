"""Make sure of the queues that a consumer reads from, without doing more than it may.

Asking whether a queue is there needs no right to declare it, so a read-only user can consume.
The broker closes a channel when it says no: every question gets one of its own.
"""

import logging
import re

from workerkit.amqp.codes import NO_PERMISSION, NOT_FOUND
from workerkit.amqp.connection import Channel, Session, scratch
from workerkit.amqp.consumer import Declare
from workerkit.amqp.queue import Binding, Exchange, Queue
from workerkit.errors import BrokerRefused

log = logging.getLogger(__name__)

# PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received ...
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for queue .*?: (received .*)")


async def available(session: Session, queue: Queue, declare: Declare) -> bool:
    """Whether *queue* can be consumed from; declares it first where *declare* says so.

    Raises:
        BrokerRefused: It exists with other arguments, is another connection's, or may not be
            declared or asked for.
        ConnectionLost: The session went meanwhile.
    """
    if declare == "always":
        await _declare(session, queue)
        return True
    if await _exists(session, queue):
        if declare == "missing" and not queue.is_plain:
            await _compare(session, queue)
        return True
    if declare == "never":
        return False
    await _declare(session, queue)
    log.warning("queue was missing and has been declared", extra={"queue": queue.name})
    return True


async def make_sure(session: Session, exchange: Exchange | str) -> None:
    """Declare an exchange where it is missing; of a mere name, make sure that it is there.

    Raises:
        BrokerRefused: There is no exchange of that name, or it is declared otherwise.
    """
    try:
        async with scratch(session) as channel:
            await channel.declare_exchange(str(exchange), passive=True)
    except BrokerRefused as error:
        if error.code != NOT_FOUND or isinstance(exchange, str):
            raise
        await _declare_exchange(session, exchange)


async def _exists(session: Session, queue: Queue) -> bool:
    try:
        async with scratch(session) as channel:
            await channel.declare_queue(queue.name, passive=True)
    except BrokerRefused as error:
        if error.code == NOT_FOUND:
            return False
        raise
    return True


async def _compare(session: Session, queue: Queue) -> None:
    """Declare a queue that exists: the broker refuses where arguments differ."""
    try:
        async with scratch(session) as channel:
            await _declare_queue(channel, queue)
    except BrokerRefused as error:
        if error.code != NO_PERMISSION:
            raise


async def _declare(session: Session, queue: Queue) -> None:
    for binding in queue.bindings:
        await make_sure(session, binding.exchange)
    async with scratch(session) as channel:
        await _declare_queue(channel, queue)
        for binding in queue.bindings:
            await _bind(channel, queue, binding)


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


async def _declare_queue(channel: Channel, queue: Queue) -> None:
    try:
        await channel.declare_queue(
            queue.name,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=queue.declared_arguments,
        )
    except BrokerRefused as error:
        if (differs := _DIFFERS.search(str(error))) is None:
            raise
        argument, broker = differs.groups()
        ours = queue.declared_arguments.get(argument, getattr(queue, argument, None))
        raise BrokerRefused(
            f"queue {queue.name!r} exists, and differs in {argument!r}: the class says {ours!r}, "
            f"the broker: {broker}; change the class, or delete the queue",
            error.code,
        ) from error


async def _bind(channel: Channel, queue: Queue, binding: Binding) -> None:
    exchange = str(binding.exchange)
    await channel.bind_queue(queue.name, exchange, binding.routing_key, dict(binding.arguments))
