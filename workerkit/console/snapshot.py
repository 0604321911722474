"""The report of this process, from what it keeps anyway: health, metrics and options."""

import logging
import os
import platform
import resource
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Protocol
from uuid import uuid4

from workerkit.config.settings import WorkerSettings
from workerkit.console.history import percentile
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import (
    ConnectionReport,
    ConsumerReport,
    FailureReport,
    ProcessReport,
    QueueReport,
    RouteReport,
    StreamReport,
    TaskReport,
)
from workerkit.health import Health, Readiness
from workerkit.ops.metrics import Metrics
from workerkit.ops.recent import ConsumerCounts, FailedDelivery
from workerkit.options import Options
from workerkit.retry import RetryPolicy
from workerkit.safe_text import Redact, cleaner
from workerkit.transport import Declared, ReadQueue, ReadsQueues, Transport
from workerkit.version import __version__

_CACHED = 0.25
_STATM = "/proc/self/statm"
_LONGEST_TEXT = 500
_SERVER_ERROR = 500
_NOTHING = ConsumerCounts(0, 0, 0, (), ())

Transports = Sequence[tuple[Transport, Sequence[Declared]]]


class Executes(Protocol):
    """Executes commands in this process."""

    async def execute(
        self, command: Command, operator: Operator, process_id: str, host: str, pid: int
    ) -> CommandResult:
        """Execute a command; write an audit record."""


class Snapshot:
    """Creates the reports of this process. It costs nothing until somebody asks for one.

    Args:
        app: The name of the application.
        transports: With their consumers.
        metrics: None where they are disabled.
        drained: Returns whether an operator drains this process.
        number: Of this process among those of `--processes`; None if it is the only one.
        redact: The container's.

    Attributes:
        id: Unique for each start of a process.
    """

    def __init__(
        self,
        app: str,
        settings: WorkerSettings,
        transports: Transports,
        readiness: Readiness,
        metrics: Metrics | None,
        *,
        drained: Callable[[], bool],
        number: int | None = None,
        redact: Redact | None = None,
    ) -> None:
        self.id = uuid4().hex
        self._readiness = readiness
        self._metrics = metrics
        self._drained = drained
        self._clean = _valid(cleaner(redact))
        self._consumers = [
            _Consumer(transport, each.options, settings)
            for transport, declared in transports
            for each in declared
        ]
        self.fixed = ProcessReport(
            id=self.id,
            app=app,
            host=socket.gethostname(),
            pid=os.getpid(),
            number=number,
            version=__version__,
            python=platform.python_version(),
            started=datetime.now(UTC),
            mode=settings.ops.console,
            has_metrics=metrics is not None,
        )
        self._started = monotonic()
        # Texts are redacted once; the key is the identity of what is kept beside the report.
        self._failures: dict[int, tuple[FailedDelivery, FailureReport]] = {}

    def report(self) -> ProcessReport:
        """Return the report of this process."""
        readiness, clean = self._readiness, self._clean
        reasons = [clean(each) for each in readiness.obstacles()]
        drained = self._drained()
        health = {each.consumer: each for each in readiness.health}
        consumers = [each.report(health.get(each.name), clean) for each in self._consumers]
        changed: dict[str, object] = {
            "state": _state(readiness, reasons, drained=drained),
            "reasons": reasons,
            "draining": drained,
            "log_level": logging.getLevelName(logging.getLogger().level),
            "memory": _memory(),
            "uptime": monotonic() - self._started,
            "consumers": consumers,
        }
        if (metrics := self._metrics) is not None:
            changed |= {
                "consumers": list(_counted(consumers, metrics)),
                "lag": percentile(0.99, *metrics.lag()),
                "connections": list(_connections(metrics, clean)),
                "failures": self._last_failures(metrics.recent.failures),
            }
        return self.fixed.model_copy(update=changed)

    def _last_failures(self, failures: Iterable[FailedDelivery]) -> list[FailureReport]:
        """Return the failures, the oldest first."""
        known = self._failures
        self._failures = {
            id(each): known.get(id(each)) or (each, _failure(each, self._clean))
            for each in list(failures)
        }
        return [report for _, report in self._failures.values()]


class ProcessAgent:
    """Reports on this process, and executes commands.

    A report is shared by all who ask within a quarter of a second.

    Attributes:
        id: Unique for each start of a process.
    """

    def __init__(self, snapshot: Snapshot, commands: Executes) -> None:
        self.id = snapshot.id
        self._snapshot = snapshot
        self._commands = commands
        self._last: ProcessReport | None = None
        self._made_at = 0.0

    def report(self) -> ProcessReport:
        """Return the report of this process."""
        now = monotonic()
        if self._last is None or now - self._made_at > _CACHED:
            self._last, self._made_at = self._snapshot.report(), now
        return self._last

    async def execute(self, command: Command, operator: Operator) -> CommandResult:
        """Execute a command here, whatever processes it names; write an audit record."""
        fixed = self._snapshot.fixed
        try:
            return await self._commands.execute(command, operator, self.id, fixed.host, fixed.pid)
        finally:
            self._last = None  # What the command has changed is seen at once.


