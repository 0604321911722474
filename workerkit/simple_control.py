"""Pause and change a consumer of a `SimpleTransport` while it runs."""

from typing import Any

from workerkit.control import Ability, Control
from workerkit.simple_receiver import SimpleReceiver


class SimpleControl(Control):
    """The controls of one consumer. What was received is handled also while it is paused."""

    abilities: frozenset[Ability] = frozenset({"pause", "concurrency"})

    def __init__(self, receiver: SimpleReceiver[Any, Any]) -> None:
        self._receiver = receiver

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._receiver.paused

    @property
    def concurrency(self) -> int:
        """The number of calls of `handle` at the same time."""
        return self._receiver.workers.size

    async def pause(self) -> None:
        """Stop `receive`."""
        await self._receiver.pause()

    async def resume(self) -> None:
        """Call `receive` again."""
        await self._receiver.resume()

    async def change_concurrency(self, number: int) -> None:
        """Change the number of workers."""
        self._receiver.resize(number)
