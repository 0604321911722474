"""The report of this process."""

import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from tests.application import container_of, package_of
from tests.fleet import ALICE
from tests.serving import NO_BROKER
from workerkit import (
    Action,
    AMQPConsumer,
    Consumer,
    HTTPView,
    PeriodicTask,
    Queue,
    RetryPolicy,
    Runner,
    Settled,
    SSEConsumer,
)
from workerkit.app.assembly import Assembly
from workerkit.config.sections import MetricsSettings
from workerkit.console import snapshot as snapshot_module
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import ConsumerReport, ProcessReport, QueueReport
from workerkit.console.snapshot import ProcessAgent, Snapshot
from workerkit.control import Ability, Control
from workerkit.delivery import Outcome
from workerkit.health import Health, Part, Readiness
from workerkit.observe import ConnectionEvent, Unhandled
from workerkit.ops.metrics import Metrics
from workerkit.sse.subscription import StreamHealth
from workerkit.testing import fake_message


class Resizable(Control):
    """The controls of a consumer that is paused."""

    abilities: frozenset[Ability] = frozenset({"pause", "concurrency"})
    paused = True
    concurrency = 4
    prefetch = 40


class Scheduled(Control):
    """The controls of a task."""

    schedule_state = SimpleNamespace(
        schedule="every 60 s",
        last=datetime(2026, 1, 1, tzinfo=UTC),
        last_ok=False,
        last_seconds=1.5,
        next=datetime(2026, 1, 2, tzinfo=UTC),
    )


class Orders(AMQPConsumer):
    """Reads a queue, with retries."""

    queues = ["orders"]
    retry = RetryPolicy(delays=(1, 5))

    async def handle(self, body: bytes) -> None:
        """Do nothing."""


def assembled(*consumers: type[Consumer], **settings: Any) -> Assembly:
    """Return an application."""
    package = package_of(*consumers)
    return Runner(container_of(NO_BROKER, **settings), packages=[package]).assemble()


class Made:
    """A process that was not started, with its health and metrics."""

    def __init__(self, *consumers: type[Consumer], counts: bool = True, **more: Any) -> None:
        assembly = assembled(*consumers)
        self.readiness = Readiness(started=True)
        self.metrics = Metrics(MetricsSettings(), self.readiness) if counts else None
        self.drained = False
        self.snapshot = Snapshot(
            "shop",
            assembly.settings,
            assembly.transports,
            self.readiness,
            self.metrics,
            drained=lambda: self.drained,
            **more,
        )

    def report(self) -> ProcessReport:
        """Return its report, as another process reads it."""
        return ProcessReport.model_validate_json(self.snapshot.report().model_dump_json())

    def consumer(self) -> ConsumerReport:
        """Return the report of the first consumer."""
        return self.report().consumers[0]

    def fail(self, error: Exception, count: int = 1) -> None:
        """Have deliveries of `Orders` fail."""
        assert self.metrics is not None
        for number in range(count):
            message = fake_message(b"x", message_id=f"m-{number}")
            outcome = Outcome(Action.RETRY, error)
            self.metrics(Settled("Orders", "orders", message, outcome, Action.RETRY, 0.2))


def ready_part(**more: Any) -> Part:
    """Return a part that is ready."""
    part = Part(**more)
    part.ready()
    return part


def test_a_report_of_the_process() -> None:
    """It has what identifies it."""
    made = Made(Orders, number=3)
    report = made.report()

    assert (report.app, report.pid, report.number) == ("shop", os.getpid(), 3)
    assert (len(report.id), report.state, report.has_metrics) == (32, "ready", True)
    assert report.id != Made(Orders).report().id
    assert report.mode == "operate"
    assert report.uptime > 0
    assert report.log_level == logging.getLevelName(logging.getLogger().level)
    assert report.version
    assert report.lag is None


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "ready"),
        ({"started": False}, "starting"),
        ({"crashed": True}, "not ready"),
        ({"draining": True}, "stopping"),
    ],
)
def test_the_state_of_the_process(changes: dict[str, bool], state: str) -> None:
    """It is that of the readiness."""
    made = Made(Orders)
    for name, value in changes.items():
        setattr(made.readiness, name, value)

    assert made.report().state == state
    assert bool(made.report().reasons) == bool(changes)


def test_a_drained_process() -> None:
    """It says so, but for when it is stopping."""
    made = Made(Orders)
    made.drained = True
    drained = made.report()
    made.readiness.draining = True

    assert (drained.state, drained.draining) == ("draining", True)
    assert (made.report().state, made.report().draining) == ("stopping", True)


def test_a_consumer_before_the_start() -> None:
    """All that its class and the settings say is known."""
    found = Made(Orders).consumer()

    assert (found.name, found.kind, found.source, found.attempts) == ("Orders", "amqp", "orders", 3)
    assert (found.state, found.abilities, found.handled) == ("starting", [], 0)
    assert found.queues == [
        QueueReport(
            name="orders",
            connection="default",
            vhost="/",
            broker="amqp://nobody@127.0.0.1:1/",
            dead_letters="orders.dlq",
        )
    ]


