"""Commands of operators in one process."""

import logging
from typing import Any, ClassVar

import pytest

from workerkit.console.commands import Commands
from workerkit.console.model import Command, Operator
from workerkit.control import Ability, Control
from workerkit.health import Health, Part, Readiness

ALICE = Operator(user="alice", role="admin", address="192.0.2.1")


class Recorded(Control):
    """Remembers what it was told."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({"pause", "concurrency", "prefetch"})

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._paused = False

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def concurrency(self) -> int:
        return 4

    async def pause(self) -> None:
        self._paused = True
        self.calls.append("pause")

    async def resume(self) -> None:
        self._paused = False
        self.calls.append("resume")

    async def change_concurrency(self, number: int) -> None:
        if number == 13:
            raise RuntimeError("no luck\x1b[31m")
        self.calls.append(number)


class Plain(Control):
    """Can do nothing."""


@pytest.fixture
def readiness() -> Readiness:
    """A process with two consumers."""
    found = Readiness(started=True)
    for name, control in (("OrderPlaced", Recorded()), ("View", Plain())):
        part = Part()
        part.ready()
        found.health.append(Health(name, [part], control=control))
    return found


async def run(readiness: Readiness, action: Any, **more: Any) -> tuple[bool, str]:
    """Execute a command; return whether it was done, and its text."""
    commands = Commands(readiness, more.pop("mode", "operate"), "SHOP_OPS__CONSOLE")
    done = await commands.execute(Command(action=action, **more), ALICE, "id", "host", 1)
    return done.ok, done.text


async def test_a_consumer_is_changed(
    readiness: Readiness, caplog: pytest.LogCaptureFixture
) -> None:
    """Names compare as in environment variables, and the log has who did it."""
    caplog.set_level(logging.INFO)
    assert await run(readiness, "pause", consumer="ORDER_PLACED") == (
        True,
        "OrderPlaced is paused",
    )
    changed = await run(readiness, "concurrency", consumer="OrderPlaced", value=8)
    assert changed == (True, "concurrency of OrderPlaced is 8; it was 4")
    control: Any = readiness.health[0].control
    assert control.calls == ["pause", 8]
    record = vars(caplog.records[0])
    assert (record["user"], record["address"]) == ("alice", "192.0.2.1")
    assert (record["name"], record["target"]) == ("workerkit.audit", "ORDER_PLACED")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ({"action": "pause"}, "consumer is missing: name one"),
        (
            {"action": "pause", "consumer": "OrderPlace"},
            "this process runs no consumer 'OrderPlace'; did you mean 'OrderPlaced'?",
        ),
        ({"action": "pause", "consumer": "View"}, "View has no pause: what can be changed is"),
        ({"action": "run", "consumer": "OrderPlaced"}, "OrderPlaced has no run"),
        (
            {"action": "concurrency", "consumer": "OrderPlaced"},
            "value should be a number from 1 to 10000; found None",
        ),
        ({"action": "pause", "consumer": "OrderPlaced", "value": 3}, "pause takes no value"),
        ({"action": "log_level", "value": "LOUD"}, "value should be one of DEBUG, INFO"),
        ({"action": "drain", "consumer": "OrderPlaced"}, "drain is for processes"),
        ({"action": "undrain"}, "it is not drained"),
        (
            {"action": "concurrency", "consumer": "OrderPlaced", "value": 13},
            "failed: RuntimeError: no luck\\x1b[31m",
        ),
    ],
)
async def test_refusals(readiness: Readiness, command: dict[str, Any], text: str) -> None:
    """Each says what would be right, and nothing is changed."""
    done, found = await run(readiness, **command)
    assert not done
    assert found.startswith(text)
    control: Any = readiness.health[0].control
    assert control.calls == []


@pytest.mark.parametrize("mode", ["read", "off"])
async def test_a_process_that_takes_no_commands(readiness: Readiness, mode: str) -> None:
    """The text names the variable."""
    done, text = await run(readiness, "pause", consumer="OrderPlaced", mode=mode)
    assert not done
    assert text == f"this process takes no commands: its SHOP_OPS__CONSOLE is {mode}"


async def test_drain(readiness: Readiness) -> None:
    """Readiness fails, and only what draining has paused is resumed."""
    commands = Commands(readiness, "operate", "V")

    async def execute(action: Any, **more: Any) -> bool:
        command = Command(action=action, **more)
        return (await commands.execute(command, ALICE, "id", "host", 1)).ok

    def paused() -> list[bool]:
        return [each.control.paused for each in readiness.health[:1]]

    assert await execute("drain")
    assert readiness.obstacles() == ["draining: alice"]
    assert paused() == [True]
    assert not await execute("resume", consumer="OrderPlaced")
    assert not await execute("drain")
    assert await execute("undrain")
    assert readiness.ready
    assert paused() == [False]

    assert await execute("pause", consumer="OrderPlaced")
    assert await execute("drain")
    assert await execute("undrain")
    assert paused() == [True]


async def test_the_log_level(readiness: Readiness) -> None:
    """It is that of the root logger."""
    root = logging.getLogger()
    before = root.level
    try:
        assert (await run(readiness, "log_level", value="debug"))[0]
        assert root.level == logging.DEBUG
    finally:
        root.setLevel(before)


async def test_a_process_that_stops(readiness: Readiness) -> None:
    """It takes no commands any more."""
    readiness.draining = True
    assert await run(readiness, "pause", consumer="OrderPlaced") == (
        False,
        "this process is stopping",
    )
