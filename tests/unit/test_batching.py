"""Batches: when one is complete."""

import asyncio

from tests.waiting import eventually
from workerkit.workers import Batching


def counted() -> tuple[list[int], Batching[int]]:
    """A batching of three within 50 ms, and a list that grows when a batch may be ripe."""
    ripe: list[int] = []
    return ripe, Batching(3, 0.05, lambda: ripe.append(1))


async def test_a_full_batch_is_ripe_at_once() -> None:
    """Nobody waits for the interval when the batch is full."""
    ripe: list[int] = []
    batching: Batching[int] = Batching(3, 60.0, lambda: ripe.append(1))

    early = batching.take()
    for item in range(4):
        batching.add(item)

    assert early == []
    assert ripe
    assert batching.take() == [0, 1, 2]
    assert batching.take() == []


async def test_a_partial_batch_is_ripe_after_the_interval() -> None:
    """The interval counts from the first item, not from the last."""
    loop = asyncio.get_running_loop()
    ripe: list[str] = []
    batching: Batching[int] = Batching(3, 1.0, lambda: ripe.append("ripe"))
    # Timers fire in the order of their times, however late all of them are.
    loop.call_later(0.9, ripe.append, "not before")

    batching.add(1)
    loop.call_later(1.1, ripe.append, "not after")
    loop.call_later(0.5, batching.add, 2)
    await eventually(lambda: len(ripe) >= 3)

    assert ripe[:3] == ["not before", "ripe", "not after"]
    assert batching.take() == [1, 2]


async def test_what_remains_has_its_own_interval() -> None:
    """An item that was left out of a full batch waits from its own arrival."""
    ripe, batching = counted()
    for item in range(4):
        batching.add(item)

    first = batching.take()
    ripe.clear()
    await eventually(lambda: ripe)

    assert first == [0, 1, 2]
    assert batching.take() == [3]


async def test_a_batch_that_nobody_takes_grows() -> None:
    """While all workers are busy, a batch whose interval is over keeps filling up to its size."""
    ripe, batching = counted()
    batching.add(1)
    await eventually(lambda: ripe)

    batching.add(2)

    assert batching.take() == [1, 2]


async def test_flushing_makes_everything_ripe() -> None:
    """At a stop, batches do not wait for more deliveries."""
    ripe, batching = counted()
    batching.add(1)

    batching.flush()

    assert ripe
    assert batching.take() == [1]


async def test_clearing_gives_back_what_waits() -> None:
    """... and nothing is ripe afterwards."""
    _, batching = counted()
    batching.add(1)
    batching.add(2)

    assert batching.clear() == [1, 2]
    assert batching.take() == []


async def test_what_comes_after_a_lost_batch_is_ripe_after_its_own_interval() -> None:
    """The interval of items that are gone ends, and those that came later are not forgotten."""
    _, batching = counted()
    batching.add(1)
    await asyncio.sleep(0.03)
    batching.keep(lambda item: False)
    batching.add(2)

    assert await eventually(batching.take) == [2]


async def test_what_comes_after_a_lost_batch_makes_a_batch_ripe() -> None:
    """The worker is woken, even if the first timer finds no complete batch."""
    taken: list[list[int]] = []
    batching: Batching[int] = Batching(3, 0.05, lambda: taken.append(batching.take()))
    batching.add(1)
    await asyncio.sleep(0.03)
    batching.keep(lambda item: False)

    batching.add(2)

    await eventually(lambda: [2] in taken)
