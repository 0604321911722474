"""Pause and change a consumer of RabbitMQ while it runs."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from workerkit.amqp.consumer import MAX_PREFETCH, AMQPOptions
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.subscription import Subscription
from workerkit.control import Ability, Control
from workerkit.tasks import cancel_and_wait

Keep = Callable[[Coroutine[Any, Any, None], str], None]


class AMQPControl(Control):
    """The controls of one consumer.

    Args:
        subscriptions: One for each queue.
        keep: Runs a worker as a task of the transport.
        consume: Runs a subscription as a task of the transport.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset({"pause", "concurrency", "prefetch"})

    def __init__(
        self,
        options: AMQPOptions,
        receiver: Receiver,
        subscriptions: Sequence[Subscription],
        keep: Keep,
        consume: Callable[[Subscription], "asyncio.Task[None]"],
    ) -> None:
        self._options = options
        self._receiver = receiver
        self._subscriptions = subscriptions
        self._keep = keep
        self._consume = consume
        self._tasks: list[asyncio.Task[None]] = []
        self._prefetch = options.prefetch_count
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Consume, unless the consumer starts paused."""
        if self._options.paused:
            for each in self._subscriptions:
                await each.pause()
        else:
            self._tasks = [self._consume(each) for each in self._subscriptions]

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return any(each.paused for each in self._subscriptions)

    @property
    def concurrency(self) -> int:
        """The number of workers."""
        return self._receiver.workers.size

    @property
    def prefetch(self) -> int:
        """The prefetch count of each queue."""
        return self._prefetch

    async def pause(self) -> None:
        """Cancel the consumers at the broker. Messages that no worker has started with go back."""
        async with self._changing:
            if not self.paused:
                await cancel_and_wait(self._tasks)
                await asyncio.gather(*(each.pause() for each in self._subscriptions))

    async def resume(self) -> None:
        """Consume again."""
        async with self._changing:
            if not self.paused:
                return
            for each in self._subscriptions:
                each.resume()
            self._tasks = [self._consume(each) for each in self._subscriptions]

    async def change_concurrency(self, number: int) -> None:
        """Change the number of workers, and with it the prefetch count that depends on it."""
        async with self._changing:
            for name, work in self._receiver.resize(number):
                self._keep(work, name)
            wanted = max(self._prefetch, number)
            if self._options.prefetch is None and not self._options.batch:
                wanted = 2 * number
            await self._change_prefetch(min(wanted, MAX_PREFETCH))

    async def change_prefetch(self, count: int) -> None:
        """Change the prefetch count of each queue."""
        async with self._changing:
            await self._change_prefetch(count)

    async def _change_prefetch(self, count: int) -> None:
        if count != self._prefetch:
            self._prefetch = count
            await asyncio.gather(*(each.change_prefetch(count) for each in self._subscriptions))
