"""Check and declare the queues that one consumer needs: its own, and those for its copies."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from secrets import token_hex
from typing import Literal, NamedTuple

from workerkit.amqp.binding import Bindings
from workerkit.amqp.consumer import AMQPOptions, DeclareMode
from workerkit.amqp.copies import CopyPublisher
from workerkit.amqp.declare import Created, Unreachable, declare_queue, ensure_queue, log_declared
from workerkit.amqp.frames import NO_PERMISSION
from workerkit.amqp.needs import NeededQueue, needed_queues
from workerkit.amqp.queue import Queue
from workerkit.amqp.queue_types import QueueTypes
from workerkit.amqp.replies import RPC_DEADLINE
from workerkit.amqp.session import Session
from workerkit.errors import BrokerRefused, ConnectionLost, PublishRefused
from workerkit.tasks import cancel

log = logging.getLogger(__name__)

# Seconds to wait for queues that existed before.
_KNOWN_QUEUES_DEADLINE = 1.0
PROCESS_SUFFIX = r"\..+\.[0-9]+\.[0-9a-f]{8}"
"""A regular expression for what each process adds to the name of a queue per process."""

_CONSUMING_WITHOUT = "consuming without a queue for dead letters or retries"


class Missing(NamedTuple):
    """A queue that cannot be used yet.

    Attributes:
        reason: A sentence for people, with the possible solutions.
        state: Whether it does not exist, or exists on a node that is not available.
    """

    queue: str
    reason: str
    state: Literal["missing", "unreachable"] = "missing"


class _Checked(NamedTuple):
    """The result of a check that `missing` has not returned yet.

    Attributes:
        outcome: What was missing, or the error; None if all queues exist.
    """

    session: Session
    outcome: Missing | Exception | None


class Topology:
    """Checks queues, declares missing ones, and remembers which existed.

    Args:
        written: The queues of *options* as their class has them, without a default type.
        declare: The consumer's own option, or the connection's setting.
        types: Learns the types of the queues.
        replies: Whether the consumer replies, which needs a permission to publish.

    Attributes:
        tried: For each queue, set once the broker has answered whether messages can reach it.
    """

    def __init__(
        self,
        options: AMQPOptions,
        written: Sequence[Queue],
        declare: DeclareMode,
        copies: CopyPublisher,
        types: QueueTypes,
        *,
        replies: bool = False,
    ) -> None:
        self._replies = replies
        self.tried = {queue.name: asyncio.Event() for queue in written}
        self._consumer = options.name
        self._options = options
        self._types = types
        self._written = {queue.name: queue for queue in written}
        self._bindings = Bindings(options.name)
        self._declare = declare
        self._copies = copies
        self._late_checks: set[asyncio.Task[Missing | None]] = set()
        self._seen = copies.seen
        self._made = Created()
        self._checked: dict[str, _Checked] = {}
        self._own: dict[str, tuple[Session, Queue]] = {}

    async def prepare(self, session: Session, queue: Queue) -> None:
        """Check a queue before it is consumed, and keep the result for `missing`."""
        outcome: Missing | Exception | None
        try:
            outcome = await self._check(session, queue)
        except (BrokerRefused, ConnectionLost) as error:
            # The caller of `missing` gets it, and logs it.
            outcome = error
        self._checked[queue.name] = _Checked(session, outcome)

    async def missing(self, session: Session, queue: Queue) -> Missing | None:
        """Return the first missing queue, *queue* or one that it needs; None if all exist.

        It declares what may be declared.

        Raises:
            BrokerRefused: A queue exists with another declaration, or the permission is missing
                that the text names.
            ConnectionLost: The session was lost.
        """
        checked = self._checked.pop(queue.name, None)
        if checked is None or checked.session is not session:
            try:
                return await self._check(session, queue)
            finally:
                self.log_declared()
        if isinstance(checked.outcome, Exception):
            raise checked.outcome
        return checked.outcome

    def name(self, queue: Queue) -> str:
        """Return the name that a queue has at the broker; that of the class before its check."""
        own = self._own.get(queue.name)
        return queue.name if own is None else own[1].name

    def log_declared(self) -> None:
        """Log what was missing and has been declared since the last call, in one record."""
        made, self._made = self._made, Created()
        if any(asdict(made).values()):
            fields = {name: names for name, names in asdict(made).items() if names}
            log.info("declared what was missing", extra={"consumer": self._consumer, **fields})

    async def _check(self, session: Session, queue: Queue) -> Missing | None:
        try:
            found = await self._find_missing(session, queue)
        except BrokerRefused:
            self.tried[queue.name].set()
            raise
        self.tried[queue.name].set()
        return found

    async def _find_missing(self, session: Session, queue: Queue) -> Missing | None:
        if queue.per_process:
            await self._declare_own(session, queue)
            return await self._first_missing_within(RPC_DEADLINE, session, [])
        own, *needed = needed_queues(self._options, queue, self._written[queue.name])
        try:
            if not await self._available(session, queue, own.existing):
                self._types.forget(queue.name)
                return Missing(queue.name, f"queue {queue.name!r} is missing")
        except Unreachable as error:
            return Missing(queue.name, str(error), "unreachable")
        await self._learn(session, queue)
        if self._declare != "never":
            await self._bindings.create(session, queue, self._made)
        self.tried[queue.name].set()
        seen = all(each.queue.name in self._seen for each in needed)
        return await self._first_missing_within(
            _KNOWN_QUEUES_DEADLINE if seen else RPC_DEADLINE, session, needed
        )

    async def _declare_own(self, session: Session, queue: Queue) -> None:
        """Declare the exclusive queue of this process and bind it, whatever `declare` is."""
        known = self._own.get(queue.name)
        if known is None or known[0] is not session:
            # The queue of the old connection exists until the broker has noticed its loss.
            self._own[queue.name] = known = session, queue.for_process(_suffix())
        own = known[1]
        await declare_queue(session, own, self._made)
        self._types.add_exclusive(session, queue.name)
        await self._bindings.create(session, own, self._made)

    async def _first_missing_within(
        self, seconds: float, session: Session, needed: Sequence[NeededQueue]
    ) -> Missing | None:
        """Find the first queue that is missing; None also if the answers take too long.

        The broker reports at once that a queue is missing. It is late if the node of the queue
        does not answer, and that must not stop a consumer whose own queue is on other nodes.
        """
        checking = asyncio.create_task(self._first_missing(session, needed))
        try:
            await asyncio.wait([checking], timeout=seconds)
        except asyncio.CancelledError:
            cancel(checking)
            raise
        if checking.done():
            return checking.result()
        self._late_checks.add(checking)
        checking.add_done_callback(self._on_late_answers)
        names = ", ".join(each.queue.name for each in needed) or "replies"
        text = f"no answer for {names} within {seconds:g} s"
        log.warning(_CONSUMING_WITHOUT, extra={"consumer": self._consumer, "reason": text})
        return None

    def _on_late_answers(self, checking: "asyncio.Task[Missing | None]") -> None:
        """Log an answer that arrived after the consumer had started."""
        self._late_checks.discard(checking)
        if checking.cancelled():
            return
        error = checking.exception()
        missing = None if error else checking.result()
        if isinstance(error, BrokerRefused) or missing is not None:
            reason = missing.reason if missing else str(error)
            log.warning(_CONSUMING_WITHOUT, extra={"consumer": self._consumer, "reason": reason})

    async def _first_missing(
        self, session: Session, needed: Sequence[NeededQueue]
    ) -> Missing | None:
        for each in needed:
            queue = each.queue
            try:
                if not await self._available(session, queue, each.existing):
                    text = f"queue {queue.name!r} is missing, for {each.purpose}"
                    return Missing(queue.name, f"{text}: declare it, or set {each.instead}")
            except Unreachable as error:
                # It exists. Messages that should go there stay in their own queue.
                log.warning(
                    _CONSUMING_WITHOUT, extra={"consumer": self._consumer, "reason": str(error)}
                )
            except BrokerRefused as error:
                if error.code != NO_PERMISSION:
                    raise
                raise _not_permitted(each, error) from error
            except ConnectionLost as error:
                if session.gone:
                    raise
                log.warning(
                    _CONSUMING_WITHOUT, extra={"consumer": self._consumer, "reason": str(error)}
                )
                # A connection that answers nothing several times in a row is dropped, and the
                # consumer needs it.
                return None
            try:
                await self._copies.check()
            except PublishRefused as error:
                raise _not_permitted(each, error) from error
        if self._replies:
            try:
                await self._copies.check()
            except PublishRefused as error:
                text = f"replies cannot be published: {error}; or set replies = 'off'"
                raise BrokerRefused(text, NO_PERMISSION) from error
        return None

    async def _learn(self, session: Session, queue: Queue) -> None:
        """Find out the type of a queue, and log if the settings expect another one."""
        found = await self._types.learn(session, queue)
        if found is None:
            return
        fields = {"consumer": self._consumer, "queue": queue.name}
        typed = self._declare != "never" and queue != self._written[queue.name]
        if typed and found.type != queue.type:
            log.info(
                "queue exists with another type than QUEUE_TYPE and is used unchanged",
                extra={**fields, "setting": queue.type},
            )
        if found.type == "quorum" and "x-dead-letter-exchange" not in found.arguments:
            log.warning(
                "quorum queue without dead_letter_exchange: RabbitMQ 4 may drop messages",
                extra={**fields, "delivery_limit": queue.known_delivery_limit},
            )

    async def _available(self, session: Session, queue: Queue, existing: Queue) -> bool:
        made, again = Created(), queue.is_permanent and queue.name in self._seen
        there = await ensure_queue(session, queue, self._mode(queue), made, existing)
        if made.queues and again:
            log_declared(made.queues, again=True, consumer=self._consumer)
        else:
            self._made.queues += made.queues
        self._made.exchanges += made.exchanges
        if there:
            self._seen.add(queue.name)
        return there

    def _mode(self, queue: Queue) -> DeclareMode:
        """Return how a queue may be declared.

        A lasting queue that existed was deleted on purpose: wait for it, unless `declare` is
        `always`. Other queues are deleted by the broker, with their connection or consumers.
        """
        if self._declare == "missing" and queue.is_permanent and queue.name in self._seen:
            return "never"
        return self._declare


def _not_permitted(needed: NeededQueue, error: Exception) -> BrokerRefused:
    text = f"{needed.purpose} cannot go to {needed.queue.name!r}: {error}; or set {needed.instead}"
    return BrokerRefused(text, NO_PERMISSION)


def _suffix() -> str:
    """Return a suffix for the queue of this process, new for each connection."""
    return f"{socket.gethostname()[:63]}.{os.getpid()}.{token_hex(4)}"
