"""Periodic tasks that only one process runs: their options, their leases, and their runs.

Runs are scheduled by the system clocks, because a process continues the schedule of another one.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from workerkit.amqp.connection import Connection
from workerkit.amqp.lease import SILENCE, Lease, lease_queue
from workerkit.amqp.lease_term import NotHeld
from workerkit.amqp.queue import Queue
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.health import Part
from workerkit.options import Options, only_with
from workerkit.periodic.schedule import Schedule, sleep_until
from workerkit.signature import ArgumentSource, Resolve, Unresolved
from workerkit.tasks import cancel_and_wait
from workerkit.transport import Context, Declared, Hook

log = logging.getLogger(__name__)

_FOR_SINGLETONS = only_with("singleton", "it is for tasks with singleton = True")
_TICK_DEADLINE = 10.0
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True)
_FLAGS |= dict.fromkeys(("false", "no", "off", "0"), False)


def _flag(found: object) -> object:
    """Convert the text of an environment variable to a bool, if it is one."""
    return _FLAGS.get(found.lower(), found) if isinstance(found, str) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonOptions(Options):
    """The options of tasks that only one process runs.

    Attributes:
        singleton: Only the process that has a lease on the broker runs the task; without this
            option every process does. A string sets the name of the lease; by default it is
            `<top-level package>.<name>`.
        connection: The broker with the lease: a named connection of `settings.amqp`.
        vhost: The virtual host of the lease; None for that of the connection's settings.
    """

    singleton: Annotated[
        bool | Annotated[str, Field(min_length=1, max_length=200)], BeforeValidator(_flag)
    ] = False
    connection: str = field(default="default", metadata=_FOR_SINGLETONS)
    vhost: str | None = field(default=None, metadata=_FOR_SINGLETONS)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task with `singleton = True`; `handle` may have a parameter of this type.

    Attributes:
        number: A positive integer of less than 63 bits, higher than that of every earlier run of
            any process. Let a database refuse writes with a lower number than the last one.
        scheduled: When the run was due, with a time zone.
    """

    number: int
    scheduled: datetime


_current_run: ContextVar[Run] = ContextVar("run")


@contextmanager
def current_run(run: Run | None) -> Iterator[None]:
    """Pass *run* to parameters of type `Run` inside the block."""
    if run is None:
        yield
        return
    token = _current_run.set(run)
    try:
        yield
    finally:
        _current_run.reset(token)


def with_run(resolve: Resolve, is_singleton: bool) -> Resolve:
    """Extend *resolve* by parameters of type `Run`, which receive the current run."""

    def resolve_run(parameter: inspect.Parameter, type_: Any) -> ArgumentSource:
        if type_ is not Run:
            return resolve(parameter, type_)
        if not is_singleton:
            raise Unresolved("is a Run, which only a task with singleton = True has")
        return ArgumentSource(_current_run.get)

    return resolve_run


def lease_name(consumer: type, options: SingletonOptions) -> str:
    """Return the name of a task's lease, which is the same in all processes.

    Two applications on one virtual host may both have a task `Cleanup`, so the name begins with the
    top-level package, unless the class sets another one.
    """
    if isinstance(options.singleton, str):
        return options.singleton
    return f"{consumer.__module__.partition('.')[0]}.{options.name}"


def queue_of_lease(consumer: type, options: SingletonOptions, settings: AMQPSettings) -> Queue:
    """Return the queue of a task's lease."""
    return lease_queue(lease_name(consumer, options), settings.queue_type)


def check_singleton(
    declared: Declared,
    options: SingletonOptions,
    settings: WorkerSettings,
    seen: dict[tuple[str, str, str], type[Consumer]],
) -> Iterator[str]:
    """Yield the errors in the options of one task.

    Args:
        seen: The tasks so far, by connection, virtual host and lease. This one is added.
    """
    if not options.singleton:
        return
    where = describe_class(declared.consumer)
    connection = options.connection.casefold()
    if connection not in settings.amqp:
        known = ", ".join(sorted(settings.amqp))
        stated_by = options.origins.get("connection", where)
        yield f"{stated_by}: the settings have no connection {options.connection!r}, only {known}"
        return
    lease = lease_name(declared.consumer, options)
    key = (connection, settings.amqp[connection].vhost_name(options.vhost), lease)
    other = seen.setdefault(key, declared.consumer)
    if other is not declared.consumer:
        other_class = describe_class(other)
        yield f"{where} and {other_class} have the same lease {lease!r}: rename one of them"


