"""What the console shows of all processes, and the commands that it takes: models of its API."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from workerkit.console.reports import (
    ConnectionReport,
    Count,
    FailureReport,
    FirstFault,
    Model,
    QueueReport,
    StreamReport,
    TaskReport,
)
from workerkit.control import Ability

Role = Literal["view", "operate", "admin"]
CommandAction = Literal[
    "pause", "resume", "concurrency", "prefetch", "run", "log_level", "drain", "undrain"
]


class Operator(Model):
    """Who does something, for the audit records.

    Attributes:
        user: A name that a proxy gave, or how the client was authenticated, such as `admin token`.
        role: What the client may do.
        address: Where the request came from.
    """

    user: Annotated[str, Field(min_length=1)]
    role: Role
    address: str = ""


class ConsumerOfProcess(Model):
    """What differs between the processes that run the same consumer.

    Attributes:
        process: The id of the process.
    """

    process: str
    state: str
    reason: str = ""
    paused: bool = False
    in_flight: Count = 0
    concurrency: int | None = None
    prefetch: int | None = None


class QueueRow(QueueReport):
    """A queue with its depth.

    Attributes:
        ready: Messages that wait; None if that is unknown.
        dead: Messages in the dead-letter queue; None if that is unknown, or there is none.
    """

    ready: int | None = None
    dead: int | None = None


class RouteRow(Model):
    """The requests of one route and method, of all processes.

    Attributes:
        rate: Requests in a second, lately.
        p95: The 95th percentile of the duration lately, in seconds; None without requests.
    """

    route: str
    method: str
    requests: Count = 0
    errors: Count = 0
    rate: float = 0.0
    p95: float | None = None


class ConsumerRow(Model):
    """One consumer, of all processes.

    Attributes:
        state: The worst state of all processes.
        reason: Why it is in this state.
        paused: The number of processes in which it is paused.
        rate: Deliveries in a second, lately.
        p95: The 95th percentile of the duration lately, in seconds; None without deliveries.
        rates: The last rates, the oldest first.
        p95s: The last percentiles, the oldest first.
        processes: The same for each process.
    """

    name: str
    kind: str
    source: str = ""
    state: str = "starting"
    reason: str = ""
    paused: Count = 0
    abilities: Sequence[Ability] = ()
    in_flight: Count = 0
    concurrency: int | None = None
    prefetch: int | None = None
    attempts: int | None = None
    handled: Count = 0
    failed: Count = 0
    retried: Count = 0
    dead: Count = 0
    rate: float = 0.0
    p95: float | None = None
    rates: Sequence[float] = ()
    p95s: Sequence[float | None] = ()
    queues: Sequence[QueueRow] = ()
    streams: Sequence[StreamReport] = ()
    routes: Sequence[RouteRow] = ()
    task: TaskReport | None = None
    processes: Sequence[ConsumerOfProcess] = ()


class ProcessRow(Model):
    """One process.

    Attributes:
        responding: Whether it answered the last time.
        silent: Seconds since it answered last.
        consumers: The number of its consumers.
        in_flight: Running calls of handlers.
    """

    id: str
    host: str
    pid: int
    number: int | None = None
    version: str = ""
    python: str = ""
    started: datetime
    state: str = "starting"
    reasons: Sequence[str] = ()
    draining: bool = False
    log_level: str = ""
    mode: str = "operate"
    has_metrics: bool = True
    lag: float | None = None
    memory: int | None = None
    responding: bool = True
    silent: float = 0.0
    consumers: Count = 0
    in_flight: Count = 0


class ConnectionRow(ConnectionReport):
    """One connection of one process."""

    process: str


class Totals(Model):
    """The numbers at the top of the page.

    Attributes:
        waiting: Messages in the queues; None if that is unknown.
        letters: Messages in the dead-letter queues; None if that is unknown.
        rate: Deliveries in a second, lately.
        rates: The last rates, the oldest first.
        failures: The last rates of failures, the oldest first.
    """

    handled: Count = 0
    failed: Count = 0
    retried: Count = 0
    dead: Count = 0
    in_flight: Count = 0
    waiting: int | None = None
    letters: int | None = None
    processes: Count = 0
    rate: float = 0.0
    rates: Sequence[float] = ()
    failures: Sequence[float] = ()


class FleetView(Model):
    """All processes of an application.

    Attributes:
        time: When it was made.
        interval: Seconds between two of them on the live stream, and between two values of a
            series.
        asked: The number of processes that are known.
        answered: The number of those that have answered.
        problems: What prevents a complete view, one sentence each.
    """

    app: str
    time: datetime
    interval: float
    asked: Count
    answered: Count
    problems: Sequence[str] = ()
    totals: Totals
    consumers: Sequence[ConsumerRow] = ()
    processes: Sequence[ProcessRow] = ()
    connections: Sequence[ConnectionRow] = ()
    failures: Sequence[FailureReport] = ()


class Me(Model):
    """The client itself, and what it may do.

    Attributes:
        mode: What the setting `OPS__CONSOLE` allows.
        links: Other pages of the port, with their texts.
    """

    operator: Operator
    mode: Literal["read", "operate"]
    app: str
    version: str
    links: dict[str, str] = {}


# ---- Commands ----


class Command(Model):
    """A change of running processes. Each lasts until the process ends.

    Attributes:
        consumer: For pause, resume, concurrency, prefetch and run; not for the others.
        value: The new number for concurrency and prefetch; the level for log_level.
        processes: The ids of the processes; None for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: CommandAction
    consumer: Annotated[str, Field(max_length=255)] | None = None
    value: Annotated[int, Field(ge=1, le=65_535)] | Annotated[str, Field(max_length=20)] | None = (
        None
    )
    processes: (
        Annotated[
            list[Annotated[str, Field(max_length=64)]],
            FirstFault(),
            Field(min_length=1, max_length=1000),
        ]
        | None
    ) = None


class CommandResult(Model):
    """What one process did.

    Attributes:
        ok: Whether it was done.
        answered: Whether the process answered in time.
        text: What was done, or why not.
    """

    process: str
    host: str = ""
    pid: int = 0
    ok: bool
    answered: bool = True
    text: str


class CommandReport(Model):
    """What all processes did.

    Attributes:
        asked: The number of processes that were asked.
        answered: The number of those that answered in time.
        text: Such as `3 of 4 answered`.
    """

    asked: Count
    answered: Count
    text: str
    results: Sequence[CommandResult] = ()


class AuditRecord(Model):
    """Something that an operator has done.

    Attributes:
        action: Such as pause, or replay.
        target: The consumer, process or queue.
        result: What came of it.
    """

    time: datetime
    user: str
    role: str
    address: str
    action: str
    target: str
    result: str
