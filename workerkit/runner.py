"""The life of the process: find, build, start, wait, drain, stop."""

import asyncio
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import NoReturn

from dependency_injector import containers

from workerkit import logs
from workerkit.app.assembly import Assembly, assemble
from workerkit.app.burst import without_endless
from workerkit.app.main_thread import check_main_thread
from workerkit.app.process import Process
from workerkit.config.explain import Faults
from workerkit.config.sections import LogSettings, OpsSettings
from workerkit.config.settings import WorkerSettings
from workerkit.config.variables import Variables
from workerkit.consumer import Consumer
from workerkit.container import redact_of
from workerkit.describe import describe_error
from workerkit.errors import RunError, StartError
from workerkit.forking import Handlers, separate_children
from workerkit.health import Health, abort_reasons
from workerkit.ops.debug_signal import DebugSignal
from workerkit.ops.metrics import Metrics
from workerkit.ops.server import OpsServer
from workerkit.safe_text import Redact, cleaner, escape
from workerkit.tasks import cancel
from workerkit.version import __version__

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_SIGNAL = 0.5  # Seconds within which the same signal again is no second one.
_LEFTOVERS_DEADLINE = 2.0
_LATE = 1.0


class Runner:
    """Runs the consumers of packages, with their dependencies from a container.

    ```python
    Runner(Container(), packages=["shop"]).run()
    ```

    Args:
        container: An instance of `WorkerContainer` or of a subclass.
        packages: Names of packages; every module in them is imported and searched.
        only: Names of the consumers to run, or their classes; none means all.

    Raises:
        TypeError: *packages* or *only* is no list.
    """

    def __init__(
        self,
        container: containers.Container,
        *,
        packages: Sequence[str],
        only: Sequence[str | type[Consumer]] = (),
    ) -> None:
        if isinstance(packages, str):
            raise TypeError(f"packages is a list, such as [{packages!r}]")
        if isinstance(only, str | type):
            raise TypeError(f"only is a list, such as [{_name(only)!r}]")
        self._container = container
        self._packages = packages
        self._only = [_name(each) for each in only]
        self._redact: Redact | None = None
        self._process: Process | None = None
        self._debug = DebugSignal()

    @property
    def health(self) -> Sequence[Health]:
        """The health of each consumer; empty before the start."""
        return self._process.readiness.health if self._process is not None else ()

    @property
    def crashed(self) -> bool:
        """Whether a task of ours failed, or a handler exited: the process has to stop."""
        return self._process is not None and self._process.crash is not None

    @property
    def ready(self) -> bool:
        """Whether every consumer receives what it should."""
        return bool(self.health) and not self.crashed and all(each.is_ready for each in self.health)

    @property
    def metrics(self) -> Metrics | None:
        """The metrics of the process; None before the start, or where they are disabled."""
        return self._process.metrics if self._process is not None else None

    def assemble(self) -> Assembly:
        """Check everything that can be checked without opening a socket.

        Raises:
            StartError: With every fault, one sentence each.
        """
        return assemble(self._container, self._packages, self._only)

    def run(
        self, *, log_level: str | None = None, traceback: bool = False, burst: bool = False
    ) -> None:
        """Run until SIGTERM or SIGINT, then stop without losing anything; return when all is well.

        A second signal ends the process immediately. SIGUSR1 logs where all tasks and threads are.
        Faults are written to stderr, one per line.

        Args:
            log_level: Instead of the setting's.
            traceback: Raise start errors as they are, instead of writing lines.
            burst: Handle what there is, run each periodic task once, then stop in the same way.
                Consumers that have no end are left out.

        Raises:
            SystemExit: 2 for faults of classes and configuration, 1 where it could not start, go
                on, or stop cleanly, or where a burst could not handle everything.
            RuntimeError: An event loop runs already, or this is not the main thread.
        """
        check_main_thread()
        self._debug.install()
        try:
            assembly = self.assemble()
            self._redact = redact_of(self._container)
            log_settings = _log_settings(assembly.settings.log, log_level)
            if not logging.getLogger().handlers:
                logs.configure(log_settings, self._redact)
            elif log_level is not None:
                logging.getLogger().setLevel(log_settings.threshold)
            if burst:
                assembly = without_endless(assembly)
            # asyncio handles SIGINT as soon as it runs: that is not for children, either.
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            with asyncio.Runner(loop_factory=_loop_factory()) as loop:
                loop.run(self._live(assembly, handlers, burst))
        except StartError as error:
            if traceback:
                raise
            report_faults(error.faults, self._redact)
            raise SystemExit(error.exit_code) from None
        finally:
            self._debug.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Runner"]:
        """Run inside the block, without signals: start before it, drain and stop after it.

        There is no ops server: `health` and `metrics` return the same.

        Raises:
            StartError: It could not start, or could not stop cleanly.
        """
        process = self._process = Process(self.assemble(), self._container)
        try:
            await process.start()
            yield self
        finally:
            faults = await process.stop()
        if process.crash is not None:
            faults.append(f"stopped by {describe_error(process.crash)}")
        if faults:
            raise RunError(*faults)

    async def _live(self, assembly: Assembly, handlers: Handlers, burst: bool) -> None:
        process = self._process = Process(assembly, self._container, burst=burst)
        faults: list[str] = []
        with (
            separate_children(handlers),
            _signals(process.changed.set) as stop_requested,
            self._debug.reports_on(asyncio.get_running_loop()),
        ):
            log.info(banner(assembly))
            ops = process.ops_server()
            try:
                await _listen(ops, assembly.settings)
                await _until_stopped(process, assembly.settings.start_timeout, stop_requested)
                faults += process.failures
            except RunError as error:
                faults += error.faults
            except Exception as error:
                log.critical("the start failed", exc_info=error)
                faults.append(f"the start failed: {describe_error(error)}")
            log.info("stopping")
            faults += await process.stop()
            await ops.close()
            log.info("stopped")
        if not process.abandoned and (late := await _cancel_leftovers()):
            process.abandoned += late
            faults.append(f"still running: abandoned: {', '.join(late)}")
        if process.abandoned:
            # Their tasks and threads would keep the event loop, and so the process, alive forever.
            report_faults(faults, self._redact)
            _exit_now(RunError.exit_code)
        if faults:
            raise RunError(*faults)


