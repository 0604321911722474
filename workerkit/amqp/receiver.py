"""Handle and settle the messages of one consumer."""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Coroutine, Iterator, Sequence
from time import perf_counter
from typing import Any

from workerkit.amqp.acks import Acks
from workerkit.amqp.answers import Answers
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.incoming import Inlet
from workerkit.amqp.message import AMQPMessage
from workerkit.amqp.redelivery import Redelivery
from workerkit.amqp.settlement import AMQPSettlement
from workerkit.amqp.stream_position import StreamPosition
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.tasks import cancel_and_wait, sleep_unless_stopping
from workerkit.workers import Batching, Workers

log = logging.getLogger(__name__)

_LONG_TURN = 0.001


class Receiver:
    """Hands each message to a free worker, which calls the handler and settles the message.

    There are as many workers as the consumer's `concurrency`. They do not end with a connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: AMQPOptions,
        observers: Sequence[Observer],
        settlement: AMQPSettlement,
        redelivery: Redelivery,
        answers: Answers | None = None,
    ) -> None:
        self.name = endpoint.name
        work = self._work_batches if options.batch else self._work
        self.workers = Workers(endpoint.name, options.concurrency, work)
        self._endpoint = endpoint
        self._process = endpoint.process
        # What is acknowledged without a further check: nothing if None is a reply, too.
        self._done = None if answers is not None and answers.always else Action.ACK
        self._process_batch = endpoint.process_batch
        self._observers = observers
        self._settlement = settlement
        self._requeue = settlement.requeue
        self._redelivery = redelivery
        self._limit = f"AMQP__{options.connection.upper()}__MAX_MESSAGE_SIZE"
        self._waiting: deque[AMQPMessage[Any]] = deque()
        self._batching: Batching[AMQPMessage[Any]] = Batching(
            options.full_batch, options.batch_interval, self.workers.wake
        )
        self._take = self._batching.add if options.batch else self._take_one
        settlement.requeue.handle_again = self._take
        self._running: dict[AMQPMessage[Any], float] = {}
        # Redelivered messages whose first call still runs, by the time when they arrived.
        self._held: dict[AMQPMessage[Any], float] = {}
        self._stopping = asyncio.Event()

    def inlet(
        self, acks: Acks, queue: str, tag: str, position: StreamPosition | None = None
    ) -> Inlet:
        """Return the reader of one channel's messages; a stream has a position."""
        acks.unsent, acks.in_doubt = self._remember, self._remember_in_doubt
        if position is None:
            return Inlet(self._take, acks, queue, tag, self._limit)

        def take(message: AMQPMessage[Any]) -> None:
            position.note(message)
            self._take(message)

        return Inlet(take, acks, queue, tag, self._limit)

    def is_overdue(self, acks: Acks) -> bool:
        """Return whether a message of a channel took as long as the broker's consumer timeout."""
        now = perf_counter()
        held = {**self._running, **self._held}
        return any(
            self._redelivery.overdue.is_due(now - began, suspect=each.tag == acks.first)
            for each, began in held.items()
            if each.acks is acks
        )

    def before_close(self, acks: Acks) -> None:
        """Requeue the messages that no worker has started with, before the channel is closed."""
        waiting = [each for each in (*self._waiting, *self._batching) if each.acks is acks]
        self._requeue.without_counting(waiting)

    def forget(self, acks: Acks, *, suspect: bool = False) -> None:
        """Drop the messages of a lost channel that no worker has started with.

        Args:
            suspect: The broker closed it, perhaps because of its consumer timeout.
        """
        self._waiting = deque(each for each in self._waiting if each.acks is not acks)
        self._batching.keep(lambda message: message.acks is not acks)
        now = perf_counter()
        for message, began in {**self._running, **self._held}.items():
            if message.acks is acks:
                oldest = message.tag == acks.first
                self._redelivery.overdue.note(message, now - began, suspect=suspect and oldest)
                self._held.pop(message, None)
        self._requeue.forget_lost()

    @property
    def in_progress(self) -> bool:
        """Whether messages wait for a worker, are handled, or are being requeued."""
        received = self._waiting or self._batching or self._running or self._held
        return bool(received) or self.workers.busy or self._requeue.copying > 0

    def keep_failed(self) -> None:
        """Keep messages that fail again until the process stops: for bursts."""
        self._requeue.keep_failed()

    def resize(self, concurrency: int) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """Change the number of workers. Returns additional ones, which the caller runs as tasks."""
        self._endpoint.resize(concurrency)
        return self.workers.resize(concurrency)

    def return_waiting(self, acks: Acks) -> None:
        """Requeue the messages of a channel that no worker has started with: for a pause."""
        received = (*self._waiting, *self._batching, *self._held)
        waiting = [each for each in received if each.acks is acks]
        self._waiting = deque(each for each in self._waiting if each.acks is not acks)
        self._batching.keep(lambda message: message.acks is not acks)
        for message in waiting:
            self._held.pop(message, None)
            self._requeue.at_once(message, failed=False)

    def adapt(self, prefetch: int) -> None:
        """Adapt to another prefetch count."""
        self._requeue.adapt(prefetch)

    def stop(self) -> None:
        """Start with no further message, except those of a partial batch."""
        self._stopping.set()
        self._batching.flush()

    def skip_waits(self) -> None:
        """Handle partial batches and requeue held messages now: for tests."""
        self._batching.release()
        self._requeue.release()

    def requeue_waiting(self) -> None:
        """Requeue the messages that no worker has started with, and those that are held."""
        for message in [*self._waiting, *self._batching.clear(), *self._held]:
            self._requeue.at_once(message, failed=False)
        self._waiting.clear()
        self._held.clear()
        self._requeue.stop()

    def requeue_running(self) -> None:
        """Requeue the messages whose handlers were cancelled or ended the process."""
        for message in self._running:
            self._requeue.at_once(message)
        self._running.clear()

    async def wait_for_requeues(self) -> None:
        """Wait until all messages are requeued, or their copies have failed."""
        await self._requeue.wait()

    def _take_one(self, message: AMQPMessage[Any]) -> None:
        self._waiting.append(message)
        self.workers.wake()

    async def _work(self) -> None:
        turn, task, workers = perf_counter(), asyncio.current_task(), self.workers
        while self._waiting and not self._stopping.is_set():
            message = self._waiting.popleft()
            if self._waiting:
                self.workers.wake()
            if message.acks.lost:
                continue
            began = self._running[message] = perf_counter()
            known = None
            if message.redelivered_flag:
                known = self._redelivery.outcome(message)
                if known is None and (
                    self._hold(message) or await self._requeue.replace_with_copy(message)
                ):
                    del self._running[message]
                    continue
            outcome = known or await self._process(message, task)
            seconds = perf_counter() - began
            if (
                outcome.action is self._done
                and outcome.value is None
                and known is None
                and not self._requeue.failing
            ):
                self._acknowledge(message, outcome, seconds)
            else:
                await self._settle(message, outcome, seconds)
            del self._running[message]
            if self._held:
                self._resume(message)
            if workers.surplus:
                return
            if began + seconds - turn > _LONG_TURN:
                # Handlers that compute without awaiting must not block all other tasks.
                await asyncio.sleep(0)
                turn = perf_counter()

    async def _work_batches(self) -> None:
        while batch := [each for each in self._batching.take() if not each.acks.lost]:
            self.workers.wake()
            self._running |= dict.fromkeys(batch, perf_counter())
            redelivered = {
                each: self._redelivery.outcome(each) for each in batch if each.redelivered_flag
            }
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
            if self.workers.surplus:
                return

    async def _handle_batch(
        self, batch: list[AMQPMessage[Any]], settling: set[asyncio.Task[None]]
    ) -> None:
        """Acknowledge what was handled, and start tasks in *settling* for the other messages."""
        while batch:
            began = perf_counter()
            outcomes = await self._process_batch(batch)
            seconds = perf_counter() - began
            again = []
            for message, outcome in zip(batch, outcomes, strict=True):
                if outcome.action is Action.ACK and not self._requeue.failing:
                    self._acknowledge(message, outcome, seconds)
                    del self._running[message]
                elif self._settlement.is_in_place(message, outcome):
                    again.append((message, outcome))
                else:
                    settling.add(self._begin(message, outcome, seconds))
            batch = await self._try_again(again, seconds)

    def _begin(
        self, message: AMQPMessage[Any], outcome: Outcome, seconds: float
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self._settle_of_batch(message, outcome, seconds))

    async def _settle_of_batch(
        self, message: AMQPMessage[Any], outcome: Outcome, seconds: float
    ) -> None:
        """Settle one message; the others of its batch may take longer."""
        await self._settle(message, outcome, seconds)
        self._running.pop(message, None)

    def _hold(self, message: AMQPMessage[Any]) -> bool:
        """Hold a redelivered message whose first call still runs in this process.

        A process never handles a message twice at the same time. If the first call succeeds, the
        redelivered message is acknowledged.
        """
        for each in self._running:
            if each.acks is not message.acks and each.fingerprint == message.fingerprint:
                self._held[message] = perf_counter()
                return True
        return False

    def _resume(self, ended: AMQPMessage[Any]) -> None:
        """Continue with the redelivered messages that were held during a call that has ended."""
        if ended in self._held:
            return
        same = [each for each in self._held if each.fingerprint == ended.fingerprint]
        for message in same:
            del self._held[message]
            if not message.acks.lost:
                self._take(message)

    async def _replaced_with_copies(
        self, redelivered: Collection[AMQPMessage[Any]]
    ) -> Collection[AMQPMessage[Any]]:
        """Return the messages that were replaced with copies; RabbitMQ delivers the copies."""
        if not redelivered:
            return ()
        answers = await asyncio.gather(*map(self._replaced, redelivered))
        return {message for message, replaced in zip(redelivered, answers, strict=True) if replaced}

    async def _replaced(self, message: AMQPMessage[Any]) -> bool:
        replaced = await self._requeue.replace_with_copy(message)
        if replaced:
            del self._running[message]
        return replaced

    async def _try_again(
        self, failed: Sequence[tuple[AMQPMessage[Any], Outcome]], seconds: float
    ) -> list[AMQPMessage[Any]]:
        """Pause once before immediate retries; return no message if the process stops."""
        for message, outcome in failed:
            self._notify(message, outcome, Action.RETRY, seconds)
        pause = max((outcome.delay for _, outcome in failed), default=0.0)
        if pause and not await sleep_unless_stopping(pause, self._stopping):
            return []
        for message, _ in failed:
            message.again()
        return [message for message, _ in failed]

    def _acknowledge(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> None:
        lost = not message.acks.ack(message.tag, message)
        if lost:
            self._redelivery.remember(message)
        record = Settled(self.name, message.queue, message, outcome, Action.ACK, seconds, lost)
        notify(self._observers, record)

    async def _settle(self, message: AMQPMessage[Any], outcome: Outcome, seconds: float) -> None:
        while self._settlement.is_in_place(message, outcome):
            if not await self._try_again([(message, outcome)], seconds):
                return
            began = perf_counter()
            outcome = await self._process(message)
            seconds = perf_counter() - began
        action, alive = await self._settlement.settle(message, outcome)
        if action is Action.ACK and not alive:
            self._redelivery.remember(message)
        self._notify(message, outcome, action, seconds, lost=not alive)

    def _remember(self, messages: Sequence[AMQPMessage[Any]]) -> None:
        for message in messages:
            self._redelivery.remember(message)

    def _remember_in_doubt(self, messages: Sequence[AMQPMessage[Any]]) -> None:
        for message in messages:
            self._redelivery.remember_in_doubt(message)

    def _notify(
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
