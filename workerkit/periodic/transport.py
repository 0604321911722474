"""The transport of periodic tasks: run each task when it is due."""

import asyncio
import logging
from collections.abc import Sequence

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Action
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part
from workerkit.options import Options, folded
from workerkit.periodic.consumer import periodic_options
from workerkit.periodic.control import PeriodicControl
from workerkit.periodic.singleton import (
    Singletons,
    check_singleton,
)
from workerkit.periodic.timer import Timer
from workerkit.tasks import cancel_and_wait, sleep_unless_stopping
from workerkit.transport import Context, Declared, running_handlers

log = logging.getLogger(__name__)


class PeriodicTransport:
    """Runs every `PeriodicTask` when it is due.

    Args:
        manual: Tasks run only when `tick` is called: for tests.
    """

    kind = "periodic"
    delivery = None

    def __init__(self, *, manual: bool = False) -> None:
        self._by_hand = manual
        self._timers: list[Timer] = []
        self._loops: list[asyncio.Task[None]] = []
        self._parts: list[Part] = []
        self._stopping = asyncio.Event()
        self._singletons = Singletons()
        self._leases: dict[tuple[str, str, str], type[Consumer]] = {}

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """Check that the task has one schedule, and a lease that no other task has."""
        options = periodic_options(declared.options)
        errors = list(check_singleton(declared, options, settings, self._leases))
        if (options.every is None) == (options.cron is None):
            found = "neither" if options.every is None else "both"
            origins = (options.origins.get(name) for name in ("every", "cron"))
            at = " and ".join(filter(None, origins)) or describe_class(declared.consumer)
            errors.append(f"{at}: set either every or cron; found {found}")
        return errors

    def runs_once(self, options: Options) -> bool:
        """Return whether no lease decides which process runs the task."""
        return not periodic_options(options).singleton

    def source(self, options: Options) -> str:
        """Return the schedule."""
        return periodic_options(options).schedule

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """Return the time zone of a crontab line, and the broker with the lease."""
        own = periodic_options(options)
        parts = [] if own.cron is None else [f"time zone {own.timezone}"]
        if own.singleton:
            broker = settings.amqp[own.connection.casefold()].display(own.vhost)
            parts.append(f"singleton, lease on {broker}")
        return ", ".join(parts)

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """Return the endpoint of one task."""
        return Endpoint(
            consumer,
            declared.options,
            declared.signature,
            on_success=Action.ACK,
            on_exception=Action.REJECT,
            on_invalid=Action.REJECT,
            retry=periodic_options(declared.options).retry,
        )

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Start the timers."""
        health = []
        for endpoint in endpoints:
            part = Part(context.changed)
            options = periodic_options(endpoint.options)
            timer = Timer(endpoint, options, context, part, self._pause)
            self._timers.append(timer)
            self._parts.append(part)
            singleton = timer.compete(self._singletons)
            if singleton is None:
                part.ready()  # It has no effect if the task starts paused.
            if not self._by_hand:
                work = timer.run_once() if context.burst else timer.run()
                self._loops.append(context.keep(work, f"{endpoint.name} timer"))
            task_health = Health(
                endpoint.name,
                [part],
                outside=False,
                in_flight=timer.in_flight,
                control=PeriodicControl(timer),
            )
            if singleton is not None:
                task_health.outside, task_health.role = True, singleton.role
            health.append(task_health)
        return health

    async def tick(self, name: str) -> None:
        """Run a task once, now, and wait for the end of the run.

        Raises:
            KeyError: There is no task of that name.
        """
        timers = {folded(timer.endpoint.name): timer for timer in self._timers}
        if folded(name) not in timers:
            known = ", ".join(timer.endpoint.name for timer in self._timers)
            others = f", only {known}" if known else "; there is none"
            raise KeyError(f"no periodic task {name!r} runs{others}")
        await timers[folded(name)].tick()

    def endless(self, options: Options) -> str:
        """Return nothing: in a burst, each task runs once."""
        return ""

    async def remaining(self) -> list[str]:
        """Return the tasks that have not run yet, or still run."""
        waiting = [each.get_name() for each in self._loops if not each.done()]
        return waiting + running_handlers(self.busy())

    def failures(self) -> list[str]:
        """Return the runs that failed."""
        return [each.failure for each in self._timers if each.failure]

    async def stop(self) -> None:
        """Stop the timers. Runs that wait for a retry are not retried."""
        self._stopping.set()
        for part in self._parts:
            part.stopping()
        await cancel_and_wait(self._loops)
        await asyncio.gather(*(each.drain() for each in self._timers if not each.runs))

    async def drain(self) -> None:
        """Wait until no run is in progress. Release the lease of each task after its runs."""
        await asyncio.gather(*(each.drain() for each in self._timers))

    async def cancel(self) -> None:
        """Cancel the runs in progress, and wait for them."""
        await cancel_and_wait([task for timer in self._timers for task in timer.runs])
        await self.drain()

    def busy(self) -> list[str]:
        """Return the names of the tasks with runs in progress."""
        return [timer.endpoint.name for timer in self._timers if timer.runs]

    async def close(self) -> None:
        """Close the connections of leases."""
        await self._singletons.close()

    async def _pause(self, seconds: float) -> bool:
        return await sleep_unless_stopping(0.0 if self._by_hand else seconds, self._stopping)
