"""`make demo`: orders are handled, and the end leaves nothing behind."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import Application, process
from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "tests/demo.py")


def processes() -> dict[int, int]:
    """Return the parent of every running process."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended already
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(status.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> list[int]:
    """Return the descendants of the process *pid*."""
    parents = processes()
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def alive(pids: list[int]) -> list[int]:
    """Return those that are running."""
    return sorted(processes().keys() & pids)


async def trading(demo: Application) -> list[int]:
    """Wait until the demo has handled three orders and one event; return its processes."""

    def traded() -> bool:
        handled = [line for line in demo.err if " handled " in line]
        return len(handled) >= 3 and any("OrderBooked" in line for line in handled)

    await eventually(traded, 40.0)
    found = descendants(demo.pid)
    assert len(found) >= 1, "the worker"
    return found


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "Ctrl-C"])
async def test_the_demo(how: str) -> None:
    """Orders are handled; a signal or Ctrl-C stops everything without an error."""
    async with process(*COMMAND, cwd=ROOT) as demo:
        started = await trading(demo)
        before = time.monotonic()
        if how == "Ctrl-C":
            demo.send_group(signal.SIGINT)
        else:
            demo.send(signal.Signals[how])
        code = await demo.ended(20.0)
        seconds = time.monotonic() - before

    assert code == 0, demo
    assert seconds < 10.0
    assert "Traceback" not in repr(demo)
    assert demo.out[-1].startswith("ops server at http://")
    assert any(" handled " in line and "OrderBooked" in line for line in demo.err)
    assert [line for line in demo.err if line.endswith("stopped")]
    assert not [line for line in demo.err if " ERROR " in line]
    assert alive(started) == []


async def test_a_demo_that_is_stopped_while_it_starts() -> None:
    """Ctrl-C during the start stops everything too."""
    async with process(*COMMAND, cwd=ROOT) as demo:
        await demo.says("Ctrl-C stops it")
        await eventually(lambda: descendants(demo.pid))
        demo.send_group(signal.SIGINT)
        code = await demo.ended(20.0)

    assert code in (0, 1), demo
    assert "Traceback" not in repr(demo)


async def test_a_demo_that_is_killed() -> None:
    """Nothing survives a demo that is killed."""
    async with process(*COMMAND, cwd=ROOT) as demo:
        started = await trading(demo)
        demo.send(signal.SIGKILL)
        await demo.ended(20.0)
        await eventually(lambda: not alive(started), 20.0)


async def test_a_worker_that_exits() -> None:
    """The demo reports that its worker has exited, and exits."""
    async with process(*COMMAND, cwd=ROOT, SHOP_NONSENSE="1") as demo:
        code = await demo.ended(40.0)

    assert code == 1, demo
    assert demo.err[-1] == "demo: the worker exited with code 2"
    assert demo.err[-2].startswith("SHOP_NONSENSE: no setting of that name")


async def test_without_rabbitmq() -> None:
    """The demo needs no RabbitMQ: it runs with an empty path."""
    async with process(*COMMAND, cwd=ROOT, PATH="/nonexistent") as demo:
        await trading(demo)
        demo.send(signal.SIGINT)
        code = await demo.ended(20.0)

    assert code == 0, demo
