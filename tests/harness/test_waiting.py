"""Waiting under a deadline."""

import asyncio

import pytest

from tests.waiting import eventually


async def test_the_first_truthy_value_is_returned() -> None:
    """A condition is checked until it holds."""
    values = iter([0, [], "yes"])

    assert await eventually(lambda: next(values)) == "yes"


async def test_an_assertion_means_not_yet() -> None:
    """A coroutine function may assert, and is called again."""
    calls: list[int] = []

    async def third_time() -> bool:
        calls.append(1)
        assert len(calls) == 3
        return True

    assert await eventually(third_time)


async def test_a_missed_deadline_tells_the_last_value() -> None:
    """The failure names the condition and the last value."""
    with pytest.raises(AssertionError, match=r"not within 0.02 s: the tide; last value 0"):
        await eventually(lambda: 0, 0.02, what="the tide")


async def test_a_condition_that_hangs_misses_the_deadline() -> None:
    """A condition that never returns does not block the test."""

    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match="hang"):
        await eventually(hang, 0.02)


async def test_other_exceptions_go_through() -> None:
    """A condition that raises fails immediately."""
    with pytest.raises(ZeroDivisionError):
        await eventually(lambda: 1 // 0)


async def test_a_timeout_of_the_condition_goes_through() -> None:
    """A condition that itself times out is broken, not late."""

    def ask() -> bool:
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        await eventually(ask)
