"""The transport of periodic tasks: run each task when it is due."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import ClassVar
from zoneinfo import ZoneInfo

from workerkit.amqp.lease_term import NotHeld
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Action, Delivery, Outcome, TraceDetails
from workerkit.describe import describe_class, describe_error
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part, State
from workerkit.observe import Settled, notify
from workerkit.options import Options, folded
from workerkit.periodic.consumer import PeriodicOptions, periodic_options
from workerkit.periodic.schedule import (
    Schedule,
    due_after,
    format_utc,
    sleep_until,
)
from workerkit.periodic.singleton import (
    Run,
    Singleton,
    Singletons,
    check_singleton,
    current_run,
)
from workerkit.retry import pause
from workerkit.tasks import cancel, cancel_and_wait, sleep_unless_stopping
from workerkit.transport import Context, Declared, running_handlers

log = logging.getLogger(__name__)


class Tick(Delivery):
    """One run of a task.

    Attributes:
        scheduled: When it was due, without jitter.
    """

    __slots__ = ("name", "scheduled")

    log_success: ClassVar[str] = "run finished"
    trace_operation: ClassVar[str] = "run"

    def __init__(self, name: str, scheduled: datetime) -> None:
        super().__init__(b"")
        self.name = name
        self.scheduled = scheduled

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of the log record of a failed run."""
        return super().log_failure(action, error)[0], "run failed"

    def log_fields(self, source: str, action: str) -> dict[str, object]:
        """Return the fields of the log record."""
        retried = {"action": action} if action == Action.RETRY else {}
        return {
            "schedule": source,
            "scheduled": format_utc(self.scheduled),
            "attempt": self.attempt,
            **retried,
        }

    def trace_source(self) -> str:
        """Return the name of the task."""
        return self.name

    def trace_details(self) -> TraceDetails:
        """Return when it was due."""
        return TraceDetails(self.name, scheduled=format_utc(self.scheduled))

    def __repr__(self) -> str:
        return f"<run of {self.name}, scheduled for {format_utc(self.scheduled)}>"


class PeriodicTransport:
    """Runs every `PeriodicTask` when it is due.

    Args:
        manual: Tasks run only when `tick` is called: for tests.
    """

    kind = "periodic"
    delivery = None

    def __init__(self, *, manual: bool = False) -> None:
        self._by_hand = manual
        self._timers: list[_Timer] = []
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
            timer = _Timer(endpoint, options, context, part, self._pause)
            self._timers.append(timer)
            self._parts.append(part)
            singleton = timer.compete(self._singletons)
            if singleton is None:
                part.ready()
            if not self._by_hand:
                work = timer.run_once() if context.burst else timer.run()
                self._loops.append(context.keep(work, f"{endpoint.name} timer"))
            task_health = Health(endpoint.name, [part], outside=False, in_flight=timer.in_flight)
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


