"""Reports of what all tasks and threads do, as text and as JSON: `/debug` pages and SIGUSR1.

Tasks that stand in the same place form one group, and small groups come first: hundreds of idle
workers take a few lines, after the one that hangs. No report contains values of variables.
"""

import asyncio
import heapq
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from workerkit.ops.call_stacks import (
    Handled,
    Place,
    Stack,
    TaskState,
    ThreadState,
    outermost_first,
    short_file,
    task_state,
    thread_states,
)
from workerkit.safe_text import escape, excerpt

LARGEST = 256 * 1024
"""The largest size of a report, in bytes."""

TASK_SECONDS = 5.0
"""Seconds after which the tasks that were not examined yet are only counted."""

_TURN = 0.005  # Seconds without a pause.
_MOST_NAMES = 8
_MOST_HANDLED = 10
_MOST_AWAITS = 3
_KNOWN_NAMES = 64  # Names of one group that are counted; tasks may have any names.
_LONGEST_NAME = 200
_LAST_DIGITS = re.compile(r"\d+$")


class Group:
    """Tasks or threads that stand in the same place.

    Attributes:
        number: How many they are.
        names: Their names without the number at the end, each with how many have it.
        name: The name of the first one.
        runs_loop: The event loop runs in this thread.
    """

    def __init__(self, stack: Stack, name: str, runs_loop: bool = False) -> None:
        self.stack = stack
        self.name = name
        self.runs_loop = runs_loop
        self.number = 0
        self.names: Counter[str] = Counter()
        self._awaits: dict[str, None] = {}
        self._longest: list[tuple[float, int, str, Handled]] = []
        self._numbers = count()
        self._handling = 0

    def add(self, name: str, awaits: str = "", handled: Handled | None = None) -> None:
        """Add a task or thread."""
        self.number += 1
        base = _LAST_DIGITS.sub("", name).rstrip(" -")
        if base in self.names or len(self.names) < _KNOWN_NAMES:
            self.names[base] += 1
        if awaits and len(self._awaits) <= _MOST_AWAITS:
            self._awaits[awaits] = None
        if handled is not None:
            self._handling += 1
            seconds = -1.0 if handled.seconds is None else handled.seconds
            entry = (seconds, -next(self._numbers), name, handled)
            if len(self._longest) < _MOST_HANDLED:
                heapq.heappush(self._longest, entry)
            else:
                heapq.heappushpop(self._longest, entry)

    def as_json(self) -> dict[str, Any]:
        """Return the group for JSON."""
        found: dict[str, Any] = {"count": self.number, "names": self._named()}
        if self.runs_loop:
            found["event_loop"] = True
        if self._awaits:
            found["awaits"] = self._waits()
        if self._longest:
            found["handling"] = [_handled_json(name, each) for name, each in self._handled()]
            found["handling_left_out"] = self._handling - len(self._longest)
        return {**found, "stack": [_place_json(place) for place in _lines(self.stack)]}

    def as_text(self, noun: str) -> str:
        """Return the group as lines for people."""
        names = ", ".join(self._named())
        title = f"{self.number} {noun}{'s' if self.number > 1 else ''}: {names}"
        lines = [f"{title} (runs the event loop)" if self.runs_loop else title]
        lines += [f"  {_handled_text(name, each)}" for name, each in self._handled()]
        if self._handling > len(self._longest):
            lines.append(f"  and {self._handling - len(self._longest)} more that handle deliveries")
        lines += [f"    {_place_text(place)}" for place in _lines(self.stack)]
        lines += [f"    awaits {each}" for each in self._waits()]
        return "\n".join(lines)

    def _named(self) -> list[str]:
        if self.number == 1:
            return [_name(self.name)]
        shown = self.names.most_common(_MOST_NAMES)
        texts = [f"{_name(name)} ({number})" for name, number in shown]
        left_out = self.number - sum(number for _, number in shown)
        return [*texts, f"others ({left_out})"] if left_out else texts

    def _waits(self) -> list[str]:
        waits = [_name(each) for each in self._awaits]
        return waits if len(waits) <= _MOST_AWAITS else [*waits[:_MOST_AWAITS], "others"]

    @property
    def handles(self) -> bool:
        """Whether a task of the group makes a call of `handle`."""
        return bool(self._longest)

    def _handled(self) -> list[tuple[str, Handled]]:
        """Return calls of `handle` with the names of their tasks, those that take longest first."""
        return [(name, each) for _, _, name, each in sorted(self._longest, reverse=True)]


