"""The stored cursor of one stream: loaded at the start, then saved as it moves."""

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
_MAX_PAUSE = 10.0


class StoredCursor:
    """The cursor of one stream in the store.

    It is saved at most ten times a second, and the store gets the latest value, not each one. So a
    slow store does not slow down the stream. After a crash, the events since the last save are
    handled again.

    Args:
        on_reachable: Called with whether the store answered, each time this changes.
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
        """Return the stored cursor, "" if there is none. Try again until the store answers."""
        backoff = Backoff(cap=_MAX_PAUSE)
        while True:
            try:
                found = _as_text(await _call(self._store.load(self._consumer, self._route)))
            except Exception as error:
                await self._failed(
                    "cursor not loaded: the stream is waiting for it", error, backoff
                )
                continue
            self._reached()
            if found is not None and not is_sendable(found):
                log.error(
                    "stored cursor is invalid: the stream begins without it",
                    extra=self._fields(
                        error=f"a header cannot contain it; it has {len(found)} characters"
                    ),
                )
                found = None
            self._saved = self._cursor = found
            return found or ""

    def move_to(self, cursor: str) -> None:
        """Set the cursor: all events up to it are settled."""
        if cursor != (self._cursor or ""):
            self._cursor = cursor
            self._moved.set()

    async def run(self) -> None:
        """Save the cursor whenever it has moved, until cancelled."""
        backoff = Backoff(cap=_MAX_PAUSE)
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                await self._save()
            except Exception as error:
                self._moved.set()
                await self._failed("cursor not saved: trying again", error, backoff)
                continue
            backoff.reset()
            self._reached()
            await asyncio.sleep(_SAVE_EVERY)

    async def close(self) -> None:
        """Save the cursor a last time if it has moved; `run` can be cancelled afterwards."""
        timeout = TimeoutError(f"the store did not answer within {_LAST_DEADLINE:g} s")
        try:
            await with_deadline(_LAST_DEADLINE, self._save(), timeout)
        except Exception as error:
            log.error(
                "cursor not saved: events since the last save will be handled again",
                exc_info=error,
                extra=self._fields(error=summarize_error(error)),
            )

    async def _save(self) -> None:
        # One at a time: otherwise a slow save could replace a newer cursor by an older one.
        async with self._saving:
            cursor = self._cursor
            if cursor is not None and cursor != self._saved:
                await _call(self._store.save(self._consumer, self._route, cursor))
                self._saved = cursor

    async def _failed(self, text: str, error: Exception, backoff: Backoff) -> None:
        pause = backoff.next()
        self._set_reachable(False)
        fields = self._fields(
            attempt=backoff.attempt, retry_in=round(pause, 2), error=summarize_error(error)
        )
        log.error(text, exc_info=error, extra=fields)
        await asyncio.sleep(pause)

    def _reached(self) -> None:
        if not self._reachable:
            log.info("cursor store is available again", extra=self._fields())
        self._set_reachable(True)

    def _set_reachable(self, reachable: bool) -> None:
        if reachable is not self._reachable:
            self._reachable = reachable
            self._on_reachable(reachable)

    def _fields(self, **more: object) -> dict[str, object]:
        return {"consumer": self._consumer, "route": self._route, **more}


def _as_text(found: object) -> str | None:
    if found is None or isinstance(found, str):
        return found
    raise TypeError(f"load returned {type(found).__name__}: a cursor is a str, or None")


async def _call(call: Awaitable[T]) -> T:
    timeout = TimeoutError(f"the store did not answer within {_DEADLINE:g} s")
    return await with_deadline(_DEADLINE, guard(call), timeout)