class _Timer:
    """The timer of one task, and its runs in progress.

    Attributes:
        failure: Why the last run failed, or could not begin; empty if it did not.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: PeriodicOptions,
        context: Context,
        part: Part,
        pause: Callable[[float], Awaitable[bool]],
    ) -> None:
        self.endpoint = endpoint
        self.runs: set[asyncio.Task[None]] = set()
        self.failure = ""
        self._options = options
        self._context = context
        self._part = part
        self._pause = pause
        self._singleton: Singleton | None = None

    def compete(self, singletons: Singletons) -> Singleton | None:
        """Compete for the lease of the task, if it has one."""
        if self._options.singleton:
            self._singleton = singletons.add(
                self.endpoint, self._options, self._context, self._part, self._on_lost
            )
        return self._singleton

    async def run(self) -> None:
        """Start runs when they are due, until cancelled."""
        if self._singleton is not None:
            await self._run_by_lease(self._singleton)
        elif self._options.cron is not None:
            await self._run_by_cron(self._options.cron)
        elif self._options.every is not None:
            await self._run_by_interval(self._options.every)

    async def run_once(self) -> None:
        """Start one run now, without jitter: for bursts.

        Another process that has the lease runs the task, so that is no failure.
        """
        run = None
        if self._singleton is not None:
            try:
                run = await self._singleton.run_now()
            except NotHeld as error:
                fields = {"consumer": self.endpoint.name, "reason": str(error)}
                log.warning("run not started", extra=fields)
                self.failure = "" if self._part.state is State.READY else str(error)
                return
        self._begin(datetime.now(UTC), run)

    def in_flight(self) -> int:
        """Return the number of runs in progress."""
        return len(self.runs)

    async def tick(self) -> None:
        """Run the task once, independent of its schedule.

        Raises:
            NotHeld: Another process has the lease.
        """
        run = await self._singleton.run_now() if self._singleton else None
        await self._handle(datetime.now(UTC), run)

    async def drain(self) -> None:
        """Wait for the runs in progress, then release the lease."""
        if self.runs:
            await asyncio.wait(self.runs)
        if self._singleton is not None:
            await self._singleton.lease.release()

    async def _run_by_lease(self, singleton: Singleton) -> None:
        options = self._options
        heartbeat = self._context.settings.amqp[options.connection.casefold()].heartbeat
        zone = ZoneInfo(options.timezone)
        following = partial(due_after, options.cron or "", zone)
        schedule = Schedule(options.every, following, zone, options.jitter, heartbeat)
        async for run in singleton.runs(schedule, self._has_room):
            self._begin(run.scheduled, run)

    def _on_lost(self) -> None:
        """Cancel the runs immediately: another process may start the next one."""
        if not self.runs:
            return
        fields = {"consumer": self.endpoint.name, "runs": len(self.runs)}
        log.warning("lease lost: cancelling the runs in progress", extra=fields)
        for task in self.runs:
            cancel(task)

    async def _run_by_interval(self, every: float) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while True:
            due = start + number * every
            await asyncio.sleep(due + self._jitter() - loop.time())
            self._start_if_room(datetime.now(UTC) - timedelta(seconds=loop.time() - due))
            # The next time in the future: missed times are skipped.
            number = max(number, int((loop.time() - start) / every)) + 1

    async def _run_by_cron(self, expression: str) -> None:
        zone = ZoneInfo(self._options.timezone)
        last = datetime.now(UTC)
        while True:
            due = due_after(expression, zone, last)
            await sleep_until(due)
            await asyncio.sleep(self._jitter())
            self._start_if_room(due)
            last = max(due, datetime.now(UTC))

    def _jitter(self) -> float:
        return random.uniform(0.0, self._options.jitter)

    def _start_if_room(self, scheduled: datetime) -> None:
        if self._has_room(scheduled):
            self._begin(scheduled)

    def _has_room(self, scheduled: datetime) -> bool:
        if len(self.runs) < self._options.concurrency:
            return True
        log.warning(
            "previous run still in progress: skipping this one",
            extra={"consumer": self.endpoint.name, "scheduled": format_utc(scheduled)},
        )
        return False

    def _begin(self, scheduled: datetime, run: Run | None = None) -> None:
        task = self._context.keep(self._handle(scheduled, run), f"{self.endpoint.name} task")
        self.runs.add(task)
        task.add_done_callback(self.runs.discard)

    async def _handle(self, scheduled: datetime, run: Run | None) -> None:
        tick = Tick(self.endpoint.name, scheduled)
        outcome = await self._try(tick, run)
        while outcome.action is Action.RETRY:
            if not await self._pause(pause(outcome, self._options.retry)):
                return
            tick.again()
            outcome = await self._try(tick, run)
        self.failure = ""
        if outcome.action is not Action.ACK:
            reason = "" if outcome.error is None else f": {describe_error(outcome.error)}"
            self.failure = f"{self.endpoint.name}: the run failed{reason}"

    async def _try(self, tick: Tick, run: Run | None) -> Outcome:
        began = perf_counter()
        with current_run(run):
            outcome = await self.endpoint.process(tick)
        seconds = perf_counter() - began
        name, source = self.endpoint.name, self._options.schedule
        record = Settled(name, source, tick, outcome, outcome.action.without_broker, seconds)
        notify(self._context.observers, record)
        return outcome
