"""A lease on the broker: of all processes that want it, one has it at a time.

The lease is a queue with a single active consumer, in which there is always a token with the number
of the last run. RabbitMQ delivers all messages of such a queue to one consumer, until the channel
of that consumer ends; then it delivers them, those that were not acknowledged first, to the next.

A process that wants to run publishes a token with a higher number than all that it has seen, and
waits until that very token is delivered to it. The queue keeps the order, so it has seen all tokens
that were published before; and that the token comes to it shows that the lease is its own at this
moment. Only then it acknowledges the older tokens. So no two runs have the same number, and a run
that begins later has a higher one, whatever became of the processes and connections before.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from workerkit.amqp.connection import STABLE_AFTER, Link
from workerkit.amqp.consumer import Declare
from workerkit.amqp.declare import Made, Unreachable, available, log_declared
from workerkit.amqp.handshake import EXPLAINED
from workerkit.amqp.queue import NO_LIMIT, DefaultType, Queue, QueueType
from workerkit.amqp.queue_types import look_up
from workerkit.amqp.replies import RPC_DEADLINE
from workerkit.amqp.session import Session
from workerkit.amqp.term import NotHeld, Term
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.health import Part, State
from workerkit.tasks import Backoff, cancel

log = logging.getLogger(__name__)

QUEUE_PREFIX = "workerkit.singleton."
SILENCE = 1.75
"""Heartbeats without a byte from the broker after which the lease counts as lost.

