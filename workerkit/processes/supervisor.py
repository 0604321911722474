"""The parent of several processes: it starts, watches, replaces and stops them."""

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from workerkit import logs
from workerkit.app.assembly import Assembly
from workerkit.app.asyncapi import document
from workerkit.app.console import lone_console, lone_fleet
from workerkit.console.server import Console
from workerkit.console.sources import Source
from workerkit.console.targets import Targets
from workerkit.errors import ConfigurationError, RunError
from workerkit.http.listener import bind
from workerkit.http.transport import HTTPTransport, listen_error
from workerkit.ops.port import open_ops_server
from workerkit.processes.child import Child, Slot, signal_name
from workerkit.processes.link import RESERVE, in_each_process
from workerkit.processes.pages import AllProcesses
from workerkit.processes.sums import Sums
from workerkit.runner import banner
from workerkit.safe_text import Redact
from workerkit.stop_signals import exit_now, stop_signals

log = logging.getLogger(__name__)

_MOST_FAILED_STARTS = 3
_START_TIMEOUT = 60.0  # Seconds for a replacement, if the settings have no start_timeout.
_FIRST_ALONE = 5.0  # Seconds that the first process has to become ready before others start.
_STABLE = 60.0  # Seconds after which an end is no failed start.


class Supervisor:
    """Runs an application in several processes.

    Args:
        assembly: The application, which this process checks but does not run.
        count: The number of processes.
        redact: The container's, for logs.

    Raises:
        ConfigurationError: Only the first process would have a consumer.
    """

    def __init__(self, assembly: Assembly, count: int, redact: Redact | None) -> None:
        every = {id(each) for _, declared in in_each_process(assembly) for each in declared}
        self._once = [each.options.name for each in assembly.declared if id(each) not in every]
        if not every:
            raise ConfigurationError(
                f"{count} processes have nothing to share: {', '.join(self._once)} can run in one"
                " process only, because two would handle the same events, or run at the same times:"
                " use --processes 1"
            )
        self._assembly = assembly
        self._settings = assembly.settings
        self._redact = redact
        self._slots = [Slot(number) for number in range(1, count + 1)]
        self._children: dict[int, Child] = {}
        self._codes: list[int] = []
        wanted = self._settings.metrics
        self._sums = Sums(wanted.prefix) if wanted.enabled else None
        self._token = secrets.token_urlsafe()
        self._listening: list[socket.socket] = []
        self._stopping = False
        self._gave_up = 0
        # Terminals send SIGHUP when they are closed, and operators to replace processes.
        self._had_terminal = _has_terminal()
        self._hung_up = False
        self._rolling: asyncio.Task[None] | None = None
        self._roll_again = False

    def run(self, log_level: str | None = None) -> int:
        """Run until SIGTERM or SIGINT; return the exit code.

        Raises:
            RunError: A port cannot be opened.
        """
        logs.configure_unless_done(self._settings.log, log_level, self._redact)
        return asyncio.run(self._run())

    def _banner(self) -> str:
        once = f"; only the first one runs {', '.join(self._once)}" if self._once else ""
        return f"{banner(self._assembly)}\n  in {len(self._slots)} processes{once}"

    async def _run(self) -> int:
        self._changed = asyncio.Event()
        log.info(self._banner())
        ops = AllProcesses(
            self._settings,
            self._slots,
            self._children.values,
            lambda: self._stopping,
            self._sums,
            partial(document, self._assembly),
            serves_views=self._assembly.serves_views,
            console=self._console(),
        )
        with ExitStack() as stack:
            await self._bind()
            await open_ops_server(ops, self._settings)
            requested = stack.enter_context(stop_signals(self._changed.set, self._exit))
            stack.enter_context(self._other_signals())
            # The others wait for it: what prevents a start is reported by one process, not by all.
            self._start(self._slots[0])
            while not (requested() or self._hung_up or self._gave_up):
                self._changed.clear()
                await self._changed.wait()
            await self._stop()
            await ops.close()
        code = self._gave_up or next(iter(self._codes), 0)
        log.info("stopped", extra={"exit_code": code})
        return code

    def _console(self) -> Console | None:
        """Return the console for the processes, and for those of the fleet on other machines."""
        ops = self._settings.ops
        if not ops.enabled or ops.console == "off":
            return None
        assembly = self._assembly
        sources: list[Source] = [Targets(self._ops_urls, self._token)]
        if (fleet := lone_fleet(assembly)) is not None:
            sources.append(fleet)
        declared = assembly.declared
        return lone_console(self._settings, assembly.name, sources, declared, self._redact)

    def _ops_urls(self) -> list[str]:
        """Return the addresses of the ops servers of the processes."""
        running = [each for each in self._children.values() if each.was_started]
        return [each.ops_url for each in running if each.code is None]

    async def _bind(self) -> None:
        """Bind the port of the views.

        Raises:
            RunError: It is in use, or its host is not one of this machine.
        """
        if not any(isinstance(each, HTTPTransport) for each, _ in self._assembly.transports):
            return
        try:
            self._listening = await bind(self._settings.http)
        except OSError as error:
            raise RunError(listen_error(self._settings, error)) from error

    @contextmanager
    def _other_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._collect,
            signal.SIGHUP: self._roll,
            signal.SIGUSR1: self._report_tasks,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _report_tasks(self) -> None:
        for child in self._children.values():
            child.send(signal.SIGUSR1)

    def _start(self, slot: Slot) -> None:
        """Start the process of a slot; later, if that is not possible now."""
        slot.cancel_restart()
        slot.child = self._spawn(slot)
        if slot.child is None:
            self._start_later(slot, slot.backoff.next())

    def _start_later(self, slot: Slot, pause: float) -> None:
        slot.restart = asyncio.get_running_loop().call_later(pause, self._start, slot)

    def _spawn(self, slot: Slot) -> Child | None:
        """Start a process; return None if the system has no room for it."""
        try:
            child = Child(
                slot.number,
                self._listening,
                token=self._token,
                on_change=lambda: self._note(slot, child),
            )
        except OSError as error:
            log.error("process not started", exc_info=error, extra={"process_number": slot.number})
            return None
        self._children[child.pid] = child
        log.info("process started", extra={"process_number": slot.number, "pid": child.pid})
        return child

    def _note(self, slot: Slot, child: Child) -> None:
        """Note a change of a child."""
        if child.ready:
            self._start_others(child)
        elif child.was_started:
            asyncio.get_running_loop().call_later(_FIRST_ALONE, self._start_others, child)
        if child.ready and not child.stop_requested and slot.last_ready is not child:
            slot.last_ready = child
            seconds = round(child.uptime, 2)
            fields = {"process_number": slot.number, "pid": child.pid, "seconds": seconds}
            log.info("process ready", extra=fields)

    def _start_others(self, first: Child) -> None:
        """Start the next process, and the others after it: signals are received in between."""
        if first.code is not None or self._stopping:
            return
        for each in self._slots:
            if each.child is None and each.restart is None:
                self._start(each)
                asyncio.get_running_loop().call_soon(self._start_others, first)
                return

    def _collect(self) -> None:
        """Collect the processes that have ended."""
        for child in [each for each in self._children.values() if each.collect() is not None]:
            del self._children[child.pid]
            self._ended(child)
        if os.getpid() == 1:
            self._collect_orphans()

    def _collect_orphans(self) -> None:
        """Collect what process 1 of a container gets: processes whose parents have ended."""
        peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, peek)) is not None:
                if ended.si_pid in self._children:
                    asyncio.get_running_loop().call_soon(self._collect)
                    return
                os.waitpid(ended.si_pid, 0)

    def _ended(self, child: Child) -> None:
        if self._sums is not None:
            if child.metrics is not None:
                self._sums.update(child.pid, child.number, child.metrics)
            self._sums.retire(child.pid)
        slot = self._slots[child.number - 1]
        assert child.code is not None
        fields = _fields(child)
        if child.stop_requested:
            clean = child.code == 0 or (child.code == -signal.SIGTERM and not child.was_started)
            if self._stopping and not clean:
                self._codes.append(_exit_code(child.code))
            log.log(logging.INFO if clean else logging.ERROR, "process stopped", extra=fields)
        elif slot.child is child:
            self._restart(slot, child, fields)

    def _restart(self, slot: Slot, child: Child, fields: dict[str, object]) -> None:
        """Start a process again, after a pause, unless it can never succeed."""
        assert child.code is not None
        if child.was_ready and child.uptime >= _STABLE:
            slot.backoff.reset()
        if not any(each.last_ready for each in self._slots):
            failed_starts = slot.backoff.attempt + 1
            if child.code == ConfigurationError.exit_code or failed_starts >= _MOST_FAILED_STARTS:
                log.critical("process ended: no process could start", extra=fields)
                self._gave_up = _exit_code(child.code) or RunError.exit_code
                self._changed.set()
                return
        pause = slot.backoff.next()
        log.error("process ended", extra={**fields, "restart_in": round(pause, 2)})
        if self._sums is not None:
            self._sums.restarts[slot.number] = self._sums.restarts.get(slot.number, 0) + 1
        self._start_later(slot, pause)

    def _roll(self) -> None:
        """Replace all processes, one after the other; stop if the terminal was closed."""
        if self._stopping:
            return
        if self._had_terminal and not _has_terminal():
            log.info("the terminal was closed")
            self._hung_up = True
            self._changed.set()
            return
        if self._rolling is not None and not self._rolling.done():
            self._roll_again = True
            return
        self._rolling = asyncio.create_task(self._replace_all(), name="replacing processes")

    async def _replace_all(self) -> None:
        log.info("replacing all processes")
        again = True
        while again:
            self._roll_again = False
            # The first one is last: what it runs alone may have to pause.
            for slot in reversed(self._slots):
                if not await self._replace(slot):
                    extra = {"process_number": slot.number}
                    log.error("processes not replaced: the new one did not start", extra=extra)
                    return
            again = self._roll_again
        log.info("all processes replaced")

    async def _replace(self, slot: Slot) -> bool:
        """Replace a process; return whether the new one is ready."""
        old = slot.running
        if old is not None and slot.number == 1 and self._once:
            # Two of them would handle each event twice.
            await self._stop_child(old)
            old = None
        if old is None:
            self._start(slot)
            return slot.child is not None and await self._is_ready(slot.child)
        new = self._spawn(slot)
        if new is None:
            return False
        if not await self._is_ready(new):
            log.error("new process is not ready", extra=_fields(new))
            await self._stop_child(new)
            return False
        slot.cancel_restart()
        slot.child = new
        # It may have died in the meantime, and have been started again.
        for child in [each for each in self._children.values() if each.number == slot.number]:
            if child is not new:
                await self._stop_child(child)
        return True

    async def _is_ready(self, child: Child) -> bool:
        """Wait until a new process is ready; return False if it ended or takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.start_timeout or _START_TIMEOUT):
                await child.until(lambda: child.ready or child.code is not None)
        return child.ready

    async def _stop_child(self, child: Child) -> None:
        """Stop a child, and kill it if that takes too long."""
        child.stop()
        try:
            async with asyncio.timeout(self._settings.shutdown_grace + RESERVE):
                await child.ended()
        except TimeoutError:
            log.error("process did not stop: killing it", extra=_fields(child))
            child.send(signal.SIGKILL)
            await child.ended()

    async def _stop(self) -> None:
        """Stop all processes."""
        self._stopping = True
        log.info("stopping", extra={"processes": len(self._children)})
        if self._rolling is not None:
            self._rolling.cancel()
        for slot in self._slots:
            slot.cancel_restart()
        # When the last process has closed its copy, clients are refused instead of waiting.
        for each in self._listening:
            each.close()
        await asyncio.gather(*map(self._stop_child, list(self._children.values())))

    def _exit(self, code: int) -> None:
        """End this process and all others now."""
        for child in list(self._children.values()):
            child.send(signal.SIGKILL)
        exit_now(code)


def _has_terminal() -> bool:
    """Return whether this process has a terminal that can stop it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _exit_code(code: int) -> int:
    """Return the exit code that a shell shows."""
    return code if code >= 0 else 128 - code


def _fields(child: Child) -> dict[str, object]:
    """Return what is known of a process, for a log record."""
    fields: dict[str, object] = {"process_number": child.number, "pid": child.pid}
    if child.code is not None and child.code < 0:
        fields["signal"] = signal_name(-child.code)
    elif child.code is not None:
        fields["exit_code"] = child.code
    return {**fields, "uptime": round(child.uptime, 1)}
