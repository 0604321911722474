"""The time of many consumers to start, reconnect and stop, on a real RabbitMQ.

    python -m benchmarks.start [CLASSES] [QUEUES] [DELAYS]

There are CLASSES consumer classes (500) of QUEUES queues each (1), with a retry policy of DELAYS
delays (2): each queue has as many retry queues, and a dead-letter queue. Four rows are printed:
with no queue there, with all of them there, after all connections were closed, and after the
broker was restarted. Each row has the seconds until all of them consume, the CPU that this process
took for it, how many requests that wait for an answer were sent, how many connections were made,
and what it took to stop.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import aiormq.channel
from dependency_injector import providers

from tests.rabbit import PrivateRabbit
from workerkit import (
    AMQPConsumer,
    Queue,
    RetryPolicy,
    Runner,
    WorkerContainer,
    WorkerSettings,
)

DEADLINE = 600.0


class Meter:
    """Counts methods and connections, and reads the clocks."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self.reset()
        rpc = aiormq.channel.Channel.rpc
        meter = self

        async def counted(self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
            meter.requests[frame.name] += 1
            return await rpc(self, frame, *args, **kwargs)

        setattr(aiormq.channel.Channel, "rpc", counted)  # noqa: B010

    def __call__(self, record: Any) -> None:
        """Do nothing."""

    def connected(self, record: Any) -> None:
        """Count a connection."""
        self.connections += 1

    def reset(self) -> None:
        """Reset the counters."""
        self.requests.clear()
        self.connections = 0
        self._began = time.perf_counter(), time.process_time()

    def report(self, what: str) -> None:
        """Print what was counted since the last reset."""
        began, cpu = self._began
        seconds, used = time.perf_counter() - began, time.process_time() - cpu
        counts = ", ".join(f"{name} {count}" for name, count in self.requests.most_common())
        print(
            f"{what:10} {seconds:6.1f} s, {used:5.1f} s CPU, {self.connections} connections, "
            f"{self.requests.total()} requests ({counts})",
            flush=True,
        )


def package(classes: int, queues: int, delays: int) -> str:
    """Create a package of many consumers."""
    module = ModuleType("many_consumers")
    retry = RetryPolicy(tuple(5.0 * (each + 1) for each in range(delays))) if delays else None

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        """Do nothing."""

    for number in range(classes):
        name = f"Many{number}"
        names = [Queue(f"many.{number}.{each}") for each in range(queues)]
        attributes = {
            "queues": names,
            "handle": handle,
            "retry": retry,
            "__module__": module.__name__,
        }
        setattr(module, name, type(name, (AMQPConsumer,), attributes))
    sys.modules[module.__name__] = module
    return module.__name__


@asynccontextmanager
async def running(url: str, package: str, meter: Meter, what: str) -> AsyncIterator[Runner]:
    """Run it, and report the seconds until it is ready, and to stop."""
    container: Any = WorkerContainer()
    settings = WorkerSettings(amqp={"default": {"url": url}})  # type: ignore[arg-type]
    container.settings.override(providers.Object(settings))
    container.observers.override(providers.Object([meter]))
    runner = Runner(container, packages=[package])
    meter.reset()
    async with runner.running():
        await until(lambda: runner.ready, runner)
        meter.report(what)
        yield runner
        meter.reset()
    meter.report("  stop")


async def until(condition: Any, runner: Runner) -> None:
    """Wait for a condition, and report what is missing if it is not met."""
    end = time.perf_counter() + DEADLINE
    while not condition():
        if time.perf_counter() > end:
            states = Counter(f"{each.state} {each.reason[:150]}" for each in runner.health)
            sys.exit(f"not within {DEADLINE:.0f} s: {states.most_common(5)}")
        await asyncio.sleep(0.2)


async def measure(rabbit: PrivateRabbit, package: str) -> None:
    """Measure all rows."""
    meter = Meter()
    async with running(rabbit.url(), package, meter, "missing"):
        pass
    async with running(rabbit.url(), package, meter, "existing") as runner:
        meter.reset()
        await asyncio.to_thread(rabbit.close_all_connections, "measured")
        await until(lambda: not runner.ready, runner)
        await until(lambda: runner.ready, runner)
        meter.report("closed")
        await asyncio.to_thread(rabbit.stop)
        await asyncio.to_thread(rabbit.start, 300.0)
        meter.reset()
        await until(lambda: runner.ready, runner)
        meter.report("restarted")


def main(classes: int = 500, queues: int = 1, delays: int = 2) -> None:
    """Start a broker, and measure on it."""
    with PrivateRabbit() as rabbit:
        asyncio.run(measure(rabbit, package(classes, queues, delays)))


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
