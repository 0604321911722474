"""`make demo`: orders are placed and handled, and the end leaves nothing behind."""

import signal
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from tests.command import Application, process
from tests.waiting import eventually

TEMPLATE = Path(__file__).parents[1] / "app_template"
COMMAND = (sys.executable, "demo.py")


async def trading(demo: Application) -> str:
    """Wait until orders are handled in all ways; return the address of the page."""

    def traded() -> bool:
        handled = [line for line in demo.err if "handled" in line]
        consumers = ("OrderPlaced", "OrderView", "OrderBooked")
        return all(any(name in line for line in handled) for name in consumers)

    await eventually(traded, 60.0)
    [url] = demo.lines("The page is at ")
    return url


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
async def test_the_demo(how: str, tmp_path: Path) -> None:
    """Orders are handled; a signal or Ctrl-C stops everything without an error.

    It needs no RabbitMQ: it runs with an empty path.
    """
    variables = {"TMPDIR": str(tmp_path), "PATH": "/nonexistent"}
    async with process(*COMMAND, cwd=TEMPLATE, **variables) as demo:
        url = await trading(demo)
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/") as page:
                assert page.status == 200
            async with client.get("/orders") as shown:
                orders = await shown.json()
        before = time.monotonic()
        if how == "Ctrl-C":
            demo.send_group(signal.SIGINT)
        else:
            demo.send(signal.SIGTERM)
        code = await demo.ended(20.0)
        seconds = time.monotonic() - before

    assert code == 0, demo
    assert seconds < 10.0
    assert len(orders) >= 2
    assert "Traceback" not in repr(demo)
    assert [line for line in demo.err if line.endswith("stopped")]
    assert not [line for line in demo.err if " ERROR " in line]
    assert list(tmp_path.iterdir()) == []


async def test_a_demo_that_is_stopped_while_it_starts(tmp_path: Path) -> None:
    """Ctrl-C during the start stops everything too."""
    async with process(*COMMAND, cwd=TEMPLATE, TMPDIR=str(tmp_path)) as demo:
        await demo.says("Ctrl-C stops it")
        demo.send_group(signal.SIGINT)
        code = await demo.ended(20.0)

    assert code == 0, demo
    assert "Traceback" not in repr(demo)
    assert list(tmp_path.iterdir()) == []


async def test_a_demo_with_a_wrong_setting() -> None:
    """The demo ends, and names the setting."""
    async with process(*COMMAND, cwd=TEMPLATE, SHOP_NONSENSE="1") as demo:
        code = await demo.ended(40.0)

    assert code == 2, demo
    assert demo.err[-1].startswith("SHOP_NONSENSE: no setting of that name")
