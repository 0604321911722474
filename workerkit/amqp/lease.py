"""A lease on the broker: of all processes that compete for it, one has it at a time.

The lease is a queue with a single active consumer. It always contains a token, a message with the
number of the last run. RabbitMQ delivers all messages of such a queue to one consumer, until the
channel of that consumer closes. Then it delivers them to the next consumer, first those that were
not acknowledged.

Before a run, a process publishes a token with a higher number than all that it has received, and
waits until this token is delivered to it. The queue keeps the order, so the process has received
all tokens that were published before. The delivery of its own token proves that it has the lease at
this moment. Only then does it acknowledge the older tokens. So no two runs have the same number,
and a later run has a higher one, even if processes were killed or connections were lost.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from workerkit.amqp.connection import STABLE_AFTER, Connection
from workerkit.amqp.consumer import DeclareMode
from workerkit.amqp.declare import Created, Unreachable, ensure_queue, log_declared
from workerkit.amqp.handshake import SELF_EXPLANATORY
from workerkit.amqp.lease_term import LeaseTerm, NotHeld
from workerkit.amqp.queue import NO_LIMIT, DefaultQueueType, Queue, QueueType
from workerkit.amqp.queue_types import look_up
from workerkit.amqp.replies import RPC_DEADLINE
from workerkit.amqp.session import Session
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.errors import BrokerRefused, ConnectionLost
from workerkit.health import Part, State
from workerkit.tasks import Backoff, cancel

log = logging.getLogger(__name__)

QUEUE_PREFIX = "workerkit.singleton."
SILENCE = 1.75
"""Heartbeats without a byte from the broker after which the lease counts as lost.

