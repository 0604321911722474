"""Bind queues to exchanges at each start; an existing binding is not changed."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from workerkit.amqp.declare import Created, ensure_exchange
from workerkit.amqp.frames import NOT_FOUND
from workerkit.amqp.queue import Binding, Queue
from workerkit.amqp.session import Session, scratch
from workerkit.describe import summarize_error
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.tasks import Backoff, cancel

log = logging.getLogger(__name__)

Refusals = list[tuple[Binding, BrokerRefused]]


class Bindings:
    """The bindings of one consumer.

    A binding that the broker refuses does not stop the consumer, as its queue may have messages.
    The refusal is logged once, and the binding is retried until the connection is lost.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._logged: set[tuple[str, str, str]] = set()
        self._retrying: dict[str, asyncio.Task[None]] = {}

    async def create(self, session: Session, queue: Queue, created: Created) -> None:
        """Bind a queue that exists.

        Args:
            created: The exchanges that were missing and are declared are added to it, and the
                bindings of a queue that has just been declared.

        Raises:
            ConnectionLost: The session was lost.
        """
        refused = await bind(session, queue.name, queue.bindings, created)
        self._log(queue, refused)
        if (previous := self._retrying.pop(queue.name, None)) is not None:
            # It uses the same connection if only the channel of the queue was lost.
            cancel(previous)
        if refused:
            retrying = asyncio.create_task(self._retry(session, queue, refused))
            self._retrying[queue.name] = retrying
            retrying.add_done_callback(partial(self._remove_task, queue.name))

    def _remove_task(self, queue: str, task: "asyncio.Task[None]") -> None:
        if self._retrying.get(queue) is task:
            del self._retrying[queue]

    async def _retry(self, session: Session, queue: Queue, refused: Refusals) -> None:
        backoff = Backoff(first=2.0)
        while refused:
            await asyncio.wait([session.lost], timeout=backoff.next())
            if session.gone:
                return
            try:
                left = await bind(session, queue.name, [each for each, _ in refused], Created())
            except ConnectionLost:
                # Either the session is gone, or the next attempt uses another channel.
                continue
            still_refused = [binding for binding, _ in left]
            for binding, _ in refused:
                if binding not in still_refused:
                    log.info("binding created", extra=self._fields(queue, binding))
            refused = left

    def _log(self, queue: Queue, refused: Refusals) -> None:
        for binding, error in refused:
            key = (queue.name, str(binding.exchange), binding.routing_key)
            if key not in self._logged:
                self._logged.add(key)
                log.warning(
                    "binding refused: the queue receives nothing through it",
                    extra=self._fields(queue, binding, error=summarize_error(error)),
                )

    def _fields(self, queue: Queue, binding: Binding, **more: object) -> dict[str, object]:
        return {
            "consumer": self._consumer,
            "queue": queue.name,
            "exchange": str(binding.exchange),
            "routing_key": binding.routing_key,
            **more,
        }


async def bind(
    session: Session, queue: str, bindings: Iterable[Binding], created: Created
) -> Refusals:
    """Create bindings, and declare their exchanges if they are missing.

    Args:
        created: As for `Bindings.create`.

    Returns:
        The bindings that the broker refuses.

    Raises:
        ConnectionLost: The session was lost.
    """
    refused: Refusals = []
    for binding in bindings:
        try:
            await _bind(session, queue, binding, created)
        except BrokerRefused as error:
            refused.append((binding, error))
            continue
        if queue in created.queues:
            # The broker does not report whether a binding of an existing queue is new.
            key = f" with routing key {binding.routing_key!r}" if binding.routing_key else ""
            created.bindings.append(f"{binding.exchange} to {queue}{key}")
    return refused


async def _bind(session: Session, queue: str, binding: Binding, created: Created) -> None:
    try:
        await _bind_existing(session, queue, binding)
    except BrokerRefused as error:
        # The exchange is only checked after a failure, as it usually exists.
        if error.code != NOT_FOUND or isinstance(binding.exchange, str):
            raise
        if await ensure_exchange(session, binding.exchange):
            created.exchanges.append(str(binding.exchange))
        await _bind_existing(session, queue, binding)


async def _bind_existing(session: Session, queue: str, binding: Binding) -> None:
    exchange, arguments = str(binding.exchange), dict(binding.arguments)
    async with scratch(session) as channel:
        await channel.bind_queue(queue, exchange, binding.routing_key, arguments)
