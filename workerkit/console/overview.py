"""All processes of an application in one view, merged from what the sources report."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TypeVar

from workerkit.console.history import Counts, History
from workerkit.console.merging import connections_of, consumer_rows, process_row
from workerkit.console.model import (
    Command,
    CommandReport,
    CommandResult,
    ConsumerRow,
    FleetView,
    Operator,
    Totals,
)
from workerkit.console.reports import FailureReport, ProcessReport, QueueReport
from workerkit.console.sources import Agent, Answers, Source

Place = tuple[str, str, str]
Depths = Callable[[Sequence[QueueReport]], Awaitable[Mapping[Place, tuple[int | None, int | None]]]]
"""Counts the messages of queues: by connection, virtual host and name, those and dead letters."""

MOST_PROCESSES = 1_000
MOST_CONSUMERS = 2_000
MOST_FAILURES = 50
_FORGOTTEN = 60.0
_DEPTHS_EVERY = 5.0
_DEPTHS_DEADLINE = 1.0
# What is merged, as a key of the history: a consumer, or a route and method of one.
_ALL: tuple[str, ...] = ()

T = TypeVar("T")


class Local:
    """The source of this process alone."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def reports(self) -> Answers:
        """Return the report of this process."""
        return Answers([self._agent.report()])

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Execute a command here, unless it is for other processes only."""
        if command.processes is not None and self._agent.id not in command.processes:
            return []
        return [await self._agent.execute(command, operator)]

    async def close(self) -> None:
        """Do nothing: there is no connection."""


class Overview:
    """Asks the sources when somebody looks, and remembers what rates need.

    Args:
        app: The name of the application.
        sources: Where processes are found; of two that report the same process, the first counts.
        depths: Counts messages in queues; None if nobody can.
        interval: Seconds for which a view is shared by all who look.
    """

    def __init__(
        self,
        app: str,
        sources: Sequence[Source],
        depths: Depths | None = None,
        interval: float = 2.0,
    ) -> None:
        self.app = app
        self.interval = interval
        self._sources = list(sources)
        self._depths = _Depths(depths)
        self._known: dict[str, tuple[ProcessReport, float]] = {}
        self._history: History[tuple[str, ...]] = History(4 * MOST_CONSUMERS)
        self._view: FleetView | None = None
        self._made_at = -interval
        self._making: asyncio.Task[FleetView] | None = None

    def add(self, source: Source) -> None:
        """Add a source that was not there from the beginning."""
        self._sources.append(source)

    async def view(self) -> FleetView:
        """Return the current view; all who ask within the interval get the same."""
        if self._making is None:
            if self._view is not None and monotonic() - self._made_at < self.interval * 0.9:
                return self._view
            self._making = asyncio.create_task(self._make(), name="console overview")
        # One who leaves does not cancel it for the others.
        return await asyncio.shield(self._making)

    async def execute(self, command: Command, operator: Operator) -> CommandReport:
        """Have a command executed by the processes that it names, or by all.

        Two sources may reach the same process: it gets the command over the first that knows it.
        """
        results: dict[str, CommandResult] = {}
        for source in self._sources:
            left = command
            if command.processes is not None:
                wanted = [each for each in command.processes if each not in results]
                if not wanted:
                    break
                left = command.model_copy(update={"processes": wanted})
            for result in await source.execute(left, operator):
                known = results.get(result.process)
                if known is None or not known.answered:
                    results[result.process] = result
        for process in command.processes or ():
            if process not in results:
                text = "there is no such process"
                results[process] = CommandResult(
                    process=process, ok=False, answered=False, text=text
                )
        return _report(list(results.values()))

    async def close(self) -> None:
        """Close the sources."""
        if self._making is not None:
            await _cancelled(self._making)
        await self._depths.close()
        for source in self._sources:
            await source.close()

    async def _make(self) -> FleetView:
        try:
            answers = await asyncio.gather(*(each.reports() for each in self._sources))
            now = monotonic()
            seconds = max(now - self._made_at, 0.1) if self._view is not None else self.interval
            self._note(answers, now)
            reports = [report for report, _ in self._known.values()]
            self._history.update(_counts(reports), seconds, self._known.__contains__)
            depths = await self._depths.of(
                [q for r in reports for c in r.consumers for q in c.queues]
            )
            self._view, self._made_at = self._merged(answers, depths, now), now
            return self._view
        finally:
            self._making = None

    def _note(self, answers: Iterable[Answers], now: float) -> None:
        """Replace the reports of processes that have answered; forget those that are silent."""
        found: dict[str, ProcessReport] = {}
        for each in answers:
            for report in each.reports[:MOST_PROCESSES]:
                found.setdefault(report.id, report)
        for process, report in found.items():
            if process in self._known or len(self._known) < MOST_PROCESSES:
                self._known[process] = report, now
        for process, (report, answered) in list(self._known.items()):
            if now - answered > _FORGOTTEN or (report.state == "stopping" and answered < now):
                del self._known[process]

    def _merged(
        self,
        answers: Iterable[Answers],
        depths: Mapping[Place, tuple[int | None, int | None]],
        now: float,
    ) -> FleetView:
        silent = {process: now - at for process, (_, at) in self._known.items() if at < now}
        reports = [report for report, _ in self._known.values()]
        answering = [each for each in reports if each.id not in silent]
        rows = consumer_rows(reports, silent, depths, self._history)[:MOST_CONSUMERS]
        problems = [text for each in answers for text in each.problems]
        problems += self._depths.problems
        return FleetView(
            app=self.app or "".join(each.app for each in reports[:1]),
            time=datetime.now(UTC),
            interval=self.interval,
            asked=len(reports),
            answered=len(answering),
            problems=list(dict.fromkeys(problems))[:MOST_FAILURES],
            totals=self._totals(rows, len(answering)),
            consumers=rows,
            processes=[process_row(each, silent.get(each.id)) for each in reports],
            connections=connections_of(reports),
            failures=_last_failures(reports),
        )

    def _totals(self, rows: Sequence[ConsumerRow], processes: int) -> Totals:
        queues = {
            (each.connection, each.vhost, each.name): each for row in rows for each in row.queues
        }
        series = self._history.of(_ALL)
        return Totals(
            handled=sum(row.handled for row in rows),
            failed=sum(row.failed for row in rows),
            retried=sum(row.retried for row in rows),
            dead=sum(row.dead for row in rows),
            in_flight=sum(row.in_flight for row in rows),
            waiting=_sum(each.ready for each in queues.values()),
            letters=_sum(each.dead for each in queues.values() if each.dead_letters),
            processes=processes,
            rate=series.rate,
            rates=list(series.rates),
            failures=list(series.failures),
        )


class _Depths:
    """The last known depths of queues, counted at most every few seconds.

    Attributes:
        problems: Why they are not known.
    """

    def __init__(self, count: Depths | None) -> None:
        self._count = count
        self._counting: asyncio.Task[Mapping[Place, tuple[int | None, int | None]]] | None = None
        self._last: Mapping[Place, tuple[int | None, int | None]] = {}
        self._counted_at = -_DEPTHS_EVERY
        self.problems: list[str] = []

    async def of(
        self, queues: Sequence[QueueReport]
    ) -> Mapping[Place, tuple[int | None, int | None]]:
        """Return the depths of queues; old ones if counting takes longer than a second."""
        if self._count is None or not queues:
            return {}
        if self._counting is None and monotonic() - self._counted_at >= _DEPTHS_EVERY:
            unique = {(each.connection, each.vhost, each.name): each for each in queues}
            self._counting = asyncio.ensure_future(self._count(list(unique.values())))
        if self._counting is not None:
            await asyncio.wait([self._counting], timeout=_DEPTHS_DEADLINE)
            if self._counting.done():
                self._finish(self._counting)
        return self._last

    async def close(self) -> None:
        """Stop counting."""
        if self._counting is not None:
            await _cancelled(self._counting)

    def _finish(
        self, counting: "asyncio.Future[Mapping[Place, tuple[int | None, int | None]]]"
    ) -> None:
        self._counting, self._counted_at = None, monotonic()
        if counting.cancelled():
            return
        if (error := counting.exception()) is not None:
            self._last, self.problems = {}, [f"queues cannot be counted: {error}"]
        else:
            self._last, self.problems = counting.result(), []


def _counts(
    reports: Iterable[ProcessReport],
) -> Mapping[tuple[str, tuple[str, ...]], Counts]:
    """Return what each process has counted: in all, by consumer, and by route and method."""
    counts: dict[tuple[str, tuple[str, ...]], Counts] = {}
    for report in reports:
        done = sum(each.handled for each in report.consumers)
        failed = sum(each.failed for each in report.consumers)
        counts[report.id, _ALL] = Counts(done, failed)
        for each in report.consumers:
            counts[report.id, (each.name,)] = Counts(
                each.handled, each.failed, tuple(each.bounds), tuple(each.counts)
            )
            for route in each.routes:
                key = (each.name, route.route, route.method)
                counts[report.id, key] = Counts(
                    route.requests, route.errors, tuple(route.bounds), tuple(route.counts)
                )
    return counts


def _last_failures(reports: Iterable[ProcessReport]) -> list[FailureReport]:
    found = [
        each.model_copy(update={"process": report.id})
        for report in reports
        for each in report.failures[:MOST_FAILURES]
    ]
    return sorted(found, key=lambda each: each.time, reverse=True)[:MOST_FAILURES]


async def _cancelled(task: "asyncio.Future[T]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum of what is known; None if nothing is."""
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _report(results: Sequence[CommandResult]) -> CommandReport:
    answered = [each for each in results if each.answered]
    done = sum(each.ok for each in answered)
    if not results:
        text = "no process is known"
    elif done == len(answered):
        text = f"{len(answered)} of {len(results)} answered"
    else:
        text = f"{len(answered)} of {len(results)} answered, {len(answered) - done} refused"
    return CommandReport(
        asked=len(results), answered=len(answered), text=text, results=list(results)
    )
