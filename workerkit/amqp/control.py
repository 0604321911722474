"""Pause and change a consumer of RabbitMQ while it runs."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from workerkit.amqp.consumer import MAX_PREFETCH, AMQPOptions
from workerkit.amqp.receiver import Receiver
from workerkit.amqp.subscription import Subscription
from workerkit.control import Ability, Control, NotPossible

Keep = Callable[[Coroutine[Any, Any, None], str], None]


class AMQPControl(Control):
    """The controls of one consumer.

    A queue that is deleted with its last consumer would be deleted by a pause, and by a change of
    the prefetch count, with its messages: then there are no such changes.

    Args:
        subscriptions: One for each queue.
        keep: Runs a worker as a task of the transport.
    """

    def __init__(
        self,
        options: AMQPOptions,
        receiver: Receiver,
        subscriptions: Sequence[Subscription],
        keep: Keep,
    ) -> None:
        self._options = options
        self._receiver = receiver
        self._subscriptions = subscriptions
        self._keep = keep
        self._prefetch = options.prefetch_count
        self._is_derived = options.prefetch is None
        self._pausing = asyncio.Lock()
        deleted = [each.name for each in options.queues if each.auto_delete]
        self._obstacle = (
            f"queue {deleted[0]!r} is auto_delete: the broker deletes it, with its messages, when"
            " its last consumer is cancelled"
            if deleted
            else ""
        )
        self.abilities: frozenset[Ability] = frozenset(
            {"concurrency"} if deleted else {"pause", "concurrency", "prefetch"}
        )
        if options.paused:
            # Its queues have no consumer yet, so it can be resumed.
            self.abilities |= {"pause"}

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
        async with self._pausing:
            if not self.paused:
                self._check()
            await asyncio.gather(*(each.pause() for each in self._subscriptions))

    async def resume(self) -> None:
        """Consume again, once a pause that was begun before has ended."""
        async with self._pausing:
            for each in self._subscriptions:
                if each.paused:
                    each.resume()

    async def change_concurrency(self, number: int) -> None:
        """Change the number of workers, and with it a prefetch count that depends on it."""
        for name, work in self._receiver.resize(number):
            self._keep(work, name)
        if self._obstacle:
            return
        if self._is_derived:
            resized = dataclasses.replace(self._options, concurrency=number)
            self._change_prefetch(resized.prefetch_count)
        else:
            self._change_prefetch(min(max(self._prefetch, number), MAX_PREFETCH))

    async def change_prefetch(self, count: int) -> None:
        """Change the prefetch count of each queue."""
        self._check()
        self._is_derived = False
        self._change_prefetch(count)

    def _check(self) -> None:
        if self._obstacle:
            raise NotPossible(self._obstacle)

    def _change_prefetch(self, count: int) -> None:
        self._prefetch = count
        self._receiver.adapt(count)
        for each in self._subscriptions:
            each.change_prefetch(count)
