"""The queues that one consumer needs: those it reads from, and those of its dead letters."""

from workerkit.amqp.codes import NO_PERMISSION
from workerkit.amqp.connection import Session
from workerkit.amqp.consumer import AMQPOptions, Declare
from workerkit.amqp.dead_letters import DeadLetters
from workerkit.amqp.declaring import available
from workerkit.amqp.queue import Queue
from workerkit.delivery import Action
from workerkit.errors import BrokerRefused, PublishRefused


class Topology:
    """Makes sure of queues, and remembers which were there.

    Args:
        declare: The consumer's own option, or the connection's setting.
    """

    def __init__(self, options: AMQPOptions, declare: Declare, dead_letters: DeadLetters) -> None:
        self._declare = declare
        self._dead_letters = dead_letters
        actions = (options.on_success, options.on_exception, options.on_invalid)
        self._buries = Action.DEAD_LETTER in actions
        self._may_bury = False
        self._seen = dead_letters.seen

    async def missing(self, session: Session, queue: Queue) -> Queue | None:
        """Which queue is not there yet, that one or its dead letters'; None if none is.

        Raises:
            BrokerRefused: It exists otherwise, or a permission is missing, which the text names.
            ConnectionLost: The session went meanwhile.
        """
        if not await self._available(session, queue):
            return queue
        if not self._buries:
            return None
        dead_letters = Queue(queue.dead_letters)
        try:
            if not await self._available(session, dead_letters):
                return dead_letters
            if not self._may_bury:
                await self._dead_letters.check()
                self._may_bury = True
        except (BrokerRefused, PublishRefused) as error:
            if isinstance(error, BrokerRefused) and error.code != NO_PERMISSION:
                raise
            raise BrokerRefused(
                f"dead letters cannot go to {dead_letters.name!r}: {error}; "
                "or set on_invalid = Action.REJECT",
                NO_PERMISSION,
            ) from error
        return None

    async def _available(self, session: Session, queue: Queue) -> bool:
        there = await available(session, queue, self._mode(queue))
        if there:
            self._seen.add(queue.name)
        return there

    def _mode(self, queue: Queue) -> Declare:
        """Somebody who deletes a queue at run time means it: wait for it, unless told otherwise.

        A queue that goes with its connection or its consumers was deleted by nobody.
        """
        lasting = queue.durable and not queue.exclusive and not queue.auto_delete
        if self._declare == "missing" and lasting and queue.name in self._seen:
            return "never"
        return self._declare
