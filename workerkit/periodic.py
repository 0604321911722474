"""The clock as a wire: classes whose `handle` is called again and again."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Annotated, ClassVar
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.delivery import Action, Delivery, Outcome
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part
from workerkit.observe import Settled, notify
from workerkit.options import Concurrency, Options, Seconds, folded, matters_with
from workerkit.places import place
from workerkit.retry import Retries, RetryPolicy, pause
from workerkit.schedule import Schedule, crontab_line, due_after, in_utc, known_zone, sleep_until
from workerkit.signature import Arguments, Resolve
from workerkit.singleton import (
    Run,
    Singleton,
    SingletonOptions,
    Singletons,
    resolving_run,
    running_as,
)
from workerkit.singleton import faults as singleton_faults
from workerkit.supervisor import cancel, cancelled, paused
from workerkit.wire import Context, Declared

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicOptions(SingletonOptions):
    """The options of a `PeriodicTask`.

    Attributes:
        every: Seconds from the start of one call to the start of the next, the first one at the
            start of the process. Calls stay on this grid; one that falls into a call that still
            runs is left out.
        cron: Instead, the five fields of a crontab line, by the rules of Debian's cron(8).
        timezone: Of `cron`, daylight saving time included.
        retry: Calls again after a call that failed; nothing else is called meanwhile.
        jitter: At most so many seconds later, drawn anew for each call, so that the processes of a
            fleet do not all call at once.
    """

    concurrency: Concurrency = 1
    timeout: Seconds | None = None
    retry: Retries = None
    every: Seconds | None = None
    cron: Annotated[str, AfterValidator(crontab_line)] | None = None
    timezone: Annotated[str, AfterValidator(known_zone)] = field(
        default="UTC", metadata=matters_with("cron", "only cron has a time zone")
    )
    jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def schedule(self) -> str:
        """When it runs, for people."""
        return f"cron {self.cron}" if self.cron else f"every {self.every:g} s"


class PeriodicTask(Consumer, abstract=True):
    """Runs `handle` by the clock; all of its parameters come from the container.

    ```python
    class Cleanup(PeriodicTask):
        every = 60.0

        async def handle(self) -> None: ...
    ```

    A call that raises is logged and counted, and the next one comes all the same. Calls do not
    overlap unless `concurrency` is higher than 1.

    Every process that has the class runs it. With `singleton = True` one of them does, and the
    others wait to take over; `handle` may then have a parameter of type `Run`.
    """

    options: ClassVar[type[Options]] = PeriodicOptions
    retry: ClassVar[RetryPolicy | None]
    every: ClassVar[float | None]
    cron: ClassVar[str | None]
    timezone: ClassVar[str]
    jitter: ClassVar[float]
    singleton: ClassVar[bool | str]
    connection: ClassVar[str]
    vhost: ClassVar[str | None]

    @classmethod
    def signatures(
        cls, options: Options | None, delivery: type[Delivery] | None, resolve: Resolve
    ) -> Mapping[str, Arguments]:
        """Read `handle`, in which a parameter of type `Run` is the run."""
        is_singleton = options is None or bool(_periodic(options).singleton)
        return super().signatures(options, delivery, resolving_run(resolve, is_singleton))


class Tick(Delivery):
    """One run of a task.

    Attributes:
        scheduled: When it was due, without jitter.
    """

    __slots__ = ("name", "scheduled")

    log_success: ClassVar[str] = "run finished"

    def __init__(self, name: str, scheduled: datetime) -> None:
        super().__init__(b"")
        self.name = name
        self.scheduled = scheduled

    def log_failure(self, action: Action, error: Exception | None) -> tuple[int, str]:
        """Return level and message of its log record when it has failed."""
        return super().log_failure(action, error)[0], "run failed"

    def log_fields(self, source: str, action: str) -> dict[str, object]:
        """Return what its log record tells."""
        again = {"action": action} if action == Action.RETRY else {}
        return {
            "schedule": source,
            "scheduled": in_utc(self.scheduled),
            "attempt": self.attempt,
            **again,
        }

    def __repr__(self) -> str:
        return f"<run of {self.name}, scheduled for {in_utc(self.scheduled)}>"


class PeriodicWire:
    """Calls every `PeriodicTask` when it is due.

    Args:
        by_hand: Only `tick` calls them: for tests.
    """

    kind = "periodic"
    delivery = None

    def __init__(self, *, by_hand: bool = False) -> None:
        self._by_hand = by_hand
        self._timers: list[_Timer] = []
        self._loops: list[asyncio.Task[None]] = []
        self._parts: list[Part] = []
        self._stopping = asyncio.Event()
        self._singletons = Singletons()
        self._leases: dict[tuple[str, str, str], type[Consumer]] = {}

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """A task has one schedule, and a lease that no other task has."""
        options = _periodic(declared.options)
        faults = list(singleton_faults(declared, options, settings, self._leases))
        if (options.every is None) == (options.cron is None):
            found = "neither" if options.every is None else "both"
            origins = (options.origins.get(name) for name in ("every", "cron"))
            at = " and ".join(filter(None, origins)) or place(declared.consumer)
            faults.append(f"{at}: set either every or cron; found {found}")
        return faults

    def source(self, options: Options) -> str:
        """The schedule."""
        return _periodic(options).schedule

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """The time zone of a crontab line, and the broker with the lease."""
        own = _periodic(options)
        ways = [] if own.cron is None else [f"time zone {own.timezone}"]
        if own.singleton:
            broker = settings.amqp[own.connection.casefold()].display(own.vhost)
            ways.append(f"singleton, lease on {broker}")
        return ", ".join(ways)

    def endpoint(self, declared: Declared, consumer: Consumer) -> Endpoint:
        """The endpoint of one task."""
        return Endpoint(
            consumer,
            declared.options,
            declared.signature,
            on_success=Action.ACK,
            on_exception=Action.REJECT,
            on_invalid=Action.REJECT,
            retry=_periodic(declared.options).retry,
        )

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Start the clocks."""
        health = []
        for endpoint in endpoints:
            timer = _Timer(endpoint, _periodic(endpoint.options), context, self._pause)
            self._timers.append(timer)
            part = Part(context.changed)
            self._parts.append(part)
            singleton = timer.compete(self._singletons, part)
            if singleton is None:
                part.ready()
            if not self._by_hand:
                self._loops.append(context.keep(timer.run(), f"{endpoint.name} timer"))
            made = Health(endpoint.name, [part], outside=False, in_flight=timer.in_flight)
            if singleton is not None:
                made.outside, made.role = True, singleton.role
            health.append(made)
        return health

    async def tick(self, name: str) -> None:
        """Call a task once, now, and wait for the call.

        Raises:
            KeyError: There is no task of that name.
        """
        timers = {folded(timer.endpoint.name): timer for timer in self._timers}
        if folded(name) not in timers:
            known = ", ".join(timer.endpoint.name for timer in self._timers)
            others = f", only {known}" if known else "; there is none"
            raise KeyError(f"no periodic task {name!r} runs{others}")
        await timers[folded(name)].tick()

    async def stop(self) -> None:
        """Stop the clocks; what waits to be called again is not called."""
        self._stopping.set()
        for part in self._parts:
            part.stopping()
        await cancelled(self._loops)
        await asyncio.gather(*(each.drained() for each in self._timers if not each.calls))

    async def drain(self) -> None:
        """Return once no call runs; another process may run a task whose calls have ended."""
        await asyncio.gather(*(each.drained() for each in self._timers))

    async def cancel(self) -> None:
        """Cancel the calls that still run, and wait for them."""
        await cancelled([call for timer in self._timers for call in timer.calls])
        await self.drain()

    def busy(self) -> list[str]:
        """Tasks with calls that still run."""
        return [timer.endpoint.name for timer in self._timers if timer.calls]

    async def close(self) -> None:
        """Close the connections of leases."""
        await self._singletons.close()

    async def _pause(self, seconds: float) -> bool:
        return await paused(0.0 if self._by_hand else seconds, self._stopping)


