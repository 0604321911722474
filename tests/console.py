"""The console on a real ops port, with processes and dead letters in memory behind it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.application import container_of
from tests.serving import NO_BROKER
from workerkit.console.audit import Audit
from workerkit.console.dead_letters.model import (
    DeleteRequest,
    Job,
    Letter,
    LetterDetail,
    LetterFilter,
    LetterGroup,
    LetterGroups,
    LetterPage,
    LetterQueue,
    QueueRef,
    ReplayRequest,
)
from workerkit.console.model import (
    Command,
    CommandReport,
    CommandResult,
    ConsumerRow,
    FleetView,
    Operator,
    QueueRow,
    Totals,
)
from workerkit.console.reports import ProcessReport, QueueReport
from workerkit.console.server import Console
from workerkit.errors import BrokerRefused, WorkerkitError
from workerkit.health import Readiness
from workerkit.ops.metrics import Metrics
from workerkit.ops.server import OpsServer

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
QUEUE = QueueRow(
    name="orders", connection="default", vhost="/", dead_letters="orders.dead-letters", ready=3
)


class OneProcess:
    """The agent of a process."""

    id = "process-1"

    def report(self) -> ProcessReport:
        """Return its report."""
        return ProcessReport(id=self.id, app="shop", host="here", pid=1, started=STARTED)

    async def execute(self, command: Command, operator: Operator) -> CommandResult:
        """Note nothing: the overview does."""
        return CommandResult(process=self.id, ok=True, text=command.action)


class OverviewInMemory:
    """All processes.

    Attributes:
        views: How often a view was created.
        size: Bytes of text in each view.
        error: What `view` raises.
        executed: The commands, with their operators.
    """

    app = "shop"

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.views = 0
        self.size = 0
        self.error: Exception | None = None
        self.executed: list[tuple[Command, Operator]] = []
        self.closed = False

    async def view(self) -> FleetView:
        """Return a view, whose first problem is its number."""
        self.views += 1
        if self.error is not None:
            raise self.error
        consumer = ConsumerRow(name="OrderPlaced", kind="amqp", queues=[QUEUE])
        return FleetView(
            app=self.app,
            time=STARTED,
            interval=self.interval,
            asked=1,
            answered=1,
            problems=[str(self.views), "x" * self.size],
            totals=Totals(processes=1),
            consumers=[consumer],
        )

    async def execute(self, command: Command, operator: Operator) -> CommandReport:
        """Note a command."""
        self.executed.append((command, operator))
        result = CommandResult(process="process-1", ok=True, text=command.action)
        return CommandReport(asked=1, answered=1, text="1 of 1 answered", results=[result])

    async def close(self) -> None:
        """Note it."""
        self.closed = True


class RefusedByDesk(WorkerkitError):
    """An error with a status, as those of the desk."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DeskInMemory:
    """Two dead letters of one queue, and jobs that do not run.

    Attributes:
        called: What was called, with its arguments.
        reading: Called by each method that would read from a broker.
    """

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []
        self.closed = False
        self._jobs: dict[str, Job] = {}
        self._letters = [
            Letter(key=f"key-{number}", position=number, group="group-1", consumer="OrderPlaced")
            for number in range(2)
        ]

    async def reading(self) -> None:
        """Return at once."""

    async def queues(
        self,
        known: Sequence[QueueReport],
        consumers: Mapping[tuple[str, str, str], Sequence[str]],
    ) -> list[LetterQueue]:
        """Return the queues that are known."""
        await self.reading()
        return [
            LetterQueue(
                queue=each.name,
                connection=each.connection,
                vhost=each.vhost,
                name=each.dead_letters or "",
                consumers=consumers[each.connection, each.vhost, each.name],
                count=2,
            )
            for each in known
        ]

    async def page(
        self, ref: QueueRef, filter: LetterFilter, position: int, limit: int
    ) -> LetterPage:
        """Return a page."""
        await self._read("page", ref, filter, position, limit)
        found = self._letters[position : position + limit]
        return LetterPage(letters=found, scanned=len(found), count=len(self._letters))

    async def groups(self, ref: QueueRef, filter: LetterFilter) -> LetterGroups:
        """Return one group."""
        await self._read("groups", ref, filter)
        group = LetterGroup(id="group-1", consumer="OrderPlaced", error="X", place="", count=2)
        return LetterGroups(groups=[group], scanned=2, count=2)

    async def letter(self, ref: QueueRef, key: str, position: int | None) -> LetterDetail:
        """Return a dead letter."""
        await self._read("letter", ref, key, position)
        for each in self._letters:
            if each.key == key:
                return LetterDetail(**each.model_dump(), headers={"x": 1})
        raise RefusedByDesk(404, "there is no such dead letter")

    def replay(self, request: ReplayRequest, operator: Operator) -> Job:
        """Begin a job."""
        self.called.append(("replay", request, operator))
        return self._job("replay", request.queue, operator)

    def delete(self, request: DeleteRequest, operator: Operator) -> Job:
        """Begin a job."""
        self.called.append(("delete", request, operator))
        if request.confirm > 2:
            raise ValueError("confirm should be 2")
        return self._job("delete", request.queue, operator)

    def jobs(self) -> list[Job]:
        """Return the jobs."""
        return [*reversed(self._jobs.values())]

    def job(self, id: str) -> Job:
        """Return a job."""
        if id not in self._jobs:
            raise KeyError("there is no such job")
        return self._jobs[id]

    def stop(self, id: str, operator: Operator) -> Job:
        """Stop a job."""
        self._jobs[id] = self.job(id).model_copy(update={"state": "stopped"})
        return self._jobs[id]

    def undo(self, id: str, operator: Operator) -> Job:
        """Undo nothing."""
        raise RefusedByDesk(409, f"the job cannot be undone: it is {self.job(id).state}")

    async def close(self) -> None:
        """Note it."""
        self.closed = True

    async def _read(self, *call: Any) -> None:
        self.called.append(call)
        ref: QueueRef = call[1]
        await self.reading()
        if ref.connection != "default":
            raise BrokerRefused("amqp://shop:secret-word@rabbit/ refused\nthe login", 403)
        if ref.queue != "orders":
            raise KeyError(f"no queue {ref.queue}")

    def _job(self, kind: Any, queue: QueueRef, operator: Operator) -> Job:
        job = Job(
            id=f"job-{len(self._jobs)}",
            kind=kind,
            queue=queue,
            state="running",
            started=STARTED,
            user=operator.user,
        )
        self._jobs[job.id] = job
        return job


@dataclass
class Served:
    """A console that is served."""

    overview: OverviewInMemory
    desk: DeskInMemory
    audit: Audit
    console: Console
    server: OpsServer

    @property
    def url(self) -> str:
        """Return the address of the port."""
        return self.server.url


@asynccontextmanager
async def console(
    folder: Path | None = None, *, interval: float = 0.05, **ops: Any
) -> AsyncIterator[Served]:
    """Serve a console inside the block.

    Args:
        folder: The files of the page.
        interval: Of the live stream.
        ops: Settings of the port.
    """
    settings = container_of(NO_BROKER, ops={"port": 0, **ops}).settings()
    overview, desk, audit = OverviewInMemory(interval), DeskInMemory(), Audit()
    made = Console(settings, overview, desk, audit, OneProcess(), None, folder)
    readiness = Readiness()
    server = OpsServer(settings, readiness, Metrics(settings.metrics, readiness), extension=made)
    await server.open()
    try:
        yield Served(overview, desk, audit, made, server)
    finally:
        await server.close()
