"""Receive the events of one stream, have workers handle them, and settle them."""

import asyncio
from collections import deque
from collections.abc import Container, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from time import perf_counter
from typing import Any

from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.retry import growing_pause, pause
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.event import SSEEvent
from workerkit.sse.stored_cursor import StoredCursor
from workerkit.workers import Batching, Workers


class CursorTracker:
    """The order of the events of one stream, until they are settled.

    An entry is one event, or any number of consecutive events that are skipped. Entries are
    identified by their number, not by their id: an id may be missing or may occur twice. Only the
    ids are kept, so a slow event does not keep later events in memory.

    Args:
        cursor: The id after which the stream begins.

    Attributes:
        cursor: The id after which the stream can be resumed without losing an event: that of the
            last entry before the first one that is not settled.
    """

    __slots__ = ("_first", "_ids", "_last_skipped", "_settled", "cursor")

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self._first = 0  # The number of the first entry that is not settled.
        self._ids: deque[str] = deque()
        self._settled: set[int] = set()
        self._last_skipped = -1  # The number of the last entry of skipped events.

    def __len__(self) -> int:
        """Return the number of entries after the cursor."""
        return len(self._ids)

    def add(self, events: Sequence[SSEEvent[Any]]) -> None:
        """Number events that will be settled later."""
        number = self._first + len(self._ids)
        for event in events:
            event.sequence = number
            number += 1
        self._ids.extend([event.id for event in events])

    def skip(self, id: str) -> None:
        """Skip events up to an id: they are settled as soon as all earlier events are."""
        ids = self._ids
        last = self._first + len(ids) - 1
        if not ids:
            self.cursor = id
        elif self._last_skipped == last:
            ids[-1] = id
        else:
            ids.append(id)
            self._last_skipped = last + 1
            self._settled.add(last + 1)

    def settle(self, sequence: int) -> None:
        """Settle the event with this number, and move the cursor if possible."""
        if sequence != self._first:
            self._settled.add(sequence)
            return
        self.cursor = self._ids.popleft()
        self._first += 1
        while self._settled and self._first in self._settled:
            self._settled.remove(self._first)
            self.cursor = self._ids.popleft()
            self._first += 1


_MAX_TURN = 0.001
_MAX_WAITING_TEXT = 1024 * 1024
_MAX_UNSETTLED = 10_000

Events = Sequence[SSEEvent[Any]]


