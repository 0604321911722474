"""The room in which the events of one stream are handled and settled."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from time import perf_counter
from typing import Any

from workerkit.batch import Batching
from workerkit.delivery import Action, Outcome
from workerkit.endpoint import Endpoint
from workerkit.observe import Observer, Settled, notify
from workerkit.retry import jittered
from workerkit.sse.bookmark import Bookmark
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.event import SSEEvent
from workerkit.sse.progress import Progress
from workerkit.workers import Workers

_LONG_TURN = 0.001
_MOST_TEXT = 1024 * 1024
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
        self._slot = slot or nullcontext()
        self._progress = Progress()
        self._waiting: deque[SSEEvent[Any]] = deque()
        self._batching: Batching[SSEEvent[Any]] = Batching(
            options.batch_size, options.batch_interval, self.workers.wake
        )
        self._count = 0
        self._text = 0
        self._taken = asyncio.Event()
        self._pauses: set[asyncio.Future[None]] = set()
        self._stopping = False

    @property
    def unsettled(self) -> int:
        """How many events have come and are not settled."""
        return len(self._progress)

    @property
    def full(self) -> bool:
        """Whether so much waits for a worker that no more should be read."""
        return self._count >= self._options.room or self._text >= _MOST_TEXT

    def begin(self, cursor: str) -> None:
        """The stream begins behind *cursor*."""
        self._progress = Progress(cursor)

    def take(self, events: Events, last_event_id: str) -> None:
        """Events have come.

        Args:
            last_event_id: In force behind them, which may be none of theirs.
        """
        wanted, progress = self._wanted, self._progress
        for event in events:
            if wanted is not None and event.name not in wanted:
                progress.passed(event.id)
                continue
            progress.received(event)
            self._count += 1
            self._text += len(event.raw)
            if self._options.batch:
                self._batching.add(event)
            else:
                self._waiting.append(event)
        if not events or events[-1].id != last_event_id:
            progress.passed(last_event_id)
        self._bookmark.note(progress.cursor)
        if self._waiting:
            self.workers.wake()

    async def room(self) -> None:
        """Return when there is room for more."""
        while self.full:
            # Of large events there will not come enough for a batch.
            self._batching.ripen()
            self._taken.clear()
            await self._taken.wait()

    def stop(self) -> None:
        """Begin with nothing new, but for a batch that has come in part; try nothing again."""
        self._stopping = True
        self._batching.flush()
        self._end_pauses()

    def hasten(self) -> None:
        """Wait for nothing: a part of a batch will do, and pauses are over."""
        self._batching.ripen()
        self._end_pauses()

    def drop(self) -> None:
        """Forget what no worker has begun with: the cursor is before it, so it comes again."""
        self._waiting.clear()
        self._batching.clear()

    async def _work(self) -> None:
        turn = perf_counter()
        while self._waiting and not self._stopping:
            event = self._waiting.popleft()
            if self._waiting:
                self.workers.wake()
            self._begun((event,))
            while True:
                async with self._slot:
                    began = perf_counter()
                    outcome = await self._process(event)
                seconds = perf_counter() - began
                if self._settle(event, outcome, seconds):
                    break
                if not await self._pause(self._delay(event, outcome)):
                    return
                event.again()
            self._bookmark.note(self._progress.cursor)
            if perf_counter() - turn > _LONG_TURN:
                # Handlers that compute without awaiting must not starve everybody else.
                await asyncio.sleep(0)
                turn = perf_counter()

    async def _work_batches(self) -> None:
        while batch := self._batching.take():
            self.workers.wake()
            self._begun(batch)
            while batch:
                async with self._slot:
                    began = perf_counter()
                    outcomes = await self._process_batch(batch)
                seconds = perf_counter() - began
                again = [
                    (event, self._delay(event, outcome))
                    for event, outcome in zip(batch, outcomes, strict=True)
                    if not self._settle(event, outcome, seconds)
                ]
                self._bookmark.note(self._progress.cursor)
                batch = [event for event, _ in again]
                if batch and not await self._pause(max(delay for _, delay in again)):
                    return
                for event in batch:
                    event.again()

    def _begun(self, events: Events) -> None:
        """A worker has taken *events*."""
        self._count -= len(events)
        for event in events:
            self._text -= len(event.raw)
        self._taken.set()

    def _settle(self, event: SSEEvent[Any], outcome: Outcome, seconds: float) -> bool:
        """Carry out an outcome, and tell; False where the event has to be tried again."""
        action = outcome.action
        if action is Action.DEAD_LETTER:
            # There is no place for the letters of a stream.
            action = Action.REJECT
        done = action is Action.ACK or action is Action.REJECT
        if done:
            self._progress.settled(event)
        record = Settled(self.name, self._source, event, outcome, action, seconds)
        notify(self._observers, record)
        return done

    def _delay(self, event: SSEEvent[Any], outcome: Outcome) -> float:
        """Seconds until the next try: what the policy says, or longer with each failure."""
        if outcome.action is Action.RETRY:
            return jittered(outcome.delay, self._options.retry)
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(event.attempt - 1, 10))

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next try; False where there is none, because the process stops."""
        if seconds and not self._stopping:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pauses.add(over)
            try:
                await asyncio.wait([over], timeout=seconds)
            finally:
                self._pauses.discard(over)
        return not self._stopping

    def _end_pauses(self) -> None:
        for over in self._pauses:
            if not over.done():
                over.set_result(None)
