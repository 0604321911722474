"""What the console costs a process: its report, the view of all processes, and their JSON.

    python -m benchmarks.console [CONSUMERS] [PROCESSES]

A process has CONSUMERS consumers (10) of one queue each, which have handled messages, and fifty
failures. There is a view of 1 process, and of PROCESSES (20). Each row has the least and the median
of many calls, in milliseconds: other programs only add to the least. The last row is the cost of
one failure. No broker is needed.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from dependency_injector import providers

from tests.application import package_of
from workerkit import Action, AMQPConsumer, RetryPolicy, Runner, Settled, WorkerContainer
from workerkit.config.settings import WorkerSettings
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.overview import Overview
from workerkit.console.reports import ProcessReport
from workerkit.console.snapshot import Snapshot
from workerkit.console.sources import Answers
from workerkit.delivery import Outcome
from workerkit.health import Health, Part, Readiness
from workerkit.observe import ConnectionEvent
from workerkit.ops.metrics import Metrics
from workerkit.testing import fake_message

CALLS = 100
SAMPLES = 60
FAILURES = 20_000


class Application:
    """The consumers of a process, with health and metrics, and without a broker."""

    def __init__(self, count: int) -> None:
        container = WorkerContainer()
        container.settings.override(providers.Object(WorkerSettings()))
        package = package_of(*(_consumer(number) for number in range(count)))
        assembly = Runner(container, packages=[package]).assemble()
        readiness = Readiness(started=True)
        self._metrics = Metrics(assembly.settings.metrics, readiness)
        self._names = [each.options.name for each in assembly.declared]
        for name in self._names:
            part = Part()
            part.ready()
            readiness.health.append(Health(name, [part]))
        self._metrics.connected(ConnectionEvent("default", "consumers", "/", 1))
        self._snapshot = Snapshot(
            assembly.name,
            assembly.settings,
            assembly.transports,
            readiness,
            self._metrics,
            drained=lambda: False,
        )
        self.work(1_000)
        self.fail(50)

    def report(self) -> ProcessReport:
        """Return a new report."""
        return self._snapshot.report()

    def work(self, count: int) -> None:
        """Handle some messages in each consumer."""
        message, outcome = fake_message(b"x"), Outcome(Action.ACK)
        for name in self._names:
            record = Settled(name, "orders", message, outcome, Action.ACK, 0.02)
            for _ in range(count):
                self._metrics(record)

    def fail(self, count: int) -> None:
        """Have messages fail, with an exception of a few frames."""
        message = fake_message(b"x", message_id="m-1")
        outcome = Outcome(Action.RETRY, _raised())
        record = Settled(self._names[0], "orders", message, outcome, Action.RETRY, 0.02)
        for _ in range(count):
            self._metrics(record)


class Processes:
    """A source of processes that all report the same, with ids of their own."""

    def __init__(self, body: str, count: int) -> None:
        report = ProcessReport.model_validate_json(body)
        self._reports = [report.model_copy(update={"id": f"{each}"}) for each in range(count)]

    async def reports(self) -> Answers:
        """Return their reports."""
        return Answers(self._reports)

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Execute nothing."""
        return ()

    async def close(self) -> None:
        """Do nothing."""


def _consumer(number: int) -> type[AMQPConsumer]:
    async def handle(self: Any, body: bytes) -> None: ...

    retry = RetryPolicy(delays=(1, 5, 60))
    members = {"queues": [f"orders-{number}"], "retry": retry, "handle": handle}
    return type(f"Orders{number}", (AMQPConsumer,), members)


def _raised() -> Exception:
    try:
        _raise(4)
    except KeyError as error:
        return error
    raise AssertionError


def _raise(depth: int) -> None:
    if not depth:
        raise KeyError("item")
    _raise(depth - 1)


def show(name: str, times: Sequence[float]) -> None:
    """Print a row."""
    print(f"{name:<40} {min(times) * 1e3:9.3f} {median(times) * 1e3:9.3f}", flush=True)


def measure(name: str, call: Callable[[], object]) -> None:
    """Print what a function takes."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    show(name, times)


async def measure_views(body: str, count: int) -> None:
    """Print what a view takes, once its series are full, and its JSON."""
    overview = Overview("shop", [Processes(body, count)], interval=0)
    times = []
    for _ in range(2 * SAMPLES if count < 100 else 5):
        started = time.perf_counter()
        view = await overview.view()
        times.append(time.perf_counter() - started)
    show(f"view of {count}", times[len(times) // 2 :])
    measure(f"its JSON, {len(view.model_dump_json())} bytes", view.model_dump_json)


async def main(consumers: int, processes: int) -> None:
    """Print the figures."""
    application = Application(consumers)
    print(f"{f'ms, with {consumers} consumers':<40} {'least':>9} {'median':>9}")
    measure("report", application.report)
    body = application.report().model_dump_json()
    measure(f"its JSON, {len(body)} bytes", application.report().model_dump_json)
    measure("report from JSON", lambda: ProcessReport.model_validate_json(body))
    for count in (1, processes):
        await measure_views(body, count)
    started = time.perf_counter()
    application.fail(FAILURES)
    print(f"one failure: {(time.perf_counter() - started) / FAILURES * 1e6:.2f} µs")


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:]]
    asyncio.run(main(*numbers, *(10, 20)[len(numbers) :]))
