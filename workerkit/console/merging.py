"""Merge what several processes report of the same consumer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

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

Place = tuple[str, str, str]
Known = History[tuple[str, ...]]

# The worst first.
_STATES = ("waiting", "starting", "stopping", "paused", "ready", "ended")


def consumer_rows(
    reports: Iterable[ProcessReport],
    silent: Mapping[str, float],
    depths: Mapping[Place, tuple[int | None, int | None]],
    history: Known,
) -> list[ConsumerRow]:
    """Return one row for each consumer, in the order of the first process that has it.

    Args:
        silent: The ids of processes that do not answer: what they report is counted, but they do
            not decide on the state.
        depths: Ready messages and dead letters, by connection, virtual host and name of a queue.
    """
    by_name: dict[str, list[tuple[ProcessReport, ConsumerReport]]] = {}
    for report in reports:
        for each in report.consumers:
            by_name.setdefault(each.name, []).append((report, each))
    return [_consumer_row(name, parts, silent, depths, history) for name, parts in by_name.items()]


def _consumer_row(
    name: str,
    parts: Sequence[tuple[ProcessReport, ConsumerReport]],
    silent: Mapping[str, float],
    depths: Mapping[Place, tuple[int | None, int | None]],
    history: Known,
) -> ConsumerRow:
    alive = [each for report, each in parts if report.id not in silent]
    first = (alive or [each for _, each in parts])[-1]
    every = [each for _, each in parts]
    worst = min(alive, key=_badness, default=first)
    series = history.of((name,))
    return ConsumerRow(
        name=name,
        kind=first.kind,
        source=first.source,
        state=worst.state if alive else "silent",
        reason=worst.reason if alive else "no process answers",
        paused=sum(each.paused for each in alive),
        abilities=first.abilities,
        in_flight=sum(each.in_flight for each in alive),
        concurrency=_sum(each.concurrency for each in alive),
        prefetch=_sum(each.prefetch for each in alive),
        attempts=first.attempts,
        handled=sum(each.handled for each in every),
        failed=sum(each.failed for each in every),
        retried=sum(each.retried for each in every),
        dead=sum(each.dead for each in every),
        rate=series.rate,
        p95=series.p95,
        rates=list(series.rates),
        p95s=list(series.p95s),
        queues=list(_queues(every, depths)),
        streams=_streams(alive),
        routes=list(_routes(name, every, history)),
        task=_task(alive),
        processes=[_of_process(report, each) for report, each in parts],
    )


def _of_process(report: ProcessReport, consumer: ConsumerReport) -> ConsumerOfProcess:
    return ConsumerOfProcess(
        process=report.id,
        state=consumer.state,
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
    depths: Mapping[Place, tuple[int | None, int | None]],
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
    ran = [each for each in tasks if each.last is not None]
    last = max(ran, key=lambda each: each.last.timestamp() if each.last else 0.0, default=tasks[0])
    due = [each.next for each in tasks if each.next is not None]
    leads = any(each.role == "leader" for each in tasks)
    role = "leader" if leads else tasks[0].role
    return last.model_copy(update={"role": role, "next": min(due, default=None)})


def _sum(values: Iterable[int | None]) -> int | None:
    known = [each for each in values if each is not None]
    return sum(known) if known else None
