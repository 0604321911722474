"""Check that a process can be run where `Runner.run` is called."""

import asyncio
import threading


def check_main_thread() -> None:
    """Refuse to run where neither an event loop can be started nor signals handled.

    Raises:
        RuntimeError: The text shows what to write instead.
    """
    instead = (
        "write `async with runner.running():` in a coroutine, and the Runner runs inside of that"
        " block, without signal handlers"
    )
    if _has_running_loop():
        raise RuntimeError(
            "Runner.run() starts an event loop, and this thread has one that is running already"
            f" (pytest-asyncio and notebooks start one): {instead}"
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "Runner.run() handles signals, which is possible in the main thread only: call it"
            f" there, or {instead}"
        )


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
