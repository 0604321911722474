"""Merge what several processes report of the same consumer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from workerkit.console.depths import Depths
from workerkit.console.history import History
from workerkit.console.model import (
    ConnectionRow,
    ConsumerOfProcess,
    ConsumerRow,
    ProcessRow,
    QueueRow,
    RouteRow,
)
from workerkit.console.reports import (
    ConsumerReport,
    ProcessReport,
    StreamReport,
    TaskReport,
)

Known = History[tuple[str, ...]]

MOST_CONSUMERS = 2_000

_NEVER = datetime.min.replace(tzinfo=UTC)
# The worst first.
_STATES = ("waiting", "starting", "stopping", "ready", "paused", "ended")


def consumer_rows(
    reports: Iterable[ProcessReport],
    silent: Mapping[str, float],
    depths: Depths,
    history: Known,
) -> Iterator[ConsumerRow]:
    """Yield one row for each consumer, in the order of the first process that has it.

    There are no more than 2,000 rows.

    Args:
        silent: The ids of processes that do not answer: what they report is counted, but they do
            not decide on the state.
        depths: Ready messages and dead letters, by connection, virtual host and name of a queue.
    """
    by_name: dict[str, list[tuple[ProcessReport, ConsumerReport]]] = {}
    for report in reports:
        for each in report.consumers:
            if each.name in by_name or len(by_name) < MOST_CONSUMERS:
                by_name.setdefault(each.name, []).append((report, each))
    for name, parts in by_name.items():
        yield _consumer_row(name, parts, silent, depths, history)


def _consumer_row(
    name: str,
    parts: Sequence[tuple[ProcessReport, ConsumerReport]],
    silent: Mapping[str, float],
    depths: Depths,
    history: Known,
) -> ConsumerRow:
    alive = [each for report, each in parts if report.id not in silent]
    every = [each for _, each in parts]
    newest = (alive or every)[-1]
    worst = min(alive, key=_badness, default=newest)
    series = history.of((name,))
    return ConsumerRow(
        name=name,
        kind=newest.kind,
        source=newest.source,
        state=worst.state if alive else "silent",
        reason=worst.reason if alive else "no process answers",
        paused=sum(each.paused for each in alive),
        abilities=newest.abilities,
        in_flight=sum(each.in_flight for each in alive),
        concurrency=sum_of_known(each.concurrency for each in alive),
        prefetch=sum_of_known(each.prefetch for each in alive),
        attempts=newest.attempts,
        handled=sum(each.handled for each in every),
        failed=sum(each.failed for each in every),
        retried=sum(each.retried for each in every),
        dead=sum(each.dead for each in every),
        rate=series.rate,
        p95=series.p95,
        rates=list(series.rates),
        p95s=list(series.p95s),
        queues=list(_queues(alive or every, depths)),
        streams=_streams(alive),
        routes=list(_routes(name, every, history)),
        task=_task(alive),
        processes=[_of_process(report, each, silent) for report, each in parts],
    )


def _of_process(
    report: ProcessReport, consumer: ConsumerReport, silent: Mapping[str, float]
) -> ConsumerOfProcess:
    return ConsumerOfProcess(
        process=report.id,
        state="silent" if report.id in silent else consumer.state,
        reason=consumer.reason,
        paused=consumer.paused,
        in_flight=consumer.in_flight,
        concurrency=consumer.concurrency,
        prefetch=consumer.prefetch,
    )


def process_row(report: ProcessReport, silent: float | None) -> ProcessRow:
    """Return the row of a process.

    Args:
        silent: Seconds since it answered; None if it answers.
    """
    shared = report.model_dump(include=set(ProcessRow.model_fields), exclude={"consumers"})
    return ProcessRow(
        **shared,
        responding=silent is None,
        silent=silent or 0.0,
        consumers=len(report.consumers),
        in_flight=sum(each.in_flight for each in report.consumers),
    )


def connections_of(reports: Iterable[ProcessReport]) -> list[ConnectionRow]:
    """Return the connections of all processes."""
    return [
        ConnectionRow(**each.model_dump(), process=report.id)
        for report in reports
        for each in report.connections
    ]


def _badness(consumer: ConsumerReport) -> int:
    return _STATES.index(consumer.state) if consumer.state in _STATES else 0


def _queues(
    consumers: Iterable[ConsumerReport],
    depths: Depths,
) -> Iterator[QueueRow]:
    unique = {
        (queue.connection, queue.vhost, queue.name): queue
        for each in consumers
        for queue in each.queues
    }
    for place, queue in unique.items():
        ready, dead = depths.get(place, (None, None))
        yield QueueRow(**queue.model_dump(), ready=ready, dead=dead)


def _streams(consumers: Iterable[ConsumerReport]) -> list[StreamReport]:
    """Return each stream as the process knows it that had the last event."""
    found: dict[str, StreamReport] = {}
    for consumer in consumers:
        for each in consumer.streams:
            known = found.get(each.source)
            if known is None or (
                each.age is not None and (known.age is None or each.age < known.age)
            ):
                found[each.source] = each
    return list(found.values())


def _routes(name: str, consumers: Iterable[ConsumerReport], history: Known) -> Iterator[RouteRow]:
    counted: dict[tuple[str, str], list[int]] = {}
    for consumer in consumers:
        for each in consumer.routes:
            numbers = counted.setdefault((each.route, each.method), [0, 0])
            numbers[0] += each.requests
            numbers[1] += each.errors
    for (route, method), (requests, errors) in counted.items():
        series = history.of((name, route, method))
        yield RouteRow(
            route=route,
            method=method,
            requests=requests,
            errors=errors,
            rate=series.rate,
            p95=series.p95,
        )


def _task(consumers: Iterable[ConsumerReport]) -> TaskReport | None:
    """Return the schedule with the last run of any process, and the next one."""
    tasks = [each.task for each in consumers if each.task is not None]
    if not tasks:
        return None
    last = max(tasks, key=lambda each: each.last or _NEVER)
    due = [each.next for each in tasks if each.next is not None]
    leads = any(each.role == "leader" for each in tasks)
    role = "leader" if leads else tasks[0].role
    return last.model_copy(update={"role": role, "next": min(due, default=None)})


def sum_of_known(values: Iterable[int | None]) -> int | None:
    """Return the sum of what is known; None if nothing is."""
    known = [each for each in values if each is not None]
    return sum(known) if known else None
