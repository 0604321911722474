"""Try messages again later: a copy waits in a queue of the broker until it is time.

There is one such queue for each delay, because RabbitMQ looks at the first message of a queue only:
one that waits for a minute would hold back those that wait for a second.
"""

from typing import Any

from workerkit.amqp.message import ATTEMPT, QUEUE, AMQPMessage
from workerkit.amqp.moving import Moves, copied, history, now
from workerkit.amqp.queue import Queue
from workerkit.delivery import Outcome
from workerkit.retry import RetryPolicy, pause


class Retries:
    """The messages of one consumer that wait for their next try."""

    def __init__(self, moves: Moves, queues: tuple[Queue, ...], policy: RetryPolicy | None) -> None:
        self._moves = moves
        self._queues = {queue.name: queue for queue in queues}
        self._policy = policy
        # Built once for each delay: to check a declaration takes half as long as to retry.
        self._waiting: dict[tuple[str, float], Queue] = {}

    async def postpone(self, message: AMQPMessage[Any], outcome: Outcome) -> None:
        """Have a message come again when its outcome says.

        Raises:
            MessageTooLarge: Its headers leave no room for what has to be remembered.
            PublishError: The copy has not safely arrived: the original must stay.
        """
        key = message.queue, outcome.delay
        waiting = self._waiting.get(key)
        if waiting is None:
            # Delays are steps of a policy or of the ladder, so there are few.
            waiting = self._waiting[key] = self._queues[message.queue].retries(outcome.delay)
        told = {
            ATTEMPT: message.attempt + 1,
            QUEUE: message.queue,
            **history(message, now()),
        }
        properties = copied(message, told, expiration=pause(outcome, self._policy))
        await self._moves.move(message, waiting, iter([properties]))
