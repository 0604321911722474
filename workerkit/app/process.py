"""A running application: what it opens, and the order in which it is closed."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import CodeType
from typing import TYPE_CHECKING, Any

from dependency_injector import containers, providers

from workerkit import logs
from workerkit.app.assembly import Assembly
from workerkit.app.asyncapi import document
from workerkit.app.burst import until_handled
from workerkit.app.console import ProcessConsole
from workerkit.app.interceptors import check_created
from workerkit.app.watchdog import Watchdog
from workerkit.container import Resources, redact_of
from workerkit.describe import describe_class, describe_error
from workerkit.endpoint import Endpoint
from workerkit.errors import DeclarationError, RunError
from workerkit.health import Readiness
from workerkit.ops.exemplars import Exemplars
from workerkit.ops.metrics import Metrics
from workerkit.ops.server import OpsServer
from workerkit.signature import given
from workerkit.tasks import (
    LATE,
    Interrupted,
    cancel,
    guard,
    is_meant_to_end,
    protect,
    run_all,
    unprotect,
)
from workerkit.tracing import start_tracing
from workerkit.transport import Bursts, Context, Declared, Prepares, Publishes, Transport

if TYPE_CHECKING:
    from workerkit.tracing.running import RunningTracing

log = logging.getLogger(__name__)

STOP_DEADLINE = 5.0
"""Seconds for the brokers to stop sending, while handlers still run."""

CLOSE_DEADLINE = 3.0
"""Seconds for each hook and resource to close."""

HARD_DEADLINE = 5.0
"""Seconds for handlers to end after they were cancelled; then their connections are dropped."""


class Process:
    """One run of an application, from resources opened to resources closed.

    Attributes:
        readiness: The health of each consumer, and whether the process should receive work.
        metrics: The counters; None where the settings disable them.
        changed: Set when health has changed, or something failed.
        crash: What one of our own tasks raised; the process must stop then.
        abandoned: Names of consumers and of others that did not end.
        done: A burst has ended: nothing is left to be handled.
        failures: What a burst could not handle, one sentence each.
    """

    def __init__(
        self, assembly: Assembly, container: containers.Container, *, burst: bool = False
    ) -> None:
        self.readiness = Readiness()
        wanted = assembly.settings.metrics
        self.metrics = Metrics(wanted, self.readiness) if wanted.enabled else None
        self.changed = asyncio.Event()
        self.crash: BaseException | None = None
        self.abandoned: list[str] = []
        self.done = False
        self.failures: list[str] = []
        self._burst = burst
        self._assembly = assembly
        self._container = container
        self._resources = Resources(container)
        self._publishing: list[Publishes] = []
        self._kept: set[asyncio.Task[None]] = set()
        self._endpoints: list[Endpoint] = []
        self._transports: list[Transport] = []
        self._watchdog: Watchdog | None = None
        self._tracing: RunningTracing | None = None
        self._console: ProcessConsole | None = None

    def ops_server(self, number: int = 0) -> OpsServer:
        """Create the server of health, metrics, documents and the console.

        The caller opens and closes it.

        Args:
            number: Of this process among those of `--processes`; 0 if it is the only one.
        """
        redact = redact_of(self._container)
        console = self._console = ProcessConsole(
            self._assembly, self.readiness, self.metrics, redact, number
        )
        return OpsServer(
            self._assembly.settings,
            self.readiness,
            self.metrics,
            redact,
            partial(document, self._assembly),
            serves_views=self._assembly.serves_views,
            extension=console.page,
        )

    async def start(self) -> None:
        """Open resources, create the consumers, start the transports.

        Raises:
            RunError: One of them failed; `stop` closes what was opened before.
        """
        logs.quiet_libraries()
        self._watchdog = (
            Watchdog() if self.metrics is None else Watchdog(lagged=self.metrics.lagged)
        )
        self._watchdog.start()
        await self._resources.open()
        # A resource may have configured the SDK.
        self._tracing = start_tracing(self._assembly.settings, redact_of(self._container))
        if self._tracing is not None:
            self._tracing.start()
        context = await self._context()
        await self._open_publishers(context)
        endpoints_of = [
            (transport, [await self._endpoint(transport, each) for each in declared])
            for transport, declared in self._assembly.transports
        ]
        for transport, declared in self._assembly.transports:
            if isinstance(transport, Prepares):
                # Before the first hook, which may already publish.
                self._transports.append(transport)
                await transport.prepare(declared, context)
        for _, endpoints in endpoints_of:
            for endpoint in endpoints:
                await self._begin(endpoint)
        for transport, endpoints in endpoints_of:
            if transport not in self._transports:
                self._transports.append(transport)
            self.readiness.health += await transport.start(endpoints, context)
        self.readiness.started = True
        if self._console is not None:
            self._console.join(self._transports)
        if self._burst:
            _ = self._keep(self._end_burst(), "burst")

    async def stop(self) -> list[str]:
        """Receive nothing new, let handlers finish, close everything in reverse order.

        Returns:
            What could not be stopped or closed cleanly, one sentence each.
        """
        try:
            return await self._stop()
        finally:
            # None is left, unless one did not end, or the stop itself was cancelled.
            for task in self._kept:
                cancel(task)

    async def _stop(self) -> list[str]:
        self.readiness.draining = True
        loop = asyncio.get_running_loop()
        grace_ends = loop.time() + self._assembly.settings.shutdown_grace
        transports = {f"{transport.kind} transport": transport for transport in self._transports}
        faults = await self._finish(
            "stopped",
            {name: transport.stop() for name, transport in transports.items()},
            STOP_DEADLINE,
        )
        # Where no handler runs, messages may still have to be requeued.
        left = max(grace_ends - loop.time(), 0.0)
        await run_all({name: transport.drain() for name, transport in transports.items()}, left)
        if busy := self._busy():
            log.warning(
                "shutdown grace period expired: cancelling handlers", extra={"consumers": busy}
            )
            for task in self._kept:
                unprotect(task)
            await run_all(
                {name: transport.cancel() for name, transport in transports.items()}, HARD_DEADLINE
            )
        if busy := self._busy():
            self.abandoned += busy
            faults.append(f"handlers of {', '.join(busy)} did not end when cancelled: abandoned")
        if self._console is not None:
            await run_all({"fleet": self._console.leave()}, CLOSE_DEADLINE)
        faults += await self._finish(
            "closed",
            {name: transport.close() for name, transport in transports.items()},
            CLOSE_DEADLINE,
        )
        faults += await self._finish(
            "ended",
            {f"on_stop of {each.name}": each.stop() for each in self._endpoints},
            CLOSE_DEADLINE,
        )
        faults += await self._finish(
            "closed",
            {f"{each.kind} publisher": each.close_publisher() for each in self._publishing},
            CLOSE_DEADLINE,
        )
        faults += self._faults("closed", await self._resources.close(CLOSE_DEADLINE))
        if self._tracing is not None:
            self._tracing.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        return faults

    async def _finish(
        self, what: str, calls: Mapping[str, Coroutine[Any, Any, None]], seconds: float
    ) -> list[str]:
        """Run *calls*; return the failures, one sentence each."""
        return self._faults(what, await run_all(calls, seconds))

    def _faults(self, what: str, wrong: Mapping[str, str]) -> list[str]:
        self.abandoned += [name for name, text in wrong.items() if text is LATE]
        return [f"{name} could not be {what}: {text}" for name, text in wrong.items()]

    async def _end_burst(self) -> None:
        transports = [each for each in self._transports if isinstance(each, Bursts)]
        await until_handled(transports, lambda: self.readiness.draining)
        if self.readiness.draining:
            return
        self.failures = [text for each in transports for text in each.failures()]
        log.info("nothing is left to handle")
        self.done = self.crash is None
        self.changed.set()

    def _busy(self) -> list[str]:
        return [name for transport in self._transports for name in transport.busy()]

    async def _context(self) -> Context:
        settings = self._assembly.settings
        publisher = await self._from_container("publisher")
        observers = await self._from_container("observers")
        if self.metrics is not None:
            observers = [*observers, self.metrics]
            if self._tracing is not None:
                observers.append(Exemplars(self.metrics, self._tracing))
        return Context(
            settings,
            observers,
            publisher,
            await self._from_container("cursors"),
            await self._from_container("middlewares"),
            redact_of(self._container),
            self._assembly.codecs,
            self.changed.set,
            self._keep,
            self._tracing,
            self._burst,
        )

    async def _open_publishers(self, context: Context) -> None:
        for transport in self._assembly.publishing:
            self._publishing.append(transport)
            await transport.open_publisher(context)
        self.readiness.blocked = self._blocked

    def _blocked(self) -> list[str]:
        return [name for each in self._publishing for name in each.blocked()]

    async def _from_container(self, name: str) -> Any:
        """Return what a provider of the container creates."""
        return await self._created(f"provider {name!r}", self._container.providers[name])

    async def _created(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what a provider creates; await it where it is asynchronous."""
        try:
            return await guard(given(make()))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            where = _code_that_raised(error, self._container)
            raise RunError(
                f"{what} could not be created: {describe_error(error)}{where}"
            ) from error

    async def _interceptor(self, what: str, make: Callable[[], Any]) -> Any:
        created = await self._created(what, make)
        try:
            check_created(created)
        except DeclarationError as error:
            raise RunError(*(f"{what}: {fault}" for fault in error.faults)) from error
        return created

    async def _endpoint(self, transport: Transport, declared: Declared) -> Endpoint:
        consumer = await self._created(describe_class(declared.consumer), declared.factory)
        interceptors = [
            await self._interceptor(f"interceptor {number} of {declared.options.name}", make)
            for number, make in enumerate(declared.interceptors, 1)
        ]
        options = replace(declared.options, interceptors=tuple(interceptors))
        endpoint = transport.endpoint(replace(declared, options=options), consumer)
        if self._tracing is not None and getattr(transport.delivery, "trace_operation", True):
            self._tracing.trace_calls(endpoint, transport.kind, transport.source(options))
        return endpoint

    async def _begin(self, endpoint: Endpoint) -> None:
        """Call `on_start` of a consumer; from then on it has to be stopped."""
        self._endpoints.append(endpoint)
        try:
            await guard(endpoint.start())
        except Exception as error:
            where = describe_class(type(endpoint.consumer))
            raise RunError(f"{where}: on_start failed: {describe_error(error)}") from error

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        protect(task)
        self._kept.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._kept.discard(task)
        error: BaseException | None
        if not task.cancelled():
            error = task.exception()
        elif self.readiness.draining or is_meant_to_end(task):
            error = None
        else:
            error = Interrupted(f"{task.get_name()} was cancelled from inside")
        if error is None:
            return
        log.critical("stopping: a task failed", exc_info=error, extra={"task": task.get_name()})
        self.crash = self.crash or error
        self.readiness.crashed = True
        self.changed.set()


def _code_that_raised(error: BaseException, container: containers.Container) -> str:
    """Return which user code a provider called, and where it raised; "" if none."""
    for frame, line in walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        code = frame.f_code
        # The frames of dependency-injector are Cython's, and rarely name their module.
        if module in ("workerkit", "asyncio") or code.co_filename.endswith((".pyx", ".pxd")):
            continue
        by = [
            f"provider {name!r}, "
            for name, provider in container.providers.items()
            if _code_of(provider) is code
        ]
        return f" ({''.join(by[:1])}{code.co_qualname}, {Path(code.co_filename).name}:{line})"
    return ""


def _code_of(provider: "providers.Provider[Any]") -> CodeType | None:
    """Return the code that *provider* runs; None where it is not Python."""
    made = getattr(provider, "provides", None)
    function: object = getattr(made, "__init__", None) if isinstance(made, type) else made
    found = getattr(function, "__code__", None)
    return found if isinstance(found, CodeType) else None
