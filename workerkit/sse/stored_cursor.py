"""Keep the stored cursor of one stream up to date, whatever the store does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workerkit.describe import summarize_error
from workerkit.sse.cursor import CursorStore
from workerkit.sse.parser import is_sendable
from workerkit.tasks import Backoff, guard, with_deadline

log = logging.getLogger(__name__)

T = TypeVar("T")

_SAVE_EVERY = 0.1
_DEADLINE = 10.0
_LAST_DEADLINE = 2.0
_LONGEST_PAUSE = 10.0


class StoredCursor:
    """The cursor of one stream in the store.

    The store gets the latest cursor, not each one: at once where nothing was saved lately, else
    ten times a second. So a slow store costs no throughput; a crash costs what was handled since,
    a second time.

    Args:
        told: Called with whether the store could be reached, when that changes.
    """

    def __init__(
        self, store: CursorStore, consumer: str, route: str, on_reachable: Callable[[bool], None]
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._route = route
        self._on_reachable = on_reachable
        self._reachable = True
        self._saved: str | None = None
        self._cursor: str | None = None
        self._moved = asyncio.Event()
        self._saving = asyncio.Lock()

    async def load(self) -> str:
        """The stored cursor, "" if there is none. Asks until the store answers."""
        backoff = Backoff(cap=_LONGEST_PAUSE)
        while True:
            try:
                found = _as_text(await _call(self._store.load(self._consumer, self._route)))
            except Exception as error:
                await self._failed("cursor not loaded: the stream waits for it", error, backoff)
                continue
            self._reached()
            if found is not None and not is_sendable(found):
                log.error(
                    "stored cursor is unusable: the stream begins without it",
                    extra=self._fields(error=f"no header can have it, of {len(found)} characters"),
                )
                found = None
            self._saved = self._cursor = found
            return found or ""

    def move_to(self, cursor: str) -> None:
        """Everything up to *cursor* is settled."""
        if cursor != (self._cursor or ""):
            self._cursor = cursor
            self._moved.set()

    async def run(self) -> None:
        """Save the cursor whenever it has moved, until cancelled."""
        backoff = Backoff(cap=_LONGEST_PAUSE)
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                await self._save()
            except Exception as error:
                self._moved.set()
                await self._failed("cursor not saved: it will be tried again", error, backoff)
                continue
            backoff.reset()
            self._reached()
            await asyncio.sleep(_SAVE_EVERY)

    async def close(self) -> None:
        """Save the cursor for the last time, if it has moved; then `run` has nothing more to do."""
        late = TimeoutError(f"the store did not answer within {_LAST_DEADLINE:g} s")
        try:
            await with_deadline(_LAST_DEADLINE, self._save(), late)
        except Exception as error:
            log.error(
                "cursor not saved: what was handled since will come again",
                exc_info=error,
                extra=self._fields(error=summarize_error(error)),
            )

    async def _save(self) -> None:
        # One at a time: a save that is overtaken would put an old cursor over a new one.
        async with self._saving:
            cursor = self._cursor
            if cursor is not None and cursor != self._saved:
                await _call(self._store.save(self._consumer, self._route, cursor))
                self._saved = cursor

    async def _failed(self, text: str, error: Exception, backoff: Backoff) -> None:
        pause = backoff.next()
        self._tell(False)
        fields = self._fields(
            attempt=backoff.attempt, retry_in=round(pause, 2), error=summarize_error(error)
        )
        log.error(text, exc_info=error, extra=fields)
        await asyncio.sleep(pause)

    def _reached(self) -> None:
        if not self._reachable:
            log.info("cursor store is back", extra=self._fields())
        self._tell(True)

    def _tell(self, reachable: bool) -> None:
        if reachable is not self._reachable:
            self._reachable = reachable
            self._on_reachable(reachable)

    def _fields(self, **more: object) -> dict[str, object]:
        return {"consumer": self._consumer, "route": self._route, **more}


def _as_text(found: object) -> str | None:
    if found is None or isinstance(found, str):
        return found
    raise TypeError(f"load gave {type(found).__name__}: a cursor is a str, or None")


async def _call(call: Awaitable[T]) -> T:
    late = TimeoutError(f"the store did not answer within {_DEADLINE:g} s")
    return await with_deadline(_DEADLINE, guard(call), late)