RabbitMQ closes the connection of a client that is silent for two to three heartbeats. So this
process stops its run before RabbitMQ gives the lease to another one."""

_SINGLE_ACTIVE = "x-single-active-consumer"
_BLOCKED = "the broker blocks publishers, out of memory or disk"
_SILENT = "the broker did not deliver a token in time"
_PLACEHOLDER_INTERVAL = 60.0
_MISSING_RETRY = 2.0
_RELEASE_DEADLINE = 2.0


def lease_queue(name: str, default: DefaultQueueType | None) -> Queue:
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
    """One lease, for which this process competes until it releases it.

    Args:
        consumer: The name of the task.
        renewal: Seconds between two renewals.
        part: Notified of changes of its readiness. It is ready also while another process has the
            lease.
        on_lost: Called immediately when this process had the lease and loses it.

    Attributes:
        held: Whether this process has the lease. It may learn of a loss with a delay.
    """

    def __init__(
        self,
        consumer: str,
        queue: Queue,
        connection: Connection,
        declare: DeclareMode,
        renewal: float,
        part: Part,
        on_lost: Callable[[], None],
    ) -> None:
        self.held = False
        self._consumer = consumer
        self._queue = queue
        self._connection = connection
        self._declare: DeclareMode = declare
        self._renewal = renewal
        self._part = part
        self._on_lost = on_lost
        self._current_term: LeaseTerm | None = None
        self._acquired = asyncio.Event()
        self._number_lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._releasing = False
        # Cleared while it does not compete.
        self._wanted = asyncio.Event()
        self._wanted.set()
        connection.listeners.append(self)

    def connection_failed(self, error: Exception, attempt: int) -> None:
        """Report the reason as that of the task."""
        self._not_ready(error)

    @property
    def last_scheduled(self) -> float:
        """Return when the last run of any process was due, in seconds since 1970; 0 if unknown."""
        return self._current_term.tokens.scheduled if self._current_term is not None else 0.0

    async def acquired(self) -> None:
        """Wait until this process has the lease."""
        while not self.held:
            await self._acquired.wait()

    async def take(self, scheduled: float, after: float) -> int:
        """Get the number of the next run, which proves that this process has the lease.

        Args:
            scheduled: When the run is due.
            after: The value of `last_scheduled` from which *scheduled* was calculated.

        Raises:
            NotHeld: It does not have the lease, or another run has begun since *after*.
        """
        term = self._current_term
        if term is None or not self.held:
            raise NotHeld("another process has the lease, or there is no connection")
        number = await self._take(term, scheduled, after)
        if number is None:
            raise NotHeld("the broker did not confirm the lease")
        return number

    async def run(self) -> None:
        """Compete for the lease until cancelled or released."""
        self._task = asyncio.current_task()
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while not self._releasing:
            await self._wanted.wait()
            session, began = await self._connection.session(), loop.time()
            pause = _MISSING_RETRY
            try:
                exists = await self._queue_exists(session)
                if not self._wanted.is_set():
                    continue
                if exists:
                    term = self._current_term = LeaseTerm(session, self._queue.name)
                    term.ended.add_done_callback(self._on_ended)
                    await term.start()
                    await self._compete(term)
                else:
                    self._report(f"queue {self._queue.name!r} is missing: declare it")
                    log.warning("queue of a lease is missing", extra=self._fields(retry_in=pause))
            except ConnectionLost as error:
                if loop.time() - began > STABLE_AFTER:
                    backoff.reset()
                if not session.gone and self._wanted.is_set():
                    pause = backoff.next()
                    self._failed(error, pause)
            finally:
                await self._end_term()
            if not self._wanted.is_set():
                continue
            if session.gone:
                self._report("the connection is lost")
                await asyncio.wait([session.lost])
            else:
                await asyncio.wait([session.lost], timeout=pause)

    def withdraw(self) -> None:
        """Release the lease and do not compete for it, until `compete` is called."""
        self._wanted.clear()
        if self._current_term is not None:
            self._current_term.end(ConnectionLost("withdrawn"))

    def compete(self) -> None:
        """Compete for the lease again."""
        self._wanted.set()

    async def release(self) -> None:
        """Release the lease, so that another process gets it immediately."""
        self._releasing = True
        self._part.stopping()
        task = self._task
        if task is not None and not task.done():
            cancel(task)
            # If the broker does not reply, the close of the connection releases it.
            await asyncio.wait([task], timeout=_RELEASE_DEADLINE)

    async def _queue_exists(self, session: Session) -> bool:
        """Return whether the queue exists, after declaring it if that is configured.

        A queue that workerkit does not declare must have a single active consumer.

        Raises:
            BrokerRefused: A permission is missing, or the queue has other arguments.
            ConnectionLost: The session was lost.
        """
        queue, created = self._queue, Created()
        if not await ensure_queue(session, queue, self._declare, created):
            return False
        if created.queues:
            log_declared(created.queues, again=False, consumer=self._consumer)
        if self._declare == "never":
            found = await look_up(session, queue)
            if found is not None and found.type != "stream":
                kind: QueueType = "quorum" if found.type == "quorum" else "classic"
                typed = Queue(queue.name, kind, single_active_consumer=True)
                found = await look_up(session, typed)
            if found is not None and _SINGLE_ACTIVE not in found.arguments:
                text = f"queue {queue.name!r} has no {_SINGLE_ACTIVE}: all processes would run it"
                raise BrokerRefused(f"{text}; delete it, and declare it with that argument", 0)
        return True

    async def _compete(self, term: LeaseTerm) -> None:
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
                    await term.publish_placeholder()
                self._report()
            except TimeoutError:
                self._report(_BLOCKED if term.is_blocked else _SILENT)
            waiting: list[asyncio.Future[Any]] = [term.active, term.ended]
            await asyncio.wait(
                waiting, timeout=_PLACEHOLDER_INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
        raise term.ended.result()

    async def _take(
        self, term: LeaseTerm, scheduled: float | None = None, after: float = 0.0
    ) -> int | None:
        """Get a number; return None, and release the lease, if the broker does not reply."""
        try:
            async with asyncio.timeout(RPC_DEADLINE), self._number_lock:
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
        released = self._releasing or not self._wanted.is_set()
        text = "lease released" if released else "lease lost"
        level = logging.INFO if released else logging.WARNING
        log.log(level, text, extra=self._fields(reason=str(ended.result())))
        self._on_lost()

    async def _end_term(self) -> None:
        term, self._current_term = self._current_term, None
        if term is not None:
            await term.close()

    def _failed(self, error: Exception, seconds: float) -> None:
        self._not_ready(error)
        fields = self._fields(retry_in=round(seconds, 2), error=summarize_error(error))
        log.error(
            "task cannot compete for its lease",
            exc_info=without_needless_traceback(error, *SELF_EXPLANATORY),
            extra=fields,
        )

    def _not_ready(self, error: Exception) -> None:
        # A queue whose node is down is available again when the node is back.
        refused = isinstance(error, BrokerRefused) and not isinstance(error, Unreachable)
        self._report(str(error), refused=refused)

    def _report(self, reason: str = "", *, refused: bool = False) -> None:
        """Update the readiness, unless the process is stopping; without a reason it is ready."""
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
