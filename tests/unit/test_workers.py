"""A pool of workers that are idle while there is nothing to do."""

import asyncio
from collections import deque

from tests.waiting import eventually
from workerkit.workers import Room, Workers


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


async def test_more_workers_begin_at_once() -> None:
    """Additional ones take what waits."""
    pool = Pool(1)
    for number in range(5):
        pool.put(number)
    await eventually(lambda: pool.now == 1)

    pool.tasks += [asyncio.create_task(run, name=name) for name, run in pool.workers.resize(3)]
    await eventually(lambda: pool.now == 3)

    assert pool.workers.size == 3
    assert len({task.get_name() for task in pool.tasks}) == 3
    pool.gate.set()
    await pool.end()


async def test_fewer_workers_end_after_what_they_do() -> None:
    """A surplus ends, busy or idle; what waits is left for the others."""
    pool = Pool(6)
    for number in range(4):
        pool.put(number)
    await eventually(lambda: pool.now == 4)

    assert list(pool.workers.resize(1)) == []
    assert pool.now == 4
    for number in range(4, 10):
        pool.put(number)
    pool.gate.set()
    await eventually(lambda: len(pool.done) == 10 and not pool.workers.busy)
    await eventually(lambda: sum(not task.done() for task in pool.tasks) == 1)

    pool.most, pool.gate = 0, asyncio.Event()
    for number in range(10, 13):
        pool.put(number)
    await eventually(lambda: pool.now == 1)
    pool.gate.set()
    await eventually(lambda: len(pool.done) == 13)
    assert (pool.most, sorted(pool.done)) == (1, list(range(13)))
    assert pool.workers.surplus == 0
    await pool.end()


async def test_a_surplus_that_is_wanted_again_stays() -> None:
    """Workers that were to end do not, and no more than wanted are added."""
    pool = Pool(4)
    for number in range(4):
        pool.put(number)
    await eventually(lambda: pool.now == 4)

    assert list(pool.workers.resize(1)) == []
    added = list(pool.workers.resize(5))
    pool.tasks += [asyncio.create_task(run) for _, run in added]
    pool.gate.set()
    await eventually(lambda: not pool.workers.busy)

    assert len(added) == 1
    assert sum(not task.done() for task in pool.tasks) == 5
    await pool.end()


async def test_room_for_more_and_for_fewer() -> None:
    """The reader waits until there are fewer than the new limit."""
    room = Room(2)
    await room.take()
    await room.take()
    third = asyncio.create_task(room.take())
    await asyncio.sleep(0)
    assert not third.done()

    room.resize(3)
    await asyncio.wait_for(third, 5)
    room.resize(1)
    fourth = asyncio.create_task(room.take())
    room.free()
    room.free()
    await asyncio.sleep(0)
    assert not fourth.done()
    room.free()
    await asyncio.wait_for(fourth, 5)
