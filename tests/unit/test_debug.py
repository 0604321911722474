"""Reports of where tasks and threads are."""

import asyncio
import re
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.application import package_of
from tests.waiting import eventually
from workerkit import AMQPConsumer, WorkerContainer
from workerkit.deadlines import Deadlines
from workerkit.ops import debug
from workerkit.ops.call_stacks import TaskState, task_state
from workerkit.ops.debug import Groups, all_tasks, examine, threads
from workerkit.testing import running as on_embedded

Gate = asyncio.Future[None]


async def innermost(gate: Gate) -> None:
    """Wait for the gate."""
    await gate


class Wrapped:
    """An object with the `__await__` of a coroutine, as clients of HTTP return it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __await__(self) -> Generator[Any, None, None]:
        return innermost(self._gate).__await__()


class Iterated:
    """An object whose `__await__` is a generator."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __await__(self) -> Generator[Any, None, None]:
        yield from innermost(self._gate).__await__()


async def produced(gate: Gate) -> AsyncIterator[int]:
    """Yield nothing until the gate is open."""
    await innermost(gate)
    yield 1


@asynccontextmanager
async def entered(gate: Gate) -> AsyncIterator[None]:
    """Enter once the gate is open."""
    await innermost(gate)
    yield


@types.coroutine
def trampoline(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Drive a coroutine with `send`, instead of awaiting it."""
    value = None
    while True:
        try:
            value = yield coroutine.send(value)
        except StopIteration:
            return


async def by_wrapper(gate: Gate) -> None:
    """Await an object."""
    await Wrapped(gate)


async def by_iterator(gate: Gate) -> None:
    """Await another object."""
    await Iterated(gate)


async def by_loop(gate: Gate) -> None:
    """Iterate."""
    async for _ in produced(gate):
        pass


async def by_anext(gate: Gate) -> None:
    """Iterate with a default."""
    await anext(produced(gate), 0)


async def by_context(gate: Gate) -> None:
    """Enter a context."""
    async with entered(gate):
        pass


async def by_trampoline(gate: Gate) -> None:
    """Await something that drives."""
    await trampoline(innermost(gate))


def functions(state: TaskState) -> list[str]:
    """Return the names of the functions of a stack."""
    return [code.co_qualname for code, _ in state.stack.outer + state.stack.inner]


@asynccontextmanager
async def standing(*calls: Awaitable[Any], name: str = "it") -> AsyncIterator[TaskState]:
    """Run a task until it waits; return where the first one is, and cancel them at the end."""
    tasks = [asyncio.ensure_future(each) for each in calls]
    try:
        for task in tasks:
            if isinstance(task, asyncio.Task):
                task.set_name(name)
        for _ in range(5):
            await asyncio.sleep(0)
        first = tasks[0]
        assert isinstance(first, asyncio.Task)
        yield task_state(first)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize(
    "call", [by_wrapper, by_iterator, by_loop, by_anext, by_context, by_trampoline]
)
async def test_a_chain_leads_to_the_innermost_call(
    call: Callable[[Gate], Coroutine[Any, Any, None]],
) -> None:
    """It is followed through everything that can be awaited; the outermost call comes first."""
    gate: Gate = asyncio.get_running_loop().create_future()
    async with standing(call(gate)) as state:
        found = functions(state)

    assert (found[0], found[-1]) == (call.__name__, "innermost")
    assert state.awaits == "a future"


async def waits_for_a_task(gate: Gate) -> None:
    """Await a task."""
    await asyncio.create_task(innermost(gate), name="child")


async def gathers(gate: Gate) -> None:
    """Await many."""
    await asyncio.gather(*(asyncio.create_task(innermost(gate), name=f"c{n}") for n in range(7)))


async def waits_for_first(gate: Gate) -> None:
    """Wait for one of two."""
    await asyncio.wait([asyncio.create_task(innermost(gate), name="child"), gate])


async def groups_tasks(gate: Gate) -> None:
    """Wait at the end of a group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(innermost(gate), name="child")


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (waits_for_a_task, ["task 'child'"]),
        (gathers, ["task 'c0'", "task 'c4'", "2 more"]),
        (waits_for_first, ["task 'child'", "a future"]),
        (groups_tasks, ["task 'child'"]),
    ],
)
async def test_a_task_that_awaits_others_names_them(
    call: Callable[[Gate], Coroutine[Any, Any, None]], names: list[str]
) -> None:
    """Their own stacks are in the report as well."""
    gate: Gate = asyncio.get_running_loop().create_future()
    async with standing(call(gate), gate) as state:
        awaits = state.awaits

    assert [name for name in names if name not in awaits] == []


