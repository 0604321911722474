"""Interceptors: code around every call of `handle`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeAlias

from workerkit.consumer import Consumer
from workerkit.delivery import Delivery, Outcome


class Call:
    """One call of `handle`, as interceptors see it.

    Attributes:
        consumer: The instance whose method is called.
        name: The name of the consumer, as in logs and metrics.
        method: The name of the method: `handle`, or a verb of a view.
        outcome: What was decided about the delivery, or about those deliveries of a batch that do
            not decide for themselves. It is None until `handle` has ended, and if the call ends
            without an outcome because the process stops. Each interceptor sees the outcome of
            everything inside it; if it raises, those outside it see another one.
    """

    __slots__ = ("_handled", "consumer", "method", "name", "outcome")

    def __init__(
        self, consumer: Consumer, name: str, method: str, handled: Delivery | Sequence[Delivery]
    ) -> None:
        self.consumer = consumer
        self.name = name
        self.method = method
        self.outcome: Outcome | None = None
        self._handled = handled

    @property
    def is_batch(self) -> bool:
        """Whether the method handles several deliveries at once."""
        return not isinstance(self._handled, Delivery)

    @property
    def delivery(self) -> Any:
        """The message, event, request or run that is handled.

        Raises:
            TypeError: It is a batch, which has `deliveries`.
        """
        if self.is_batch:
            raise TypeError(f"{self.name} handles batches: read call.deliveries")
        return self._handled

    @property
    def deliveries(self) -> Sequence[Any]:
        """What is handled: several deliveries for a batch, one otherwise."""
        return (self._handled,) if isinstance(self._handled, Delivery) else self._handled

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; of a batch, the largest number."""
        attempts: list[int] = [each.attempt for each in self.deliveries]
        return max(attempts)

    def __repr__(self) -> str:
        handled = f"{len(self.deliveries)} deliveries" if self.is_batch else repr(self._handled)
        return f"<call of {self.name}.{self.method} with {handled}>"


Interceptor: TypeAlias = "Callable[[Call], AbstractAsyncContextManager[Any, Any]]"
"""Called for each call of `handle`; its context manager is entered before, and exited after it."""

Handle = Callable[..., Awaitable[Any]]
Preview = Callable[[Call, BaseException | None, object], Outcome | None]


class Intercepted:
    """`handle` with interceptors around it.

    Args:
        interceptors: The outermost first.
        preview: Returns the outcome of a call that raised this error or returned this value.
        limit: Seconds for entering, and for exiting, each interceptor; None if the caller limits
            the whole call.
    """

    def __init__(
        self,
        handle: Handle,
        interceptors: Sequence[Interceptor],
        preview: Preview,
        limit: float | None = None,
    ) -> None:
        self._handle = handle
        self._interceptors = interceptors
        self._preview = preview
        self._limit = limit

    async def __call__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `handle` inside all interceptors; return or raise what the outermost one lets out.

        An interceptor that suppresses an exception makes the call return None.
        """
        return await self._inside(call, 0, args, kwargs)

    async def _inside(
        self, call: Call, depth: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Enter the interceptors from *depth* on, and call `handle`."""
        if depth == len(self._interceptors):
            return await self._handle(*args, **kwargs)
        manager: AbstractAsyncContextManager[Any, bool] = self._interceptors[depth](call)
        if self._limit is not None:
            manager = _Limited(manager, self._limit)
        async with manager:
            try:
                value = await self._inside(call, depth + 1, args, kwargs)
            except BaseException as error:
                call.outcome = self._preview(call, error, None)
                raise
            call.outcome = self._preview(call, None, value)
            return value
        return None  # The interceptor suppressed an exception.


class _Limited(AbstractAsyncContextManager[None, bool]):
    """A context manager with a limit for entering it, and for exiting it."""

    def __init__(self, manager: "AbstractAsyncContextManager[Any, bool]", seconds: float) -> None:
        self._manager = manager
        self._seconds = seconds

    async def __aenter__(self) -> None:
        async with asyncio.timeout(self._seconds):
            await self._manager.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        async with asyncio.timeout(self._seconds):
            return await self._manager.__aexit__(kind, error, traceback)
