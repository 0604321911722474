"""Separate a child process that user code forks from the process it was forked from.

`os.fork` copies everything: our signal handlers, so that the child ignores SIGTERM; the descriptor
that wakes the event loop; every socket. `multiprocessing` with its start method "fork" and
`subprocess` with a `preexec_fn` do the same. A child gets the default reaction to signals back, and
nothing that it writes to one of our sockets leaves it.
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
    "a forked child returned to the event loop of its parent, and ends: call os._exit in it, or"
    " use subprocess, or multiprocessing\n"
)


class _Parent:
    """What a child has to undo.

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
        """Have the interpreter call us in each child, from now on."""
        if not self.registered:
            self.registered = True
            os.register_at_fork(after_in_child=_separate)


_parent = _Parent()


def keep_from_children(sockets: object) -> None:
    """Have no child use a transport, or the listening sockets of a server.

    A child that kept them would keep a port, or a connection, after this process has closed it.
    """
    _parent.register()
    _parent.sockets.add(sockets)


@contextmanager
def separate_children(handlers: Handlers) -> Iterator[None]:
    """Let children that are forked inside of the block have the signal handlers from before it.

    Args:
        handlers: As `signal.getsignal` has returned them.
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
    """Undo, in a child, what is the business of its parent alone."""
    if _parent.handlers:
        signal.set_wakeup_fd(-1)
        for number, handler in _parent.handlers.items():
            # None: somebody has installed it from C.
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
    """The descriptors that are open of a transport or of a server."""
    with suppress(Exception):  # In a child there is nobody to tell, and no loop to ask.
        if hasattr(sockets, "sockets"):
            found = sockets.sockets
        else:
            found = [] if sockets.is_closing() else [sockets.get_extra_info("socket")]
        yield from (each.fileno() for each in found if each is not None and each.fileno() >= 0)


def _leave() -> NoReturn:
    """End a child that would go on as a second copy of its parent."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), _RETURNED.encode())
    os._exit(1)
