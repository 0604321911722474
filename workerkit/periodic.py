"""The clock as a wire: classes whose `handle` is called again and again."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, ClassVar
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field

from workerkit.consumer import Consumer
from workerkit.delivery import Action, Delivery, Outcome
from workerkit.endpoint import Endpoint
from workerkit.health import Health, Part
from workerkit.observe import Settled, notify
from workerkit.options import Concurrency, Options, Seconds, folded
from workerkit.places import place
from workerkit.retry import Retries, RetryPolicy, pause
from workerkit.settings import WorkerSettings
from workerkit.supervisor import cancelled, paused
from workerkit.wire import Context, Declared

log = logging.getLogger(__name__)

# A wall clock that is set, or a machine that slept, is noticed after this many seconds.
_LONGEST_SLEEP = 30.0

_FIVE_FIELDS = (
    "write five fields: minute, hour, day of month, month and day of week, such as '*/5 * * * *'; "
    "for seconds set `every` instead"
)


def _cron(expression: str) -> str:
    try:
        # cronsim takes a sixth field, of seconds, as the first one. Other libraries expect it at
        # the end, so it is not accepted at all.
        if (number := len(expression.split())) != 5:
            raise CronSimError(f"it has {number} field{'' if number == 1 else 's'}")
        next(CronSim(expression, datetime.now(UTC)))
    except (CronSimError, ValueError, StopIteration) as error:
        raise ValueError(f"{_reason(error)}; {_FIVE_FIELDS}") from error
    return expression


def _reason(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "it matches no time of the next 50 years"
    if isinstance(error, CronSimError):
        text = str(error)
        return f"its {text[4:]} is not valid" if text.startswith("Bad ") else text
    return "it contains a number that is too large"


def _zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("there is no time zone of that name; write one such as 'Europe/Berlin'")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicOptions(Options):
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
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
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
    """

    options: ClassVar[type[Options]] = PeriodicOptions
    retry: ClassVar[RetryPolicy | None]
    every: ClassVar[float | None]
    cron: ClassVar[str | None]
    timezone: ClassVar[str]
    jitter: ClassVar[float]


class Tick(Delivery):
    """One point in time at which a task is due."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(b"")
        self.name = name

    def __repr__(self) -> str:
        return f"<Tick of {self.name}>"


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

    def check(self, declared: Declared, settings: WorkerSettings) -> list[str]:
        """A task has one schedule."""
        options = _periodic(declared.options)
        if (options.every is None) == (options.cron is None):
            found = "neither" if options.every is None else "both"
            return [f"{place(declared.consumer)}: set either every or cron; found {found}"]
        return []

    def source(self, options: Options) -> str:
        """The schedule."""
        return _periodic(options).schedule

    def via(self, options: Options, settings: WorkerSettings) -> str:
        """The clock whose time counts."""
        return f"time zone {_periodic(options).timezone}"

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
            if not self._by_hand:
                self._loops.append(context.keep(timer.run(), f"{endpoint.name} timer"))
            part = Part(context.changed)
            part.ready()
            self._parts.append(part)
            name, in_flight = endpoint.name, timer.in_flight
            health.append(Health(name, [part], outside=False, in_flight=in_flight))
        return health

    async def tick(self, name: str) -> None:
        """Call a task once, now, and wait for the call.

        Raises:
            KeyError: There is no task of that name.
        """
        timers = {folded(timer.endpoint.name): timer for timer in self._timers}
        if folded(name) not in timers:
            known = ", ".join(timer.endpoint.name for timer in self._timers) or "nothing"
            raise KeyError(f"no periodic task {name!r} runs, only {known}")
        await timers[folded(name)].tick()

    async def stop(self) -> None:
        """Stop the clocks; what waits to be called again is not called."""
        self._stopping.set()
        for part in self._parts:
            part.stopping()
        await cancelled(self._loops)

    async def drain(self) -> None:
        """Return once no call runs."""
        for timer in self._timers:
            if timer.calls:
                await asyncio.wait(timer.calls)

    async def cancel(self) -> None:
        """Cancel the calls that still run, and wait for them."""
        await cancelled([call for timer in self._timers for call in timer.calls])

    def busy(self) -> list[str]:
        """Tasks with calls that still run."""
        return [timer.endpoint.name for timer in self._timers if timer.calls]

    async def close(self) -> None:
        """There is nothing to close."""

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

    async def run(self) -> None:
        """Call when it is time, until cancelled."""
        if self._options.cron is not None:
            await self._by_cron(self._options.cron)
        elif self._options.every is not None:
            await self._by_grid(self._options.every)

    def in_flight(self) -> int:
        """How many calls run."""
        return len(self.calls)

    async def tick(self) -> None:
        """Call it once, whatever the clock says."""
        await self._handle()

    async def _by_grid(self, every: float) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while True:
            await asyncio.sleep(start + number * every + self._jitter() - loop.time())
            self._call()
            # The next point of the grid that is still to come: late ones are not made up for.
            number = max(number, int((loop.time() - start) / every)) + 1

    async def _by_cron(self, expression: str) -> None:
        zone = ZoneInfo(self._options.timezone)
        last = datetime.now(UTC)
        while True:
            due = due_after(expression, zone, last)
            await _sleep_until(due)
            await asyncio.sleep(self._jitter())
            self._call()
            last = max(due, datetime.now(UTC))

    def _jitter(self) -> float:
        return random.uniform(0.0, self._options.jitter)

    def _call(self) -> None:
        if len(self.calls) >= self._options.concurrency:
            log.warning(
                "still running: this time is left out", extra={"consumer": self.endpoint.name}
            )
            return
        call = self._context.keep(self._handle(), f"{self.endpoint.name} call")
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)

    async def _handle(self) -> None:
        tick = Tick(self.endpoint.name)
        outcome = await self._try(tick)
        while outcome.action is Action.RETRY:
            if not await self._pause(pause(outcome, self._options.retry)):
                return
            tick.again()
            outcome = await self._try(tick)

    async def _try(self, tick: Tick) -> Outcome:
        began = perf_counter()
        outcome = await self.endpoint.process(tick)
        seconds = perf_counter() - began
        # There is no queue that a call could be put aside to.
        action = Action.REJECT if outcome.action is Action.DEAD_LETTER else outcome.action
        name, source = self.endpoint.name, self._options.schedule
        record = Settled(name, source, tick, outcome, action, seconds)
        notify(self._context.observers, record)
        return outcome


def due_after(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    """When a line is due next, in UTC, by the rules of Debian's cron(8).

    A line whose minute or hour begins with `*` follows the clock on the wall. Any other is due once
    for each time that it names: after the change of clocks where that time is skipped, and the
    first time where it is repeated.

    Args:
        cron: Five fields.
        zone: The time zone of the fields.
        after: Has a time zone, which may be another one.
    """
    # In a repeated hour cronsim names times that have passed.
    times = (each.astimezone(UTC) for each in CronSim(cron, after.astimezone(zone)))
    return next(each for each in times if each > after)


async def _sleep_until(due: datetime) -> None:
    left = (due - datetime.now(UTC)).total_seconds()
    while left > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP))
        left = (due - datetime.now(UTC)).total_seconds()


def _periodic(options: Options) -> PeriodicOptions:
    assert isinstance(options, PeriodicOptions)
    return options