class _Timer:
    """The clock of one task, and its calls that run."""

    def __init__(
        self,
        endpoint: Endpoint,
        options: PeriodicOptions,
        context: Context,
        pause: Callable[[float], Awaitable[bool]],
    ) -> None:
        self.endpoint = endpoint
        self.calls: set[asyncio.Task[None]] = set()
        self._options = options
        self._context = context
        self._pause = pause
        self._singleton: Singleton | None = None

    def compete(self, singletons: Singletons, part: Part) -> Singleton | None:
        """Compete for the lease of the task, if it has one."""
        if self._options.singleton:
            self._singleton = singletons.add(
                self.endpoint, self._options, self._context, part, self._on_lost
            )
        return self._singleton

    async def run(self) -> None:
        """Call when it is time, until cancelled."""
        if self._singleton is not None:
            await self._by_lease(self._singleton)
        elif self._options.cron is not None:
            await self._by_cron(self._options.cron)
        elif self._options.every is not None:
            await self._by_grid(self._options.every)

    def in_flight(self) -> int:
        """How many calls run."""
        return len(self.calls)

    async def tick(self) -> None:
        """Call it once, whatever the clock says.

        Raises:
            NotHeld: Another process has the lease.
        """
        run = await self._singleton.run_now() if self._singleton else None
        await self._handle(datetime.now(UTC), run)

    async def drained(self) -> None:
        """Wait for the calls that run, then let another process have the lease."""
        if self.calls:
            await asyncio.wait(self.calls)
        if self._singleton is not None:
            await self._singleton.lease.release()

    async def _by_lease(self, singleton: Singleton) -> None:
        own = self._options
        heartbeat = self._context.settings.amqp[own.connection.casefold()].heartbeat
        zone = ZoneInfo(own.timezone)
        following = partial(due_after, own.cron or "", zone)
        schedule = Schedule(own.every, following, zone, own.jitter, heartbeat)
        async for run in singleton.runs(schedule, self._has_room):
            self._begin(run.scheduled, run)

    def _on_lost(self) -> None:
        """Cancel the calls at once: another process may begin with the next one."""
        if not self.calls:
            return
        fields = {"consumer": self.endpoint.name, "calls": len(self.calls)}
        log.warning("lease lost: cancelling the runs that have begun", extra=fields)
        for call in self.calls:
            cancel(call)

    async def _by_grid(self, every: float) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while True:
            due = start + number * every
            await asyncio.sleep(due + self._jitter() - loop.time())
            self._call(datetime.now(UTC) - timedelta(seconds=loop.time() - due))
            # The next point of the grid that is still to come: late ones are not made up for.
            number = max(number, int((loop.time() - start) / every)) + 1

    async def _by_cron(self, expression: str) -> None:
        zone = ZoneInfo(self._options.timezone)
        last = datetime.now(UTC)
        while True:
            due = due_after(expression, zone, last)
            await sleep_until(due)
            await asyncio.sleep(self._jitter())
            self._call(due)
            last = max(due, datetime.now(UTC))

    def _jitter(self) -> float:
        return random.uniform(0.0, self._options.jitter)

    def _call(self, scheduled: datetime) -> None:
        if self._has_room(scheduled):
            self._begin(scheduled)

    def _has_room(self, scheduled: datetime) -> bool:
        if len(self.calls) < self._options.concurrency:
            return True
        log.warning(
            "previous run still in progress: this one is skipped",
            extra={"consumer": self.endpoint.name, "scheduled": in_utc(scheduled)},
        )
        return False

    def _begin(self, scheduled: datetime, run: Run | None = None) -> None:
        call = self._context.keep(self._handle(scheduled, run), f"{self.endpoint.name} call")
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)

    async def _handle(self, scheduled: datetime, run: Run | None) -> None:
        tick = Tick(self.endpoint.name, scheduled)
        outcome = await self._try(tick, run)
        while outcome.action is Action.RETRY:
            if not await self._pause(pause(outcome, self._options.retry)):
                return
            tick.again()
            outcome = await self._try(tick, run)

    async def _try(self, tick: Tick, run: Run | None) -> Outcome:
        began = perf_counter()
        with running_as(run):
            outcome = await self.endpoint.process(tick)
        seconds = perf_counter() - began
        # There is no queue that a call could be put aside to.
        action = Action.REJECT if outcome.action is Action.DEAD_LETTER else outcome.action
        name, source = self.endpoint.name, self._options.schedule
        record = Settled(name, source, tick, outcome, action, seconds)
        notify(self._context.observers, record)
        return outcome


def _periodic(options: Options) -> PeriodicOptions:
    assert isinstance(options, PeriodicOptions)
    return options
