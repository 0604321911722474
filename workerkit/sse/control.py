"""Pause a consumer of event streams while it runs."""

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from workerkit.control import Ability, Control
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.subscription import StreamSubscription
from workerkit.tasks import cancel_and_wait


class SSEControl(Control):
    """The controls of one consumer. Events that were received are handled also while it is paused.

    Args:
        subscriptions: One for each stream.
        read: Runs a subscription as a task of the transport.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset({"pause"})

    def __init__(
        self,
        options: SSEOptions,
        subscriptions: Sequence[StreamSubscription],
        read: Callable[[StreamSubscription], "asyncio.Task[None]"],
    ) -> None:
        self._options = options
        self._subscriptions = subscriptions
        self._read = read
        self._tasks: list[asyncio.Task[None]] = []
        self._paused = options.paused
        self._changing = asyncio.Lock()
        if self._paused:
            self._show()
        else:
            self._start()

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._paused

    @property
    def concurrency(self) -> int:
        """The number of calls of `handle` at the same time."""
        return self._options.concurrency

    async def pause(self) -> None:
        """Close the streams."""
        async with self._changing:
            if not self._paused:
                self._paused = True
                await cancel_and_wait(self._tasks)
                self._show()

    async def resume(self) -> None:
        """Open the streams again, after the last event that was received."""
        async with self._changing:
            if self._paused:
                self._paused = False
                self._start()

    def _start(self) -> None:
        for each in self._subscriptions:
            if not each.stream.over:
                each.stream.waiting("resumed, not open yet")
        open_ = [each for each in self._subscriptions if not each.stream.over]
        self._tasks = [self._read(each) for each in open_]

    def _show(self) -> None:
        for each in self._subscriptions:
            if not each.stream.over:
                each.stream.paused()
