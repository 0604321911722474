"""The link of a process to the parent that started it.

It is one half of a pair of sockets. The process writes what it has to report, one JSON object a
line. The parent never writes: it closes its half when the process is to stop. The kernel closes it
too when the parent is killed, so a process never outlives its parent, and stops without losing
anything. `prctl(PR_SET_PDEATHSIG)` exists on Linux only, and refers to the thread that forked.
"""

import atexit
import json
import logging
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

from pydantic import SecretStr

from workerkit import logs
from workerkit.app.assembly import Assembly
from workerkit.config.sections import ProxySettings
from workerkit.config.settings import WorkerSettings
from workerkit.forking import Handlers
from workerkit.transport import Declared, RunsOnce, Transport

log = logging.getLogger(__name__)

VARIABLE = "_WORKERKIT_PARENT"
"""The environment variable that describes the link; the process removes it."""

BLOCKED = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
"""Signals that a process is started with blocked: it has no handlers yet, and they would end it."""

RESERVE = 9.0
"""Seconds beyond `shutdown_grace` until a process that has not stopped is killed.

With the default grace that is one second less than Kubernetes waits.
"""

# A terminal sends these to the parent and to its processes. The parent decides what they mean.
_FOR_PARENT = (signal.SIGINT, signal.SIGHUP)
_SEND_TIMEOUT = 1.0


class ParentLink:
    """The link of this process to its parent.

    Args:
        number: Of this process, from 1; 0 if it is the only one, as with `--reload`.
        listening: Descriptors of the sockets that the views are served on.
        connection: This half of the pair.
        token: What the parent sends to the console of this process, which accepts no other.

    Attributes:
        handlers: The original handlers of the signals that are for the parent.
        stop_requested: The parent has closed its half.
    """

    def __init__(
        self, number: int, listening: Sequence[int], connection: socket.socket, token: str
    ) -> None:
        self.number = number
        self.stop_requested = False
        self._listening = tuple(listening)
        self._connection = connection
        self._token = token
        self._connection.settimeout(_SEND_TIMEOUT)
        self._wake: Callable[[], object] = lambda: None
        self._stop_time = RESERVE
        self._was_ready = False
        # Not SIG_IGN, which processes that handlers start would inherit.
        self.handlers: Handlers = {
            each: signal.signal(each, lambda *_: None) for each in _FOR_PARENT
        }
        threading.Thread(target=self._watch, name="workerkit-parent", daemon=True).start()

    @classmethod
    def inherited(cls) -> Self | None:
        """Return the link to the process that started this one; None if it was no parent of ours.

        To be called in the main thread, once.
        """
        described = os.environ.pop(VARIABLE, None)
        if described is None:
            return None
        given = json.loads(described)
        for descriptor in (given["link"], *given["listening"]):
            os.set_inheritable(descriptor, False)
        connection = socket.socket(fileno=given["link"])
        # A parent of an older version sends none: then nobody gets access.
        token = given.get("token") or secrets.token_urlsafe()
        return cls(given["number"], given["listening"], connection, token)

    def adapt(self, assembly: Assembly) -> Assembly:
        """Return what this process runs of an application: its consumers, and its ports."""
        settings = assembly.settings
        self._stop_time = settings.shutdown_grace + RESERVE
        if not self.number:
            return assembly
        logs.process_fields.update(process_number=self.number, pid=os.getpid())
        # The parent decides who an operator is. Other users of the machine can reach this port.
        access = {
            "token": SecretStr(self._token),
            "operate_token": None,
            "view_token": None,
            "proxy": ProxySettings(),
        }
        ops = settings.ops.model_copy(update={"host": "127.0.0.1", "port": 0, "fds": (), **access})
        http = settings.http.model_copy(update={"fds": self._listening})
        changed: WorkerSettings = settings.model_copy(update={"ops": ops, "http": http})
        transports = assembly.transports if self.number == 1 else in_each_process(assembly)
        return replace(assembly, settings=changed, transports=transports)

    def unblock_signals(self) -> None:
        """Receive the signals that were blocked: they have handlers now."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        for each in BLOCKED:
            # Python removes other handlers before the process has ended.
            atexit.register(signal.signal, each, signal.SIG_IGN)

    @contextmanager
    def wakes(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call *wake* from a thread inside the block, when the parent requests a stop."""
        self._wake = wake
        if self.stop_requested:
            wake()
        try:
            yield
        finally:
            self._wake = lambda: None

    def started(self, ops_url: str) -> None:
        """Report that nothing is wrong with the application, and the address of its ops server."""
        self._send({"ops": ops_url})

    def ready(self, ready: bool) -> None:
        """Report whether the process is ready, if that has changed."""
        if ready is not self._was_ready:
            self._was_ready = ready
            self._send({"ready": ready})

    def counted(self, metrics: Callable[[], tuple[bytes, str]]) -> None:
        """Report the last page of metrics: nothing is counted after it.

        Args:
            metrics: Returns the page, and its content type.
        """
        if not self.number:
            return
        try:
            page, _ = metrics()
        except Exception as error:
            # A collector of the application has failed.
            log.error("last metrics not reported", exc_info=error)
        else:
            self._send({"metrics": page.decode()})

    def _send(self, report: Mapping[str, Any]) -> None:
        # A parent that is dead, or does not read, needs no report.
        with suppress(OSError):
            self._connection.sendall(json.dumps(report).encode() + b"\n")

    def _watch(self) -> None:
        """Wait in a thread until the parent requests a stop or has ended."""
        closed = select.poll()
        closed.register(self._connection, select.POLLIN)
        closed.poll()
        self.stop_requested = True
        self._wake()
        # The process may hang, and nobody may be left to kill it.
        time.sleep(self._stop_time + 1.0)
        os._exit(1)


def in_each_process(assembly: Assembly) -> list[tuple[Transport, list[Declared]]]:
    """Return the transports with those consumers that every process runs."""
    found = []
    for transport, declared in assembly.transports:
        if isinstance(transport, RunsOnce):
            declared = [each for each in declared if not transport.runs_once(each.options)]
        if declared:
            found.append((transport, declared))
    return found
