"""SIGTERM and SIGINT: the first requests a stop, the second ends the process."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ONE_SIGNAL = 0.5  # Seconds within which the same signal again is no second one.


def exit_now(code: int) -> NoReturn:
    """End the process now, even while tasks run."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        # A signal handler may have interrupted a write to the same stream.
        os._exit(code)


@contextmanager
def stop_signals(
    wake: Callable[[], None],
    exit_: Callable[[int], object] = exit_now,
    signals: Sequence[signal.Signals] = STOP_SIGNALS,
) -> Iterator[Callable[[], bool]]:
    """Handle the signals inside the block.

    `timeout` and shells send a signal to a process and to its group, so it may arrive twice.

    Args:
        wake: Called in the event loop after the first signal.
        exit_: Called with the exit code at the second one.

    Returns:
        Whether a signal has arrived.
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
            exit_(128 + number)
        received.append(number)
        loop.call_soon_threadsafe(wake)

    # Not loop.add_signal_handler: that runs in the loop, and a handler may be blocking it.
    before = {number: signal.signal(number, receive) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