class _Consumer:
    """What is known of a consumer before it starts, and its report from that."""

    def __init__(self, transport: Transport, options: Options, settings: WorkerSettings) -> None:
        self.name = options.name
        self._read: Callable[[], Sequence[ReadQueue]] | None = None
        queues: Sequence[ReadQueue] = ()
        if isinstance(transport, ReadsQueues):
            queues = transport.read_queues(options, settings)
            if any(each.is_temporary for each in queues):
                self._read = partial(transport.read_queues, options, settings)
        retry: object = getattr(options, "retry", None)
        self._fixed = ConsumerReport(
            name=options.name,
            kind=transport.kind,
            source=transport.source(options),
            attempts=retry.tries if isinstance(retry, RetryPolicy) else None,
            queues=[_queue(each) for each in queues],
        )

    def report(self, health: Health | None, clean: Redact) -> ConsumerReport:
        """Return its report without the counts; *health* is None before the start."""
        if health is None:
            return self._fixed
        control = health.control
        queues = self._fixed.queues if self._read is None else [*map(_queue, self._read())]
        return self._fixed.model_copy(
            update={
                "state": health.state.value,
                "reason": clean(health.reason),
                "paused": control.paused,
                "abilities": sorted(control.abilities),
                "in_flight": health.in_flight(),
                "concurrency": control.concurrency,
                "prefetch": control.prefetch,
                "queues": queues,
                "streams": list(_streams(health)),
                "task": _task(health),
            }
        )


def _counted(consumers: Iterable[ConsumerReport], metrics: Metrics) -> Iterator[ConsumerReport]:
    """Yield the reports with what was counted."""
    by_consumer, routes = metrics.by_consumer(), _routes(metrics)
    for each in consumers:
        counts = by_consumer.get(each.name, _NOTHING)
        yield each.model_copy(
            update={
                "handled": counts.handled,
                "failed": metrics.recent.failed.get(each.name, 0),
                "retried": counts.retried,
                "dead": counts.dead,
                "bounds": counts.bounds,
                "counts": counts.buckets,
                "routes": _of_view(each.source, routes) if each.kind == "http" else (),
            }
        )


def _state(readiness: Readiness, reasons: Sequence[str], *, drained: bool) -> str:
    if readiness.draining:
        return "stopping"
    if drained:
        return "draining"
    if not readiness.started:
        return "starting"
    return "not ready" if reasons else "ready"


def _queue(queue: ReadQueue) -> QueueReport:
    return QueueReport(
        name=queue.name,
        connection=queue.connection,
        vhost=queue.vhost,
        broker=queue.broker,
        dead_letters=queue.dead_letters,
        is_stream=queue.is_stream,
    )


def _connections(metrics: Metrics, clean: Redact) -> Iterator[ConnectionReport]:
    for (name, role, vhost), state in list(metrics.recent.connections.items()):
        yield ConnectionReport(
            name=name,
            role=role,
            vhost=vhost,
            connected=state.connected,
            opened=state.opened,
            lost=state.lost,
            failed=state.failed,
            reason=clean(state.reason)[:_LONGEST_TEXT],
        )


def _streams(health: Health) -> Iterator[StreamReport]:
    now = monotonic()
    for part in health.parts:
        if not (part.source and (told := part.told())):
            continue
        age = None if part.last_event is None else now - part.last_event
        yield StreamReport(
            source=part.source,
            state=part.state.value,
            age=age,
            cursor=str(told.get("cursor") or "") or None,
        )


def _task(health: Health) -> TaskReport | None:
    state = getattr(health.control, "schedule_state", None)
    if state is None:
        return None
    return TaskReport(
        schedule=state.schedule,
        role=health.role(),
        last=state.last,
        last_ok=state.last_ok,
        last_seconds=state.last_seconds,
        next=state.next,
    )


def _routes(metrics: Metrics) -> list[RouteReport]:
    """Return one report for each route and method, whatever the status."""
    found: dict[tuple[str, str], tuple[int, int, list[int]]] = {}
    bounds = metrics.request_seconds.bounds
    for (route, method, status), seconds in list(metrics.request_seconds.series.items()):
        counts, _ = seconds.read()
        errors = counts[-1] if status.isdigit() and int(status) >= _SERVER_ERROR else 0
        requests, failed, buckets = found.get((route, method), (0, 0, [0] * len(counts)))
        found[route, method] = (
            requests + counts[-1],
            failed + errors,
            [a + b for a, b in zip(buckets, counts, strict=True)],
        )
    return [
        RouteReport(
            route=route,
            method=method,
            requests=requests,
            errors=errors,
            bounds=bounds,
            counts=buckets,
        )
        for (route, method), (requests, errors, buckets) in found.items()
    ]


def _of_view(source: str, routes: Sequence[RouteReport]) -> list[RouteReport]:
    own = source.split(", ")
    return [each for each in routes if each.route in own]


def _failure(found: FailedDelivery, clean: Redact) -> FailureReport:
    return FailureReport(
        time=datetime.fromtimestamp(found.time, UTC),
        consumer=found.consumer,
        source=found.source,
        action=found.action,
        error=found.error,
        text=clean(found.text)[:_LONGEST_TEXT],
        place=found.place,
        delivery=clean(found.delivery),
        attempt=found.attempt,
        trace_id=found.trace_id,
    )


def _memory() -> int | None:
    """Return the resident memory in bytes, where Linux tells it."""
    try:
        with open(_STATM, "rb") as file:  # noqa: PTH123 - Path is four times as slow.
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def _valid(clean: Callable[[str], str]) -> Redact:
    """Return a function whose texts can be encoded: exceptions may have lone surrogates."""
    return lambda text: clean(text).encode(errors="replace").decode()
