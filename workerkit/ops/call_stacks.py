"""Where tasks and threads are: file, line and function of each call, without any variable.

asyncio's `Task.get_stack` returns only the outermost coroutine of a suspended task. Here the chain
is followed to the innermost one, through coroutines, generators and asynchronous generators.
"""

import asyncio
import gc
import inspect
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, NamedTuple

from workerkit import endpoint
from workerkit.delivery import Delivery
from workerkit.endpoint import Endpoint

Place = tuple[CodeType, int]
"""The code of a call, and the number of the line that it is in."""

OUTERMOST = 12
INNERMOST = 38
"""Calls that are kept of each end of a stack; a recursion may have thousands."""

_DEEPEST = 10_000
_NAMED = 5
_ENDPOINT = endpoint.__file__
# What these functions of asyncio wait for is in a variable; the future that they await is their
# own. The first part of the name of the file is checked as well.
_WAITED_FOR = {
    "_wait": "fs",
    "wait_for": "fut",
    "to_thread": "func",
    "TaskGroup.__aexit__": "self",
    "TaskGroup._aexit": "self",
}


class Stack(NamedTuple):
    """The calls of one task or thread, the outermost first.

    Attributes:
        outer: The first calls; all of them if none is left out.
        left_out: The number of calls in the middle that are left out.
        inner: The last calls; empty if none is left out.
    """

    outer: tuple[Place, ...]
    left_out: int = 0
    inner: tuple[Place, ...] = ()


class Handled(NamedTuple):
    """The call of `handle` that a task makes.

    Attributes:
        delivery: The first one, if `handle` takes a batch; None if it is not known.
        number: The number of deliveries.
        seconds: Since the call began; None if it is not known.
    """

    consumer: str
    delivery: Delivery | None
    number: int
    seconds: float | None


class TaskState(NamedTuple):
    """Where one task is.

    Attributes:
        awaits: What the innermost call waits for.
        handled: The call of `handle`, if the task makes one.
    """

    name: str
    stack: Stack
    awaits: str
    handled: Handled | None


class ThreadState(NamedTuple):
    """Where one thread is.

    Attributes:
        runs_loop: The event loop runs in it.
    """

    name: str
    stack: Stack
    runs_loop: bool


def task_state(task: "asyncio.Task[Any]", running: Iterable[FrameType] = ()) -> TaskState:
    """Return where a task is.

    May be called in any thread. A task that continues in the meantime has a stack of two moments.

    Args:
        running: If it is the current task of its loop, the calls of the thread of the loop, the
            outermost first.
    """
    coroutine: Any = task.get_coro()
    frames = list(_from(getattr(coroutine, "cr_frame", None), running))
    awaits = "nothing: it is running"
    if not frames:
        frames, end = _chain(coroutine)
        awaits = _awaited(task, coroutine, end, frames[-1] if frames else None)
    places = _places(frames)
    return TaskState(task.get_name(), places, awaits, _handled(task, frames))


def thread_states(loop_thread: int | None) -> list[ThreadState]:
    """Return where each thread is, except for the current one if it does not run the loop.

    Args:
        loop_thread: Identifier of the thread of the event loop.
    """
    names = {each.ident: each.name for each in threading.enumerate()}
    own = threading.get_ident()
    return [
        ThreadState(
            names.get(ident, f"thread {ident}, not started by Python"),
            _places(list(outermost_first(frame))),
            ident == loop_thread,
        )
        for ident, frame in sys._current_frames().items()
        if ident != own or ident == loop_thread
    ]


def outermost_first(frame: FrameType | None) -> "deque[FrameType]":
    """Return a frame after all that have called it."""
    frames: deque[FrameType] = deque()
    while frame is not None and len(frames) < _DEEPEST:
        frames.appendleft(frame)
        frame = frame.f_back
    return frames


@lru_cache(maxsize=4096)
def short_file(name: str) -> str:
    """Return the name of a file relative to the directory that its module was imported from."""
    places = [each.rstrip("/") + "/" for each in sys.path if each and name.startswith(each)]
    longest = max(places, key=len, default="")
    return name.removeprefix(longest)


def _from(first: FrameType | None, frames: Iterable[FrameType]) -> Iterator[FrameType]:
    """Yield *frames* from *first* on; nothing if it is not one of them."""
    found = False
    for frame in frames:
        found = found or frame is first
        if found:
            yield frame


def _places(frames: list[FrameType]) -> Stack:
    if len(frames) <= OUTERMOST + INNERMOST:
        return Stack(tuple((frame.f_code, frame.f_lineno or 0) for frame in frames))
    outer, inner = frames[:OUTERMOST], frames[-INNERMOST:]
    return Stack(
        tuple((frame.f_code, frame.f_lineno or 0) for frame in outer),
        len(frames) - OUTERMOST - INNERMOST,
        tuple((frame.f_code, frame.f_lineno or 0) for frame in inner),
    )