async def test_a_call_in_a_thread_is_named() -> None:
    """With the function that the thread runs; its stack is among those of the threads."""
    release = threading.Event()

    def work() -> None:
        release.wait()

    async with standing(asyncio.to_thread(work)) as state:
        stacks = threads(threading.get_ident()).as_text()
        release.set()

    assert state.awaits == f"a thread that runs {work.__qualname__}"
    assert f"{work.__qualname__}\n" in stacks


async def test_a_task_that_does_not_wait() -> None:
    """One has not started, one continues in the next turn, one is running."""
    gate: Gate = asyncio.get_running_loop().create_future()
    new = asyncio.create_task(innermost(gate))
    fresh = task_state(new)
    await asyncio.sleep(0)
    gate.set_result(None)
    ready = task_state(new)
    current = asyncio.current_task()
    assert current is not None
    own = all_tasks(asyncio.get_running_loop(), threading.get_ident()).as_text()
    await new

    assert fresh.awaits == "nothing: it has not started yet"
    assert ready.awaits == "nothing: it continues in the next turn of the event loop"
    assert "awaits nothing: it is running" in own
    assert "all_tasks" in own


async def test_idle_workers_do_not_hide_the_one_that_hangs() -> None:
    """Tasks in the same place are one group, and the smallest group comes first."""
    gate: Gate = asyncio.get_running_loop().create_future()
    idle = [asyncio.create_task(innermost(gate), name=f"Orders worker {n}") for n in range(500)]
    one = asyncio.create_task(by_wrapper(gate), name="Orders worker 500")
    await asyncio.sleep(0)
    report = all_tasks(asyncio.get_running_loop(), threading.get_ident())
    gate.set_result(None)
    await asyncio.gather(one, *idle)

    text = report.as_text()
    groups = report.as_json()["groups"]
    assert text.index("1 task: Orders worker 500\n") < text.index(
        "500 tasks: Orders worker (500)\n"
    )
    assert text.count("\n") < 60
    assert [each["count"] for each in groups][-1] == 500
    assert groups[-1]["stack"][-1] == {
        "file": groups[-1]["stack"][-1]["file"],
        "line": innermost.__code__.co_firstlineno + 2,
        "function": "innermost",
    }


async def descend(left: int, gate: Gate) -> None:
    """Call itself."""
    if left:
        await descend(left - 1, gate)
    await gate


async def test_the_middle_of_a_long_stack_is_left_out() -> None:
    """The number of its calls is shown."""
    gate: Gate = asyncio.get_running_loop().create_future()
    async with standing(descend(499, gate)) as state:
        groups = Groups("task")
        groups.add_task(state)
        text = groups.as_text()

    assert "... 450 calls left out ..." in text
    assert text.count("descend") == 50


async def test_what_does_not_fit_is_counted() -> None:
    """A report has a limit of bytes, whatever the number of places."""
    gate: Gate = asyncio.get_running_loop().create_future()
    groups = Groups("task")
    for depth in range(40):
        async with standing(descend(depth, gate)) as state:
            groups.add_task(state)
        gate = asyncio.get_running_loop().create_future()
    groups.number = groups.examined = 40
    text = groups.as_text(5_000)
    shown = text.count("1 task: it")

    assert 0 < shown < 40
    assert len(text) < 5_300
    assert f"{40 - shown} tasks in {40 - shown} other places are left out" in text
    assert groups.as_json(5_000)["groups_left_out"] == 40 - shown


async def test_tasks_that_there_is_no_time_for_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many tasks there are, the report ends."""
    monkeypatch.setattr(debug, "TASK_SECONDS", 0.0)

    text = all_tasks(asyncio.get_running_loop(), threading.get_ident()).as_text()

    assert "1 tasks are not examined: there was no time" in text


async def test_many_tasks_leave_time_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller may pause after a few milliseconds, again and again."""
    monkeypatch.setattr(debug, "_TURN", 0.0)
    gate: Gate = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(innermost(gate)) for _ in range(10)]
    await asyncio.sleep(0)
    groups = Groups("task")
    pauses = 0
    for _ in examine(groups, asyncio.get_running_loop(), threading.get_ident()):
        pauses += 1
        await asyncio.sleep(0)
    gate.set_result(None)
    await asyncio.gather(*tasks)

    assert (groups.examined, pauses) == (11, 11)


