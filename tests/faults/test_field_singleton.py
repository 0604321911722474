"""FP2. Four processes with one singleton task, and every kind of failure."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.command import Application, running, write_package
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

HEARTBEAT = 2
PROCESSES = 4
ROUNDS = int(os.environ.get("TEST_ROUNDS", "7"))
SEED = int(os.environ.get("TEST_SEED", "13"))

TASKS = """
    import os
    import time
    from pathlib import Path

    from workerkit import PeriodicTask, Run


    def note(text):
        # One write, so that nothing of it is lost when the process is killed.
        file = os.open("runs", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, (text + "\\n").encode())
        os.close(file)


    class Cleanup(PeriodicTask):
        every = 0.2
        singleton = True

        async def handle(self, run: Run) -> None:
            due = run.scheduled.timestamp()
            note(f"{run.number} {os.getpid()} {time.monotonic()} {due:.6f}")
"""


@dataclass(frozen=True, slots=True)
class Noted:
    """One run, as its handler has recorded it."""

    number: int
    pid: int
    when: float
    due: str


def noted(directory: Path) -> list[Noted]:
    """Return all runs so far, in the order in which they were recorded."""
    file = directory / "runs"
    rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Noted(int(number), int(pid), float(when), due) for number, pid, when, due in rows]


class Fleet:
    """The processes, each with its own proxy to the broker."""

    def __init__(self, directory: Path, broker: PrivateRabbit, stack: AsyncExitStack) -> None:
        self.processes: dict[int, Application] = {}
        self.proxies: dict[int, Proxy] = {}
        self._directory = directory
        self._broker = broker
        self._stack = stack

    async def start(self) -> None:
        """Start a process."""
        proxy = await self._stack.enter_async_context(Proxy("127.0.0.1", self._broker.port))
        process = await self._stack.enter_async_context(
            running(
                "app",
                cwd=self._directory,
                WORKERKIT_AMQP__DEFAULT__URL=proxy.url(self._broker.url()),
                WORKERKIT_AMQP__DEFAULT__HEARTBEAT=str(HEARTBEAT),
            )
        )
        self.processes[process.pid] = process
        self.proxies[process.pid] = proxy

    @property
    def leader(self) -> int:
        """Return the process with the last run."""
        return noted(self._directory)[-1].pid

    async def moved_on(self, since: float, other_than: int | None = None) -> None:
        """Wait for some later runs, of another process if one is given."""

        def later() -> bool:
            found = [each for each in noted(self._directory) if each.when > since]
            return len([each for each in found if each.pid != other_than]) >= 3

        await eventually(later, 90.0, what="the task continues")


async def _kill(fleet: Fleet, leader: int) -> None:
    fleet.processes[leader].send(signal.SIGKILL)
    await fleet.moved_on(time.monotonic(), leader)
    await fleet.start()


async def _freeze(fleet: Fleet, leader: int) -> None:
    """Freeze a process until another one has taken over; then resume it."""
    fleet.processes[leader].send(signal.SIGSTOP)
    await fleet.moved_on(time.monotonic(), leader)
    fleet.processes[leader].send(signal.SIGCONT)


async def _cut(fleet: Fleet, leader: int) -> None:
    """Reset the connections of a process."""
    since = time.monotonic()
    fleet.proxies[leader].drop()
    await fleet.moved_on(since)


async def _silence(fleet: Fleet, leader: int) -> None:
    """Let no bytes pass between a process and the broker, while both run."""
    fleet.proxies[leader].freeze()
    await fleet.moved_on(time.monotonic(), leader)
    fleet.proxies[leader].thaw()


async def _restart(fleet: Fleet, leader: int) -> None:
    """Restart the broker."""
    await asyncio.to_thread(fleet._broker.restart)
    await fleet.moved_on(time.monotonic())


async def test_fp2_four_processes_killed_at_random(
    broker: PrivateRabbit, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Run numbers strictly increase over all processes, and no scheduled time is run twice."""
    write_package(tmp_path, tasks=TASKS)
    source = random.Random(SEED)
    gaps: dict[str, list[float]] = {}
    faults = [_kill, _freeze, _cut, _silence]
    plan = [*faults, _restart, *source.choices(faults, k=ROUNDS - len(faults) - 1)]
    source.shuffle(plan)
    async with AsyncExitStack() as stack:
        fleet = Fleet(tmp_path, broker, stack)
        await asyncio.gather(*(fleet.start() for _ in range(PROCESSES)))
        await eventually(lambda: noted(tmp_path), 60.0)
        for fault in plan:
            await asyncio.sleep(source.uniform(0.0, 0.5))
            since = time.monotonic()
            await fault(fleet, fleet.leader)
            times = [each.when for each in noted(tmp_path)]
            after = [
                *[when for when in times if when < since][-1:],
                *(t for t in times if t > since),
            ]
            gaps.setdefault(fault.__name__, []).append(max(b - a for a, b in pairwise(after)))
        before = len(noted(tmp_path))
        leader = fleet.leader
        fleet.processes[leader].send(signal.SIGTERM)
        code = await fleet.processes[leader].ended()
        await eventually(lambda: len(noted(tmp_path)) > before + 5)

    runs = noted(tmp_path)
    record_property("gaps", gaps)
    print(
        "gaps in seconds:", {name: [round(gap, 2) for gap in each] for name, each in gaps.items()}
    )
    assert code == 0
    numbers = [run.number for run in runs]
    assert len(set(numbers)) == len(numbers)
    # Only runs that a frozen process records after it resumes are refused by the fence.
    accepted = [run for place, run in enumerate(runs) if run.number > max([0, *numbers[:place]])]
    assert len(runs) - len(accepted) <= plan.count(_freeze)
    assert len({run.due for run in runs}) == len(runs)
    assert len({run.pid for run in runs}) >= 3
