"""The timer of one periodic task, and its runs."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import ClassVar
from zoneinfo import ZoneInfo

from workerkit.amqp.lease_term import NotHeld
from workerkit.control import NotPossible
from workerkit.delivery import Action, Delivery, Outcome, TraceDetails
from workerkit.describe import describe_error
from workerkit.endpoint import Endpoint
from workerkit.health import Part, State
from workerkit.observe import Settled, notify
from workerkit.periodic.consumer import PeriodicOptions
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
    current_run,
)
from workerkit.retry import pause
from workerkit.tasks import cancel
from workerkit.transport import Context

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


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """The last run of a task in this process, and the next one.

    Attributes:
        last: When the last run ended.
        next: When the next one is due; None if that is not known, or while it is paused.
    """

    schedule: str
    last: datetime | None = None
    last_ok: bool | None = None
    last_seconds: float | None = None
    next: datetime | None = None


class Timer:
    """The timer of one task, and its runs in progress.

    Attributes:
        failure: Why the last run failed, or could not begin; empty if it did not.
        paused: Runs that are due are skipped.
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
        self.paused = False
        self._state = ScheduleState(options.schedule)
        self._next: datetime | None = None
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
        if self._options.paused:
            self.pause()
        return self._singleton

    @property
    def state(self) -> ScheduleState:
        """The last run, and the next one."""
        due = self._next if self._singleton is None else self._singleton.due
        return replace(self._state, next=None if self.paused else due)

    def pause(self) -> None:
        """Start no run that is due.

        A lease is released after the runs in progress, so that another process runs the task.
        """
        self.paused = True
        self._part.paused()
        self._withdraw()

    def resume(self) -> None:
        """Start runs again when they are due."""
        self.paused = False
        self._part.resumed()
        if self._singleton is not None:
            self._singleton.lease.compete()
        else:
            self._part.ready()

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
        if self.paused:
            return
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

    @property
    def concurrency(self) -> int:
        """The number of runs at the same time."""
        return self._options.concurrency

    @property
    def has_lease(self) -> bool:
        """Whether only one process runs it."""
        return self._singleton is not None

    async def start_now(self) -> None:
        """Start a run, independent of the schedule.

        Raises:
            NotPossible: As many runs are in progress as may be.
            NotHeld: Another process has the lease.
        """
        self._check_room()
        run = None
        if self._singleton is not None:
            run = await self._singleton.run_at_once()
            # Meanwhile one that was due may have begun.
            self._check_room()
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
            self._next = datetime.now(UTC) + timedelta(seconds=due - loop.time())
            await asyncio.sleep(due + self._jitter() - loop.time())
            self._start_if_room(datetime.now(UTC) - timedelta(seconds=loop.time() - due))
            # The next time in the future: missed times are skipped.
            number = max(number, int((loop.time() - start) / every)) + 1

    async def _run_by_cron(self, expression: str) -> None:
        zone = ZoneInfo(self._options.timezone)
        last = datetime.now(UTC)
        while True:
            due = self._next = due_after(expression, zone, last)
            await sleep_until(due)
            await asyncio.sleep(self._jitter())
            self._start_if_room(due)
            last = max(due, datetime.now(UTC))

    def _jitter(self) -> float:
        return random.uniform(0.0, self._options.jitter)

    def _start_if_room(self, scheduled: datetime) -> None:
        if self._has_room(scheduled):
            self._begin(scheduled)

    def _check_room(self) -> None:
        if len(self.runs) >= self._options.concurrency:
            raise NotPossible(f"a run of {self.endpoint.name} is in progress")

    def _has_room(self, scheduled: datetime) -> bool:
        if self.paused:
            fields = {"consumer": self.endpoint.name, "scheduled": format_utc(scheduled)}
            log.info("task is paused: skipping a run", extra=fields)
            return False
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
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.runs.discard(task)
        self._withdraw()

    def _withdraw(self) -> None:
        if self.paused and not self.runs and self._singleton is not None:
            self._singleton.lease.withdraw()

    async def _handle(self, scheduled: datetime, run: Run | None) -> None:
        tick, began = Tick(self.endpoint.name, scheduled), perf_counter()
        outcome = await self._try(tick, run)
        while outcome.action is Action.RETRY:
            if not await self._pause(pause(outcome, self._options.retry)):
                return
            tick.again()
            outcome = await self._try(tick, run)
        self.failure = ""
        self._state = replace(
            self._state,
            last=datetime.now(UTC),
            last_ok=outcome.action is Action.ACK,
            last_seconds=perf_counter() - began,
        )
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
