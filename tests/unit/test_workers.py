"""A pool of workers that are idle while there is nothing to do."""

import asyncio
from collections import deque

from tests.waiting import eventually
from workerkit.workers import Workers


class Pool:
    """Workers that take numbers from a queue and say when they begin and end."""

    def __init__(self, size: int) -> None:
        self.todo: deque[int] = deque()
        self.gate = asyncio.Event()
        self.most = self.now = 0
        self.done: list[int] = []
        self.workers = Workers("pool", size, self._work)
        self.tasks = [asyncio.create_task(run, name=name) for name, run in self.workers.tasks()]

    def put(self, number: int) -> None:
        self.todo.append(number)
        self.workers.wake()

    async def _work(self) -> None:
        while self.todo:
            number = self.todo.popleft()
            self.workers.wake()
            self.now += 1
            self.most = max(self.most, self.now)
            await self.gate.wait()
            self.now -= 1
            self.done.append(number)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def test_all_of_them_work_when_there_is_enough_to_do() -> None:
    """One wakes the next, until all work and none more."""
    pool = Pool(3)
    await eventually(lambda: not pool.workers.busy)

    for number in range(10):
        pool.put(number)
    await eventually(lambda: pool.now == 3)
    busy = pool.workers.busy
    pool.gate.set()
    await asyncio.wait_for(pool.workers.quiet(), 5)

    assert busy
    assert pool.most == 3
    assert sorted(pool.done) == list(range(10))
    await pool.end()


async def test_one_that_was_woken_counts_as_working() -> None:
    """A worker that was woken and does not run yet counts as busy."""
    pool = Pool(2)
    pool.gate.set()
    pool.put(0)
    await eventually(lambda: pool.done and not pool.workers.busy)

    pool.put(1)
    busy = pool.workers.busy
    await asyncio.wait_for(pool.workers.quiet(), 5)

    assert busy
    assert pool.done == [0, 1]
    await pool.end()


async def test_cancelled_ones_do_not_work() -> None:
    """After a cancellation nothing is busy, whatever each worker was doing."""
    pool = Pool(3)
    await eventually(lambda: not pool.workers.busy)
    pool.put(1)
    await eventually(lambda: pool.now == 1)
    pool.put(2)

    await pool.end()

    assert not pool.workers.busy