def _name(consumer: str | type[Consumer]) -> str:
    """Return the name of a consumer that is given by name or as a class."""
    if isinstance(consumer, str):
        return consumer
    return str(getattr(consumer, "name", consumer.__name__))


def _log_settings(settings: LogSettings, level: str | None) -> LogSettings:
    return settings if level is None else settings.model_copy(update={"level": level.upper()})


def banner(assembly: Assembly) -> str:
    """Return what is about to run, for people: consumers, their sources and connections."""
    lines = [f"workerkit {__version__}"]
    for transport, declared in assembly.transports:
        for each in declared:
            source, via = (
                transport.source(each.options),
                transport.via(each.options, assembly.settings),
            )
            about = ", ".join(filter(None, (source, via)))
            lines.append(f"  {each.options.name}: {transport.kind} {about}")
    return "\n".join(lines)


async def _listen(ops: OpsServer, settings: WorkerSettings) -> None:
    """Open the ops server, if it is enabled and its address is free.

    Raises:
        RunError: The port that was set is taken, or the host that was set is not local. A default
            that is taken is only a warning: two workers may run on one machine.
    """
    if not settings.ops.enabled:
        return
    try:
        await ops.open()
    except OSError as error:
        field = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        # asyncio's own text repeats the address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        variables = Variables(type(settings))
        default = OpsSettings.model_fields[field].default
        if variables.locate(("ops", field)) or getattr(settings.ops, field) != default:
            label = Faults(variables).label(("ops", field))
            taken = f"{label}: no ops server at {ops.url}: {reason}; set another {field}"
            raise RunError(taken) from error
        variable = variables.name(("ops", field))
        fields = {"url": ops.url, "reason": reason, "variable": variable}
        log.warning("no ops server", extra=fields)
        return
    log.info("ops server", extra={"url": ops.url})
    if settings.ops.port == 0:
        print(f"ops server at {ops.url}", flush=True)


async def _until_stopped(
    process: Process, start_timeout: float | None, stop_requested: Callable[[], bool]
) -> None:
    """Start, and return when a stop is requested, or when a burst has ended.

    Raises:
        RunError: It could not start, or cannot continue.
    """
    loop = asyncio.get_running_loop()
    latest = None if start_timeout is None else loop.time() + start_timeout
    starting = asyncio.create_task(process.start(), name="start")
    starting.add_done_callback(lambda _: process.changed.set())
    try:
        while not (process.done or stop_requested()):
            process.changed.clear()
            if starting.done():
                starting.result()
                if process.readiness.was_ready:
                    latest = None
            now = loop.time()
            if latest is not None and now - latest > _LATE:
                # Consumers may be ready, and only this process was suspended.
                latest = now + (now - latest)
            _check(process, latest is not None and now >= latest)
            try:
                async with asyncio.timeout_at(latest):
                    await process.changed.wait()
            except TimeoutError:
                continue
    finally:
        starting.cancel()
        await asyncio.wait([starting])


async def _cancel_leftovers() -> list[str]:
    """Cancel tasks that user code has started; return the names of those that do not end.

    Closing the event loop would wait for them forever.
    """
    tasks = {each.get_name(): each for each in asyncio.all_tasks() - {asyncio.current_task()}}
    for task in tasks.values():
        cancel(task)
    executor = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor())
    tasks["threads of asyncio.to_thread"] = executor
    await asyncio.wait(tasks.values(), timeout=_LEFTOVERS_DEADLINE)
    return [name for name, task in tasks.items() if not task.done()]


def _check(process: Process, late: bool) -> None:
    if process.crash is not None:
        crash = process.crash
        raise RunError(f"stopped by {describe_error(crash)}")
    if reasons := abort_reasons(process.readiness.health):
        raise RunError(*reasons)
    if late:
        waiting = [each for each in process.readiness.health if not each.was_ready]
        raise (
            RunError(*(f"{each.consumer} is not ready in time: {each.reason}" for each in waiting))
            if waiting
            else RunError("the resources were not open in time")
        )


@contextmanager
def _signals(wake: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Handle SIGTERM and SIGINT: the first requests a stop, the second ends the process.

    `timeout` and shells send a signal to a process and to its group, so it may arrive twice.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []
    since = 0.0

    def receive(number: int, frame: object) -> None:
        nonlocal since
        if number in received and time.monotonic() - since < _ONE_SIGNAL:
            return
        since = time.monotonic()
        if received:
            os.write(sys.stderr.fileno(), b"second signal: exiting immediately\n")
            _exit_now(128 + number)
        received.append(number)
        loop.call_soon_threadsafe(wake)

    # Not loop.add_signal_handler: that runs in the loop, and a handler may be blocking it.
    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report_faults(faults: Sequence[str], redact: Redact | None = None) -> None:
    """Write each fault to stderr, one per line, without passwords of URLs."""
    for fault in faults:
        text = cleaner(redact)(" ".join(fault.splitlines()))
        print(escape(text), file=sys.stderr)


def _exit_now(code: int) -> NoReturn:
    """End the process now, even while tasks run."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        # A signal handler may have interrupted a write to the same stream.
        os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory of uvloop, where it is installed."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
