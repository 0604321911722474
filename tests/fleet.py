"""Processes in memory, for tests of what the console shows of all of them."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import ConsumerReport, ProcessReport, QueueReport
from workerkit.console.sources import Answers

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ALICE = Operator(user="alice", role="admin", address="192.0.2.1")
BOUNDS = (0.1, 1.0)


def queue(name: str = "orders", **more: Any) -> QueueReport:
    """Return a queue with dead letters."""
    return QueueReport(
        **{"name": name, "connection": "default", "vhost": "/", "dead_letters": f"{name}.dlq"}
        | more
    )


def consumer(name: str = "Orders", **more: Any) -> ConsumerReport:
    """Return a consumer that is ready."""
    return ConsumerReport(**{"name": name, "kind": "amqp", "state": "ready"} | more)


def process(id: str, *consumers: ConsumerReport, **more: Any) -> ProcessReport:
    """Return a process that is ready."""
    fixed: dict[str, Any] = {
        "app": "shop",
        "host": "here",
        "pid": 1,
        "started": STARTED,
        "state": "ready",
    }
    return ProcessReport(**fixed | {"id": id, "consumers": consumers} | more)


class SourceInMemory:
    """A source of processes.

    Attributes:
        answers: Those that answer.
        silent: Those that do not.
        refusing: Those that refuse commands.
        problems: Why others are missing.
        gate: Closed, nothing is answered.
        error: What its methods raise.
        asked: How often it was asked for reports.
        executed: The processes for each command.
    """

    def __init__(self, *answers: ProcessReport) -> None:
        self.answers: Sequence[ProcessReport] = answers
        self.silent: Sequence[str] = ()
        self.refusing: Sequence[str] = ()
        self.problems: Sequence[str] = ()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.asked = 0
        self.executed: list[list[str] | None] = []
        self.closed = False

    async def reports(self) -> Answers:
        """Return the reports."""
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Answers(self.answers, self.silent, self.problems)

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Have a command executed."""
        self.executed.append(command.processes)
        if self.error is not None:
            raise self.error
        known = [*(each.id for each in self.answers), *self.silent]
        return [
            CommandResult(
                process=each,
                ok=each not in self.silent and each not in self.refusing,
                answered=each not in self.silent,
                text=command.action,
            )
            for each in known
            if command.processes is None or each in command.processes
        ]

    async def close(self) -> None:
        """Note it."""
        self.closed = True