class Singleton:
    """One task that only one process runs.

    Attributes:
        due: When the next run of this process is due; None while another process has the lease.
    """

    def __init__(self, name: str, lease: Lease) -> None:
        self.lease = lease
        self.due: datetime | None = None
        self._name = name

    def role(self) -> str:
        """Return whether this process runs the task, `leader` or `standby`."""
        return "leader" if self.lease.held else "standby"

    async def runs(
        self, schedule: Schedule, has_room: Callable[[datetime], bool]
    ) -> AsyncIterator[Run]:
        """Yield a run when it is due, as long as this process has the lease.

        Args:
            has_room: Returns whether one more run may begin when it is due; if not, it is skipped.
        """
        skipped = 0.0
        while True:
            self.due = None
            await self.lease.acquired()
            after = self.lease.last_scheduled
            due = schedule.next(max(after, skipped), datetime.now(schedule.zone))
            self.due = due.astimezone(UTC)
            await sleep_until(due)
            await asyncio.sleep(random.uniform(0.0, schedule.jitter))
            if not self.lease.held:
                continue
            if not has_room(due):
                skipped = due.timestamp()
                continue
            try:
                number = await self.lease.take(due.timestamp(), after)
            except NotHeld as error:
                log.info("run not started", extra={"consumer": self._name, "reason": str(error)})
                continue
            if self.lease.held:
                yield Run(number, due)

    async def run_now(self) -> Run:
        """Return a run outside the schedule, which begins now.

        Raises:
            NotHeld: Another process has the lease, or the broker cannot be reached.
        """
        try:
            await asyncio.wait_for(self.lease.acquired(), _TICK_DEADLINE)
        except TimeoutError:
            text = f"{self._name}: another process has the lease, or there is no connection"
            raise NotHeld(text) from None
        return await self.run_at_once()

    async def run_at_once(self) -> Run:
        """Return a run outside the schedule, if this process has the lease already.

        Raises:
            NotHeld: It does not have it.
        """
        if not self.lease.held:
            raise NotHeld(f"another process runs {self._name}, or there is no connection")
        now = datetime.now(UTC)
        return Run(await self.lease.take(now.timestamp(), self.lease.last_scheduled), now)


class Singletons:
    """The leases of one process, and their connections.

    Leases have separate connections, with half of the heartbeat of the settings. So RabbitMQ closes
    the connection of a silent process after one to one and a half heartbeats of the settings.
    """

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], Connection] = {}
        self._hooks: list[Hook] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(
        self,
        endpoint: Endpoint,
        options: SingletonOptions,
        context: Context,
        part: Part,
        on_lost: Callable[[], None],
    ) -> Singleton:
        """Compete for the lease of a task.

        Args:
            part: Notified of changes of its readiness.
            on_lost: Called immediately when this process had the lease and loses it.
        """
        name, vhost = options.connection.casefold(), options.vhost
        settings = context.settings.amqp[name]
        key = (name, settings.vhost_name(vhost))
        if key not in self._connections:
            read = partial(_with_half_heartbeat, context.settings, name)
            observers = context.observers
            self._connections[key] = lease_connection = Connection(
                name, read, vhost, "singletons", observers, SILENCE
            )
            self._tasks.append(
                context.keep(lease_connection.run(), f"connection to {lease_connection} for leases")
            )
        lease_connection = self._connections[key]
        self._hooks.append(Hook(endpoint))
        lease_connection.listeners.append(self._hooks[-1])
        queue = queue_of_lease(type(endpoint.consumer), options, settings)
        lease = Lease(
            endpoint.name,
            queue,
            lease_connection,
            settings.declare,
            settings.heartbeat,
            part,
            on_lost,
        )
        self._tasks.append(context.keep(lease.run(), f"{endpoint.name} lease"))
        return Singleton(endpoint.name, lease)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(each.close() for each in self._hooks))
        await cancel_and_wait(self._tasks)


def _with_half_heartbeat(settings: WorkerSettings, name: str) -> AMQPSettings:
    found = settings.connection(name)
    return found.model_copy(update={"heartbeat": max(1, found.heartbeat // 2)})
