"""The room in which the events of one stream are handled and settled."""

import asyncio
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from time import perf_counter
from typing import Any

from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.retry import pause
from workerkit.sse.bookmark import Bookmark
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.event import SSEEvent
from workerkit.workers import Batching, Workers


class Progress:
    """The places of one stream in their order, until they are settled.

    A place is an event, or any number of things in a row that nobody handles. Places are told
    apart by their number and not by their id: ids may be missing, or come again. Only the ids are
    kept, so events whose neighbour is slow do not pile up in memory.

    Args:
        cursor: Where the stream begins.

    Attributes:
        cursor: Id that was in force at the end of all that is settled without a gap. The stream
            can be resumed behind it, and nothing that is not settled is lost.
    """

    __slots__ = ("_first", "_ids", "_passed", "_settled", "cursor")

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self._first = 0  # Number of the first place that is open.
        self._ids: deque[str] = deque()
        self._settled: set[int] = set()
        self._passed = -1  # Number of the last place that nobody handles.

    def __len__(self) -> int:
        """How many places come after the cursor."""
        return len(self._ids)

    def received(self, events: Sequence[SSEEvent[Any]]) -> None:
        """Events have come, to be settled later; each gets its number."""
        number = self._first + len(self._ids)
        for event in events:
            event.sequence = number
            number += 1
        self._ids.extend([event.id for event in events])

    def passed(self, id: str) -> None:
        """Something has come that nobody handles: it is settled as soon as all before it is."""
        ids = self._ids
        last = self._first + len(ids) - 1
        if not ids:
            self.cursor = id
        elif self._passed == last:
            ids[-1] = id
        else:
            ids.append(id)
            self._passed = last + 1
            self._settled.add(last + 1)

    def settled(self, sequence: int) -> None:
        """The event of this number is settled."""
        if sequence != self._first:
            self._settled.add(sequence)
            return
        self.cursor = self._ids.popleft()
        self._first += 1
        while self._settled and self._first in self._settled:
            self._settled.remove(self._first)
            self.cursor = self._ids.popleft()
            self._first += 1


_LONG_TURN = 0.001
_MOST_TEXT = 1024 * 1024
_MOST_OPEN = 10_000
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0

Events = Sequence[SSEEvent[Any]]