class Groups:
    """All groups of tasks, or of threads, of one moment.

    Attributes:
        number: How many tasks or threads there are.
        examined: How many of them are in a group, or had ended before they were examined.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.number = 0
        self.examined = 0
        self._found: dict[tuple[object, ...], Group] = {}

    def add_task(self, state: TaskState) -> None:
        """Add a task to its group."""
        # Names of tasks that are waited for do not make a difference: each may have its own child.
        kind = state.awaits.partition(" ")[0]
        self._group((state.stack, kind), state.stack, state.name).add(
            state.name, state.awaits, state.handled
        )

    def add_thread(self, state: ThreadState) -> None:
        """Add a thread to its group; that of the event loop is alone."""
        key = (state.stack, state.runs_loop)
        self._group(key, state.stack, state.name, state.runs_loop).add(state.name)

    def as_json(self, most: int = LARGEST) -> dict[str, Any]:
        """Return all groups, as many as fit.

        Args:
            most: The largest size in bytes, as text; JSON takes about three times as much.
        """
        groups, left_out = self._fitting(most)
        return {
            f"{self.noun}s": self.number,
            "not_examined": self.number - self.examined,
            "groups_left_out": left_out,
            "groups": [each.as_json() for each in groups],
        }

    def as_text(self, most: int = LARGEST) -> str:
        """Return all groups for people, as many as fit.

        Args:
            most: The largest size in bytes.
        """
        groups, left_out = self._fitting(most)
        order = "running calls, then the rarest" if self.noun == "task" else "the rarest first"
        head = f"{self.number} {self.noun}s, those in the same place together: {order}"
        parts = [head, *(each.as_text(self.noun) for each in groups)]
        if left_out:
            rest = sum(each.number for each in self._sorted()[len(groups) :])
            parts.append(f"{rest} {self.noun}s in {left_out} other places are left out")
        if (unknown := self.number - self.examined) > 0:
            parts.append(f"{unknown} {self.noun}s are not examined: there was no time")
        return "\n\n".join(parts) + "\n"

    def _group(
        self, key: tuple[object, ...], stack: Stack, name: str, runs_loop: bool = False
    ) -> Group:
        if key not in self._found:
            self._found[key] = Group(stack, name, runs_loop)
        return self._found[key]

    def _sorted(self) -> list[Group]:
        groups = self._found.values()
        return sorted(
            groups,
            key=lambda each: (not each.runs_loop, not each.handles, each.number, each.name),
        )

    def _fitting(self, most: int) -> tuple[list[Group], int]:
        """Return the groups that fit, and the number of the others."""
        fitting: list[Group] = []
        groups = self._sorted()
        for group in groups:
            most -= len(group.as_text(self.noun).encode(errors="replace")) + 2
            if most < 0:
                break
            fitting.append(group)
        return fitting, len(groups) - len(fitting)


def examine(groups: Groups, loop: asyncio.AbstractEventLoop, loop_thread: int) -> Iterator[None]:
    """Add the tasks of a loop to *groups*, a few at a time; the caller may pause in between.

    May be called in any thread.
    """
    tasks = list(asyncio.all_tasks(loop))
    groups.number = len(tasks)
    latest = time.monotonic() + TASK_SECONDS
    pause = time.monotonic() + _TURN
    while tasks and (now := time.monotonic()) < latest:
        if now >= pause:
            yield
            pause = time.monotonic() + _TURN
        task = tasks.pop()
        groups.examined += 1
        if not task.done():
            is_current = task is asyncio.current_task(loop)
            frame = sys._current_frames().get(loop_thread) if is_current else None
            groups.add_task(task_state(task, outermost_first(frame)))


def all_tasks(loop: asyncio.AbstractEventLoop, loop_thread: int) -> Groups:
    """Examine the tasks of a loop without a pause, in any thread."""
    groups = Groups("task")
    for _ in examine(groups, loop, loop_thread):
        pass
    return groups


def threads(loop_thread: int | None) -> Groups:
    """Examine all threads but the current one, unless that runs the event loop."""
    groups = Groups("thread")
    states = thread_states(loop_thread)
    groups.number = groups.examined = len(states)
    for state in states:
        groups.add_thread(state)
    return groups


def _lines(stack: Stack) -> Sequence[Place | int]:
    """Return all places of a stack, and where calls are left out their number."""
    return (*stack.outer, stack.left_out, *stack.inner) if stack.left_out else stack.outer


def _place_text(place: Place | int) -> str:
    if isinstance(place, int):
        return f"... {place} calls left out ..."
    file, line, function = _named_place(place)
    return f"{file}:{line} {function}"


def _place_json(place: Place | int) -> dict[str, object]:
    if isinstance(place, int):
        return {"left_out": place}
    file, line, function = _named_place(place)
    return {"file": file, "line": line, "function": function}


@lru_cache(maxsize=4096)
def _named_place(place: Place) -> tuple[str, int, str]:
    code, line = place
    return _name(short_file(code.co_filename)), line, _name(code.co_qualname)


def _handled_text(task: str, handled: Handled) -> str:
    parts = [f"{_name(task)} handles {_delivery(handled)} for {_name(handled.consumer)}"]
    if handled.seconds is not None:
        parts.append(f"since {handled.seconds:.1f} s")
    return ", ".join(parts)


def _handled_json(task: str, handled: Handled) -> dict[str, object]:
    return {
        "task": _name(task),
        "consumer": _name(handled.consumer),
        "delivery": _delivery(handled),
        "seconds": None if handled.seconds is None else round(handled.seconds, 3),
    }


def _delivery(handled: Handled) -> str:
    try:
        text = str(handled.delivery) if handled.delivery is not None else "a delivery"
    except Exception as error:
        text = f"a delivery whose text raised {type(error).__qualname__}"
    more = f" and {handled.number - 1} more" if handled.number > 1 else ""
    return f"{_name(text)}{more}"


def _name(text: str) -> str:
    """Return a text that comes from elsewhere: on one line, without control characters, short."""
    return excerpt(escape(excerpt(text, _LONGEST_NAME)), 2 * _LONGEST_NAME)
