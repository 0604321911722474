"""FP9: where a Runner cannot run, it says what to write instead."""

import asyncio
import os
import signal
import threading
import time

import pytest

from tests.application import container_of, package_of
from tests.consumers import collector
from workerkit import PeriodicTask, Runner
from workerkit.stop_signals import stop_signals


def make_runner() -> Runner:
    """A runner of a task that needs nothing outside."""

    class Tick(PeriodicTask):
        every = 60.0

        async def handle(self) -> None: ...

    return Runner(container_of("amqp://127.0.0.1:1/"), packages=[package_of(Tick)])


async def test_fp9_in_a_running_event_loop() -> None:
    """The error names `running`, which works there; no coroutine is left behind."""
    runner = make_runner()
    with pytest.raises(RuntimeError, match=r"`async with runner\.running\(\):`"):
        runner.run()
    async with runner.running():
        assert runner.ready


async def test_fp9_before_anything_else_is_checked() -> None:
    """A running loop is reported first, before all other faults."""
    consumer, _ = collector("orders", connection="nowhere")
    runner = Runner(container_of("amqp://127.0.0.1:1/"), packages=[package_of(consumer)])
    with pytest.raises(RuntimeError, match="event loop"):
        runner.run()


def test_fp9_outside_of_the_main_thread() -> None:
    """Signals come to the main thread only; `running` needs none."""
    runner = make_runner()
    errors: list[str] = []

    def run() -> None:
        try:
            runner.run()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    [error] = errors
    assert "main thread" in error
    assert "runner.running()" in error

    async def elsewhere() -> bool:
        async with runner.running():
            return runner.ready

    assert asyncio.run(elsewhere())


@pytest.mark.parametrize(
    ("later", "number", "code"),
    [
        (0.001, signal.SIGTERM, None),
        (0.6, signal.SIGTERM, 128 + signal.SIGTERM),
        (0.001, signal.SIGINT, 128 + signal.SIGINT),
    ],
)
async def test_a_signal_that_comes_twice_is_one(
    monkeypatch: pytest.MonkeyPatch, later: float, number: signal.Signals, code: int | None
) -> None:
    """`timeout` sends its signal twice, within microseconds; that must not skip the stop."""
    left: list[int] = []
    now = time.monotonic()
    monkeypatch.setattr(os, "_exit", left.append)
    asked = asyncio.Event()

    with stop_signals(asked.set) as received:
        monkeypatch.setattr(time, "monotonic", lambda: now)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(time, "monotonic", lambda: now + later)
        signal.raise_signal(number)
        monkeypatch.undo()
        await asked.wait()

        assert received()
    assert left == ([] if code is None else [code])
