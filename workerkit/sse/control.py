"""Pause and change a consumer of event streams while it runs."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from workerkit.control import Ability, Control, NotPossible
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.receiver import StreamReceiver
from workerkit.sse.subscription import StreamSubscription
from workerkit.tasks import cancel_and_wait

Keep = Callable[[Coroutine[Any, Any, None], str], None]


class SSEControl(Control):
    """The controls of one consumer. Events that were received are handled also while it is paused.

    The concurrency of a consumer that handles its events in order cannot be changed.

    Args:
        subscriptions: One for each stream.
        receivers: Likewise.
        read: Runs a subscription as a task of the transport.
        keep: Runs a worker likewise.
    """

    def __init__(
        self,
        options: SSEOptions,
        subscriptions: Sequence[StreamSubscription],
        receivers: Sequence[StreamReceiver],
        read: Callable[[StreamSubscription], "asyncio.Task[None]"],
        keep: Keep,
    ) -> None:
        self._options = options
        self._subscriptions = subscriptions
        self._receivers = receivers
        self._read = read
        self._keep = keep
        self._tasks: list[asyncio.Task[None]] = []
        self._paused = options.paused
        self._changing = asyncio.Lock()
        abilities: set[Ability] = set()
        if options.reopens or options.paused:
            abilities.add("pause")
        if options.concurrency > 1 and len(receivers) == 1:
            abilities.add("concurrency")
        self.abilities = frozenset(abilities)
        if self._paused:
            self._show()
        else:
            self._tasks = [self._read(each) for each in subscriptions]

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._paused

    @property
    def concurrency(self) -> int:
        """The number of calls of `handle` at the same time."""
        if len(self._receivers) == 1:
            return self._receivers[0].workers.size
        return self._options.concurrency

    async def pause(self) -> None:
        """Close the streams.

        Raises:
            NotPossible: A stream that is closed cannot be opened again.
        """
        if not (self._paused or self._options.reopens):
            raise NotPossible(
                f"the stream is opened by {self._options.verb}, and only once: set reopen = True"
            )
        async with self._changing:
            self._paused = True
            self._show()
            await cancel_and_wait(self._tasks)

    async def resume(self) -> None:
        """Open the streams again, after the last event that was received."""
        async with self._changing:
            if not self._paused:
                return
            # The pause may have been cancelled before its end.
            await cancel_and_wait(self._tasks)
            self._paused = False
            open_ = [each for each in self._subscriptions if not each.stream.over]
            for each in open_:
                each.stream.resumed()
            self._tasks = [self._read(each) for each in open_]

    async def change_concurrency(self, number: int) -> None:
        """Change the number of workers."""
        for receiver in self._receivers:
            for name, work in receiver.resize(number):
                self._keep(work, name)

    def _show(self) -> None:
        for each in self._subscriptions:
            each.stream.paused()
