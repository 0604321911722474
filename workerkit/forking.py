"""Separate a forked child process from its parent.

User code may fork. `os.fork` copies our signal handlers, so that the child ignores SIGTERM, the
descriptor that wakes the event loop, and every socket. `multiprocessing` with its start method
"fork" and `subprocess` with a `preexec_fn` do the same. This module restores the original signal
handlers in the child, and redirects its copies of our sockets to the null device.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from weakref import WeakSet

Handlers = Mapping[signal.Signals, Any]

_RETURNED = (
    "a forked child returned to the event loop of its parent and exits: call os._exit in it, or"
    " use subprocess, or multiprocessing\n"
)


class _Parent:
    """The state that a child has to undo.

    Attributes:
        sockets: Transports, and servers with their listening sockets.
        handlers: For each signal that this process handles, what handled it before.
        loop: The running event loop.
        thread: The thread that it runs in.
    """

    def __init__(self) -> None:
        self.sockets: WeakSet[Any] = WeakSet()
        self.handlers: Handlers = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self.registered = False

    def register(self) -> None:
        """Register the callback that runs in each child."""
        if not self.registered:
            self.registered = True
            os.register_at_fork(after_in_child=_separate)


_parent = _Parent()


def keep_from_children(sockets: object) -> None:
    """Disconnect each child from a transport, or from the listening sockets of a server.

    Otherwise a port or connection would stay open in the child after this process has closed it.
    """
    _parent.register()
    _parent.sockets.add(sockets)


@contextmanager
def separate_children(handlers: Handlers) -> Iterator[None]:
    """Restore the original signal handlers in children that are forked inside the block.

    Args:
        handlers: The original ones, from `signal.getsignal`.
    """
    _parent.register()
    before = _parent.handlers, _parent.loop, _parent.thread
    _parent.handlers = handlers
    _parent.loop, _parent.thread = asyncio.get_running_loop(), threading.get_ident()
    try:
        yield
    finally:
        _parent.handlers, _parent.loop, _parent.thread = before


def _separate() -> None:
    """Undo in a child what only its parent needs."""
    if _parent.handlers:
        signal.set_wakeup_fd(-1)
        for number, handler in _parent.handlers.items():
            # None: it was installed from C.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    descriptors = [each for sockets in list(_parent.sockets) for each in _descriptors(sockets)]
    if descriptors:
        # Not closed: the number would be used again, and written to.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)
    loop, in_loop = _parent.loop, threading.get_ident() == _parent.thread
    _parent.handlers, _parent.loop = {}, None
    _parent.sockets.clear()
    if loop is not None and in_loop:
        loop.call_soon(_leave)


def _descriptors(sockets: Any) -> Iterator[int]:
    """Yield the open descriptors of a transport or server."""
    with suppress(Exception):  # A child has no log and no running loop.
        if hasattr(sockets, "sockets"):
            found = sockets.sockets
        else:
            found = [] if sockets.is_closing() else [sockets.get_extra_info("socket")]
        yield from (each.fileno() for each in found if each is not None and each.fileno() >= 0)


def _leave() -> NoReturn:
    """Exit a child that would continue as a second copy of its parent."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), _RETURNED.encode())
    os._exit(1)
