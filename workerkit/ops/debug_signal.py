"""SIGUSR1: log where all tasks and threads are, even while a handler blocks the event loop.

The handler is one of `signal.signal`, because one of the event loop does not run while the loop is
blocked. It only wakes a thread, which writes the report: the main thread may be interrupted while
it holds the lock of a log handler.

Python runs the handler in the main thread, between two instructions, and in each of its own
functions that wait. So a loop of Python and `time.sleep` are reported at once; a C function that
does not return when a signal arrives, as of a database driver, when it returns. The `Watchdog` logs
its stack anyway.

Rejected: `faulthandler.register` works in C functions, too, but crashed the process after a few
hundred signals, because the main thread's calls change while its handler reads them; and its text
has no tasks and is not redacted. `sigwait` in a thread needs the signal to be blocked in all other
threads, and processes that handlers start would inherit that. `signal.set_wakeup_fd` belongs to the
event loop.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        # A full pipe must not block the main thread.
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
            signal.signal(SIGNAL, signal.SIG_IGN)
        _close_pipe()

    def _serve(self, read_end: int) -> None:
        with open(read_end, "rb", buffering=0) as pipe:
            # All signals that have arrived in the meantime are one request.
            while pipe.read(65_536):
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
        handles: The signal is handled here, or ignored after `close`; a second run may handle it.
        write_end: Of the pipe; -1 for none.
        has_hook: A function is registered that runs in forked children.
    """

    handles = False
    write_end = -1
    has_hook = False


def _wake(number: int, frame: object) -> None:
    """Handle the signal."""
    if _Process.write_end >= 0:
        with suppress(BlockingIOError):  # It is full of requests.
            os.write(_Process.write_end, b"x")


def _is_handled() -> bool:
    """Return whether somebody else handles the signal, or has it ignored on purpose."""
    found = signal.getsignal(SIGNAL)
    if found is signal.SIG_IGN:
        return not _Process.handles
    return found is not signal.SIG_DFL or _is_caught()


def _is_caught() -> bool:
    """Return whether the process has a handler that Python does not know, as of `faulthandler`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False  # Only Linux has this file.
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(_CAUGHT)]
    return any(mask >> (SIGNAL - 1) & 1 for mask in masks)


def _register(write_end: int) -> None:
    _Process.write_end = write_end
    _Process.handles = True
    signal.signal(SIGNAL, _wake)
    if not _Process.has_hook:
        _Process.has_hook = True
        os.register_at_fork(after_in_child=_restore_in_child)


def _was_replaced() -> bool:
    """Return whether another handler was installed after ours."""
    return signal.getsignal(SIGNAL) is not _wake


def _restore_in_child() -> None:
    """Handle the signal in a forked child as any other process does."""
    if not _was_replaced():
        signal.signal(SIGNAL, signal.SIG_DFL)
    _Process.handles = False
    _close_pipe()


def _close_pipe() -> None:
    write_end, _Process.write_end = _Process.write_end, -1
    if write_end >= 0:
        os.close(write_end)
