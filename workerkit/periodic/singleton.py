"""Periodic tasks of which one process of all runs each: their leases, and the times of their runs.

A run is due by the wall clocks of all processes, because each goes on where another has stopped.
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

from workerkit.amqp.connection import Link
from workerkit.amqp.lease import SILENCE, Lease, lease_queue
from workerkit.amqp.term import NotHeld
from workerkit.config.connections import AMQPSettings
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.describe import describe_class
from workerkit.endpoint import Endpoint
from workerkit.health import Part
from workerkit.options import Options, only_with
from workerkit.periodic.schedule import Schedule, sleep_until
from workerkit.signature import Resolve, Unresolved
from workerkit.signature import Source as ArgumentSource
from workerkit.tasks import cancel_and_wait
from workerkit.transport import Context, Declared, Hook

log = logging.getLogger(__name__)

_OF_LEASES = only_with("singleton", "it is for tasks with singleton = True")
_TICK_DEADLINE = 10.0
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True)
_FLAGS |= dict.fromkeys(("false", "no", "off", "0"), False)


def _flag(found: object) -> object:
    """The environment has texts only."""
    return _FLAGS.get(found.lower(), found) if isinstance(found, str) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonOptions(Options):
    """Which process runs a task.

    Attributes:
        singleton: One process of all runs the task, the one that has a lease on the broker; without
            it every process does. A string names the lease, `<top-level package>.<name>` by
            default.
        connection: Of the broker with the lease, a named connection of `settings.amqp`.
        vhost: Of the lease; None for the connection's own.
    """

    singleton: Annotated[
        bool | Annotated[str, Field(min_length=1, max_length=200)], BeforeValidator(_flag)
    ] = False
    connection: str = field(default="default", metadata=_OF_LEASES)
    vhost: str | None = field(default=None, metadata=_OF_LEASES)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task with `singleton = True`; `handle` may have a parameter of this type.

    Attributes:
        number: Higher than that of every run before, in any process: a positive integer of less
            than 63 bits. Let a database refuse what comes with a lower number than it has seen.
        scheduled: When it was due, with a time zone.
    """

    number: int
    scheduled: datetime


_current: ContextVar[Run] = ContextVar("run")


@contextmanager
def running_as(run: Run | None) -> Iterator[None]:
    """Have a parameter of type `Run` be *run* inside the block."""
    if run is None:
        yield
        return
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def resolving_run(resolve: Resolve, is_singleton: bool) -> Resolve:
    """Return *resolve*, but for parameters of type `Run`, which are the current run."""

    def resolve_run(parameter: inspect.Parameter, type_: Any) -> ArgumentSource:
        if type_ is not Run:
            return resolve(parameter, type_)
        if not is_singleton:
            raise Unresolved("is a Run, which only a task with singleton = True has")
        return ArgumentSource(_current.get)

    return resolve_run


def lease_name(consumer: type, options: SingletonOptions) -> str:
    """Return the name of a task's lease, which is the same in all processes.

    Two applications on one virtual host may both have a task `Cleanup`: so the name begins with the
    top-level package, unless the class states one.
    """
    if isinstance(options.singleton, str):
        return options.singleton
    return f"{consumer.__module__.partition('.')[0]}.{options.name}"


def faults(
    declared: Declared,
    options: SingletonOptions,
    settings: WorkerSettings,
    seen: dict[tuple[str, str, str], type[Consumer]],
) -> Iterator[str]:
    """Yield what is wrong with these options.

    Args:
        seen: The tasks so far, by connection, virtual host and lease; this one is added.
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
        there = describe_class(other)
        yield f"{where} and {there} have the same lease {lease!r}: rename one of them"


class Singleton:
    """One task of which one process runs all calls."""

    def __init__(self, name: str, lease: Lease) -> None:
        self.lease = lease
        self._name = name

    def role(self) -> str:
        """Say whether this process runs it."""
        return "leader" if self.lease.held else "standby"

    async def runs(
        self, schedule: Schedule, has_room: Callable[[datetime], bool]
    ) -> AsyncIterator[Run]:
        """Yield a run when it is due, as long as this process has the lease.

        Args:
            has_room: Whether one more call may begin when it is due; if not, it is left out.
        """
        left_out = 0.0
        while True:
            await self.lease.acquired()
            after = self.lease.last_scheduled
            due = schedule.next(max(after, left_out), datetime.now(schedule.zone))
            await sleep_until(due)
            await asyncio.sleep(random.uniform(0.0, schedule.jitter))
            if not self.lease.held:
                continue
            if not has_room(due):
                left_out = due.timestamp()
                continue
            try:
                number = await self.lease.take(due.timestamp(), after)
            except NotHeld as error:
                log.info("no run", extra={"consumer": self._name, "reason": str(error)})
                continue
            if self.lease.held:
                yield Run(number, due)

    async def run_now(self) -> Run:
        """Take the number of a run that no schedule has asked for.

        Raises:
            NotHeld: Another process has the lease, or the broker cannot be reached.
        """
        try:
            await asyncio.wait_for(self.lease.acquired(), _TICK_DEADLINE)
        except TimeoutError:
            text = f"{self._name}: another process has the lease, or there is no connection"
            raise NotHeld(text) from None
        now = datetime.now(UTC)
        return Run(await self.lease.take(now.timestamp(), self.lease.last_scheduled), now)


class Singletons:
    """The leases of one process, and the connections that they need.

    They have connections of their own, on which half of the heartbeat is agreed. So RabbitMQ closes
    that of a process that is silent after one to one and a half heartbeats of the settings.
    """

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        self._hooks: list[Hook] = []
        self._keeping: list[asyncio.Task[None]] = []

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
            part: Told how it is going.
            on_lost: Called at once when this process has had the lease and loses it.
        """
        name, vhost = options.connection.casefold(), options.vhost
        settings = context.settings.amqp[name]
        key = (name, settings.vhost_name(vhost))
        if key not in self._links:
            read = partial(_with_half_heartbeat, context.settings, name)
            observers = context.observers
            self._links[key] = link = Link(name, read, vhost, "singletons", observers, SILENCE)
            self._keeping.append(context.keep(link.run(), f"link to {link} for leases"))
        link = self._links[key]
        self._hooks.append(Hook(endpoint))
        link.followers.append(self._hooks[-1])
        queue = lease_queue(lease_name(type(endpoint.consumer), options), settings.queue_type)
        lease = Lease(
            endpoint.name,
            queue,
            link,
            settings.declare,
            settings.heartbeat,
            part,
            on_lost,
        )
        self._keeping.append(context.keep(lease.run(), f"{endpoint.name} lease"))
        return Singleton(endpoint.name, lease)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(each.close() for each in self._hooks))
        await cancel_and_wait(self._keeping)


def _with_half_heartbeat(settings: WorkerSettings, name: str) -> AMQPSettings:
    found = settings.connection(name)
    return found.model_copy(update={"heartbeat": max(1, found.heartbeat // 2)})
