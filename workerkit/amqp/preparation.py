"""Declare the queues of one connection before anything is consumed, or published to them.

A handler, a view or a periodic task may publish as soon as it runs, also to a queue of another
consumer of the process. If that were not declared yet, the broker would return the message.
"""

import asyncio
from collections.abc import Sequence

from workerkit.amqp.connection import Follower, Link
from workerkit.amqp.queue import Queue
from workerkit.amqp.session import Session
from workerkit.amqp.topology import Topology
from workerkit.tasks import cancel_and_wait

START_DEADLINE = 5.0
"""Seconds for which a start waits for the queues; publishes wait longer."""

# Seconds without any answer. Then the missing answers do not keep the other queues waiting.
_WITHOUT_ANSWER = 3.0
# A declaration that makes the broker close the connection would be repeated for ever.
_MAX_SESSIONS = 3


class Preparation:
    """The first declarations on one connection.

    Each queue is tried once. What is missing or refused does not keep the others waiting; its
    consumer logs it, and tries again.

    Args:
        servers: Attempts to connect after which a start does not wait any longer.

    Attributes:
        done: Set once all queues have been tried.
    """

    def __init__(self, link: Link, servers: int) -> None:
        self.done = asyncio.Event()
        self._link = link
        self._servers = servers
        self._may_start = asyncio.Event()
        self._failures: list[tuple[Exception, int]] = []
        self._wanted: list[tuple[Topology, Queue]] = []
        self._checks: dict[tuple[Topology, str], asyncio.Task[None]] = {}
        link.followers.append(self)

    def add(self, topology: Topology, queues: Sequence[Queue]) -> None:
        """Add the queues of one consumer, before it runs."""
        self._wanted += [(topology, queue) for queue in queues]

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Note why, for followers that come later: consumers start after the first try."""
        self._failures.append((error, attempt))
        if attempt >= self._servers:
            self._may_start.set()

    def follow(self, follower: Follower) -> None:
        """Let *follower* know why the connection is not there, from the first attempt on."""
        for error, attempt in self._failures:
            follower.connection_failed(error, attempt)
        self._link.followers.append(follower)

    def started(self) -> None:
        """All followers are there: nobody needs to know any more why earlier attempts failed."""
        if self in self._link.followers:
            self._link.followers.remove(self)
        self._failures.clear()

    async def run(self) -> None:
        """Declare everything once there is a connection."""
        try:
            for _ in range(_MAX_SESSIONS):
                session = await self._link.session()
                await self._try(session)
                if not session.gone:
                    break
                # As after a failed attempt: only publishes wait for the next connection.
                self._may_start.set()
                await asyncio.wait([session.lost])
            self._finish()
            if late := [each for each in self._checks.values() if not each.done()]:
                await asyncio.gather(*late)
        finally:
            await cancel_and_wait(self._checks.values())

    def stop(self) -> None:
        """Let everybody go on who waits."""
        self._finish()
        for topology, queue in self._wanted:
            topology.tried[queue.name].set()

    async def may_start(self) -> None:
        """Wait until all queues have been tried, or the connection could not be kept open."""
        await self._may_start.wait()

    async def receivable(self, exchange: str, routing_key: str) -> None:
        """Wait until all queues have been tried, and the broker has answered for some of them.

        These are the queues that a message may reach.
        """
        await self.done.wait()
        for topology, queue in self._wanted:
            if _may_receive(queue, exchange, routing_key):
                await topology.tried[queue.name].wait()

    @property
    def checked_all(self) -> bool:
        """Whether nobody has to wait any more."""
        tried = all(topology.tried[queue.name].is_set() for topology, queue in self._wanted)
        return self.done.is_set() and tried

    async def checked(self, topology: Topology, queue: Queue) -> None:
        """Wait until all queues have been tried, and this one is checked."""
        await self.done.wait()
        if (check := self._checks.get((topology, queue.name))) is not None:
            await asyncio.wait([check])

    def _finish(self) -> None:
        self.done.set()
        self._may_start.set()

    async def _try(self, session: Session) -> None:
        self._checks = {
            (topology, queue.name): asyncio.create_task(_check(session, topology, queue))
            for topology, queue in self._wanted
        }
        waiting = set(self._checks.values())
        while waiting:
            done, left = await asyncio.wait(waiting, timeout=_WITHOUT_ANSWER)
            for each in done:
                each.result()
            if len(left) == len(waiting):
                break
            waiting = left
        for topology in dict.fromkeys(topology for topology, _ in self._wanted):
            topology.log_declared()


def _may_receive(queue: Queue, exchange: str, routing_key: str) -> bool:
    if not exchange:
        return queue.name == routing_key
    return any(str(binding.exchange) == exchange for binding in queue.bindings)


async def _check(session: Session, topology: Topology, queue: Queue) -> None:
    async with session.scratch.turn():
        await topology.prepare(session, queue)
