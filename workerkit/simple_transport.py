"""A transport from two functions: `receive` yields deliveries, `settle` carries out outcomes.

Its public names, those in `__all__`, are as stable as those of `workerkit.transport`.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, ClassVar, Generic

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Action, Delivery, Outcome
from workerkit.endpoint import Endpoint
from workerkit.health import Health
from workerkit.options import Options
from workerkit.retry import RetryPolicy
from workerkit.simple_control import SimpleControl
from workerkit.simple_options import DeliveryType, OptionsType, SimpleDelivery, SimpleOptions
from workerkit.simple_receiver import SimpleReceiver
from workerkit.tasks import cancel_and_wait
from workerkit.transport import Context, Declared

__all__ = ["SimpleConsumer", "SimpleDelivery", "SimpleOptions", "SimpleTransport"]


class SimpleConsumer(Consumer, abstract=True):
    """Base of the consumers of a `SimpleTransport`: subclass it, and set `options` to yours."""

    options: ClassVar[Any] = SimpleOptions
    batch_size: ClassVar[int]
    batch_interval: ClassVar[float]
    on_success: ClassVar[Action]
    on_exception: ClassVar[Action]
    on_invalid: ClassVar[Action]
    retry: ClassVar[RetryPolicy | None]


class SimpleTransport(ABC, Generic[OptionsType, DeliveryType]):
    """A transport that needs two functions, `receive` and `settle`; see `docs/transports.md`.

    It does the rest: a reader and `concurrency` workers for each consumer, batches, retries,
    reconnecting, health, observers, stop and drain. The next delivery is requested from `receive`
    when a worker is free, so no more are received than handlers can take (or batches hold).

    Cancellation: when the process stops, `receive` gets a `CancelledError` where it waits, or a
    `GeneratorExit` at its `yield`. Deliveries that were received are handled and settled.
    Handlers that still run after the grace period are cancelled, and nothing is settled for them.
    So the source has to redeliver what was received and not settled.

    Attributes:
        kind: One word for its consumers, such as `redis`.
        delivery: The type of its deliveries.
        actions: What `settle` can carry out beside `ACK`. Without `DEAD_LETTER` it is called with
            `REJECT`, without that with `ACK`. Without `REQUEUE` or `RETRY` the delivery is handled
            again in place, after a pause during which it keeps its worker.
        ready_after: A consumer is ready once `receive` has yielded something, or has waited for
            this number of seconds without raising. None waits for the first yield.
    """

    kind: str
    delivery: type[Delivery] | None = SimpleDelivery
    actions: Collection[Action] = frozenset({Action.REQUEUE, Action.REJECT})
    ready_after: float | None = 0.2

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a `receive` that is a coroutine function, because it has no `yield`.

        Raises:
            TypeError: It is one.
        """
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.receive):
            raise TypeError(f"{cls.__qualname__}.receive has to yield deliveries: it never does")

    def __init__(self) -> None:
        self._receivers: list[SimpleReceiver[OptionsType, DeliveryType]] = []

    @abstractmethod
    def receive(self, options: OptionsType) -> AsyncIterator[DeliveryType | None]:
        """Connect, and yield the deliveries of one consumer, or None to report "connected".

        An exception is logged, and `receive` is called again after a growing pause. When it
        returns, the source has ended, and the consumer has nothing more to do.
        """

    @abstractmethod
    async def settle(self, delivery: DeliveryType, outcome: Outcome) -> None:
        """Carry out an outcome, whose `action` is `ACK` or one of `actions`.

        For `REQUEUE` redeliver now, for `RETRY` after `outcome.delay` seconds; both times with an
        `attempt` that is one higher. If this raises, the delivery is reported as lost, and the
        source has to redeliver it.
        """

    async def open(self, context: Context) -> None:
        """Open what all consumers share; called before the first `receive`."""

    async def closed(self) -> None:
        """Close what `open` opened; called after the last `settle`."""

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Return the faults of a declaration that only this transport can see; none by default."""
        return []

    def source(self, options: Options) -> str:
        """Return what a consumer reads from, for people and metrics; its name by default."""
        return options.name

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return how the source is reached, without passwords; nothing by default."""
        return ""

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Create the endpoint of one consumer."""
        options = declared.options
        assert isinstance(options, SimpleOptions), "the options have to subclass SimpleOptions"
        return Endpoint(
            consumer,
            options,
            declared.signature,
            on_success=options.on_success,
            on_exception=options.on_exception,
            on_invalid=options.on_invalid,
            retry=options.retry,
        )

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Call `open`, and begin to receive."""
        await self.open(context)
        self._receivers = [
            SimpleReceiver(self, self.source(each.options), each, context) for each in endpoints
        ]
        started = [(each, each.start()) for each in self._receivers]
        for receiver, health in started:
            health.control = SimpleControl(receiver)
        return [health for _, health in started]

    async def stop(self) -> None:
        """Receive nothing new."""
        await asyncio.gather(*(each.stop() for each in self._receivers))

    async def drain(self) -> None:
        """Return once every delivery that was received is settled."""
        await asyncio.gather(*(each.workers.quiet() for each in self._receivers))

    async def cancel(self) -> None:
        """Cancel the handlers that still run, and wait for them."""
        await cancel_and_wait([task for each in self._receivers for task in each.tasks])

    def busy(self) -> list[str]:
        """Return the names of the consumers whose handlers still run."""
        return [each.name for each in self._receivers if each.workers.busy]

    def pending(self) -> list[str]:
        """Return what was received and is not settled, in words, for tests that wait for it.

        Override it to add what the source knows to wait.
        """
        return [
            f"{each.unsettled} deliveries of {each.name} are not settled"
            for each in self._receivers
            if each.unsettled
        ]

    def skip_waits(self) -> None:
        """Handle partly filled batches, and end pauses before other attempts, now: for tests."""
        for each in self._receivers:
            each.skip_waits()

    async def close(self) -> None:
        """End the workers, and call `closed`."""
        await asyncio.gather(*(each.close() for each in self._receivers))
        await self.closed()
