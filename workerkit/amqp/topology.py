"""The queues that one consumer needs: those it reads from, their retries' and dead letters'."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workerkit.amqp.codes import NO_PERMISSION
from workerkit.amqp.connection import Session
from workerkit.amqp.consumer import AMQPOptions, Declare
from workerkit.amqp.declaring import available, differs
from workerkit.amqp.moving import Moves
from workerkit.amqp.queue import Queue
from workerkit.delivery import Action
from workerkit.errors import BrokerRefused, PublishRefused

log = logging.getLogger(__name__)


class Missing(NamedTuple):
    """A queue that is not there yet.

    Attributes:
        reason: In words, with the ways out where there are several.
    """

    queue: str
    reason: str


class Topology:
    """Makes sure of queues, and remembers which were there.

    Args:
        written: The queues of *options* as their class has them, without a default type.
        declare: The consumer's own option, or the connection's setting.
    """

    def __init__(
        self, options: AMQPOptions, written: Sequence[Queue], declare: Declare, moves: Moves
    ) -> None:
        self._consumer = options.name
        self._written = {queue.name: queue for queue in written}
        self._types_told: set[str] = set()
        self._declare = declare
        self._moves = moves
        self._retry = options.retry
        actions = (options.on_success, options.on_exception, options.on_invalid)
        self._buries = Action.DEAD_LETTER in actions or options.retry is not None
        self._seen = moves.seen

    async def missing(self, session: Session, queue: Queue) -> Missing | None:
        """Which queue is not there yet, that one or one that it needs; None if none is.

        Raises:
            BrokerRefused: One exists otherwise, or a permission is missing, which the text names.
            ConnectionLost: The session went meanwhile.
        """
        written = self._written[queue.name]
        if not await self._available(session, queue, written):
            return Missing(queue.name, f"queue {queue.name!r} is missing")
        if queue != written:
            await self._tell_type(session, queue)
        for needed, existing, what, instead in self._needed(queue):
            try:
                if not await self._available(session, needed, existing):
                    text = f"queue {needed.name!r} is missing, for {what}"
                    return Missing(needed.name, f"{text}: declare it, or set {instead}")
                await self._moves.check()
            except (BrokerRefused, PublishRefused) as error:
                if isinstance(error, BrokerRefused) and error.code != NO_PERMISSION:
                    raise
                text = f"{what} cannot go to {needed.name!r}: {error}; or set {instead}"
                raise BrokerRefused(text, NO_PERMISSION) from error
        return None

    def _needed(self, queue: Queue) -> Iterator[tuple[Queue, Queue, str, str]]:
        """Where its messages may have to go, with what they are then and how to do without.

        The second queue is what one that exists has to agree with. For dead letters any will do.
        """
        if self._retry is not None and not queue.is_stream:
            for step in self._retry.steps:
                yield queue.retries(step), queue.retries(step), "retries", "retry = None"
        if self._buries:
            needed = queue.dead_letter_queue
            yield needed, Queue(needed.name), "dead letters", "on_invalid = Action.REJECT"

    async def _tell_type(self, session: Session, queue: Queue) -> None:
        """Log once if a queue exists that is not of the type that the settings have as default."""
        if self._declare == "never" or queue.name in self._types_told:
            return
        self._types_told.add(queue.name)
        error = await differs(session, queue)
        if error is not None and error.argument == "x-queue-type":
            log.info(
                "queue exists with another type than the setting and is used as it is",
                extra={"consumer": self._consumer, "queue": queue.name, "setting": queue.type},
            )

    async def _available(self, session: Session, queue: Queue, existing: Queue) -> bool:
        there = await available(session, queue, self._mode(queue), existing)
        if there:
            self._seen.add(queue.name)
        return there

    def _mode(self, queue: Queue) -> Declare:
        """Somebody who deletes a queue at run time means it: wait for it, unless told otherwise.

        A queue that goes with its connection or its consumers was deleted by nobody.
        """
        if self._declare == "missing" and queue.is_lasting and queue.name in self._seen:
            return "never"
        return self._declare
