"""What the console costs the process that serves it.

    python -m benchmarks.console

It prints the time of one report of a process with ten consumers, and of one view of 1 and of 20
such processes: merged, and as JSON. The best of several rounds counts, as other programs only add.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dependency_injector import providers

from tests.application import package_of
from workerkit import AMQPConsumer, Runner, WorkerContainer, WorkerSettings
from workerkit.app.console import ProcessConsole
from workerkit.console import overview as module
from workerkit.console.overview import Overview
from workerkit.console.sources import Answers
from workerkit.delivery import Action, Delivery, Outcome
from workerkit.health import Health, Part, Readiness
from workerkit.observe import Settled
from workerkit.ops.metrics import Metrics

CONSUMERS = 10
ROUNDS = 50


def classes() -> list[type[AMQPConsumer]]:
    """Return consumers of one queue each."""

    async def handle(self: Any, body: bytes) -> None: ...

    return [
        type(f"Orders{number}", (AMQPConsumer,), {"queues": [f"orders{number}"], "handle": handle})
        for number in range(CONSUMERS)
    ]


def process() -> ProcessConsole:
    """Return a process that has handled, and failed to handle, some deliveries."""
    container = WorkerContainer()
    container.settings.override(providers.Object(WorkerSettings()))
    assembly = Runner(container, packages=[package_of(*classes())]).assemble()
    readiness = Readiness(started=True)
    metrics = Metrics(assembly.settings.metrics, readiness)
    for declared in assembly.declared:
        part = Part()
        part.ready()
        readiness.health.append(Health(declared.options.name, [part]))
        for number in range(1_000):
            error = ValueError("no price") if number % 100 == 0 else None
            outcome = Outcome(Action.ACK if error is None else Action.DEAD_LETTER, error)
            name = declared.options.name
            metrics(Settled(name, "q", Delivery(b""), outcome, outcome.action, 0.01, lost=False))
    return ProcessConsole(assembly, readiness, metrics, None)


def best(call: Callable[[], object]) -> float:
    """Return the shortest time of some calls, in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1000


class _Same:
    """A source of the same reports."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def reports(self) -> Answers:
        return self._answers

    async def execute(self, *_: Any) -> Any:
        return []

    async def close(self) -> None: ...


async def main() -> None:
    """Measure, and print."""
    agent = process()._agent
    print(f"report of {CONSUMERS} consumers: {best(agent._make):.2f} ms")
    report = agent.report()
    print(f"as JSON: {best(report.model_dump_json):.2f} ms, {len(report.model_dump_json())} bytes")
    for count in (1, 20):
        reports = [
            report.model_copy(update={"id": str(number), "started": datetime.now(UTC)})
            for number in range(count)
        ]
        overview = Overview("shop", [_Same(Answers(reports))])
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            view = await overview._make()
            times.append(time.perf_counter() - began)
        size = len(view.model_dump_json())
        print(
            f"view of {count} processes: {min(times) * 1000:.2f} ms,"
            f" as JSON {best(view.model_dump_json):.2f} ms, {size} bytes"
        )
    assert module.MOST_PROCESSES >= 20


if __name__ == "__main__":
    asyncio.run(main())