def test_queues_without_dead_letters() -> None:
    """There are none for rejected messages, nor for queues per process."""

    class Plain(AMQPConsumer):
        queues = [Queue("plain"), Queue("stream", type="stream")]
        on_invalid = on_exception = Action.REJECT

        async def handle(self, body: bytes) -> None:
            pass

    class News(AMQPConsumer):
        queues = [Queue("news", per_process=True)]

        async def handle(self, body: bytes) -> None:
            pass

    found = [queue for each in Made(Plain, News).report().consumers for queue in each.queues]

    assert {each.name: (each.dead_letters, each.is_stream) for each in found} == {
        "plain": (None, False),
        "stream": (None, True),
        "news": (None, False),
    }


def test_a_consumer_that_runs() -> None:
    """With what its health and its controls say."""
    made = Made(Orders)
    part = Part()
    part.waiting("amqp://guest:secret@here is down")
    made.readiness.health.append(Health("Orders", [part], in_flight=lambda: 3, control=Resizable()))
    found = made.consumer()

    assert (found.state, found.reason) == ("waiting", "amqp://guest:***@here is down")
    assert (found.paused, found.abilities) == (True, ["concurrency", "pause"])
    assert (found.in_flight, found.concurrency, found.prefetch) == (3, 4, 40)
    assert made.report().reasons == ["Orders: amqp://guest:***@here is down"]


def test_counts() -> None:
    """They are sums over the sources of a consumer."""
    made = Made(Orders)
    assert made.metrics is not None
    for source, action in [
        ("orders", Action.ACK),
        ("others", Action.ACK),
        ("orders", Action.RETRY),
        ("others", Action.DEAD_LETTER),
    ]:
        record = Settled("Orders", source, fake_message(b""), Outcome(action), action, 0.2)
        made.metrics(record)
    made.fail(KeyError("x"))
    found = made.consumer()

    assert (found.handled, found.failed, found.retried, found.dead) == (5, 1, 2, 1)
    assert len(found.counts) == len(found.bounds) + 1
    assert (found.counts[0], found.counts[-1]) == (0, 5)


def test_without_metrics() -> None:
    """It says that it does not count."""
    made = Made(Orders, counts=False)
    report = made.report()

    assert (report.has_metrics, report.lag) == (False, None)
    assert (report.failures, report.connections) == ([], [])
    assert report.consumers[0].handled == 0


def test_routes_of_a_view() -> None:
    """By route and method, with the errors of the server; other views have theirs."""

    class Items(HTTPView):
        routes = ["/items", "/items/{id}"]

        async def get(self) -> str:
            return ""

    class Others(HTTPView):
        routes = ["/others"]

        async def get(self) -> str:
            return ""

    made = Made(Items, Others)
    assert made.metrics is not None
    for route, status in [("/items", 200), ("/items", 404), ("/items", 503), ("/others", 200)]:
        made.metrics.unhandled(Unhandled(route, "GET", status, 0.5, 0, 0))
    items, others = made.report().consumers

    [found] = items.routes
    assert (found.route, found.method, found.requests, found.errors) == ("/items", "GET", 3, 1)
    assert (found.counts[0], found.counts[-1]) == (0, 3)
    assert [each.route for each in others.routes] == ["/others"]


def test_streams() -> None:
    """With the age of the last event, and the cursor."""

    class Ticker(SSEConsumer):
        url = "http://127.0.0.1:1"
        routes = ["/ticks"]

        async def handle(self, data: str) -> None:
            pass

    made = Made(Ticker)
    part = StreamHealth(source="/ticks", route="/ticks", cursor=lambda: "42")
    part.ready()
    silent = StreamHealth(source="/tocks", route="/tocks")
    made.readiness.health.append(Health("Ticker", [part, silent]))
    part.last_event = monotonic() - 10
    ticks, tocks = made.consumer().streams

    assert (ticks.source, ticks.state, ticks.cursor) == ("/ticks", "ready", "42")
    assert ticks.age == pytest.approx(10, abs=5)
    assert (tocks.state, tocks.age, tocks.cursor) == ("starting", None, None)


def test_tasks() -> None:
    """With the last run and the next one; nothing where the controls do not know them."""

    class Beat(PeriodicTask):
        every = 60.0

        async def handle(self) -> None:
            pass

    made = Made(Beat)
    health = Health("Beat", [ready_part()], role=lambda: "leader", control=Scheduled())
    made.readiness.health.append(health)
    task = made.consumer().task
    health.control = Control()

    assert task is not None
    assert (task.schedule, task.role, task.last_ok) == ("every 60 s", "leader", False)
    assert (task.last, task.next) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 2, tzinfo=UTC),
    )
    assert made.consumer().task is None


