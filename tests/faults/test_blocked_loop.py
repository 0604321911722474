"""Delays that this process causes itself do not count as failures of others."""

import asyncio
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.application import package_of
from tests.client import Client
from tests.command import Application, process, write_package
from tests.command import running as run
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import AMQPConsumer, WorkerContainer
from workerkit.tasks import run_all
from workerkit.testing import running as on_embedded

WATCHED = """
    import asyncio
    import logging
    import signal
    import time

    from workerkit.app.watchdog import Watchdog

    logging.basicConfig(format="%(message)s")


    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, time.sleep, 3.0)
        Watchdog(1.0).start()
        while True:
            print("turn", flush=True)
            # After a stop, the loop does not turn before the watchdog looks.
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            await asyncio.sleep(0.0)


    asyncio.run(main())
"""
BLOCKED = "the event loop is blocked"


def block(seconds: float) -> None:
    """Block the event loop."""
    time.sleep(seconds)


async def pass_time(seconds: float) -> None:
    """Wait while a process is stopped: no condition would show that time has passed."""
    until = time.monotonic() + seconds
    await eventually(lambda: time.monotonic() > until)


def has_more(app: Application, lines: int) -> bool:
    """Return whether the process has written more lines."""
    return len(app.out) > lines


async def test_blocked_a_process_that_was_stopped(tmp_path: Path) -> None:
    """SIGSTOP, or a debugger, is not reported as a handler that blocks the loop."""
    script = tmp_path / f"{write_package(tmp_path, watched=WATCHED)}/watched.py"
    async with process(sys.executable, str(script), cwd=tmp_path) as app:
        await app.says("turn")
        for _ in range(3):
            app.send(signal.SIGSTOP)
            await pass_time(1.5)
            seen = len(app.out)
            app.send(signal.SIGCONT)
            await eventually(partial(has_more, app, seen + 5))
        wrong = list(app.err)
        app.send(signal.SIGUSR1)
        await app.says(BLOCKED)

    assert wrong == []


async def test_blocked_a_start_in_a_process_that_was_stopped(tmp_path: Path) -> None:
    """The time in which the process is stopped does not count for `start_timeout`."""
    text = """
        import asyncio
        from pathlib import Path

        from workerkit import PeriodicTask

        class Slow(PeriodicTask):
            every = 60.0

            async def on_start(self) -> None:
                print("starting", flush=True)
                while not Path("gate").exists():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)

            async def handle(self) -> None:
                print("handled", flush=True)
    """
    name = write_package(tmp_path, consumers=text)
    async with run(name, cwd=tmp_path, uvloop=True, WORKERKIT_START_TIMEOUT="2") as app:
        await app.says("starting")
        app.send(signal.SIGSTOP)
        await pass_time(5.0)
        (tmp_path / "gate").touch()
        app.send(signal.SIGCONT)
        await app.says("handled")
        app.send(signal.SIGTERM)

        assert await app.ended() == 0


async def test_blocked_the_deadline_of_a_handler() -> None:
    """Data that arrives while another handler blocks the loop is read before the deadline."""
    here, there = socket.socketpair()
    here.setblocking(False)
    waiting = asyncio.Event()

    class Waits(AMQPConsumer):
        queues = ["waits"]
        timeout = 0.5

        async def handle(self, body: bytes) -> None:
            waiting.set()
            await asyncio.get_running_loop().sock_recv(here, 1)

    class Blocks(AMQPConsumer):
        queues = ["blocks"]

        async def handle(self, body: bytes) -> None:
            there.send(b"x")
            block(1.0)

    package = package_of(Waits, Blocks)
    with here, there:
        async with on_embedded(WorkerContainer(), packages=[package]) as app:
            await app.publish(b"", "waits")
            await waiting.wait()
            await app.publish(b"", "blocks")
            await app.idle(deadline=30.0, max_requeues=0)
            actions = [each.action for each in app.settled("Waits")]

    assert actions == ["ack"]


async def test_blocked_a_loop_that_is_always_late_has_deadlines() -> None:
    """A handler that never ends is cancelled, even if others keep blocking the loop."""

    class Hangs(AMQPConsumer):
        queues = ["hangs"]
        timeout = 0.5

        async def handle(self, body: bytes) -> None:
            while True:
                block(0.3)
                await asyncio.sleep(0)

    async with on_embedded(WorkerContainer(), packages=[package_of(Hangs)]) as app:
        await app.publish(b"", "hangs")
        with pytest.raises(AssertionError, match="HandlerTimeout"):
            await app.idle(deadline=60.0, max_requeues=0)


async def test_blocked_the_confirm_of_a_publish(url: str, client: Client) -> None:
    """A confirm that arrived in time is read before the publish fails."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        await publisher.publish(b"first", "orders")
        for _ in range(3):
            publish = asyncio.create_task(publisher.publish(b"next", "orders", timeout=0.3))
            await asyncio.sleep(0)
            block(0.6)
            await publish


async def test_blocked_a_step_of_a_stop() -> None:
    """A step does not time out if its reply arrived while another step blocked the loop."""
    here, there = socket.socketpair()
    here.setblocking(False)

    async def waits() -> None:
        await asyncio.get_running_loop().sock_recv(here, 1)
        for _ in range(10):
            await asyncio.sleep(0)

    async def blocks() -> None:
        await asyncio.sleep(0)
        there.send(b"x")
        block(0.6)

    with here, there:
        wrong = await run_all({"waits": waits(), "blocks": blocks()}, 0.3)

    assert wrong == {}
