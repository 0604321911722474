"""SIGUSR1: log where all tasks and threads are, even while a handler blocks the event loop.

Python runs its own signal handlers in the main thread, between two instructions. They do not run
while the main thread is inside of a C function, such as a query of a database driver. So the
handler of `faulthandler` is used, which is written in C and runs immediately, whatever the main
thread does. It would write a traceback to stderr, unescaped and with no task in it. Here it writes
to a pipe instead, which wakes a thread; that thread logs the report.

Not seen even so: a C function that holds the GIL. The report is written when it returns.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workerkit import logs
from workerkit.ops.debug import all_tasks, threads

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR1

_MOST_THREADS = 20 * 1024
_MOST_TASKS = 40 * 1024  # Together less than the largest text of a log record.
_CAUGHT = "SigCgt:"


class DebugSignal:
    """Logs a report for each SIGUSR1, from `install` on.

    Signals that arrive while a report is written result in one more report. After `close` the
    signal is ignored until the process ends: its default action would end the process, while it
    is about to exit anyway.

    Attributes:
        left_alone: SIGUSR1 is handled by somebody else, or is ignored on purpose.
    """

    def __init__(self) -> None:
        self.left_alone = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: int | None = None

    def install(self) -> None:
        """Handle the signal, unless somebody else does; in the main thread only."""
        self.left_alone = _is_handled()
        if self.left_alone:
            return
        read_end, write_end = os.pipe()
        # A full pipe must not block the handler of the signal.
        os.set_blocking(write_end, False)
        _register(write_end)
        threading.Thread(
            target=self._serve, args=(read_end,), name="workerkit-debug", daemon=True
        ).start()

    @contextmanager
    def reports_on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Report the tasks of a loop, which runs in the current thread, inside of the block."""
        if self.left_alone or _was_replaced():
            self.left_alone = True
            log.info("SIGUSR1 has another handler: it logs no report of tasks and threads")
        self._loop, self._loop_thread = loop, threading.get_ident()
        try:
            yield
        finally:
            self._loop = None

    def close(self) -> None:
        """Ignore the signal from now on, unless somebody else handles it, and end the thread."""
        if _Process.write_end < 0:
            return
        if not _was_replaced():
            faulthandler.unregister(SIGNAL)
        _close_pipe()

    def _serve(self, read_end: int) -> None:
        with open(read_end, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(65_536):
                *lines, rest = (rest + data).split(b"\n")
                # Lines of calls are indented. One signal writes many lines, in many pieces.
                if any(line and not line.startswith(b" ") for line in lines):
                    self._report()

    def _report(self) -> None:
        try:
            write(self._text())
        except Exception:
            log.exception("cannot report tasks and threads")

    def _text(self) -> str:
        stacks = threads(self._loop_thread).as_text(_MOST_THREADS)
        loop, thread = self._loop, self._loop_thread
        if loop is None or thread is None:
            return f"{stacks}\nno event loop is running"
        return f"{stacks}\n{all_tasks(loop, thread).as_text(_MOST_TASKS)}"


def write(text: str) -> None:
    """Write a report as one log record, whatever the level of the logs: somebody asked for it."""
    record = log.makeRecord(
        log.name,
        logging.INFO,
        __file__,
        0,
        "tasks and threads, as requested by SIGUSR1",
        (),
        None,
        sinfo=text.rstrip("\n"),
    )
    if log.hasHandlers():
        log.handle(record)
    else:
        # The application is still being imported.
        sys.stderr.write(logs.TextFormatter().format(record) + "\n")
        sys.stderr.flush()


class _Process:
    """What this module has changed in the process.

    Attributes:
        ignores: The signal is ignored while `faulthandler` does not handle it. That was done here,
            so a second run may handle it again.
        write_end: Of the pipe; -1 for none.
        has_hook: A function is registered that runs in forked children.
    """

    ignores = False
    write_end = -1
    has_hook = False


def _is_handled() -> bool:
    """Return whether somebody else handles the signal, or has it ignored on purpose."""
    if signal.getsignal(SIGNAL) is not signal.SIG_DFL:
        return not (_Process.ignores and signal.getsignal(SIGNAL) is signal.SIG_IGN)
    return _is_caught()


def _is_caught() -> bool:
    """Return whether the process has a handler that Python does not know, as of `faulthandler`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False  # Only Linux has this file.
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(_CAUGHT)]
    return any(mask >> (SIGNAL - 1) & 1 for mask in masks)


def _register(write_end: int) -> None:
    # In this order there is no moment in which the signal ends the process, neither now nor when
    # `unregister` restores what was before.
    signal.signal(SIGNAL, signal.SIG_IGN)
    _Process.ignores = True
    _Process.write_end = write_end
    faulthandler.register(SIGNAL, file=write_end, all_threads=False)
    if not _Process.has_hook:
        _Process.has_hook = True
        os.register_at_fork(after_in_child=_restore_in_child)


def _was_replaced() -> bool:
    """Return whether a handler was installed after ours; `unregister` would remove it."""
    return signal.getsignal(SIGNAL) is not signal.SIG_IGN


def _restore_in_child() -> None:
    """Handle the signal in a forked child as any other process does."""
    if _Process.ignores and not _was_replaced():
        faulthandler.unregister(SIGNAL)
        signal.signal(SIGNAL, signal.SIG_DFL)
        _Process.ignores = False
    _close_pipe()


def _close_pipe() -> None:
    if _Process.write_end >= 0:
        os.close(_Process.write_end)
        _Process.write_end = -1
