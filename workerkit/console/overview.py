"""All processes of an application in one view, merged from what the sources report."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from workerkit.console.depths import CountDepths, Depths, QueueDepths
from workerkit.console.history import Counts, History
from workerkit.console.limits import TooLarge, limited
from workerkit.console.merging import (
    MOST_CONSUMERS,
    connections_of,
    consumer_rows,
    process_row,
    sum_of_known,
)
from workerkit.console.model import (
    Command,
    CommandReport,
    CommandResult,
    ConsumerRow,
    FleetView,
    Operator,
    Totals,
)
from workerkit.console.reports import FailureReport, ProcessReport
from workerkit.console.sources import Agent, Answers, Source
from workerkit.describe import describe_error
from workerkit.safe_text import one_line

log = logging.getLogger(__name__)

MOST_PROCESSES = 1_000
MOST_ITEMS = 100_000
"""Consumers, queues, routes and the like of all processes, together."""

MOST_FAILURES = 50
_MOST_PROBLEMS = 20
_LONGEST_PROBLEM = 500
_FORGOTTEN = 60.0
_DEADLINE = 5.0  # For a source; it has one of its own, which is shorter.
_UNSEEN = 30.0
"""Seconds without a view after which the series begin again."""

_STEP = 20
"""Processes or consumers that are read before other callbacks of the event loop run."""

# What is merged, as a key of the history: everything, a consumer, or a route and method of one.
_ALL: tuple[str, ...] = ()


class _Known(NamedTuple):
    """The last report of a process.

    Attributes:
        items: The size of the report.
        answered: When it was received.
    """

    report: ProcessReport
    items: int
    answered: float


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

    Nothing is sampled while nobody calls `view`. After half a minute without a call the series
    begin again, because their values are one interval apart.

    Args:
        app: The name of the application; empty for that of its first process.
        sources: Where processes are found; of two that report the same process, the first counts.
        depths: Counts messages in queues; None if nobody can.
        interval: Seconds for which a view is shared by all who look.
    """

    def __init__(
        self,
        app: str,
        sources: Sequence[Source],
        depths: CountDepths | None = None,
        interval: float = 2.0,
    ) -> None:
        self.app = app
        self.interval = interval
        self._sources = list(sources)
        self._depths = QueueDepths(depths)
        self._known: dict[str, _Known] = {}
        self._history: History[tuple[str, ...]] = History(4 * MOST_CONSUMERS)
        self._view: FleetView | None = None
        self._made_at = -interval
        self._making: asyncio.Task[FleetView] | None = None
        # What was wrong with a source the last time, so that it is logged once.
        self._failed: dict[int, str] = {}

    def add(self, source: Source) -> None:
        """Add a source that was not there from the beginning."""
        self._sources.append(source)

    async def view(self) -> FleetView:
        """Return the current view; all who ask within the interval get the same."""
        if self._making is None:
            if self._view is not None and monotonic() - self._made_at < self.interval * 0.9:
                return self._view
            self._making = asyncio.create_task(self._make(), name="console overview")
            self._making.add_done_callback(self._made)
        # One who leaves does not cancel it for the others.
        return await asyncio.shield(self._making)

    async def execute(self, command: Command, operator: Operator) -> CommandReport:
        """Have a command executed by the processes that it names, or by all.

        Two sources may reach the same process: it gets the command once, over the first one.
        """
        results: dict[str, CommandResult] = {}
        for source in self._sources:
            wanted = await self._wanted(source, command, results)
            if wanted is not None and not wanted:
                continue
            sent = command if wanted is None else command.model_copy(update={"processes": wanted})
            for result in await self._execute(source, sent, operator):
                if wanted is None or result.process in wanted:
                    results.setdefault(result.process, result)
        for process in command.processes or ():
            missing = _not_answered(process, "there is no such process")
            results.setdefault(process, missing)
        return _report(list(results.values()))

    async def close(self) -> None:
        """Close the sources."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])
        await self._depths.close()
        for source in self._sources:
            await source.close()

    def _made(self, making: "asyncio.Task[FleetView]") -> None:
        self._making = None
        if not making.cancelled() and making.exception() is not None:
            # Whoever waits gets it; all of them may have left.
            log.error("the overview failed", exc_info=making.exception())

    async def _wanted(
        self, source: Source, command: Command, results: Mapping[str, CommandResult]
    ) -> list[str] | None:
        """Return the processes that a source should reach; None for all that it knows."""
        if command.processes is not None:
            found = dict.fromkeys(command.processes)
        elif not results:
            return None
        else:
            answers = await self._ask(source)
            found = dict.fromkeys([*(each.id for each in answers.reports), *answers.silent])
        return [each for each in found if each not in results][:MOST_PROCESSES]

    async def _execute(
        self, source: Source, command: Command, operator: Operator
    ) -> Sequence[CommandResult]:
        """Return the results of a source; if it fails, that its processes have not answered."""
        try:
            return await source.execute(command, operator)
        except Exception as error:
            log.exception("a command was not sent", extra={"source": type(source).__name__})
            text = f"not sent: {one_line(describe_error(error))}"
            return [_not_answered(each, text) for each in command.processes or ("",)]

    async def _make(self) -> FleetView:
        answers = await asyncio.gather(*(self._ask(each) for each in self._sources))
        now = monotonic()
        if now - self._made_at > max(_UNSEEN, 3 * self.interval):
            self._history.restart()
        problems = [text for each in answers for text in each.problems]
        problems += await self._note(answers, now)
        self._history.update(
            {key: each for known in self._answering(now) for key, each in _counts(known)},
            self._known.__contains__,
        )
        depths = await self._depths.of(
            queue
            for known in self._known.values()
            for consumer in known.report.consumers
            for queue in consumer.queues
        )
        problems += filter(None, [self._depths.problem])
        silent = {id_: now - each.answered for id_, each in self._known.items()}
        silent = {id_: seconds for id_, seconds in silent.items() if seconds > 0}
        unknown = {each for found in answers for each in found.silent} - self._known.keys()
        view = await self._merged(depths, silent, len(unknown), problems)
        self._view, self._made_at = view, now
        return view

    async def _ask(self, source: Source) -> Answers:
        """Return the answers of a source, or why it has none."""
        try:
            async with asyncio.timeout(_DEADLINE):
                answers = await source.reports()
        except Exception as error:
            reason = f"no answer in {_DEADLINE:g} s" if isinstance(error, TimeoutError) else ""
            text = f"processes cannot be asked: {reason or one_line(describe_error(error))}"
            if self._failed.get(id(source)) != text:
                log.warning("processes cannot be asked", exc_info=error)
            self._failed[id(source)] = text
            return Answers([], (), [text])
        self._failed.pop(id(source), None)
        return answers

    def _answering(self, now: float) -> Iterator[_Known]:
        return (each for each in self._known.values() if each.answered >= now)

    async def _note(self, answers: Iterable[Answers], now: float) -> list[str]:
        """Replace the reports of processes that have answered, and forget old ones.

        If there are too many, those of the first sources count, and then those that were the last
        to answer.

        Returns:
            Why processes are not shown.
        """
        found: dict[str, _Known] = {}
        problems: list[str] = []
        unique: dict[str, ProcessReport] = {}
        for each in answers:
            for report in each.reports:
                unique.setdefault(report.id, report)
        for number, report in enumerate(unique.values()):
            if number % _STEP == _STEP - 1:
                await asyncio.sleep(0)
            try:
                found[report.id] = _Known(*limited(report), now)
            except TooLarge as error:
                problems.append(f"not shown: {error}")
        gone = [
            (id_, known)
            for id_, known in sorted(self._known.items(), key=lambda each: -each[1].answered)
            if id_ not in found and _is_remembered(known, now)
        ]
        kept, items = dict[str, _Known](), 0
        for id_, known in [*found.items(), *gone]:
            if len(kept) < MOST_PROCESSES and items + known.items <= MOST_ITEMS:
                kept[id_] = known
                items += known.items
        left_out = len(found) - len(found.keys() & kept.keys())
        if left_out:
            problems.append(f"there are too many processes; {left_out} of them not shown")
        order = dict.fromkeys([*self._known, *kept])
        self._known = {id_: kept[id_] for id_ in order if id_ in kept}
        return problems

    async def _merged(
        self,
        depths: Depths,
        silent: Mapping[str, float],
        unknown: int,
        problems: Iterable[str],
    ) -> FleetView:
        reports = [each.report for each in self._known.values()]
        rows = []
        for row in consumer_rows(reports, silent, depths, self._history):
            rows.append(row)
            await asyncio.sleep(0)
        answering = len(reports) - len(silent)
        return FleetView(
            app=self.app or "".join(each.app for each in reports[:1]),
            time=datetime.now(UTC),
            interval=self.interval,
            asked=len(reports) + unknown,
            answered=answering,
            problems=[each[:_LONGEST_PROBLEM] for each in dict.fromkeys(problems)][:_MOST_PROBLEMS],
            totals=self._totals(rows, answering),
            consumers=rows,
            processes=[process_row(each, silent.get(each.id)) for each in reports],
            connections=connections_of(each for each in reports if each.id not in silent),
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
            waiting=sum_of_known(each.ready for each in queues.values()),
            letters=sum_of_known(each.dead for each in queues.values() if each.dead_letters),
            processes=processes,
            rate=series.rate,
            rates=list(series.rates),
            failures=list(series.failures),
        )


def _is_remembered(known: _Known, now: float) -> bool:
    """Return whether a process that does not answer is still shown: not if it was stopping."""
    return now - known.answered <= _FORGOTTEN and known.report.state != "stopping"


def _counts(known: _Known) -> Iterator[tuple[tuple[str, tuple[str, ...]], Counts]]:
    """Yield what a process has counted: in all, by consumer, and by route and method."""
    report = known.report
    time = report.uptime or known.answered
    done = sum(each.handled for each in report.consumers)
    failed = sum(each.failed for each in report.consumers)
    yield (report.id, _ALL), Counts(time, done, failed)
    for each in report.consumers:
        buckets = _buckets(each.bounds, each.counts)
        yield (report.id, (each.name,)), Counts(time, each.handled, each.failed, *buckets)
        for route in each.routes:
            buckets = _buckets(route.bounds, route.counts)
            key = each.name, route.route, route.method
            yield (report.id, key), Counts(time, route.requests, route.errors, *buckets)


def _buckets(
    bounds: Sequence[float], counts: Sequence[int]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return bounds and counts; nothing if they do not belong together."""
    if len(counts) != len(bounds) + 1:
        return (), ()
    return tuple(bounds), tuple(counts)


def _last_failures(reports: Iterable[ProcessReport]) -> list[FailureReport]:
    found = [(each, report.id) for report in reports for each in report.failures[-MOST_FAILURES:]]
    found.sort(key=lambda each: each[0].time, reverse=True)
    return [each.model_copy(update={"process": process}) for each, process in found[:MOST_FAILURES]]


def _not_answered(process: str, text: str) -> CommandResult:
    return CommandResult(process=process, ok=False, answered=False, text=text)


def _report(results: Sequence[CommandResult]) -> CommandReport:
    answered = [each for each in results if each.answered]
    refused = sum(not each.ok for each in answered)
    silent = len(results) - len(answered)
    if not results:
        text = "no process is known"
    elif not refused:
        text = f"{len(answered)} of {len(results)} answered"
    else:
        text = f"done on {len(answered) - refused} of {len(results)}, {refused} refused"
        text += f", {silent} did not answer" if silent else ""
    return CommandReport(
        asked=len(results), answered=len(answered), text=text, results=list(results)
    )
