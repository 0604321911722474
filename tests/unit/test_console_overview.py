"""All processes in one view, from what sources report."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.fleet import ALICE, BOUNDS, STARTED, SourceInMemory, consumer, process, queue
from tests.records import errors
from tests.waiting import eventually
from workerkit.console import depths as depths_module
from workerkit.console import overview as overview_module
from workerkit.console.limits import MOST_ITEMS, TooLarge, limited
from workerkit.console.model import Command, CommandAction, FleetView
from workerkit.console.overview import Overview
from workerkit.console.reports import (
    ConnectionReport,
    FailureReport,
    ProcessReport,
    QueueReport,
    RouteReport,
    StreamReport,
    TaskReport,
)

Clock = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let time pass for overviews."""
    now = [1000.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    for module in (overview_module, depths_module):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return pass_time


def failure(minute: int, **more: Any) -> FailureReport:
    """Return a failure."""
    fixed = {"consumer": "Orders", "source": "orders", "action": "retry", "error": "KeyError"}
    return FailureReport(**fixed | {"time": STARTED + timedelta(minutes=minute)} | more)


async def test_consumers_of_several_processes_are_one_row() -> None:
    """With the worst state, and sums."""
    numbers: dict[str, Any] = {"handled": 10, "failed": 3, "retried": 2, "dead": 1, "in_flight": 4}
    one = consumer(
        **numbers, concurrency=5, prefetch=10, attempts=3, abilities=["pause"], queues=[queue()]
    )
    other = one.model_copy(update={"state": "waiting", "reason": "no queue", "paused": True})
    view = await Overview("shop", [SourceInMemory(process("1", one), process("2", other))]).view()

    [row] = view.consumers
    assert (row.state, row.reason, row.paused) == ("waiting", "no queue", 1)
    assert (row.handled, row.failed, row.retried, row.dead) == (20, 6, 4, 2)
    assert (row.in_flight, row.concurrency, row.prefetch, row.attempts) == (8, 10, 20, 3)
    assert (row.kind, row.abilities, len(row.queues)) == ("amqp", ["pause"], 1)
    assert [(each.process, each.state) for each in row.processes] == [
        ("1", "ready"),
        ("2", "waiting"),
    ]
    totals = view.totals
    assert (totals.handled, totals.failed, totals.retried, totals.dead) == (20, 6, 4, 2)
    assert (totals.in_flight, totals.processes, totals.waiting) == (8, 2, None)
    assert [(each.id, each.consumers, each.in_flight) for each in view.processes] == [
        ("1", 1, 4),
        ("2", 1, 4),
    ]
    assert (view.app, view.asked, view.answered, view.problems) == ("shop", 2, 2, [])


async def test_of_two_sources_the_first_counts() -> None:
    """Both may reach the same process."""
    one = SourceInMemory(process("1", consumer(handled=1)))
    other = SourceInMemory(process("1", consumer(handled=100)), process("2", consumer(handled=10)))
    view = await Overview("shop", [one, other]).view()

    assert (view.asked, view.answered, view.totals.handled) == (2, 2, 11)


async def test_rates_are_those_between_two_views(later: Clock) -> None:
    """Of each consumer, each route, and of all; a process that is new makes no spike."""
    source = SourceInMemory()
    overview = Overview("shop", [source])
    views = []
    for number in range(4):
        done = number * 10
        route = RouteReport(
            route="/a", method="GET", requests=done, bounds=BOUNDS, counts=(0, done, done)
        )
        report = consumer(handled=done, failed=number, bounds=BOUNDS, counts=(done, done, done))
        items = report.model_copy(update={"name": "Items", "routes": [route]})
        source.answers = [process("1", report, items, uptime=7 + number * 2.0)]
        if number == 2:
            source.answers = [*source.answers, process("2", consumer(handled=99_999), uptime=900)]
        views.append(await overview.view())
        later(2.5)

    last = views[-1]
    assert [view.totals.rate for view in views] == [0.0, 10.0, 10.0, 10.0]
    assert last.totals.rates == [10.0] * 3
    assert last.totals.failures == [1.0] * 3
    orders, served = last.consumers
    assert (orders.rate, orders.rates) == (5.0, [5.0] * 3)
    assert orders.p95 == pytest.approx(0.095)
    assert (served.routes[0].rate, served.routes[0].requests) == (5.0, 30)
    assert served.routes[0].p95 == pytest.approx(0.955)


async def test_nobody_looks(later: Clock) -> None:
    """Nothing is asked meanwhile, and series begin again after half a minute."""
    source = SourceInMemory(process("1", consumer(handled=0)))
    overview = Overview("shop", [source])
    await overview.view()
    later(2)
    await overview.view()
    later(3600)
    source.answers = [process("1", consumer(handled=1_000_000))]
    after = await overview.view()
    later(2)
    source.answers = [process("1", consumer(handled=1_000_010))]
    again = await overview.view()

    assert source.asked == 4
    assert (after.totals.rate, after.totals.rates) == (0.0, [])
    assert (again.totals.rate, again.totals.rates) == (5.0, [5.0])


async def test_all_who_look_share_one_view() -> None:
    """Also those that come while it is made; one who leaves does not end it for the others."""
    source = SourceInMemory(process("1"))
    source.gate.clear()
    overview = Overview("shop", [source], interval=60)
    looking = [asyncio.create_task(overview.view()) for _ in range(100)]
    await eventually(lambda: source.asked == 1)
    looking[0].cancel()
    source.gate.set()
    views = await asyncio.gather(*looking[1:])
    views.append(await overview.view())

    assert looking[0].cancelled()
    assert source.asked == 1
    assert all(each is views[0] for each in views)


async def test_a_process_that_does_not_answer(later: Clock) -> None:
    """It is shown for a minute, and does not decide on the state; then it is forgotten."""
    report = consumer(handled=5, in_flight=2, state="waiting", paused=True)
    source = SourceInMemory(process("1", consumer(handled=1)), process("2", report))
    overview = Overview("shop", [source])
    await overview.view()
    source.answers, source.silent = source.answers[:1], ["2"]
    later(59)
    silent = await overview.view()
    later(2)
    forgotten = await overview.view()

    assert (silent.asked, silent.answered) == (2, 1)
    assert [(each.id, each.responding, each.silent) for each in silent.processes] == [
        ("1", True, 0),
        ("2", False, 59),
    ]
    [row] = silent.consumers
    assert (row.state, row.handled, row.in_flight, row.paused) == ("ready", 6, 0, 0)
    assert [each.id for each in forgotten.processes] == ["1"]
    # The source still knows it.
    assert (forgotten.asked, forgotten.answered) == (2, 1)


async def test_no_process_answers(later: Clock) -> None:
    """Each consumer says so."""
    source = SourceInMemory(process("1", consumer()))
    overview = Overview("shop", [source])
    await overview.view()
    source.answers = []
    later(3)
    [row] = (await overview.view()).consumers

    assert (row.state, row.reason) == ("silent", "no process answers")


async def test_a_process_that_was_stopping_is_gone_at_once(later: Clock) -> None:
    """It was stopped on purpose."""
    source = SourceInMemory(process("1"), process("2", state="stopping"))
    overview = Overview("shop", [source])
    first = await overview.view()
    source.answers = source.answers[:1]
    later(3)
    view = await overview.view()

    assert first.asked == 2
    assert (view.asked, len(view.processes)) == (1, 1)


async def test_depths_of_queues() -> None:
    """Once for each queue of all processes; a stream has no depth, because its messages stay."""
    asked: list[Sequence[QueueReport]] = []

    async def depths(queues: Sequence[QueueReport]) -> Mapping[Any, Any]:
        asked.append(queues)
        return {("default", "/", "orders"): (7, 2), ("default", "/", "mail"): (1, None)}

    mail, log = queue("mail", dead_letters=None), queue("log", is_stream=True)
    reports = [process(each, consumer(queues=[queue(), mail, log])) for each in "12"]
    overview = Overview("shop", [SourceInMemory(*reports)], depths)
    view = await overview.view()
    await overview.close()

    assert [[each.name for each in queues] for queues in asked] == [["orders", "mail"]]
    [row] = view.consumers
    assert [(each.name, each.ready, each.dead) for each in row.queues] == [
        ("orders", 7, 2),
        ("mail", 1, None),
        ("log", None, None),
    ]
    assert (view.totals.waiting, view.totals.letters) == (8, 2)


async def test_depths_are_counted_every_five_seconds(later: Clock) -> None:
    """Views in between have the same."""
    calls = []

    async def depths(queues: Sequence[QueueReport]) -> Mapping[Any, Any]:
        calls.append(queues)
        return {("default", "/", "orders"): (len(calls), 0)}

    source = SourceInMemory(process("1", consumer(queues=[queue()])))
    overview = Overview("shop", [source], depths)
    found = []
    for _ in range(7):
        found.append((await overview.view()).totals.waiting)
        later(2)

    assert found == [1, 1, 1, 2, 2, 2, 3]


async def test_a_broker_that_does_not_answer_delays_one_view_only(
    later: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view says that queues are not counted; it is tried again after a while."""
    monkeypatch.setattr(depths_module, "_DEADLINE", 0.01)
    gate, calls = asyncio.Event(), []

    async def depths(queues: Sequence[QueueReport]) -> Mapping[Any, Any]:
        calls.append(queues)
        await gate.wait()
        return {("default", "/", "orders"): (3, 0)}

    source = SourceInMemory(process("1", consumer(queues=[queue()])))
    overview = Overview("shop", [source], depths)
    views = []
    for _ in range(9):
        views.append(await overview.view())
        later(2)
    counted = len(calls)
    gate.set()
    await asyncio.sleep(0)
    last = await overview.view()
    await overview.close()

    assert views[0].totals.waiting is None
    assert views[1].problems == ["queues: not counted within 2 s"]
    assert counted == 1
    assert views[-1].problems == ["queues: not counted within 16 s"]
    assert (last.totals.waiting, last.problems) == (3, [])


async def test_queues_that_cannot_be_counted() -> None:
    """The view says why, without a password."""

    async def depths(queues: Sequence[QueueReport]) -> Mapping[Any, Any]:
        raise OSError("amqp://guest:secret@here is down\nFORGED")

    source = SourceInMemory(process("1", consumer(queues=[queue()])))
    view = await Overview("shop", [source], depths).view()

    assert view.totals.waiting is None
    [problem] = view.problems
    assert problem == ("queues cannot be counted: OSError: amqp://guest:***@here is down\\nFORGED")


async def test_a_source_that_fails_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The view has what the others report, and the reason; the log has it once."""
    broken = SourceInMemory()
    broken.error = RuntimeError("out of order")
    overview = Overview("shop", [broken, SourceInMemory(process("1"))], interval=0)
    views = [await overview.view() for _ in range(3)]

    assert [each.answered for each in views] == [1, 1, 1]
    expected = "processes cannot be asked: RuntimeError: out of order"
    assert views[-1].problems == [expected]
    assert [each.message for each in caplog.records] == ["processes cannot be asked"]


async def test_a_source_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view does not wait for ever."""
    monkeypatch.setattr(overview_module, "_DEADLINE", 0.01)
    hanging = SourceInMemory()
    hanging.gate.clear()
    view = await Overview("shop", [SourceInMemory(process("1")), hanging]).view()

    assert (view.answered, view.problems) == (
        1,
        ["processes cannot be asked: no answer in 0.01 s"],
    )


async def test_failures_are_the_last_ones_of_all_processes() -> None:
    """The newest first, with the process."""
    one = process("1", failures=[failure(each) for each in range(0, 100, 2)])
    other = process("2", failures=[failure(each) for each in range(1, 100, 2)])
    view = await Overview("shop", [SourceInMemory(one, other)]).view()

    assert [each.time for each in view.failures] == [
        STARTED + timedelta(minutes=each) for each in range(99, 49, -1)
    ]
    assert [each.process for each in view.failures[:2]] == ["2", "1"]


async def test_streams_tasks_and_connections_are_merged() -> None:
    """The stream with the youngest event, the last run and the next one."""
    early, late = STARTED, STARTED + timedelta(hours=1)
    ran = TaskReport(schedule="every 60 s", role="leader", last=late, last_ok=True, next=late)
    waits = TaskReport(schedule="every 60 s", role="standby", last=early, last_ok=False, next=early)
    old = StreamReport(source="/a", state="ready", age=50.0, cursor="1")
    new = StreamReport(source="/a", state="ready", age=1.0, cursor="9")
    connection = ConnectionReport(name="default", role="consumers", connected=True)
    reports = [
        process("1", consumer(task=ran, streams=[old]), connections=[connection]),
        process("2", consumer(task=waits, streams=[new]), connections=[connection]),
    ]
    view = await Overview("shop", [SourceInMemory(*reports)]).view()

    [row] = view.consumers
    assert row.task is not None
    assert (row.task.last, row.task.last_ok, row.task.role, row.task.next) == (
        *(late, True, "leader"),
        early,
    )
    assert [(each.source, each.cursor) for each in row.streams] == [("/a", "9")]
    assert [each.process for each in view.connections] == ["1", "2"]


# ---- Commands ----


def command(action: CommandAction = "pause", *processes: str) -> Command:
    """Return a command for some processes, or for all."""
    return Command(action=action, consumer="Orders", processes=list(processes) or None)


@pytest.mark.parametrize(
    ("silent", "refusing", "text"),
    [
        ("", "", "4 of 4 answered"),
        ("4", "", "3 of 4 answered"),
        ("", "3", "done on 3 of 4, 1 refused"),
        ("4", "3", "done on 2 of 4, 1 refused, 1 did not answer"),
        ("1234", "", "0 of 4 answered"),
        ("", "1234", "done on 0 of 4, 4 refused"),
    ],
)
async def test_the_text_of_a_command(silent: str, refusing: str, text: str) -> None:
    """It says how many have answered, and how many have done it."""
    source = SourceInMemory(*(process(each) for each in "1234" if each not in silent))
    source.silent, source.refusing = list(silent), list(refusing)
    report = await Overview("shop", [source]).execute(command(), ALICE)

    assert (report.text, report.asked) == (text, 4)
    assert report.answered == 4 - len(silent)


async def test_a_process_gets_a_command_once() -> None:
    """Over the first source that knows it; to run a task twice would be wrong."""
    one, other = SourceInMemory(process("1")), SourceInMemory(process("1"), process("2"))
    other.silent = ["3"]
    overview = Overview("shop", [one, other])
    report = await overview.execute(command("run"), ALICE)
    some = await overview.execute(command("run", "1", "2", "9"), ALICE)

    assert one.executed == [None, ["1", "2", "9"]]
    assert other.executed == [["2", "3"], ["2", "9"]]
    assert report.text == "2 of 3 answered"
    assert [(each.process, each.ok) for each in some.results] == [
        ("1", True),
        ("2", True),
        ("9", False),
    ]
    assert some.results[-1].text == "there is no such process"


async def test_a_source_that_fails_to_send_a_command(caplog: pytest.LogCaptureFixture) -> None:
    """The others do it; its processes have not answered."""
    broken = SourceInMemory(process("2"))
    broken.error = RuntimeError("out of order")
    overview = Overview("shop", [SourceInMemory(process("1")), broken])
    report = await overview.execute(command("pause", "1", "2"), ALICE)

    assert report.text == "1 of 2 answered"
    assert report.results[1].text == "not sent: RuntimeError: out of order"
    assert errors(caplog) == ["a command was not sent"]


async def test_no_process_for_a_command() -> None:
    """The text says so."""
    report = await Overview("shop", [SourceInMemory()]).execute(command(), ALICE)

    assert (report.asked, report.text) == (0, "no process is known")


async def test_closing_closes_the_sources() -> None:
    """Also while a view is made."""
    source = SourceInMemory()
    source.gate.clear()
    overview = Overview("shop", [source])
    looking = asyncio.create_task(overview.view())
    await eventually(lambda: source.asked == 1)
    await overview.close()
    await asyncio.wait([looking])

    assert source.closed
    assert looking.cancelled()


# ---- Hostile reports ----


async def test_too_many_processes(later: Clock) -> None:
    """Those of the first source stay, whatever another source reports."""
    flood = SourceInMemory(*(process(f"x{number}") for number in range(1500)))
    overview = Overview("shop", [SourceInMemory(process("own", consumer())), flood])
    view = await overview.view()
    flood.answers = [process(f"y{number}") for number in range(1500)]
    later(3)
    again = await overview.view()

    for each in (view, again):
        assert len(each.processes) == 1000
        assert each.processes[0].id == "own"
        assert each.problems == ["there are too many processes; 501 of them not shown"]


async def test_too_many_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are limits for one report, for all of them, and for the rows."""
    monkeypatch.setattr(overview_module, "MOST_ITEMS", 5000)
    huge = process("1", *(consumer(f"C{number}") for number in range(MOST_ITEMS)))
    big = [
        process(f"big{each}", *(consumer(f"{each}.{number}") for number in range(2100)))
        for each in range(3)
    ]
    view = await Overview("shop", [SourceInMemory(huge, *big, process("2"))]).view()

    assert [each.id for each in view.processes] == ["big0", "big1", "2"]
    assert len(view.consumers) == 2000
    assert view.problems == [
        f"not shown: a process reports more than {MOST_ITEMS} consumers, queues and routes",
        "there are too many processes; 1 of them not shown",
    ]


def test_values_of_reports_are_limited() -> None:
    """Texts are cut, numbers are finite, times have a zone; a report that fits is not copied."""
    fine = process("1", consumer(queues=[queue()], bounds=BOUNDS, counts=[1, 2, 3]))
    time = datetime(2026, 1, 1, tzinfo=UTC)
    naive = failure(1, time=time.replace(tzinfo=None), text="x" * 10_000)
    wrong = process("2", consumer(handled=10**40), lag=float("inf"), failures=[naive])
    report, items = limited(wrong)

    assert limited(fine) == (fine, 3)
    assert limited(fine)[0] is fine
    assert (items, report.lag, report.consumers[0].handled) == (3, 0.0, 2**53)
    assert len(report.failures[0].text) == 2000
    assert report.failures[0].time == time


@pytest.mark.parametrize(
    "report",
    [
        process("x" * 65),
        process("1", consumer(bounds=[1.0] * (MOST_ITEMS + 1))),
        process("1", consumer(queues=[queue()] * MOST_ITEMS)),
    ],
    ids=["id", "list", "queues"],
)
def test_reports_that_are_too_large(report: ProcessReport) -> None:
    """They are not merged."""
    with pytest.raises(TooLarge):
        limited(report)


NUMBERS = some.integers(0, 3) | some.sampled_from([2**53, 2**64, 10**400])
FLOATS = some.floats() | some.sampled_from([0.1, 1.0, 5.0])
NAMES = some.sampled_from(["", "a", "b", "<script>", "\x1b[2J", "x" * 5000])
TIMES = some.datetimes() | some.datetimes(timezones=some.just(UTC))
QUEUES = some.builds(QueueReport, name=NAMES, connection=NAMES, vhost=NAMES)
ROUTES = some.builds(
    RouteReport,
    route=NAMES,
    method=NAMES,
    requests=NUMBERS,
    errors=NUMBERS,
    bounds=some.lists(FLOATS, max_size=3),
    counts=some.lists(some.integers() | NUMBERS, max_size=4),
)
TASKS = some.builds(TaskReport, schedule=NAMES, last=some.none() | TIMES, next=some.none() | TIMES)
STREAMS = some.builds(StreamReport, source=NAMES, state=NAMES, age=some.none() | FLOATS)
CONSUMERS = some.builds(
    consumer,
    name=NAMES,
    state=NAMES,
    handled=NUMBERS,
    failed=NUMBERS,
    in_flight=NUMBERS,
    concurrency=some.none() | some.integers(),
    bounds=some.lists(FLOATS, max_size=3),
    counts=some.lists(some.integers() | NUMBERS, max_size=4),
    queues=some.lists(QUEUES, max_size=2),
    streams=some.lists(STREAMS, max_size=2),
    routes=some.lists(ROUTES, max_size=2),
    task=some.none() | TASKS,
)
FAILURES = some.builds(failure, minute=some.just(1), time=TIMES, text=NAMES)


@some.composite
def hostile(draw: some.DrawFn) -> ProcessReport:
    """Return a report that the models allow, with values that nobody expects."""
    return process(
        draw(some.sampled_from(["1", "2", "", "x" * 100])),
        *draw(some.lists(CONSUMERS, max_size=3)),
        started=draw(TIMES),
        state=draw(NAMES),
        lag=draw(some.none() | FLOATS),
        memory=draw(some.none() | some.integers()),
        uptime=draw(FLOATS),
        failures=draw(some.lists(FAILURES, max_size=3)),
    )


@settings(max_examples=150, deadline=None)
@given(some.lists(some.lists(hostile(), max_size=3), min_size=1, max_size=3))
def test_no_report_prevents_a_view(updates: list[list[ProcessReport]]) -> None:
    """Whatever the models allow can be merged, and sent as JSON."""

    async def views() -> list[FleetView]:
        source = SourceInMemory()
        overview = Overview("shop", [source], interval=0)
        found = []
        for each in updates:
            source.answers = each
            found.append(await overview.view())
        return found

    for view in asyncio.run(views()):
        json.loads(view.model_dump_json())
        assert all(each >= 0 for each in view.totals.rates)