class StreamReceiver:
    """The events of one stream that wait for a worker, and the workers that handle them.

    An event that is tried again keeps its worker during the pause, so with one worker no event
    overtakes another. Waiting events survive a reconnect.

    Args:
        route: The route of the stream.
        slot: Held while `handle` runs, if several streams share the `concurrency` of a consumer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: SSEOptions,
        route: str,
        observers: Sequence[Observer],
        stored_cursor: StoredCursor,
        slot: AbstractAsyncContextManager[Any] | None = None,
    ) -> None:
        self.name = endpoint.name
        work = self._work_batches if options.batch else self._work
        self.workers = Workers(f"{endpoint.name} {route}".strip(), options.concurrency, work)
        self._source = route or self.name
        self._options = options
        self._wanted = None if options.events is None else frozenset(options.events)
        self._endpoint = endpoint
        self._process = endpoint.process
        self._process_batch = endpoint.process_batch
        self._observers = observers
        self._stored_cursor = stored_cursor
        self._slot = slot
        self._tracker = CursorTracker()
        self._waiting: deque[SSEEvent[Any]] = deque()
        self._batching: Batching[SSEEvent[Any]] = Batching(
            options.batch_size, options.batch_interval, self.workers.wake
        )
        self._several = options.concurrency > 1
        self._room_waiter: asyncio.Future[None] | None = None
        self._pauses: set[asyncio.Future[None]] = set()
        self._stopping = asyncio.Event()

    def resize(self, concurrency: int) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """Change the number of workers. Returns additional ones, which the caller runs as tasks."""
        self._endpoint.resize(concurrency)
        self._several = concurrency > 1
        return self.workers.resize(concurrency)

    @property
    def unsettled(self) -> int:
        """The number of events that have arrived and are not settled."""
        return len(self._tracker)

    def cursor(self) -> str:
        """Return the id up to which all events are settled."""
        return self._tracker.cursor

    @property
    def full(self) -> bool:
        """Whether so many events wait for a worker that no more should be read."""
        waiting = self._batching if self._options.batch else self._waiting
        return (
            len(waiting) >= self._options.room
            or sum(len(event.raw) + len(event.name) for event in waiting) >= _MAX_WAITING_TEXT
            or len(self._tracker) >= _MAX_UNSETTLED
        )

    def begin(self, cursor: str) -> None:
        """Set the cursor after which the stream begins."""
        self._tracker = CursorTracker(cursor)

    def add(self, events: Events, last_event_id: str) -> None:
        """Add events that have arrived.

        Args:
            last_event_id: The last event id after them, which may be the id of none of them.
        """
        tracker = self._tracker
        if self._wanted is not None:
            events = list(self._filtered(events, self._wanted))
        else:
            tracker.add(events)
        if self._options.batch:
            for event in events:
                self._batching.add(event)
        elif events:
            self._waiting.extend(events)
            self.workers.wake()
        if not events or events[-1].id != last_event_id:
            tracker.skip(last_event_id)
        self._stored_cursor.move_to(tracker.cursor)

    async def room(self) -> None:
        """Wait until there is room for more events."""
        while self.full:
            if self._options.batch and len(self._batching):
                # With large events, the limit is reached before a batch is full.
                self._batching.release()
            self._room_waiter = asyncio.get_running_loop().create_future()
            await self._room_waiter

    def stop(self) -> None:
        """Start no more events, except for a partial batch, and no more attempts."""
        self._stopping.set()
        self._batching.flush()
        self._end_pauses()

    def skip_waits(self) -> None:
        """Handle partial batches now, and end the pauses before the next attempts."""
        self._batching.release()
        self._end_pauses()

    def drop(self) -> None:
        """Discard the events that no worker has started: the server will send them again."""
        self._waiting.clear()
        self._batching.clear()

    def _filtered(self, events: Events, wanted: Container[str]) -> Iterator[SSEEvent[Any]]:
        for event in events:
            if event.name in wanted:
                self._tracker.add((event,))
                yield event
            else:
                self._tracker.skip(event.id)

    async def _work(self) -> None:
        turn, task = perf_counter(), asyncio.current_task()
        waiting, process, slot = self._waiting, self._process, self._slot
        while waiting and not self._stopping.is_set():
            event = waiting.popleft()
            if waiting and self._several:
                self.workers.wake()
            if self._room_waiter is not None:
                self._signal_room()
            while True:
                began = perf_counter()
                if slot is None:
                    outcome = await process(event, task)
                else:
                    async with slot:
                        if self._stopping.is_set():
                            return
                        began = perf_counter()
                        outcome = await process(event, task)
                now = perf_counter()
                if self._settle(event, outcome, now - began):
                    break
                if not await self._pause(self._delay(event, outcome)):
                    return
                event.again()
            if self.workers.surplus:
                return
            if now - turn > _MAX_TURN:
                # Handlers that never await must not block other tasks.
                await asyncio.sleep(0)
                turn = perf_counter()

    async def _work_batches(self) -> None:
        while batch := self._batching.take():
            self.workers.wake()
            self._signal_room()
            while batch:
                async with self._slot or nullcontext():
                    began = perf_counter()
                    outcomes = await self._process_batch(batch)
                seconds = perf_counter() - began
                retries = [
                    (event, self._delay(event, outcome))
                    for event, outcome in zip(batch, outcomes, strict=True)
                    if not self._settle(event, outcome, seconds)
                ]
                batch = [event for event, _ in retries]
                if batch and not await self._pause(max(delay for _, delay in retries)):
                    return
                for event in batch:
                    event.again()
            if self.workers.surplus:
                return

    def _settle(self, event: SSEEvent[Any], outcome: Outcome, seconds: float) -> bool:
        """Apply an outcome and notify the observers; return False if the event is tried again."""
        action = outcome.action.without_broker
        done = action is Action.ACK or action is Action.REJECT
        if done:
            tracker = self._tracker
            tracker.settle(event.sequence)
            self._stored_cursor.move_to(tracker.cursor)
            if self._room_waiter is not None:
                self._signal_room()
        record = Settled(self.name, self._source, event, outcome, action, seconds)
        notify(self._observers, record)
        return done

    def _signal_room(self) -> None:
        """Wake the reader if it waits for room."""
        waiter, self._room_waiter = self._room_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _delay(self, event: SSEEvent[Any], outcome: Outcome) -> float:
        """Return the seconds until the next attempt, by the policy or growing with each failure."""
        if outcome.action is Action.RETRY:
            return pause(outcome, self._options.retry)
        return growing_pause(event.attempt)

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; return False if the process stops."""
        if seconds and not self._stopping.is_set():
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pauses.add(over)
            try:
                await asyncio.wait([over], timeout=seconds)
            finally:
                self._pauses.discard(over)
        return not self._stopping.is_set()

    def _end_pauses(self) -> None:
        for over in self._pauses:
            if not over.done():
                over.set_result(None)
