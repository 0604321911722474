"""Wait for a condition, with a deadline, instead of sleeping."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Coroutine[Any, Any, T]], deadline: float = ..., *, what: str = ...
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], deadline: float = ..., *, what: str = ...
) -> T: ...


async def eventually(
    condition: Callable[[], Any], deadline: float = 30.0, *, what: str = ""
) -> Any:
    """Poll a condition until it holds.

    Args:
        condition: A function, or a coroutine function, whose value is truthy once it holds. An
            `AssertionError` that it raises means "not yet"; any other exception goes through.
        deadline: Seconds to wait at most, a hanging coroutine included.
        what: What is waited for, for the message; the name of the function otherwise.

    Returns:
        The first truthy value.

    Raises:
        AssertionError: The condition did not hold in time; the text has its last value.
    """
    what = what or getattr(condition, "__qualname__", repr(condition))
    last = "it was never finished"
    pause = 0.005
    try:
        async with asyncio.timeout(deadline) as scope:
            while True:
                try:
                    value = condition()
                    if inspect.isawaitable(value):
                        value = await value
                    if value:
                        return value
                    last = f"last value {value!r}"
                except AssertionError as error:
                    last = f"last said {error}"
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 0.1)
    except TimeoutError:
        if not scope.expired():  # the condition's own
            raise
        raise AssertionError(f"not within {deadline} s: {what}; {last}") from None
