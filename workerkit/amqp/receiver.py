"""The room in which a message is handled and settled."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from time import perf_counter
from typing import Any

from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.dead_letters import DeadLetters
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.pacing import near_limit
from workerkit.amqp.requeue import Requeue
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.errors import PublishError
from workerkit.observe import Observer, Settled, notify

log = logging.getLogger(__name__)

_LONG_TURN = 0.001


class Receiver:
    """A fixed pool of workers that take messages, have them handled, and settle them.

    There are as many workers as the consumer's `concurrency`; they outlive every connection. A
    message is settled on the channel that delivered it, or not at all.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AMQPOptions,
        observers: Sequence[Observer],
        dead_letters: DeadLetters,
    ) -> None:
        self.name = endpoint.name
        self._process = endpoint.process
        self._observers = observers
        self._dead_letters = dead_letters
        self._limits = {queue.name: queue.delivery_limit for queue in options.queues}
        most = options.prefetch_count // 2
        self._requeues = {queue.name: Requeue(most) for queue in options.queues}
        self._waiting: deque[AMQPMessage[Any]] = deque()
        self._size = options.concurrency
        self._resting: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._stopping = False
        self._quiet = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a handler runs."""
        return len(self._resting) < self._size

    def workers(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """The workers, each with its name; the caller runs them as tasks."""
        for number in range(1, self._size + 1):
            yield f"{self.name} worker {number}", self._work()

    def take(self, message: AMQPMessage[Any]) -> None:
        """Queue a message for the next free worker. Bounded by the prefetch."""
        self._waiting.append(message)
        if self._resting and not self._waking:
            self._wake()

    def forget(self) -> None:
        """The channel is lost: the broker delivers again what no worker has begun with."""
        self._waiting = deque(each for each in self._waiting if not each.acks.lost)
        for requeue in self._requeues.values():
            requeue.release()

    def stop(self) -> None:
        """Begin with nothing new."""
        self._stopping = True

    def put_back(self) -> None:
        """Return to the broker what no worker has begun with, and what waits to go back."""
        while self._waiting:
            message = self._waiting.popleft()
            message.acks.reject(message.tag, requeue=True)
        for requeue in self._requeues.values():
            requeue.release()

    async def drain(self) -> None:
        """Return once no handler runs any more."""
        while self.busy:
            self._quiet.clear()
            await self._quiet.wait()

    async def _work(self) -> None:
        while True:
            if not self._waiting or self._stopping:
                await self._rest()
                continue
            message = self._waiting.popleft()
            if self._waiting and self._resting and not self._waking:
                self._wake()
            if message.acks.lost:
                continue
            began = perf_counter()
            outcome = await self._process(message)
            seconds = perf_counter() - began
            if outcome.action is Action.ACK:
                record = self._acknowledge(message, outcome, seconds)
            else:
                record = await self._settle(message, outcome, seconds)
            notify(self._observers, record)
            if seconds > _LONG_TURN:
                # A handler that computes without awaiting must not starve everybody else.
                await asyncio.sleep(0)

    def _acknowledge(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> Settled:
        requeue = self._requeues[message.queue]
        if requeue.failing:
            requeue.succeeded(message)
        lost = not message.acks.ack(message.tag)
        return Settled(self.name, message.queue, message, outcome, Action.ACK, seconds, lost)

    async def _settle(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> Settled:
        """Carry out every outcome but an acknowledgement."""
        action = outcome.action
        limit = self._limits[message.queue]
        if action is Action.REQUEUE and near_limit(message.delivery_count, limit):
            action = Action.DEAD_LETTER
        if message.acks.lost:
            settled = False
        elif action is Action.DEAD_LETTER:
            action, settled = await self._bury(message, outcome)
        elif action is Action.REJECT:
            settled = message.acks.reject(message.tag, requeue=False)
        else:
            settled = self._requeues[message.queue].put(message)
        if self._stopping:
            self._requeues[message.queue].release()
        return Settled(self.name, message.queue, message, outcome, action, seconds, not settled)

    async def _bury(self, message: AMQPMessage[Any], outcome: Outcome) -> tuple[Action, bool]:
        """Move to the dead letters, then acknowledge; keep the original where that fails."""
        try:
            await self._dead_letters.move(message, outcome)
        except PublishError:
            log.exception(
                "dead letter could not be moved: the message goes back",
                extra={"consumer": self.name, "delivery": repr(message)},
            )
            return Action.REQUEUE, self._requeues[message.queue].put(message, stubborn=True)
        return Action.DEAD_LETTER, message.acks.ack(message.tag)

    def _wake(self) -> None:
        """Wake one worker; it wakes the next if there is more to do.

        Waking all at once would cost a turn of the loop each for nothing where one worker gets
        through everything before the others come to run.
        """
        while self._resting:
            rest = self._resting.popleft()
            if not rest.done():
                rest.set_result(None)
                self._waking = True
                return

    async def _rest(self) -> None:
        rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting.append(rest)
        if not self.busy:
            self._quiet.set()
        try:
            await rest
        finally:
            self._waking = False
