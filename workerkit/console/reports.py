"""What one process reports of itself, as JSON.

Processes exchange these models, also with processes of other versions: unknown fields are ignored,
and every field that is added later has a default.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from workerkit.control import Ability

Count = Annotated[int, Field(ge=0)]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FirstFault:
    """Marks a sequence that is read up to its first invalid item.

    Otherwise a message of 1 MiB has a million faults, and blocks its reader for seconds. Pydantic
    has this for lists only.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        for each in _lists(schema):
            each["fail_fast"] = True
        return schema


def _lists(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schemas of lists that a schema of a sequence consists of."""
    if schema["type"] == "list":
        yield schema
        return
    parts = (schema.get(name) for name in ("json_schema", "python_schema", "schema"))
    for each in (*parts, *schema.get("steps", ())):
        if each is not None:
            yield from _lists(each)


Many = Annotated[Sequence[T], FirstFault()]


class Model(BaseModel):
    """Base of all models: immutable, and tolerant of fields of other versions."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class QueueReport(Model):
    """A queue that a consumer reads.

    Attributes:
        name: The name at the broker.
        connection: The name of the connection in the settings.
        vhost: The virtual host.
        broker: The address of the broker, without a password.
        dead_letters: The name of the queue for its dead letters; None if it has none.
        is_stream: Whether it keeps its messages after they were handled: they do not wait.
    """

    name: str
    connection: str
    vhost: str
    broker: str = ""
    dead_letters: str | None = None
    is_stream: bool = False


class StreamReport(Model):
    """An event stream that a consumer reads.

    Attributes:
        source: Its address, without a password.
        age: Seconds since its last event; None before the first.
        cursor: The id of the last event that was handled; None before the first.
    """

    source: str
    state: str
    age: float | None = None
    cursor: str | None = None


class TaskReport(Model):
    """The schedule of a periodic task.

    Attributes:
        schedule: Such as `every 60 s`.
        role: `leader` or `standby` where one of several processes runs it; else empty.
        last: When the last run ended; None before the first.
        last_ok: Whether the last run succeeded; None before the first.
        last_seconds: The duration of the last run.
        next: When the next run is due, if that is known.
    """

    schedule: str
    role: str = ""
    last: datetime | None = None
    last_ok: bool | None = None
    last_seconds: float | None = None
    next: datetime | None = None


class RouteReport(Model):
    """The requests of one route and method since the start.

    Attributes:
        errors: Responses with a status of 500 or more.
        bounds: Upper bounds of the buckets of durations, in seconds.
        counts: Cumulative counts of the buckets; one more than bounds.
    """

    route: str
    method: str
    requests: Count = 0
    errors: Count = 0
    bounds: Many[float] = ()
    counts: Many[int] = ()


class ConsumerReport(Model):
    """One consumer of one process; the counts are those since the start of the process.

    Attributes:
        kind: Of its transport, such as `amqp`.
        source: What it reads from, for people.
        state: starting, waiting, ready, paused, ended or stopping.
        reason: Why it is in this state; may be empty.
        abilities: What can be changed while it runs.
        concurrency: None where there is no limit.
        prefetch: The prefetch count; None where there is none.
        attempts: The number of attempts that a delivery has; None without a retry policy.
        handled: Deliveries that were settled, whatever the outcome; each attempt is one.
        failed: Deliveries whose handler raised, or whose body was invalid. Not those with `Retry`
            that are tried again, nor requests that were refused because of their client, nor those
            whose sender waits no more.
        retried: Deliveries that are tried again.
        dead: Deliveries that were moved to the dead letters.
        bounds: Upper bounds of the buckets of durations, in seconds.
        counts: Cumulative counts of the buckets; one more than bounds.
    """

    name: str
    kind: str
    source: str = ""
    state: str = "starting"
    reason: str = ""
    paused: bool = False
    abilities: Many[Ability] = ()
    in_flight: Count = 0
    concurrency: int | None = None
    prefetch: int | None = None
    attempts: int | None = None
    handled: Count = 0
    failed: Count = 0
    retried: Count = 0
    dead: Count = 0
    bounds: Many[float] = ()
    counts: Many[int] = ()
    queues: Many[QueueReport] = ()
    streams: Many[StreamReport] = ()
    routes: Many[RouteReport] = ()
    task: TaskReport | None = None


class ConnectionReport(Model):
    """A connection to a broker, or to a server of event streams.

    Attributes:
        name: Its name in the settings, or that of the consumer.
        role: `consumers`, `publisher` or `stream`.
        opened: How often it was opened.
        lost: How often it was lost.
        failed: The number of attempts that failed.
        reason: Why the last attempt failed, or why it was lost; empty while it is open.
    """

    name: str
    role: str
    vhost: str = ""
    connected: bool = False
    opened: Count = 0
    lost: Count = 0
    failed: Count = 0
    reason: str = ""


class FailureReport(Model):
    """A delivery that failed.

    Attributes:
        action: What was done with it, such as retry.
        error: The class of the exception.
        text: Of the exception, shortened and redacted.
        place: The innermost line of the application, such as `orders.py:12`; may be empty.
        delivery: Identifies the delivery, such as a message id.
        process: The id of the process; the overview adds it.
    """

    time: datetime
    consumer: str
    source: str
    action: str
    error: str
    text: str = ""
    place: str = ""
    delivery: str = ""
    attempt: int = 1
    trace_id: str | None = None
    process: str = ""


class ProcessReport(Model):
    """What one process reports of itself.

    Attributes:
        id: Unique for each start of a process.
        app: The name of the application.
        number: Among the processes of `--processes`, from 1; None for a single one.
        started: When it was started.
        state: `starting`, `ready`, `not ready`, `draining` or `stopping`.
        reasons: Why it is not ready.
        mode: What its setting `OPS__CONSOLE` allows: `off`, `read` or `operate`.
        has_metrics: Whether it counts; without metrics all counts are 0.
        lag: The 99th percentile of the delay of the event loop, in seconds.
        memory: Resident memory in bytes; None where that is unknown.
        uptime: Seconds from the start to this report, by a clock that does not go back; 0 if the
            process does not report it.
    """

    id: str
    app: str
    host: str
    pid: int
    number: int | None = None
    version: str = ""
    python: str = ""
    started: datetime
    state: str = "starting"
    reasons: Many[str] = ()
    draining: bool = False
    log_level: str = ""
    mode: str = "operate"
    has_metrics: bool = True
    lag: float | None = None
    memory: int | None = None
    uptime: float = 0.0
    consumers: Many[ConsumerReport] = ()
    connections: Many[ConnectionReport] = ()
    failures: Many[FailureReport] = ()
