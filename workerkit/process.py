"""Everything that a running application has opened, and the order in which it is closed."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dependency_injector import containers

from workerkit import logs
from workerkit.assembly import Assembly
from workerkit.container import Resources
from workerkit.endpoint import Endpoint
from workerkit.errors import RunError
from workerkit.health import Health
from workerkit.places import place
from workerkit.watchdog import Watchdog
from workerkit.wire import Context, Declared, Wire

log = logging.getLogger(__name__)

STOP_DEADLINE = 5.0
"""Seconds for the brokers to stop sending; handlers run meanwhile."""

CLOSE_DEADLINE = 3.0
"""Seconds for each hook and resource to close."""

HARD_DEADLINE = 5.0
"""Seconds for handlers to end after they were cancelled; then their connections are dropped."""


class Process:
    """One run of an application, from resources opened to resources closed.

    Attributes:
        health: How each consumer is doing.
        changed: Set when health has changed, or something failed.
        crash: What one of our own tasks ended in; the process must stop then.
        abandoned: Names of consumers whose handlers would not end.
    """

    def __init__(self, assembly: Assembly, container: containers.Container) -> None:
        self.health: list[Health] = []
        self.changed = asyncio.Event()
        self.crash: BaseException | None = None
        self.abandoned: list[str] = []
        self._assembly = assembly
        self._container = container
        self._resources = Resources(container)
        self._publisher: Any = None
        self._endpoints: list[Endpoint] = []
        self._wires: list[Wire] = []
        self._watchdog: Watchdog | None = None

    async def start(self) -> None:
        """Open resources, make the consumers, start the wires.

        Raises:
            RunError: One of them failed; `stop` closes what was opened before it.
        """
        logs.quiet_libraries()
        self._watchdog = Watchdog()
        self._watchdog.start()
        settings = self._assembly.settings
        await self._resources.open()
        publisher = await _made("provider 'publisher'", self._container.providers["publisher"])
        self._publisher = publisher
        publisher.open(settings)
        observers = await _made("provider 'observers'", self._container.providers["observers"])
        context = Context(settings, observers, publisher, self.changed.set, self._keep)
        fed = [
            (wire, [await self._endpoint(wire, each) for each in declared])
            for wire, declared in self._assembly.wires
        ]
        for wire, endpoints in fed:
            self._wires.append(wire)
            self.health += await wire.start(endpoints, context)

    async def stop(self) -> list[str]:
        """Take nothing new, let handlers finish, close everything in reverse.

        Returns:
            What could not be stopped or closed cleanly, one sentence each.
        """
        loop = asyncio.get_running_loop()
        grace_ends = loop.time() + self._assembly.settings.shutdown_grace
        faults = []
        await self._each_within(STOP_DEADLINE, [wire.stop() for wire in self._wires])
        if self._busy():
            left = max(grace_ends - loop.time(), 0.0)
            await self._each_within(left, [wire.drain() for wire in self._wires])
        if busy := self._busy():
            log.warning("grace is over: cancelling handlers", extra={"consumers": busy})
            await self._each_within(HARD_DEADLINE, [wire.cancel() for wire in self._wires])
        self.abandoned = self._busy()
        if self.abandoned:
            names = ", ".join(self.abandoned)
            faults.append(f"handlers of {names} did not end when cancelled; given up")
        for wire in reversed(self._wires):
            await wire.close()
        faults += await self._within_closing(
            [(f"on_stop of {each.name}", each.stop()) for each in reversed(self._endpoints)]
        )
        if self._publisher is not None:
            faults += await self._within_closing([("publisher", self._publisher.close())])
        faults += await self._resources.close(CLOSE_DEADLINE)
        if self._watchdog is not None:
            self._watchdog.stop()
        return faults

    async def _within_closing(
        self, calls: list[tuple[str, Coroutine[Any, Any, None]]]
    ) -> list[str]:
        """Run *calls* one after the other; give up each one that takes too long, and name it."""
        faults = []
        for name, call in calls:
            try:
                async with asyncio.timeout(CLOSE_DEADLINE):
                    await call
            except TimeoutError:
                faults.append(f"{name} did not end within {CLOSE_DEADLINE:g} s; given up")
        return faults

    def _busy(self) -> list[str]:
        return [name for wire in self._wires for name in wire.busy()]

    async def _endpoint(self, wire: Wire, declared: Declared) -> Endpoint:
        where = place(declared.consumer)
        consumer = await _made(where, declared.factory)
        endpoint = wire.endpoint(declared, consumer)
        self._endpoints.append(endpoint)
        try:
            await endpoint.start()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise RunError(f"{where}: on_start failed: {type(error).__name__}: {error}") from error
        return endpoint

    async def _each_within(self, seconds: float, calls: list[Coroutine[Any, Any, None]]) -> None:
        """Run all of *calls*, and cancel those that are late."""
        if not calls:
            return
        tasks = [asyncio.create_task(call) for call in calls]
        done, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for task in done:
            if error := task.exception():
                log.error("a wire failed while stopping", exc_info=error)

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("stopping: a task failed", exc_info=error, extra={"task": task.get_name()})
        self.crash = self.crash or error
        self.changed.set()


async def _made(what: str, make: Callable[[], Any]) -> Any:
    """What a provider gives; an asynchronous one gives a future of it."""
    try:
        made = make()
        return await made if inspect.isawaitable(made) else made
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise RunError(f"{what} could not be made: {type(error).__name__}: {error}") from error