async def test_a_name_cannot_forge_a_line() -> None:
    """Control characters are escaped, long names are shortened."""
    gate: Gate = asyncio.get_running_loop().create_future()
    async with standing(innermost(gate), name="a\n1 task: b\x1b[2J" + "x" * 10_000) as state:
        groups = Groups("task")
        groups.add_task(state)
        text = groups.as_text()

    assert "1 task: a\\n1 task: b\\x1b[2J" in text
    assert len(text) < 1_500


async def test_no_report_has_values() -> None:
    """Neither arguments nor local variables."""

    async def login(password: str) -> None:
        secret = password
        await gate
        raise AssertionError(secret)

    gate: Gate = asyncio.get_running_loop().create_future()
    async with standing(login("hunter2")):
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        report = all_tasks(loop, thread)
        texts = report.as_text() + str(report.as_json()) + threads(thread).as_text()

    assert "login" in texts
    assert "hunter2" not in texts


async def test_the_thread_of_the_event_loop_comes_first() -> None:
    """It is marked, and threads in the same place are one group."""
    release = threading.Event()
    idle = [threading.Thread(target=release.wait, name=f"idle {n}", daemon=True) for n in range(9)]
    for each in idle:
        each.start()

    def together() -> str:
        text = threads(threading.get_ident()).as_text()
        return text if "9 threads: idle (9)" in text else ""

    text = await eventually(together)
    found = threads(threading.get_ident()).as_json()
    release.set()

    assert text.split("\n\n")[1].startswith("1 thread: MainThread (runs the event loop)")
    assert found["groups"][0]["event_loop"] is True


async def test_a_task_that_handles_a_delivery_names_it() -> None:
    """With the consumer and the time since the call began; of a batch, the first one."""
    gate: Gate = asyncio.get_running_loop().create_future()
    started: list[str] = []

    class One(AMQPConsumer):
        queues = ["one"]

        async def handle(self, body: bytes) -> None:
            started.append("one")
            await innermost(gate)

    class Many(AMQPConsumer):
        queues = ["many"]
        batch_size = 2

        async def handle(self, bodies: list[bytes]) -> None:
            started.append("many")
            await innermost(gate)

    async with on_embedded(WorkerContainer(), packages=[package_of(One, Many)]) as app:
        await app.publish(b"secret", "one")
        await app.publish(b"secret", "many")
        await app.publish(b"secret", "many")
        await eventually(lambda: len(started) == 2)
        report = all_tasks(asyncio.get_running_loop(), threading.get_ident())
        text = report.as_text()
        handling = [
            each for group in report.as_json()["groups"] for each in group.get("handling", [])
        ]
        gate.set_result(None)
        await app.idle()

    one, many = sorted(handling, key=lambda each: str(each["consumer"]), reverse=True)
    assert (one["task"], one["consumer"]) == ("One worker 1", "One")
    assert (many["task"], many["consumer"]) == ("Many worker 1", "Many")
    assert re.fullmatch(r"message \S+ of 'one', 6 bytes", one["delivery"])
    assert re.fullmatch(r"message \S+ of 'many', 6 bytes and 1 more", many["delivery"])
    assert 0.0 <= one["seconds"] < 60.0
    assert re.search(r"One worker 1 handles message .* for One, since \d\.\d s\n", text)
    assert "innermost" in text
    assert "secret" not in text


async def test_a_call_that_ignores_its_cancellation_has_its_whole_time() -> None:
    """The time goes on after the timeout; a call without a timeout has none."""
    task = asyncio.current_task()
    assert task is not None
    deadlines, endless = Deadlines("Slow", 0.01), Deadlines("Endless", None)
    assert deadlines.begin(task) is endless.begin(task) is task
    with pytest.raises(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    await eventually(lambda: (deadlines.seconds_in_call(task) or 0.0) > 0.02)
    unknown = endless.seconds_in_call(task)

    assert deadlines.end(task)
    assert deadlines.seconds_in_call(task) is None
    assert unknown is None