def _chain(awaited: Any) -> tuple[list[FrameType], Any]:
    """Return the frames of a chain of awaits, and what the last one waits for."""
    frames: list[FrameType] = []
    for _ in range(_DEEPEST):
        if isinstance(awaited, CoroutineType):
            frame, following = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            frame, following = awaited.gi_frame, awaited.gi_yieldfrom
            if following is None and frame is not None and not awaited.gi_running:
                following = _driven(frame)
        elif isinstance(awaited, AsyncGeneratorType):
            frame, following = awaited.ag_frame, awaited.ag_await
        elif hasattr(awaited, "cr_await"):  # A coroutine of Cython.
            frame, following = getattr(awaited, "cr_frame", None), awaited.cr_await
        elif awaited is None or asyncio.isfuture(awaited):
            break
        else:
            inside = _wrapped(awaited)
            if inside is None:
                break
            frame, following = None, inside
        if frame is not None:
            frames.append(frame)
        awaited = following
    return frames, awaited


def _wrapped(awaited: Any) -> Any:
    """Return what an iterator of the interpreter, such as that of a future, stands for.

    They have no attribute that leads to it. Only objects of the interpreter itself are searched,
    because other ones may refer to awaitables that they do not await.
    """
    if type(awaited).__module__ not in ("builtins", "_asyncio"):
        return None
    for each in gc.get_referents(awaited):
        if _continues(each) or asyncio.isfuture(each):
            return each
    # `anext(iterator, default)` refers to the iterator that it awaits.
    return next((each for each in gc.get_referents(awaited) if _is_iterator(each)), None)


def _is_iterator(found: Any) -> bool:
    return type(found).__name__ in ("async_generator_asend", "async_generator_athrow")


def _continues(found: Any) -> bool:
    return isinstance(found, CoroutineType | GeneratorType | AsyncGeneratorType)


def _driven(frame: FrameType) -> Any:
    """Return the coroutine that a generator drives with `send`, instead of awaiting it."""
    for value in frame.f_locals.values():
        coroutine = getattr(value, "__self__", value) if inspect.isbuiltin(value) else value
        if isinstance(coroutine, CoroutineType) and coroutine.cr_frame is not None:
            return coroutine
    return None


def _awaited(task: "asyncio.Task[Any]", coroutine: Any, end: Any, last: FrameType | None) -> str:
    """Describe what the innermost call waits for."""
    if isinstance(coroutine, CoroutineType) and inspect.getcoroutinestate(coroutine) == (
        inspect.CORO_CREATED
    ):
        return "nothing: it has not started yet"
    if end is None:
        # A generator that yields a future itself hides it; the task knows it.
        end = getattr(task, "_fut_waiter", None)
    if end is None:
        return "the next turn of the event loop"
    if asyncio.isfuture(end):
        if end.done():
            return "nothing: it continues in the next turn of the event loop"
        return _described([*_behind(last)] or [*getattr(end, "_children", ())] or [end])
    return f"an object of {type(end).__module__}.{type(end).__qualname__}"


def _behind(last: FrameType | None) -> Iterator[Any]:
    """Yield what a function of asyncio waits for behind a future of its own."""
    if last is None or "asyncio" not in last.f_code.co_filename:
        return
    name = _WAITED_FOR.get(last.f_code.co_qualname)
    found = last.f_locals.get(name) if name is not None else None
    if name == "func":
        yield found
        return
    if name == "self":
        found = getattr(found, "_tasks", ())
    yield from list(found) if isinstance(found, set | list | tuple) else [found] if found else ()


def _described(waited_for: list[Any]) -> str:
    texts = [_one(each) for each in waited_for[:_NAMED]]
    if len(waited_for) > _NAMED:
        texts.append(f"{len(waited_for) - _NAMED} more")
    counts = {text: texts.count(text) for text in texts}
    return ", ".join(text if n == 1 else f"{n} × {text}" for text, n in counts.items())


def _one(found: Any) -> str:
    if isinstance(found, asyncio.Task):
        return f"task {found.get_name()!r}"
    if asyncio.isfuture(found):
        return "a future"
    if callable(found):
        return f"a thread that runs {getattr(found, '__qualname__', type(found).__qualname__)}"
    return type(found).__qualname__


def _handled(task: "asyncio.Task[Any]", frames: Iterable[FrameType]) -> Handled | None:
    """Return the call of `handle` that these frames make."""
    for frame in frames:
        if frame.f_code.co_filename != _ENDPOINT:
            continue
        variables = frame.f_locals
        called = variables.get("self")
        if not isinstance(called, Endpoint):
            continue
        batch = variables.get("deliveries")
        deliveries = batch if isinstance(batch, list | tuple) else [variables.get("delivery")]
        first = deliveries[0] if deliveries else None
        delivery = first if isinstance(first, Delivery) else None
        return Handled(called.name, delivery, len(deliveries), called.seconds_in_call(task))
    return None