RabbitMQ closes the connection of a client that is silent for two to three heartbeats: it does not
give the lease to another process before this one has given it up."""

_SINGLE = "x-single-active-consumer"
_BLOCKED = "the broker blocks publishers, out of memory or disk"
_SILENT = "the broker did not deliver a token in time"
_FILL_EVERY = 60.0
_MISSING_RETRY = 2.0
_RELEASE_DEADLINE = 2.0


def lease_queue(name: str, default: DefaultType | None) -> Queue:
    """Return the queue of a lease.

    It has no delivery limit: a token is redelivered each time a process ends.

    Args:
        default: The type from the settings; None leaves it to the virtual host.
    """
    name = QUEUE_PREFIX + name
    if default == "classic":
        return Queue(name, "classic", single_active_consumer=True)
    arguments = {"x-delivery-limit": NO_LIMIT}
    return Queue(name, default, single_active_consumer=True, arguments=arguments)


class Lease:
    """Competes for one lease, for as long as the process wants it.

    Args:
        consumer: The name of the task.
        renewal: Seconds between two renewals.
        part: Told how it is going. It is ready also while another process has the lease.
        on_lost: Called at once when this process has had the lease and loses it.

    Attributes:
        held: Whether this process has the lease, as far as it knows.
    """

    def __init__(
        self,
        consumer: str,
        queue: Queue,
        link: Link,
        declare: Declare,
        renewal: float,
        part: Part,
        on_lost: Callable[[], None],
    ) -> None:
        self.held = False
        self._consumer = consumer
        self._queue = queue
        self._link = link
        self._declare: Declare = declare
        self._renewal = renewal
        self._part = part
        self._on_lost = on_lost
        self._term: Term | None = None
        self._acquired = asyncio.Event()
        self._taking = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._releasing = False
        link.followers.append(self)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """The connection could not be made: note why."""
        self._not_ready(error)

    @property
    def last_scheduled(self) -> float:
        """When the last run of all processes was due, in seconds since 1970; 0 if unknown."""
        return self._term.tokens.scheduled if self._term is not None else 0.0

    async def acquired(self) -> None:
        """Wait until this process has the lease."""
        while not self.held:
            await self._acquired.wait()

    async def take(self, scheduled: float, after: float) -> int:
        """Take the number of a run, which proves that this process has the lease.

        Args:
            scheduled: When the run is due.
            after: `last_scheduled` when that was calculated.

        Raises:
            NotHeld: It has not the lease, or another run has begun since *after*.
        """
        term = self._term
        if term is None or not self.held:
            raise NotHeld("another process has the lease, or there is no connection")
        number = await self._take(term, scheduled, after)
        if number is None:
            raise NotHeld("the broker did not confirm the lease")
        return number

    async def run(self) -> None:
        """Compete for the lease until cancelled or released."""
        self._running = asyncio.current_task()
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while not self._releasing:
            session, began = await self._link.session(), loop.time()
            pause = _MISSING_RETRY
            try:
                if await self._there(session):
                    term = self._term = Term(session, self._queue.name)
                    term.ended.add_done_callback(self._on_ended)
                    await term.begin()
                    await self._compete(term)
                else:
                    self._report(f"queue {self._queue.name!r} is missing: declare it")
                    log.warning("queue of a lease is missing", extra=self._fields(retry_in=pause))
            except ConnectionLost as error:
                if loop.time() - began > STABLE_AFTER:
                    backoff.reset()
                if not session.gone:
                    pause = backoff.next()
                    self._failed(error, pause)
            finally:
                await self._end_term()
            if session.gone:
                self._report("the connection is lost")
                await asyncio.wait([session.lost])
            else:
                await asyncio.wait([session.lost], timeout=pause)

    async def release(self) -> None:
        """Give the lease up, so that another process has it at once."""
        self._releasing = True
        self._part.stopping()
        running = self._running
        if running is not None and not running.done():
            cancel(running)
            # If the broker does not answer, the close of the connection does it.
            await asyncio.wait([running], timeout=_RELEASE_DEADLINE)

    async def _there(self, session: Session) -> bool:
        """Whether the queue exists; one that somebody else has declared is looked at.

        Raises:
            BrokerRefused: It may not be declared, or differs.
            ConnectionLost: The session was lost.
        """
        queue, made = self._queue, Made()
        if not await available(session, queue, self._declare, made):
            return False
        if made.queues:
            log_declared(made.queues, again=False, consumer=self._consumer)
        if self._declare == "never":
            found = await look_up(session, queue)
            if found is not None and found.type != "stream":
                kind: QueueType = "quorum" if found.type == "quorum" else "classic"
                typed = Queue(queue.name, kind, single_active_consumer=True)
                found = await look_up(session, typed)
            if found is not None and _SINGLE not in found.arguments:
                text = f"queue {queue.name!r} has no {_SINGLE}: all processes would have the lease"
                raise BrokerRefused(f"{text}; delete it, and declare it with that argument", 0)
        return True

    async def _compete(self, term: Term) -> None:
        """Wait for the lease, then renew it, until it is lost.

        Raises:
            BrokerRefused: The user may not publish to the queue.
            ConnectionLost: The channel or the session was lost.
        """
        while not term.ended.done():
            if term.active.done():
                await self._take(term)
                await asyncio.wait([term.ended], timeout=self._renewal)
                continue
            try:
                async with asyncio.timeout(RPC_DEADLINE):
                    await term.fill()
                self._report()
            except TimeoutError:
                self._report(_BLOCKED if term.is_blocked else _SILENT)
            waiting: list[asyncio.Future[Any]] = [term.active, term.ended]
            await asyncio.wait(waiting, timeout=_FILL_EVERY, return_when=asyncio.FIRST_COMPLETED)
        raise term.ended.result()

    async def _take(
        self, term: Term, scheduled: float | None = None, after: float = 0.0
    ) -> int | None:
        """Take a number; None if the broker did not answer, and then the lease is given up."""
        try:
            async with asyncio.timeout(RPC_DEADLINE), self._taking:
                number = await term.take(scheduled, after)
        except TimeoutError:
            if term.is_blocked:
                self._report(_BLOCKED)
            else:
                term.end(ConnectionLost(_SILENT))
            return None
        except ConnectionLost as error:
            term.end(error)
            return None
        if term.ended.done():
            return None
        self._report()
        if not self.held:
            self.held = True
            self._acquired.set()
            log.info("lease acquired", extra=self._fields(number=number))
        return number

    def _on_ended(self, ended: "asyncio.Future[ConnectionLost]") -> None:
        if not self.held:
            return
        self.held = False
        self._acquired.clear()
        text = "lease released" if self._releasing else "lease lost"
        level = logging.INFO if self._releasing else logging.WARNING
        log.log(level, text, extra=self._fields(reason=str(ended.result())))
        self._on_lost()

    async def _end_term(self) -> None:
        term, self._term = self._term, None
        if term is not None:
            await term.close()

    def _failed(self, error: Exception, seconds: float) -> None:
        self._not_ready(error)
        fields = self._fields(retry_in=round(seconds, 2), error=summarize_error(error))
        log.error(
            "task cannot compete for its lease",
            exc_info=without_needless_traceback(error, *EXPLAINED),
            extra=fields,
        )

    def _not_ready(self, error: Exception) -> None:
        # A queue whose node is down comes back by itself.
        refused = isinstance(error, BrokerRefused) and not isinstance(error, Unreachable)
        self._report(str(error), refused=refused)

    def _report(self, reason: str = "", *, refused: bool = False) -> None:
        """Note how it is going, unless the process stops: it is ready if there is no reason."""
        if self._part.state is State.STOPPING:
            return
        if not reason:
            self._part.ready()
        elif refused:
            self._part.refused(reason)
        else:
            self._part.waiting(reason)

    def _fields(self, **more: object) -> dict[str, object]:
        return {"consumer": self._consumer, "queue": self._queue.name, **more}
