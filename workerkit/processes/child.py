"""One process that a parent has started: the side of the parent."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from workerkit.processes.link import BLOCKED, VARIABLE
from workerkit.tasks import Backoff

_PART = 2**16


class Child:
    """A process that runs the command line of this one, with a link to it.

    It is a new interpreter, not a fork: it shares no thread, lock or connection with its parent,
    and a replacement runs the code and the configuration that are on the disk now.

    Args:
        number: Among the processes, from 1; 0 if it is the only one.
        listening: Sockets that its views are served on.
        token: For its console.
        on_change: Called when one of the attributes has changed.

    Attributes:
        pid: Its id.
        code: Its exit code, negative for a signal; None while it runs.
        was_started: It has found nothing wrong with the application.
        ready: It is ready.
        was_ready: It was ready once.
        stop_requested: It was requested to stop.
        ops_url: The address of its ops server, which only this machine can reach.
        metrics: Its last page of metrics, which it reports before it ends.
    """

    def __init__(
        self,
        number: int,
        listening: Sequence[socket.socket] = (),
        *,
        token: str = "",
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self.code: int | None = None
        self.was_started = self.ready = self.was_ready = self.stop_requested = False
        self.ops_url = ""
        self.metrics: str | None = None
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._line = b""
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        with theirs:
            self._process = _spawn(number, theirs, listening, token)
        self.pid = self._process.pid
        self._began = time.monotonic()
        self._loop.add_reader(self._link, self._read)

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def collect(self) -> int | None:
        """Return the exit code if it has ended; everything that it reported is read then."""
        if self.code is None and (code := self._process.poll()) is not None:
            self._read()
            self._loop.remove_reader(self._link)
            self._link.close()
            self.code, self.ready = code, False
            self._notify()
        return self.code

    def stop(self) -> None:
        """Request that it stops as on SIGTERM."""
        if self.code is not None or self.stop_requested:
            return
        self.stop_requested = True
        if not self.was_started:
            # It may be importing, which does not end before it is complete.
            self.send(signal.SIGTERM)
        # Not closed: what it reports at the end is still to be read.
        self._link.shutdown(socket.SHUT_WR)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            # `poll` inside of it finds out first whether the id still is that of the process.
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended; return the exit code."""
        await self.until(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the attributes holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _read(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while part := self._link.recv(_PART):
                *lines, self._line = (self._line + part).split(b"\n")
                for line in lines:
                    self._receive(json.loads(line))
            self._loop.remove_reader(self._link)

    def _receive(self, report: dict[str, Any]) -> None:
        if "ops" in report:
            self.was_started, self.ops_url = True, report["ops"]
        if "ready" in report:
            self.ready = report["ready"]
            self.was_ready = self.was_ready or self.ready
        self.metrics = report.get("metrics", self.metrics)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._on_change()


@dataclass(slots=True)
class Slot:
    """The place of one process, which several have one after the other.

    Attributes:
        number: Of the process, from 1.
        child: The last one that was started.
        last_ready: The last one that became ready.
        backoff: Counts those that failed since then.
        restart: Starts the next one.
    """

    number: int
    child: Child | None = None
    last_ready: Child | None = None
    backoff: Backoff = field(default_factory=Backoff)
    restart: asyncio.TimerHandle | None = None

    def cancel_restart(self) -> None:
        """Start no other one after the pause."""
        if self.restart is not None:
            self.restart.cancel()
            self.restart = None

    @property
    def running(self) -> Child | None:
        """The child that responds, or should."""
        child = self.child
        return None if child is None or child.code is not None else child

    @property
    def obstacle(self) -> str:
        """Why it cannot respond yet; empty if it should."""
        if (child := self.running) is not None:
            return "" if child.was_started else "starting"
        if self.restart is None:
            return "starting"
        left = self.restart.when() - asyncio.get_running_loop().time()
        return f"ended, restart in {max(left, 0.0):.1f} s"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _spawn(
    number: int, link: socket.socket, listening: Sequence[socket.socket], token: str
) -> "subprocess.Popen[bytes]":
    descriptors = [each.fileno() for each in listening]
    described = {
        "number": number,
        "link": link.fileno(),
        "listening": descriptors,
        "token": token,
    }
    # A new process inherits the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "workerkit", *sys.argv[1:]],
            env={**os.environ, VARIABLE: json.dumps(described)},
            pass_fds=[link.fileno(), *descriptors],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
