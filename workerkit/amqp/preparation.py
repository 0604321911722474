"""Declare the queues of one connection before a consumer starts, or a message is published to them.

A handler, a view or a periodic task may publish as soon as it runs, also to a queue of another
consumer of the process. If that queue were not declared yet, the broker would return the message.
"""

import asyncio
from collections.abc import Sequence

from workerkit.amqp.connection import Connection, ConnectionListener
from workerkit.amqp.queue import Queue
from workerkit.amqp.session import Session
from workerkit.amqp.topology import Topology
from workerkit.tasks import cancel_and_wait

START_DEADLINE = 5.0
"""Seconds for which the start of the process waits for the queues. Publishes may wait longer."""

_NO_REPLY_TIMEOUT = 3.0
"""Seconds without any reply after which the other queues do not wait for missing replies."""
_MAX_SESSIONS = 3
"""A declaration may make the broker close the connection; it is not repeated for ever."""


class Preparation:
    """The first declarations on one connection.

    Each queue is tried once. The others do not wait for a queue that is missing or refused; its
    consumer logs the reason, and tries again.

    Args:
        servers: Failed attempts to connect after which the process starts without the queues.

    Attributes:
        done: Set once all queues have been tried.
    """

    def __init__(self, connection: Connection, servers: int) -> None:
        self.done = asyncio.Event()
        self._connection = connection
        self._servers = servers
        self._start_allowed = asyncio.Event()
        self._failures: list[tuple[Exception, int]] = []
        self._queues: list[tuple[Topology, Queue]] = []
        self._checks: dict[tuple[Topology, str], asyncio.Task[None]] = {}
        connection.listeners.append(self)

    def add(self, topology: Topology, queues: Sequence[Queue]) -> None:
        """Add the queues of one consumer, before it runs."""
        self._queues += [(topology, queue) for queue in queues]

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Store the error for listeners that are added later: consumers start after this."""
        self._failures.append((error, attempt))
        if attempt >= self._servers:
            self._start_allowed.set()

    def add_listener(self, listener: ConnectionListener) -> None:
        """Notify *listener* of failed attempts to connect, including earlier ones."""
        for error, attempt in self._failures:
            listener.connection_failed(error, attempt)
        self._connection.listeners.append(listener)

    def start_finished(self) -> None:
        """Discard the errors of earlier attempts: all listeners were added."""
        if self in self._connection.listeners:
            self._connection.listeners.remove(self)
        self._failures.clear()

    async def run(self) -> None:
        """Declare all queues once there is a connection."""
        try:
            for _ in range(_MAX_SESSIONS):
                session = await self._connection.session()
                await self._try(session)
                if not session.gone:
                    break
                # As after a failed attempt to connect: only publishes wait for the next session.
                self._start_allowed.set()
                await asyncio.wait([session.lost])
            self._finish()
            if late := [each for each in self._checks.values() if not each.done()]:
                await asyncio.gather(*late)
        finally:
            await cancel_and_wait(self._checks.values())

    def stop(self) -> None:
        """Stop waiting for queues: release all waiting callers."""
        self._finish()
        for topology, queue in self._queues:
            topology.tried[queue.name].set()

    async def wait_for_start(self) -> None:
        """Wait until all queues have been tried, or an attempt with each server has failed."""
        await self._start_allowed.wait()

    async def wait_for_destination(self, exchange: str, routing_key: str) -> None:
        """Wait until the queues that a message may reach are declared, or refused by the broker."""
        await self.done.wait()
        for topology, queue in self._queues:
            if _may_receive(queue, exchange, routing_key):
                await topology.tried[queue.name].wait()

    @property
    def is_complete(self) -> bool:
        """Return whether no caller has to wait any more."""
        tried = all(topology.tried[queue.name].is_set() for topology, queue in self._queues)
        return self.done.is_set() and tried

    async def wait_for_check(self, topology: Topology, queue: Queue) -> None:
        """Wait until all queues have been tried, and the check of this one is complete."""
        await self.done.wait()
        if (check := self._checks.get((topology, queue.name))) is not None:
            await asyncio.wait([check])

    def _finish(self) -> None:
        self.done.set()
        self._start_allowed.set()

    async def _try(self, session: Session) -> None:
        self._checks = {
            (topology, queue.name): asyncio.create_task(_check(session, topology, queue))
            for topology, queue in self._queues
        }
        waiting = set(self._checks.values())
        while waiting:
            done, left = await asyncio.wait(waiting, timeout=_NO_REPLY_TIMEOUT)
            for each in done:
                each.result()
            if len(left) == len(waiting):
                break
            waiting = left
        for topology in dict.fromkeys(topology for topology, _ in self._queues):
            topology.log_declared()


def _may_receive(queue: Queue, exchange: str, routing_key: str) -> bool:
    if not exchange:
        return queue.name == routing_key
    return any(str(binding.exchange) == exchange for binding in queue.bindings)


async def _check(session: Session, topology: Topology, queue: Queue) -> None:
    async with session.scratch.turn():
        await topology.prepare(session, queue)
