"""The overview of all processes: merged reports, rates, silent processes, and commands."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.console import overview as module
from workerkit.console.history import Counts, History, percentile
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.overview import Local, Overview
from workerkit.console.reports import (
    ConsumerReport,
    FailureReport,
    ProcessReport,
    QueueReport,
    StreamReport,
    TaskReport,
)
from workerkit.console.sources import Answers

NOW = datetime(2026, 12, 1, tzinfo=UTC)
ALICE = Operator(user="alice", role="admin", address="192.0.2.1")
QUEUE = QueueReport(name="orders", connection="default", vhost="/", dead_letters="orders.dlq")


def report(id_: str, handled: int = 0, **consumer: Any) -> ProcessReport:
    """Return the report of a process with one consumer."""
    fields = {"name": "Orders", "kind": "amqp", "state": "ready", "queues": [QUEUE]}
    orders = ConsumerReport(**{**fields, "handled": handled, **consumer})
    return ProcessReport(id=id_, app="shop", host="h", pid=1, started=NOW, consumers=[orders])


class Scripted:
    """A source whose answers a test sets."""

    def __init__(self, *reports: ProcessReport) -> None:
        self.answers = Answers(list(reports))
        self.results: Sequence[CommandResult] = ()
        self.asked = 0
        self.commands: list[Command] = []

    async def reports(self) -> Answers:
        """Return the answers."""
        self.asked += 1
        await asyncio.sleep(0)
        return self.answers

    async def execute(self, command: Command, operator: Operator) -> Sequence[CommandResult]:
        """Return the results."""
        self.commands.append(command)
        return self.results

    async def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


async def test_processes_are_merged(clock: list[float]) -> None:
    """Sums, the worst state, and what each process has."""
    one = report("a", 10, in_flight=1, concurrency=4, failed=2, paused=False)
    two = report("b", 5, state="waiting", reason="no queue", concurrency=4, dead=1)
    view = await Overview("shop", [Scripted(one, two), Scripted(one)]).view()

    (row,) = view.consumers
    assert (row.state, row.reason) == ("waiting", "no queue")
    assert (row.handled, row.failed, row.dead, row.in_flight, row.concurrency) == (15, 2, 1, 1, 8)
    assert [each.process for each in row.processes] == ["a", "b"]
    assert (view.asked, view.answered, view.totals.processes) == (2, 2, 2)
    assert view.totals.handled == 15


async def test_rates_are_differences(clock: list[float]) -> None:
    """What was counted before a process was seen is no rate, and no rate is negative."""
    source = Scripted(report("a", 1_000, bounds=(0.1, 1.0), counts=(900, 1_000, 1_000)))
    overview = Overview("shop", [source])
    assert (await overview.view()).consumers[0].rate == 0.0

    clock[0] += 2.0
    source.answers = Answers(
        [
            report("a", 1_020, bounds=(0.1, 1.0), counts=(900, 1_020, 1_020)),
            report("b", 5_000_000),
        ]
    )
    row = (await overview.view()).consumers[0]
    assert row.rate == 10.0
    assert row.p95 is not None
    assert 0.1 < row.p95 <= 1.0

    clock[0] += 2.0
    source.answers = Answers([report("c", 3), report("b", 5_000_010)])
    row = (await overview.view()).consumers[0]
    assert row.rates == [0.0, 10.0, 5.0]


async def test_silent_processes(clock: list[float]) -> None:
    """One that does not answer is shown for a minute, and its answer is one difference."""
    source = Scripted(report("a", 100), report("b", 100))
    overview = Overview("shop", [source])
    await overview.view()
    source.answers = Answers([report("a", 120)], ["b"], ["b is gone"])
    clock[0] += 30.0
    view = await overview.view()
    assert (view.asked, view.answered, view.problems) == (2, 1, ["b is gone"])
    silent = {each.id: (each.responding, each.silent) for each in view.processes}
    assert silent == {"a": (True, 0.0), "b": (False, 30.0)}

    clock[0] += 31.0
    view = await overview.view()
    assert [each.id for each in view.processes] == ["a"]


async def test_all_who_look_share_a_view(clock: list[float]) -> None:
    """A thousand tabs ask the processes once, and nobody asks when nobody looks."""
    source = Scripted(report("a"))
    overview = Overview("shop", [source])
    assert source.asked == 0
    views = await asyncio.gather(*(overview.view() for _ in range(1_000)))
    assert source.asked == 1
    assert all(each is views[0] for each in views)
    clock[0] += 2.0
    await overview.view()
    assert source.asked == 2


async def test_depths(clock: list[float]) -> None:
    """They are counted every five seconds; a failure is a problem, and no end of the view."""
    counted = 0

    async def depths(
        queues: Sequence[QueueReport],
    ) -> Mapping[tuple[str, str, str], tuple[int | None, int | None]]:
        nonlocal counted
        counted += 1
        if counted == 2:
            raise OSError("no broker")
        return {("default", "/", "orders"): (7, 3)}

    overview = Overview("shop", [Scripted(report("a"), report("b"))], depths)
    view = await overview.view()
    assert (view.totals.waiting, view.totals.letters) == (7, 3)
    assert (view.consumers[0].queues[0].ready, view.consumers[0].queues[0].dead) == (7, 3)
    clock[0] += 2.0
    await overview.view()
    assert counted == 1
    clock[0] += 4.0
    view = await overview.view()
    assert (counted, view.totals.waiting) == (2, None)
    assert view.problems == ["queues cannot be counted: no broker"]


async def test_a_hostile_fleet_is_bounded(clock: list[float]) -> None:
    """Thousands of processes, consumers and failures do not fill the memory."""
    failure = FailureReport(time=NOW, consumer="A", source="s", action="retry", error="E")
    many = [
        report(f"p{number}", name=f"C{number}").model_copy(update={"failures": [failure] * 100})
        for number in range(1_500)
    ]
    view = await Overview("shop", [Scripted(*many), Scripted(*many[::-1])]).view()
    assert len(view.processes) == 1_000
    assert len(view.consumers) <= 2_000
    assert len(view.failures) == 50


async def test_tasks_and_streams(clock: list[float]) -> None:
    """The last run of any process, the next one, and the stream with the newest event."""
    early, late = NOW, NOW + timedelta(hours=1)
    one = report(
        "a",
        task=TaskReport(schedule="every 5 s", last=early, next=late, role="standby"),
        streams=[StreamReport(source="s", state="ready", age=9.0)],
    )
    two = report(
        "b",
        task=TaskReport(schedule="every 5 s", last=late, last_ok=False, role="leader"),
        streams=[StreamReport(source="s", state="ready", age=2.0, cursor="7")],
    )
    (row,) = (await Overview("shop", [Scripted(one, two)]).view()).consumers
    assert row.task is not None
    assert (row.task.last, row.task.last_ok, row.task.next) == (late, False, late)
    assert row.task.role == "leader"
    assert [(each.age, each.cursor) for each in row.streams] == [(2.0, "7")]


async def test_commands() -> None:
    """Each process gets a command once, over the first source that knows it."""
    one, two = Scripted(), Scripted()
    one.results = [CommandResult(process="a", ok=True, text="done")]
    two.results = [
        CommandResult(process="a", ok=True, text="twice"),
        CommandResult(process="b", ok=False, text="refused"),
        CommandResult(process="c", ok=False, answered=False, text="did not answer"),
    ]
    overview = Overview("shop", [one, two])
    command = Command(action="pause", consumer="Orders")
    done = await overview.execute(command, ALICE)
    assert (done.asked, done.answered) == (3, 2)
    assert done.text == "2 of 3 answered, 1 refused"
    assert {each.process: each.text for each in done.results}["a"] == "done"

    named = command.model_copy(update={"processes": ["a", "z"]})
    two.results = []
    done = await overview.execute(named, ALICE)
    assert two.commands[-1].processes == ["z"]
    assert {each.process: each.text for each in done.results}["z"] == "there is no such process"


async def test_a_command_for_others_is_not_executed_here() -> None:
    """Nor is one for this process executed twice."""

    class Self:
        id = "a"

        def report(self) -> ProcessReport:
            return report("a")

        async def execute(self, command: Command, operator: Operator) -> CommandResult:
            return CommandResult(process="a", ok=True, text="done")

    local = Local(Self())
    others = Command(action="drain", processes=["b"])
    assert await local.execute(others, ALICE) == []
    assert len(await local.execute(Command(action="drain"), ALICE)) == 1


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_percentiles(counts: list[int], fraction: float) -> None:
    """They lie within the bucket in which that share of the values ends."""
    bounds = [0.001 * 2**number for number in range(len(counts))]
    cumulative = [sum(counts[: number + 1]) for number in range(len(counts))] + [sum(counts)]
    found = percentile(fraction, bounds, cumulative)
    if not cumulative[-1]:
        assert found is None
        return
    assert found is not None
    place = next(
        number for number, each in enumerate(cumulative) if each >= fraction * cumulative[-1]
    )
    assert (bounds[place - 1] if place else 0.0) <= found <= bounds[place]


def test_a_series_has_sixty_values() -> None:
    """Older ones are dropped, and so is what nobody has any more."""
    history: History[str] = History(10)
    for number in range(100):
        history.update({("p", "a"): Counts(number, 0)}, 1.0, lambda _: True)
    assert len(history.of("a").rates) == 60
    history.update({}, 1.0, lambda _: False)
    assert len(history.of("a").rates) == 0
