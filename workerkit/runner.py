"""The life of the process: find, build, start, wait, drain, stop."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.util import find_spec

from dependency_injector import containers

from workerkit import logs
from workerkit.app.assembly import Assembly, assemble
from workerkit.app.burst import without_endless
from workerkit.app.main_thread import check_main_thread
from workerkit.app.process import Process
from workerkit.config.settings import WorkerSettings
from workerkit.consumer import Consumer
from workerkit.container import redact_of
from workerkit.describe import describe_error
from workerkit.errors import RunError, StartError
from workerkit.forking import Handlers, separate_children
from workerkit.health import Health, abort_reasons
from workerkit.ops.debug_signal import DebugSignal
from workerkit.ops.metrics import Metrics
from workerkit.ops.port import open_ops_server
from workerkit.ops.server import OPEN_METRICS, OpsServer, metrics
from workerkit.processes.link import ParentLink
from workerkit.safe_text import Redact, cleaner, escape
from workerkit.stop_signals import STOP_SIGNALS, exit_now, stop_signals
from workerkit.tasks import cancel
from workerkit.version import __version__

log = logging.getLogger(__name__)

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
        self,
        *,
        log_level: str | None = None,
        traceback: bool = False,
        burst: bool = False,
        parent: ParentLink | None = None,
    ) -> None:
        """Run until SIGTERM or SIGINT, then stop without losing anything; return when all is well.

        A second signal ends the process immediately. SIGUSR1 logs where all tasks and threads are.
        Faults are written to stderr, one per line.

        Args:
            log_level: Instead of the setting's.
            traceback: Raise start errors as they are, instead of writing lines.
            burst: Handle what there is, run each periodic task once, then stop in the same way.
                Consumers that have no end are left out.
            parent: The link to the process that started this one, as with `--processes`.

        Raises:
            SystemExit: 2 for faults of classes and configuration, 1 where it could not start, go
                on, or stop cleanly, or where a burst could not handle everything.
            RuntimeError: An event loop runs already, or this is not the main thread.
        """
        check_main_thread()
        self._debug.install()
        try:
            if parent is not None:
                parent.unblock_signals()
            assembly = self.assemble()
            if parent is not None:
                assembly = parent.adapt(assembly)
            self._redact = redact_of(self._container)
            logs.configure_unless_done(assembly.settings.log, log_level, self._redact)
            if burst:
                assembly = without_endless(assembly)
            # asyncio handles SIGINT as soon as it runs: that is not for children, either.
            handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            if parent is not None:
                handlers.update(parent.handlers)
            with asyncio.Runner(loop_factory=_loop_factory()) as loop:
                loop.run(self._live(assembly, handlers, burst, parent))
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

    async def _live(
        self, assembly: Assembly, handlers: Handlers, burst: bool, parent: ParentLink | None
    ) -> None:
        process = self._process = Process(assembly, self._container, burst=burst)
        faults: list[str] = []
        with (
            separate_children(handlers),
            _stop_requests(process.changed.set, parent) as stop_requested,
            self._debug.reports_on(asyncio.get_running_loop()),
        ):
            if parent is None or not parent.number:
                log.info(banner(assembly))
            ops = process.ops_server(0 if parent is None else parent.number)
            try:
                await _open(ops, assembly.settings, parent)
                await _until_stopped(process, assembly.settings, stop_requested, parent)
                faults += process.failures
            except RunError as error:
                faults += error.faults
            except Exception as error:
                log.critical("the start failed", exc_info=error)
                faults.append(f"the start failed: {describe_error(error)}")
            log.info("stopping")
            faults += await process.stop()
            await ops.close()
            if parent is not None and process.metrics is not None:
                parent.counted(partial(metrics, process.metrics.registry, OPEN_METRICS))
            log.info("stopped")
        if not process.abandoned and (late := await _cancel_leftovers()):
            process.abandoned += late
            faults.append(f"still running: abandoned: {', '.join(late)}")
        if process.abandoned:
            # Their tasks and threads would keep the event loop, and so the process, alive forever.
            report_faults(faults, self._redact)
            exit_now(RunError.exit_code)
        if faults:
            raise RunError(*faults)


def _name(consumer: str | type[Consumer]) -> str:
    """Return the name of a consumer that is given by name or as a class."""
    if isinstance(consumer, str):
        return consumer
    return str(getattr(consumer, "name", consumer.__name__))


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


@contextmanager
def _stop_requests(
    wake: Callable[[], None], parent: ParentLink | None
) -> Iterator[Callable[[], bool]]:
    """Call *wake* when a stop is requested: by a signal, or by the parent."""
    if parent is None:
        with stop_signals(wake) as requested:
            yield requested
        return
    loop = asyncio.get_running_loop()
    with (
        stop_signals(wake, signals=[signal.SIGTERM]) as requested,
        parent.wakes(partial(loop.call_soon_threadsafe, wake)),
    ):
        yield lambda: requested() or parent.stop_requested


async def _open(ops: OpsServer, settings: WorkerSettings, parent: ParentLink | None) -> None:
    """Open the ops server, for everybody or for the parent alone.

    Raises:
        RunError: It cannot be opened.
    """
    if parent is None or not parent.number:
        await open_ops_server(ops, settings)
    elif settings.ops.enabled:
        await ops.open()
    if parent is not None:
        parent.started(ops.url)


async def _until_stopped(
    process: Process,
    settings: WorkerSettings,
    stop_requested: Callable[[], bool],
    parent: ParentLink | None,
) -> None:
    """Start, and return when a stop is requested, or when a burst has ended.

    Raises:
        RunError: It could not start, or cannot continue.
    """
    loop = asyncio.get_running_loop()
    timeout = settings.start_timeout
    latest = None if timeout is None else loop.time() + timeout
    starting = asyncio.create_task(process.start(), name="start")
    starting.add_done_callback(lambda _: process.changed.set())
    try:
        while not (process.done or stop_requested()):
            process.changed.clear()
            if starting.done():
                starting.result()
                if process.readiness.was_ready:
                    latest = None
                if parent is not None:
                    parent.ready(process.readiness.ready)
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


def report_faults(faults: Sequence[str], redact: Redact | None = None) -> None:
    """Write each fault to stderr, one per line, without passwords of URLs."""
    for fault in faults:
        text = cleaner(redact)(" ".join(fault.splitlines()))
        print(escape(text), file=sys.stderr)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory of uvloop, where it is installed."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
