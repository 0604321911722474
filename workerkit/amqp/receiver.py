"""The room in which a message is handled and settled."""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Sequence
from time import perf_counter
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.handled import Handled, Place
from workerkit.amqp.incoming import Inlet
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.redelivery import Overdue
from workerkit.amqp.settlement import Settling
from workerkit.amqp.stream_position import Position
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.tasks import cancel_and_wait, sleep_unless_stopping
from workerkit.workers import Batching, Workers

log = logging.getLogger(__name__)

_LONG_TURN = 0.001


class Receiver:
    """Takes messages off the tap, has them handled by a free worker, and settles them.

    There are as many workers as the consumer's `concurrency`; they outlive every connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AMQPOptions,
        observers: Sequence[Observer],
        settling: Settling,
        overdue: Overdue,
        handled: Handled,
        place: Place,
    ) -> None:
        self.name = endpoint.name
        work = self._work_batches if options.batch else self._work
        self.workers = Workers(endpoint.name, options.concurrency, work)
        self._process = endpoint.process
        self._process_batch = endpoint.process_batch
        self._observers = observers
        self._settling = settling
        self._overdue = overdue
        self._handled = handled
        self._place = place
        self._limit = f"AMQP__{place[0].upper()}__MAX_MESSAGE_SIZE"
        self._waiting: deque[AMQPMessage[Any]] = deque()
        self._batching: Batching[AMQPMessage[Any]] = Batching(
            options.full_batch, options.batch_interval, self.workers.wake
        )
        self._take = self._batching.add if options.batch else self._take_one
        settling.safe_requeue.handle_again = self._take
        self._running: dict[AMQPMessage[Any], float] = {}
        # Redelivered messages whose first call still runs.
        self._held: dict[AMQPMessage[Any], float] = {}
        self._stopping = asyncio.Event()

    def inlet(self, acks: Acks, queue: str, tag: str, position: Position | None = None) -> Inlet:
        """What takes the messages of one channel off the tap; a stream has a position."""
        acks.unsent, acks.in_doubt = self._remember, self._note_in_doubt
        if position is None:
            return Inlet(self._take, acks, queue, tag, self._limit)

        def take(message: AMQPMessage[Any]) -> None:
            position.note(message)
            self._take(message)

        return Inlet(take, acks, queue, tag, self._limit)

    def is_overdue(self, acks: Acks) -> bool:
        """Whether one of their messages was held for as long as the broker waits."""
        now = perf_counter()
        held = {**self._running, **self._held}
        return any(
            self._overdue.is_due(now - began, suspect=each.tag == acks.first)
            for each, began in held.items()
            if each.acks is acks
        )

    def before_close(self, acks: Acks) -> None:
        """Requeue the messages that no worker has started with, before the channel is closed."""
        waiting = [each for each in (*self._waiting, *self._batching) if each.acks is acks]
        self._settling.safe_requeue.requeue_without_counting(waiting)

    def forget(self, acks: Acks, *, suspect: bool = False) -> None:
        """Their channel is lost: the broker delivers again what no worker has begun with.

        Args:
            suspect: The broker closed it, perhaps because of its consumer timeout.
        """
        self._waiting = deque(each for each in self._waiting if each.acks is not acks)
        self._batching.keep(lambda message: message.acks is not acks)
        now = perf_counter()
        for message, began in {**self._running, **self._held}.items():
            if message.acks is acks:
                oldest = message.tag == acks.first
                self._overdue.note(message, now - began, suspect=suspect and oldest)
                self._held.pop(message, None)
        self._settling.forget()

    def stop(self) -> None:
        """Begin with nothing new, but for a batch that has come in part."""
        self._stopping.set()
        self._batching.flush()

    def hasten(self) -> None:
        """Wait for nothing: a part of a batch will do, and what waits to go back goes back."""
        self._batching.release()
        self._settling.release()

    def put_back(self) -> None:
        """Return to the broker what no worker has begun with, and what waits to go back."""
        for message in [*self._waiting, *self._batching.clear(), *self._held]:
            self._settling.safe_requeue.requeue(message, failed=False)
        self._waiting.clear()
        self._held.clear()
        self._settling.hurry()

    def requeue_running(self) -> None:
        """Requeue the messages whose handlers were cancelled or ended the process."""
        for message in self._running:
            self._settling.safe_requeue.requeue(message)
        self._running.clear()

    async def wait_for_requeues(self) -> None:
        """Wait until all messages are requeued, or could not be."""
        await self._settling.safe_requeue.wait()

    def _take_one(self, message: AMQPMessage[Any]) -> None:
        self._waiting.append(message)
        self.workers.wake()

    async def _work(self) -> None:
        turn, task = perf_counter(), asyncio.current_task()
        while self._waiting and not self._stopping.is_set():
            message = self._waiting.popleft()
            if self._waiting:
                self.workers.wake()
            if message.acks.lost:
                continue
            began = self._running[message] = perf_counter()
            known = None
            if message.redelivered_flag:
                known = self._known(message)
                if known is None and (
                    self._hold(message)
                    or await self._settling.safe_requeue.replace_with_copy(message)
                ):
                    del self._running[message]
                    continue
            outcome = known or await self._process(message, task)
            seconds = perf_counter() - began
            if outcome.action is Action.ACK and not self._settling.failing:
                self._acknowledge(message, outcome, seconds)
            else:
                await self._settle(message, outcome, seconds)
            del self._running[message]
            if self._held:
                self._resume(message)
            if began + seconds - turn > _LONG_TURN:
                # Handlers that compute without awaiting must not starve everybody else.
                await asyncio.sleep(0)
                turn = perf_counter()

    async def _work_batches(self) -> None:
        while batch := [each for each in self._batching.take() if not each.acks.lost]:
            self.workers.wake()
            self._running |= dict.fromkeys(batch, perf_counter())
            redelivered = {each: self._known(each) for each in batch if each.redelivered_flag}
            known = {message: outcome for message, outcome in redelivered.items() if outcome}
            settling = {self._begin(message, outcome, 0.0) for message, outcome in known.items()}
            try:
                again = [each for each in redelivered if each not in known]
                held = {each for each in again if self._hold(each)}
                replaced = await self._replaced_with_copies(
                    [each for each in again if each not in held]
                )
                for message in held:
                    del self._running[message]
                batch = [each for each in batch if each not in held]
                left = [each for each in batch if each not in known and each not in replaced]
                await self._handle_batch(left, settling)
                await asyncio.gather(*settling)
            finally:
                await cancel_and_wait(settling)
            for message in batch:
                self._running.pop(message, None)
            for message in batch if self._held else ():
                self._resume(message)

    async def _handle_batch(
        self, batch: list[AMQPMessage[Any]], settling: set[asyncio.Task[None]]
    ) -> None:
        """Acknowledge what went well, and begin to settle what did not, into *settling*."""
        while batch:
            began = perf_counter()
            outcomes = await self._process_batch(batch)
            seconds = perf_counter() - began
            again = []
            for message, outcome in zip(batch, outcomes, strict=True):
                if outcome.action is Action.ACK and not self._settling.failing:
                    self._acknowledge(message, outcome, seconds)
                    del self._running[message]
                elif self._settling.in_place(message, outcome):
                    again.append((message, outcome))
                else:
                    settling.add(self._begin(message, outcome, seconds))
            batch = await self._again(again, seconds)

    def _begin(
        self, message: AMQPMessage[Any], outcome: Outcome, seconds: float
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self._settle_of_batch(message, outcome, seconds))

    async def _settle_of_batch(
        self, message: AMQPMessage[Any], outcome: Outcome, seconds: float
    ) -> None:
        """Settle it, and forget it at once: others of its batch may be handled for long yet."""
        await self._settle(message, outcome, seconds)
        self._running.pop(message, None)

    def _hold(self, message: AMQPMessage[Any]) -> bool:
        """Hold a redelivered message whose first call still runs in this process.

        No message is handled twice at the same time by one process. The call that runs decides: if
        it succeeds, this one is acknowledged.
        """
        for each in self._running:
            if each.acks is not message.acks and each.fingerprint == message.fingerprint:
                self._held[message] = perf_counter()
                return True
        return False

    def _resume(self, ended: AMQPMessage[Any]) -> None:
        """Continue with a redelivered message after the first call with it has ended."""
        if ended in self._held:
            return
        same = [each for each in self._held if each.fingerprint == ended.fingerprint]
        for message in same:
            del self._held[message]
            if not message.acks.lost:
                self._take(message)

    def _known(self, message: AMQPMessage[Any]) -> Outcome | None:
        """What the past of a redelivered message has decided; None for most."""
        if self._handled.recall(self._place, message):
            log.info(
                "handled before its connection was lost: acknowledged now",
                extra={"consumer": self.name, "delivery": str(message)},
            )
            return Outcome(Action.ACK)
        return self._overdue.given_up(message) or self._settling.given_up(message)

    async def _replaced_with_copies(
        self, redelivered: Collection[AMQPMessage[Any]]
    ) -> Collection[AMQPMessage[Any]]:
        """Return the messages that were replaced with copies; RabbitMQ delivers the copies."""
        if not redelivered:
            return ()
        answers = await asyncio.gather(*map(self._replaced, redelivered))
        return {message for message, replaced in zip(redelivered, answers, strict=True) if replaced}

    async def _replaced(self, message: AMQPMessage[Any]) -> bool:
        replaced = await self._settling.safe_requeue.replace_with_copy(message)
        if replaced:
            del self._running[message]
        return replaced

    async def _again(
        self, failed: Sequence[tuple[AMQPMessage[Any], Outcome]], seconds: float
    ) -> list[AMQPMessage[Any]]:
        """Pause before tries in place, once for all; none are made if the process stops."""
        for message, outcome in failed:
            self._tell(message, outcome, Action.RETRY, seconds)
        pause = max((outcome.delay for _, outcome in failed), default=0.0)
        if pause and not await sleep_unless_stopping(pause, self._stopping):
            return []
        for message, _ in failed:
            message.again()
        return [message for message, _ in failed]

    def _acknowledge(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> None:
        lost = not message.acks.ack(message.tag, message)
        if lost:
            self._handled.remember(self._place, message)
        record = Settled(self.name, message.queue, message, outcome, Action.ACK, seconds, lost)
        notify(self._observers, record)

    async def _settle(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> None:
        while self._settling.in_place(message, outcome):
            if not await self._again([(message, outcome)], seconds):
                return
            began = perf_counter()
            outcome = await self._process(message)
            seconds = perf_counter() - began
        action, alive = await self._settling.settle(message, outcome)
        if action is Action.ACK and not alive:
            self._handled.remember(self._place, message)
        self._tell(message, outcome, action, seconds, lost=not alive)

    def _remember(self, messages: Sequence[AMQPMessage[Any]]) -> None:
        for message in messages:
            # A copy in the same queue has the same id and body, and must not be taken for it.
            if message.moved:
                self._handled.add_in_doubt(self._place, message)
            else:
                self._handled.remember(self._place, message)

    def _note_in_doubt(self, messages: Sequence[AMQPMessage[Any]]) -> None:
        for message in messages:
            self._handled.add_in_doubt(self._place, message)

    def _tell(
        self,
        message: AMQPMessage[Any],
        outcome: Outcome,
        action: Action,
        seconds: float,
        *,
        lost: bool = False,
    ) -> None:
        record = Settled(self.name, message.queue, message, outcome, action, seconds, lost)
        notify(self._observers, record)
