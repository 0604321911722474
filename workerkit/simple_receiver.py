"""The part of a `SimpleTransport` that works for one consumer: receive, handle, settle."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Generic, cast

from workerkit.delivery import Action, Delivery, Outcome
from workerkit.describe import summarize_error, without_needless_traceback
from workerkit.endpoint import Endpoint
from workerkit.errors import BrokerRefused
from workerkit.health import Health, Part, State
from workerkit.observe import ConnectionEvent, Event, Settled, notify, notify_event
from workerkit.retry import growing_pause, pause
from workerkit.simple_options import DeliveryType, OptionsType, TwoFunctions, possible_outcome
from workerkit.tasks import (
    Backoff,
    cancel,
    cancel_and_wait,
    failure_of,
    sleep_unless_stopping,
)
from workerkit.transport import Context, Hook
from workerkit.workers import Batching, Room, Workers

log = logging.getLogger(__name__)

STABLE_AFTER = 10.0
"""Seconds for which a connection has to last, so that the pauses begin again with the first."""

_CANCEL_INTERVAL = 0.5


class SimpleReceiver(Generic[OptionsType, DeliveryType]):
    """Receives the deliveries of one consumer, and has them handled and settled.

    Args:
        transport: Has `receive` and `settle`.
        source: What the consumer reads from, for people.

    Attributes:
        tasks: The workers.
        unsettled: The number of deliveries that were received and are not settled.
        paused: Whether it is paused.
    """

    def __init__(
        self,
        transport: TwoFunctions[OptionsType, DeliveryType],
        source: str,
        endpoint: Endpoint,
        context: Context,
    ) -> None:
        self.name = endpoint.name
        self._transport = transport
        self._endpoint = endpoint
        self._context = context
        self._options = cast(OptionsType, endpoint.options)
        self._source = source
        self._actions = frozenset({Action.ACK, *transport.actions})
        options = self._options
        work = self._work_batches if options.batch else self._work
        self.workers = Workers(self.name, options.concurrency, work)
        self.tasks: list[asyncio.Task[None]] = []
        self.unsettled = 0
        self._room = Room(self._most_with(options.concurrency))
        self._waiting: deque[DeliveryType] = deque()
        self._batching: Batching[DeliveryType] = Batching(
            options.batch_size, options.batch_interval, self.workers.wake
        )
        self._hook = Hook(endpoint)
        self._part = Part(context.changed, source=source)
        self._backoff = Backoff()
        self._connected_since = 0.0
        self._settle_backoff = Backoff()
        self._paused_until = 0.0
        self._stopping = asyncio.Event()
        self._skip = asyncio.Event()
        self._requeues = 0
        self.paused = options.paused
        self._changing = asyncio.Lock()
        self._receiving: asyncio.Task[None] | None = None

    def start(self) -> Health:
        """Start the workers, and receive, unless the consumer starts paused."""
        keep = self._context.keep
        self.tasks = [keep(work, name) for name, work in self.workers.tasks()]
        if self.paused:
            self._part.paused()
        else:
            self._start_receiving()
        return Health(self.name, [self._part], in_flight=lambda: self.workers.working)

    async def stop(self) -> None:
        """Receive nothing new; what was received is handled."""
        self._stopping.set()
        self._part.stopping()
        await self._stop_receiving()
        self.skip_waits()
        self._batching.flush()

    async def pause(self) -> None:
        """Receive nothing new; what was received is handled."""
        async with self._changing:
            self.paused = True
            self._part.paused()
            await self._stop_receiving()

    async def resume(self) -> None:
        """Receive again, once a pause that was begun before has ended."""
        async with self._changing:
            if self.paused and not self._stopping.is_set():
                # The pause may have been cancelled before its end.
                await self._stop_receiving()
                self.paused = False
                self._part.resumed()
                if self._part.state is not State.ENDED:
                    self._start_receiving()

    def resize(self, concurrency: int) -> None:
        """Change the number of workers, and that of deliveries which may be received."""
        self._endpoint.resize(concurrency)
        self.tasks = [each for each in self.tasks if not each.done()]
        self.tasks += [
            self._context.keep(work, name) for name, work in self.workers.resize(concurrency)
        ]
        self._room.resize(self._most_with(concurrency))

    def _most_with(self, concurrency: int) -> int:
        options = self._options
        return options.batch_size * (concurrency + 1) if options.batch else concurrency

    def _start_receiving(self) -> None:
        work = self._receive_forever()
        self._receiving = self._context.keep(work, f"{self.name} receiving")

    async def _stop_receiving(self) -> None:
        while self._receiving is not None and not self._receiving.done():
            # Again and again: client libraries may swallow a cancellation while they read.
            cancel(self._receiving)
            await asyncio.wait([self._receiving], timeout=_CANCEL_INTERVAL)

    def skip_waits(self) -> None:
        """Handle partly filled batches, and end pauses before other attempts, now."""
        self._batching.release()
        self._skip.set()
        self._skip = asyncio.Event()

    async def close(self) -> None:
        """Cancel the idle workers."""
        if not self.workers.busy:
            await cancel_and_wait(self.tasks)
        await self._hook.close()

    async def _receive_forever(self) -> None:
        while not (self._stopping.is_set() or self.paused):
            try:
                await self._receive()
            except BaseException as error:
                await self._failed(failure_of(f"{self.name}: receive", error))
            else:
                if not (self._stopping.is_set() or self.paused):
                    self._part.ended(f"{self._source} has ended")
                return

    async def _receive(self) -> None:
        """Hand over deliveries until the source ends or fails."""
        loop, after = asyncio.get_running_loop(), self._transport.ready_after
        timer = None if after is None else loop.call_later(after, self._connected)
        deliveries: Any = self._transport.receive(self._options)
        try:
            while True:
                await self._room.take()
                delivery: DeliveryType | None = None
                try:
                    delivery = await anext(deliveries)
                finally:
                    if delivery is None:
                        self._room.free()
                if self._stopping.is_set() or self.paused:
                    # `receive` has swallowed the cancellation; the source keeps the delivery.
                    return
                self._connected()
                if delivery is None:
                    # `receive` may never wait for anything.
                    await asyncio.sleep(0)
                else:
                    self._take(delivery)
        except StopAsyncIteration:
            return
        finally:
            if timer is not None:
                timer.cancel()
            if hasattr(deliveries, "aclose"):
                await deliveries.aclose()

    def _take(self, yielded: object) -> None:
        if not isinstance(yielded, Delivery):
            self._room.free()
            raise TypeError(
                f"{type(self._transport).__qualname__}.receive yielded an object of"
                f" {type(yielded).__qualname__}: it has to yield a Delivery, such as"
                " SimpleDelivery, or None"
            )
        delivery = cast(DeliveryType, yielded)
        if delivery.fate is not None:
            # It was handled before, and the transport has not called `again`.
            delivery.again()
        self.unsettled += 1
        if self._options.batch:
            self._batching.add(delivery)
        else:
            self._waiting.append(delivery)
            self.workers.wake()

    def _connected(self) -> None:
        if self._part.state is State.READY or self._stopping.is_set():
            return
        if self._backoff.attempt:
            log.info("receiving again", extra=self._fields())
        self._notify_connection("connected", self._backoff.attempt + 1)
        self._connected_since = perf_counter()
        self._part.ready()

    async def _failed(self, error: Exception) -> None:
        """Report a failed attempt, and wait until the next one."""
        event: Event = "connection_failed"
        if self._part.state is State.READY:
            event = "connection_lost"
            if perf_counter() - self._connected_since > STABLE_AFTER:
                self._backoff.reset()
        seconds = self._backoff.next()
        attempt, reason = self._backoff.attempt, f"{self._source}: {summarize_error(error)}"
        log.error(
            "cannot receive",
            exc_info=without_needless_traceback(error),
            extra=self._fields(attempt=attempt, next_attempt_in=round(seconds, 2)),
        )
        if isinstance(error, BrokerRefused):
            self._part.refused(reason)
        else:
            self._part.waiting(reason)
        self._notify_connection(event, attempt, reason)
        self._hook.connection_failed(error, attempt)
        await sleep_unless_stopping(seconds, self._stopping)

    def _notify_connection(self, event: Event, attempt: int, reason: str = "") -> None:
        record = ConnectionEvent(self.name, "consumers", "", attempt, reason)
        notify_event(self._context.observers, event, record)

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft()]
            if self._waiting:
                self.workers.wake()
            while batch:
                began = perf_counter()
                outcomes = [await self._endpoint.process(batch[0])]
                batch = await self._settle_all(batch, outcomes, perf_counter() - began)
            if self.workers.surplus:
                return

    async def _work_batches(self) -> None:
        while batch := self._batching.take():
            self.workers.wake()
            while batch:
                began = perf_counter()
                outcomes = await self._endpoint.process_batch(batch)
                batch = await self._settle_all(batch, outcomes, perf_counter() - began)
            if self.workers.surplus:
                return

    async def _settle_all(
        self, batch: Sequence[DeliveryType], outcomes: Sequence[Outcome], seconds: float
    ) -> list[DeliveryType]:
        """Settle what was handled; return what is to be handled again, after its pause."""
        lost = False
        requeued: list[tuple[DeliveryType, Outcome]] = []
        again: list[tuple[DeliveryType, Outcome]] = []
        for delivery, outcome in zip(batch, outcomes, strict=True):
            done = possible_outcome(outcome, self._actions)
            if done is None:
                again.append((delivery, outcome))
            elif done.action is Action.REQUEUE:
                requeued.append((delivery, outcome))
            else:
                lost |= await self._settle(delivery, outcome, done, seconds)
        self._requeues = self._requeues + 1 if requeued else 0
        if requeued:
            await self._pause(self._requeue_pause([delivery for delivery, _ in requeued]))
        for delivery, outcome in requeued:
            lost |= await self._settle(delivery, outcome, outcome, seconds)
        if lost:
            # The source may redeliver at once.
            await self._pause(max(self._paused_until - perf_counter(), 0.0))
        return await self._again(again, seconds) if again else []

    async def _settle(
        self, delivery: DeliveryType, decided: Outcome, done: Outcome, seconds: float
    ) -> bool:
        """Settle one delivery; return whether it is lost."""
        if done.action is Action.RETRY:
            done = done._replace(delay=pause(done, self._options.retry))
        lost = False
        timer = self._complain_later(done)
        try:
            await self._transport.settle(delivery, done)
        except BaseException as error:
            self._not_settled(failure_of(f"{self.name}: settle", error), done)
            lost = True
        else:
            self._settle_backoff.reset()
        finally:
            if timer is not None:
                timer.cancel()
        self._release()
        self._notify(delivery, decided, done.action, seconds, lost)
        return lost

    def _not_settled(self, error: Exception, done: Outcome) -> None:
        """Report a delivery that could not be settled, and lengthen the pause of its worker."""
        log.error(
            "cannot settle: the source has to redeliver",
            exc_info=without_needless_traceback(error),
            extra=self._fields(action=done.action),
        )
        now = perf_counter()
        if now >= self._paused_until:
            # Others that fail during the same pause wait for the end of it.
            self._paused_until = now + self._settle_backoff.next()

    def _complain_later(self, done: Outcome) -> asyncio.TimerHandle | None:
        """Log a warning if `settle` takes longer than a call of `handle` may."""
        seconds = self._options.timeout
        if seconds is None:
            return None
        return asyncio.get_running_loop().call_later(
            seconds,
            lambda: log.warning(
                "settle takes longer than the timeout of the consumer",
                extra=self._fields(action=done.action, timeout=seconds),
            ),
        )

    def _fields(self, **others: object) -> dict[str, object]:
        return {"consumer": self.name, "source": self._source, **others}

    async def _again(
        self, failed: Sequence[tuple[DeliveryType, Outcome]], seconds: float
    ) -> list[DeliveryType]:
        """Wait before another attempt in place; return what to handle, nothing if we stop."""
        for delivery, outcome in failed:
            self._notify(delivery, outcome, outcome.action, seconds)
        await self._pause(max(self._attempt_pause(*each) for each in failed))
        if not self._stopping.is_set():
            for delivery, _ in failed:
                delivery.again()
            return [delivery for delivery, _ in failed]
        for delivery, outcome in failed:
            requeue = outcome._replace(action=Action.REQUEUE)
            if Action.REQUEUE in self._actions:
                await self._settle(delivery, requeue, requeue, seconds)
            else:
                self._release()
        return []

    def _notify(
        self,
        delivery: DeliveryType,
        outcome: Outcome,
        action: Action,
        seconds: float,
        lost: bool = False,
    ) -> None:
        record = Settled(self.name, self._source, delivery, outcome, action, seconds, lost)
        notify(self._context.observers, record)

    def _release(self) -> None:
        """Make room for another delivery."""
        self.unsettled -= 1
        self._room.free()

    async def _pause(self, seconds: float) -> None:
        if seconds and not self._stopping.is_set():
            await sleep_unless_stopping(seconds, self._skip)

    def _attempt_pause(self, delivery: DeliveryType, outcome: Outcome) -> float:
        if outcome.action is Action.RETRY:
            return pause(outcome, self._options.retry)
        return growing_pause(delivery.attempt)

    def _requeue_pause(self, deliveries: Sequence[DeliveryType]) -> float:
        """Return 0 for first failures, and longer pauses for what was requeued before."""
        failures = max(self._requeues, *(delivery.attempt for delivery in deliveries))
        return growing_pause(failures - 1) if failures > 1 else 0.0