class Receiver:
    """Takes the events of one stream, has them handled by a free worker, and settles them.

    An event that is to be tried again keeps its worker while it waits, so that with one worker
    nothing overtakes it. What waits here outlives every connection.

    Args:
        route: The stream.
        slot: Held while `handle` runs, where the streams of a consumer share its `concurrency`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: SSEOptions,
        route: str,
        observers: Sequence[Observer],
        bookmark: Bookmark,
        slot: AbstractAsyncContextManager[Any] | None = None,
    ) -> None:
        self.name = endpoint.name
        work = self._work_batches if options.batch else self._work
        self.workers = Workers(f"{endpoint.name} {route}".strip(), options.concurrency, work)
        self._source = route or self.name
        self._options = options
        self._wanted = None if options.events is None else frozenset(options.events)
        self._process = endpoint.process
        self._process_batch = endpoint.process_batch
        self._observers = observers
        self._bookmark = bookmark
        self._slot = slot
        self._progress = Progress()
        self._waiting: deque[SSEEvent[Any]] = deque()
        self._batching: Batching[SSEEvent[Any]] = Batching(
            options.batch_size, options.batch_interval, self.workers.wake
        )
        self._several = options.concurrency > 1
        self._hungry: asyncio.Future[None] | None = None
        self._pauses: set[asyncio.Future[None]] = set()
        self._stopping = asyncio.Event()

    @property
    def unsettled(self) -> int:
        """How many events have come and are not settled."""
        return len(self._progress)

    def cursor(self) -> str:
        """Id behind which the stream is settled without a gap."""
        return self._progress.cursor

    @property
    def full(self) -> bool:
        """Whether so much waits for a worker that no more should be read."""
        waiting = self._batching if self._options.batch else self._waiting
        return (
            len(waiting) >= self._options.room
            or sum(len(event.raw) + len(event.name) for event in waiting) >= _MOST_TEXT
            or len(self._progress) >= _MOST_OPEN
        )

    def begin(self, cursor: str) -> None:
        """The stream begins behind *cursor*."""
        self._progress = Progress(cursor)

    def take(self, events: Events, last_event_id: str) -> None:
        """Events have come.

        Args:
            last_event_id: In force behind them, which may be none of theirs.
        """
        progress = self._progress
        if self._wanted is not None:
            events = list(self._filtered(events, self._wanted))
        else:
            progress.received(events)
        if self._options.batch:
            for event in events:
                self._batching.add(event)
        elif events:
            self._waiting.extend(events)
            self.workers.wake()
        if not events or events[-1].id != last_event_id:
            progress.passed(last_event_id)
        self._bookmark.note(progress.cursor)

    async def room(self) -> None:
        """Return when there is room for more."""
        while self.full:
            if self._options.batch and len(self._batching):
                # Of large events there will not come enough for a full one.
                self._batching.release()
            self._hungry = asyncio.get_running_loop().create_future()
            await self._hungry

    def stop(self) -> None:
        """Begin with nothing new, but for a batch that has come in part; try nothing again."""
        self._stopping.set()
        self._batching.flush()
        self._end_pauses()

    def hasten(self) -> None:
        """Wait for nothing: a part of a batch will do, and pauses are over."""
        self._batching.release()
        self._end_pauses()

    def drop(self) -> None:
        """Forget what no worker has begun with: the cursor is before it, so it comes again."""
        self._waiting.clear()
        self._batching.clear()

    def _filtered(self, events: Events, wanted: Container[str]) -> Iterator[SSEEvent[Any]]:
        for event in events:
            if event.name in wanted:
                self._progress.received((event,))
                yield event
            else:
                self._progress.passed(event.id)

    async def _work(self) -> None:
        turn, task = perf_counter(), asyncio.current_task()
        waiting, process, slot = self._waiting, self._process, self._slot
        while waiting and not self._stopping.is_set():
            event = waiting.popleft()
            if waiting and self._several:
                self.workers.wake()
            if self._hungry is not None:
                self._feed()
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
            if now - turn > _LONG_TURN:
                # Handlers that compute without awaiting must not starve everybody else.
                await asyncio.sleep(0)
                turn = perf_counter()

    async def _work_batches(self) -> None:
        while batch := self._batching.take():
            self.workers.wake()
            self._feed()
            while batch:
                async with self._slot or nullcontext():
                    began = perf_counter()
                    outcomes = await self._process_batch(batch)
                seconds = perf_counter() - began
                again = [
                    (event, self._delay(event, outcome))
                    for event, outcome in zip(batch, outcomes, strict=True)
                    if not self._settle(event, outcome, seconds)
                ]
                batch = [event for event, _ in again]
                if batch and not await self._pause(max(delay for _, delay in again)):
                    return
                for event in batch:
                    event.again()

    def _settle(self, event: SSEEvent[Any], outcome: Outcome, seconds: float) -> bool:
        """Carry out an outcome, and tell; False where the event has to be tried again."""
        action = outcome.action
        if action is Action.DEAD_LETTER:
            # There is no place for the letters of a stream.
            action = Action.REJECT
        done = action is Action.ACK or action is Action.REJECT
        if done:
            progress = self._progress
            progress.settled(event.sequence)
            self._bookmark.note(progress.cursor)
            if self._hungry is not None:
                self._feed()
        record = Settled(self.name, self._source, event, outcome, action, seconds)
        notify(self._observers, record)
        return done

    def _feed(self) -> None:
        """Let the reader look again whether there is room, if it waits for it."""
        hungry, self._hungry = self._hungry, None
        if hungry is not None and not hungry.done():
            hungry.set_result(None)

    def _delay(self, event: SSEEvent[Any], outcome: Outcome) -> float:
        """Seconds until the next try: what the policy says, or longer with each failure."""
        if outcome.action is Action.RETRY:
            return pause(outcome, self._options.retry)
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(event.attempt - 1, 10))

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next try; False where there is none, because the process stops."""
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