def test_lag_and_connections() -> None:
    """The 99th percentile of the delays; reasons without secrets."""
    made = Made(Orders, redact=lambda text: text.replace("hunter2", "***"))
    assert made.metrics is not None
    for _ in range(100):
        made.metrics.lagged(0.003)
    made.metrics.connection_failed(
        ConnectionEvent("default", "consumers", "/", 1, "hunter2 is wrong")
    )
    report = made.report()

    assert report.lag == pytest.approx(0.005, rel=0.1)
    [found] = report.connections
    assert (found.name, found.role, found.vhost) == ("default", "consumers", "/")
    assert (found.connected, found.failed, found.reason) == (False, 1, "*** is wrong")


def test_texts_of_failures_have_no_secrets() -> None:
    """Nor has the part that is left of a secret where a text is cut."""
    made = Made(Orders, redact=lambda text: text.replace("hunter2", "***"))
    made.fail(KeyError("hunter2"))
    made.fail(ValueError("x" * 480 + " amqp://guest:a-long-secret-of-many-characters@here"))
    made.fail(ValueError("a lone surrogate: \ud800"))
    first, second, third = made.report().failures

    assert first.text == "'***'"
    assert len(second.text) == 500
    assert "secret" not in second.text
    assert third.text == "a lone surrogate: ?"


def test_texts_are_redacted_once() -> None:
    """Functions of users may be slow."""
    calls: list[str] = []

    def redact(text: str) -> str:
        calls.append(text)
        return text

    made = Made(Orders, redact=redact)
    made.fail(KeyError("x"), 3)
    made.report()
    first = len(calls)
    made.report()
    again = len(calls)
    made.fail(KeyError("y"))
    texts = [each.text for each in made.report().failures]

    assert (first, again, len(calls)) == (6, 6, 8)
    assert texts == ["'x'", "'x'", "'x'", "'y'"]


def test_a_redact_that_fails() -> None:
    """The text is not shown."""

    def redact(text: str) -> str:
        raise RuntimeError(text)

    made = Made(Orders, redact=redact)
    made.fail(KeyError("secret"))
    [failure] = made.report().failures

    assert failure.text == "<not shown: redact raised RuntimeError>"


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is not known."""
    monkeypatch.setattr(snapshot_module, "_STATM", "/nowhere/statm")

    assert Made(Orders).report().memory is None


def ten() -> Sequence[type[AMQPConsumer]]:
    """Return ten consumers."""

    def named(number: int) -> type[AMQPConsumer]:
        async def handle(self: Any, body: bytes) -> None:
            pass

        members = {"queues": [f"q{number}"], "handle": handle, "retry": RetryPolicy(delays=(1,))}
        return type(f"C{number}", (AMQPConsumer,), members)

    return [named(number) for number in range(10)]


def test_a_report_is_cheap() -> None:
    """Less than 5 ms with ten consumers and fifty failures, on a slow machine; see benchmarks."""
    made = Made(*ten())
    assert made.metrics is not None
    for number in range(10):
        made.readiness.health.append(Health(f"C{number}", [ready_part()], control=Resizable()))
        record = Settled(
            *(f"C{number}", f"q{number}", fake_message(b"")),
            *(Outcome(Action.ACK), Action.ACK, 0.2),
        )
        made.metrics(record)
    made.fail(KeyError("x"), 50)
    times = []
    for _ in range(50):
        started = perf_counter()
        made.snapshot.report()
        times.append(perf_counter() - started)

    assert min(times) < 0.005


# ---- The agent ----


class Commands:
    """Remembers commands."""

    def __init__(self) -> None:
        self.executed: list[tuple[Any, ...]] = []

    async def execute(
        self, command: Command, operator: Operator, process_id: str, host: str, pid: int
    ) -> CommandResult:
        """Execute a command."""
        self.executed.append((command, operator, pid))
        return CommandResult(process=process_id, host=host, pid=pid, ok=True, text="paused")


async def test_an_agent() -> None:
    """It executes what it gets, and all who ask at the same time share a report."""
    made, commands = Made(Orders), Commands()
    agent = ProcessAgent(made.snapshot, commands)
    command = Command(action="pause", consumer="Orders")
    first, second = agent.report(), agent.report()
    result = await agent.execute(command, ALICE)
    third = agent.report()

    assert first is second
    assert first is not third
    assert agent.id == first.id == result.process
    assert commands.executed == [(command, ALICE, os.getpid())]


async def test_a_report_is_shared_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is a new one."""
    now = [1000.0]
    monkeypatch.setattr(snapshot_module, "monotonic", lambda: now[0])
    agent = ProcessAgent(Made(Orders).snapshot, Commands())
    first = agent.report()
    now[0] += 0.2
    second = agent.report()
    now[0] += 0.1
    third = agent.report()

    assert first is second
    assert third.uptime == pytest.approx(first.uptime + 0.3)
