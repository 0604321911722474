"""Run handlers that are not `async` in daemon threads.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so a handler
that never returns would keep a stopped process alive forever.
"""

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from workerkit.errors import HandlerTimeout

log = logging.getLogger(__name__)

Work = Callable[[], None]


class Threads:
    """At most *size* daemon threads, started when first needed.

    Args:
        name: Of the consumer, for the threads' names and the log.
        size: Calls at the same time.
        timeout: Seconds for one call; None for no limit.
    """

    def __init__(self, name: str, size: int, timeout: float | None) -> None:
        self._name = name
        self._size = size
        self._timeout = timeout
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._started = 0
        self._busy = 0

    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run *function* in a thread, with the caller's context variables.

        A thread cannot be cancelled. This waits for a call that is late, or whose caller is
        cancelled, so that its delivery is not handled elsewhere while it still runs.

        Raises:
            HandlerTimeout: It returned, but late.
            asyncio.CancelledError: The caller was cancelled, and the call has ended in an error.
        """
        token = threading.Lock()
        future = self._submit(token, function, *args, **kwargs)
        late = cancelled = False
        timeout = self._timeout
        while not future.done():
            try:
                await asyncio.wait([future], timeout=timeout)
            except asyncio.CancelledError:
                if token.acquire(blocking=False):
                    raise
                cancelled = True
                continue
            if not future.done():
                if token.acquire(blocking=False):
                    raise HandlerTimeout(f"{self._name}: no thread was free for {timeout:g} s")
                late, timeout = True, None
                log.error(
                    "handler timed out, and a thread cannot be cancelled: waiting for it",
                    extra={"consumer": self._name, "timeout": self._timeout},
                )
        error = future.exception()
        if cancelled and error is not None:
            raise asyncio.CancelledError from error
        if late:
            text = f"{self._name}: handle returned after its {self._timeout:g} s"
            raise HandlerTimeout(text) from error
        value = future.result()
        if inspect.isawaitable(value):
            # It is asynchronous, in a way that was not visible before it was called.
            async with asyncio.timeout(self._timeout):
                value = await value
        return value

    def resize(self, size: int) -> None:
        """Change the number of threads; those that have been started stay."""
        self._size = size

    def close(self) -> None:
        """Let idle threads end. A busy one ends with its call, or with the process."""
        for _ in range(self._started):
            self._work.put(None)

    def _submit(
        self, token: threading.Lock, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            if not token.acquire(blocking=False):
                # Its caller stopped waiting before a thread was free.
                self._report(loop, future.cancel)
                return
            try:
                value = context.run(function, *args, **kwargs)
            except BaseException as error:
                self._report(loop, _fail, future, error)
            else:
                self._report(loop, _finish, future, value)

        if self._busy >= self._started < self._size:
            name = f"workerkit-{self._name}-{self._started + 1}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()
            self._started += 1
        self._busy += 1
        future.add_done_callback(self._free)
        self._work.put(work)
        return future

    def _free(self, _: asyncio.Future[Any]) -> None:
        self._busy -= 1

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _report(self, loop: asyncio.AbstractEventLoop, *call: Any) -> None:
        try:
            loop.call_soon_threadsafe(*call)
        except RuntimeError:
            # The loop is closed: the process has abandoned this call.
            log.warning(
                "handler returned after the process had stopped", extra={"consumer": self._name}
            )


def _finish(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        # A future refuses it, as a coroutine does.
        error = RuntimeError("handle raised StopIteration").with_traceback(error.__traceback__)
    future.set_exception(error)
