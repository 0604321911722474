"""Commands of operators, executed in this process."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.waiting import eventually
from workerkit.console.commands import Commands
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.control import Ability, Control, NotPossible
from workerkit.health import Health, Part, Readiness

ANN = Operator(user="ann", role="admin", address="10.0.0.1")
VARIABLE = "SHOP_OPS__CONSOLE"


class Scripted(Control):
    """Notes the changes; each can be made to fail or to wait."""

    def __init__(self, *abilities: Ability, paused: bool = False) -> None:
        self.abilities = frozenset(abilities)
        self.is_paused = paused
        self.numbers = {"concurrency": 4, "prefetch": 8}
        self.runs = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def paused(self) -> bool:
        return self.is_paused

    @property
    def concurrency(self) -> int:
        return self.numbers["concurrency"]

    @property
    def prefetch(self) -> int:
        return self.numbers["prefetch"]

    async def _change(self) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def pause(self) -> None:
        await self._change()
        self.is_paused = True

    async def resume(self) -> None:
        await self._change()
        self.is_paused = False

    async def change_concurrency(self, number: int) -> None:
        await self._change()
        self.numbers["concurrency"] = number

    async def change_prefetch(self, count: int) -> None:
        await self._change()
        self.numbers["prefetch"] = count

    async def run(self) -> None:
        await self._change()
        self.runs += 1


class Fixture:
    """A process with a consumer, a task and a view."""

    def __init__(self, mode: str = "operate") -> None:
        self.orders = Scripted("pause", "concurrency", "prefetch")
        self.cleanup = Scripted("pause", "run")
        self.view = Control()
        controls = {"OrderPlaced": self.orders, "Cleanup": self.cleanup, "Page": self.view}
        health = [Health(name, [Part()], control=each) for name, each in controls.items()]
        for each in health:
            each.parts[0].ready()
        self.readiness = Readiness(health, started=True)
        self.commands = Commands(self.readiness, mode, VARIABLE)

    async def execute(self, action: Any, **more: Any) -> CommandResult:
        """Execute a command as Ann."""
        command = Command(action=action, **more)
        return await self.commands.execute(command, ANN, "p1", "host", 17)

    async def said(self, action: Any, **more: Any) -> str:
        """Return the text of a command that is refused."""
        result = await self.execute(action, **more)
        assert not result.ok
        return result.text


@pytest.fixture
def level() -> Iterator[None]:
    """Restore the level of the root logger."""
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)


async def test_changes_of_one_consumer() -> None:
    """Names are compared as in environment variables, and the result says what was done."""
    process = Fixture()

    paused = await process.execute("pause", consumer="ORDER_PLACED")
    assert paused == CommandResult(
        process="p1", host="host", pid=17, ok=True, text="OrderPlaced is paused"
    )
    assert process.orders.paused
    changes: list[tuple[str, dict[str, Any]]] = [
        ("resume", {"consumer": "orderplaced"}),
        ("concurrency", {"consumer": "OrderPlaced", "value": 9}),
        ("prefetch", {"consumer": "OrderPlaced", "value": 5}),
        ("run", {"consumer": "cleanup"}),
    ]
    texts = [(await process.execute(action, **more)).text for action, more in changes]
    assert texts == [
        "OrderPlaced is resumed",
        "concurrency of OrderPlaced is 9; it was 4",
        "prefetch of OrderPlaced is 5; it was 8",
        "a run of Cleanup has started",
    ]
    assert (process.orders.paused, process.orders.numbers) == (
        False,
        {"concurrency": 9, "prefetch": 5},
    )
    assert process.cleanup.runs == 1


@pytest.mark.parametrize(
    ("action", "more", "text"),
    [
        ("pause", {}, "consumer is missing: name one"),
        (
            "pause",
            {"consumer": "OrderPlacd"},
            "this process runs no consumer 'OrderPlacd'; did you mean 'OrderPlaced'?",
        ),
        ("pause", {"consumer": "\x1b[2J"}, r"this process runs no consumer '\x1b[2J'"),
        ("pause", {"consumer": "Cleanup", "value": 3}, "pause takes no value"),
        (
            "concurrency",
            {"consumer": "Cleanup", "value": 3},
            "Cleanup has no concurrency: what can be changed is pause, run",
        ),
        (
            "pause",
            {"consumer": "Page"},
            "Page has no pause: what can be changed is nothing of a consumer of this kind",
        ),
        (
            "concurrency",
            {"consumer": "OrderPlaced"},
            "value should be a number from 1 to 10000; found None",
        ),
        (
            "concurrency",
            {"consumer": "OrderPlaced", "value": 10_001},
            "value should be a number from 1 to 10000; found 10001",
        ),
        (
            "prefetch",
            {"consumer": "OrderPlaced", "value": "many"},
            "value should be a number from 1 to 65535; found 'many'",
        ),
        ("drain", {"consumer": "Page"}, "drain is for processes: leave out consumer"),
        ("drain", {"value": 1}, "drain takes no value"),
        ("undrain", {}, "it is not drained"),
        (
            "log_level",
            {"value": "LOUD"},
            "value should be one of DEBUG, INFO, WARNING, ERROR, CRITICAL; found 'LOUD'",
        ),
    ],
)
async def test_what_is_refused(
    action: str, more: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The text says what would be right, and nothing is an error in the log."""
    process = Fixture()

    assert await process.said(action, **more) == text
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("mode", ["off", "read"])
async def test_the_mode_of_the_process(mode: str) -> None:
    """Without `operate` nothing is changed, and the text names the variable."""
    process = Fixture(mode)

    assert await process.said("pause", consumer="OrderPlaced") == (
        f"this process takes no commands: its {VARIABLE} is {mode}"
    )
    assert not process.orders.paused


async def test_a_process_that_stops() -> None:
    """It takes no commands any more."""
    process = Fixture()
    process.readiness.draining = True

    assert await process.said("pause", consumer="OrderPlaced") == "this process is stopping"


async def test_errors_are_results(caplog: pytest.LogCaptureFixture) -> None:
    """A reason is passed on; anything else is logged as well."""
    process = Fixture()
    process.orders.error = NotPossible("not now")
    assert await process.said("pause", consumer="OrderPlaced") == "not now"
    assert "command failed" not in caplog.messages

    process.orders.error = KeyError("\x1b[31m amqp://u:secret@host/")
    text = await process.said("pause", consumer="OrderPlaced")
    assert text.startswith("failed: KeyError: ")
    assert "secret" not in text
    assert "\x1b" not in text
    assert "command failed" in caplog.messages


async def test_audit_records(caplog: pytest.LogCaptureFixture) -> None:
    """Each command has one, whether it was executed or refused."""
    caplog.set_level(logging.INFO, "workerkit.audit")
    process = Fixture()
    await process.execute("pause", consumer="OrderPlaced")
    await process.execute("resume", consumer="Nobody")
    await process.execute("drain")

    found = [each for each in caplog.records if each.name == "workerkit.audit"]
    assert [each.levelno for each in found] == [logging.INFO] * 3
    assert [vars(each)["target"] for each in found] == ["OrderPlaced", "Nobody", "process 17"]
    assert [each.getMessage() for each in found] == [
        "console: pause",
        "console: resume",
        "console: drain",
    ]
    first = vars(found[0])
    assert {name: first[name] for name in ("user", "role", "address", "result")} == {
        "user": "ann",
        "role": "admin",
        "address": "10.0.0.1",
        "result": "OrderPlaced is paused",
    }


async def test_draining_and_its_end() -> None:
    """All are paused and readiness fails; then only those that draining has paused are resumed."""
    process = Fixture()
    process.cleanup.is_paused = True

    drained = await process.execute("drain")
    assert (drained.ok, process.orders.paused) == (True, True)
    assert process.readiness.obstacles() == ["draining: ann"]
    assert await process.said("drain") == "it is drained by ann already"
    refused = await process.said("resume", consumer="OrderPlaced")
    assert refused == "this process is drained: undrain it instead"

    assert (await process.execute("undrain")).ok
    assert (process.orders.paused, process.cleanup.paused) == (False, True)
    assert process.readiness.ready


async def test_paused_by_hand_while_it_is_drained() -> None:
    """It stays paused."""
    process = Fixture()
    await process.execute("drain")
    await process.execute("pause", consumer="OrderPlaced")
    await process.execute("undrain")

    assert (process.orders.paused, process.cleanup.paused) == (True, False)


async def test_undrained_while_it_is_being_drained() -> None:
    """One waits for the other, so no consumer stays paused."""
    process = Fixture()
    process.cleanup.gate.clear()
    draining = asyncio.create_task(process.execute("drain"))
    await eventually(lambda: process.orders.paused)
    undraining = asyncio.create_task(process.execute("undrain"))
    await asyncio.sleep(0)
    process.cleanup.gate.set()

    assert [each.ok for each in await asyncio.gather(draining, undraining)] == [True, True]
    assert (process.orders.paused, process.cleanup.paused) == (False, False)


async def test_one_that_cannot_be_paused_while_draining() -> None:
    """The others are, and the result names it."""
    process = Fixture()
    process.orders.error = NotPossible("not now")

    result = await process.execute("drain")
    assert result.text.endswith("; not OrderPlaced: NotPossible: not now")
    assert process.cleanup.paused


async def test_a_change_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result says so, instead of blocking other commands for ever."""
    monkeypatch.setattr("workerkit.console.commands._DEADLINE", 0.05)
    process = Fixture()
    process.orders.gate.clear()

    text = await process.said("pause", consumer="OrderPlaced")
    assert text == "not completed after 0.05 s; it may continue"


async def test_a_client_that_goes_away() -> None:
    """The command is completed."""
    process = Fixture()
    process.orders.gate.clear()
    command = asyncio.create_task(process.execute("pause", consumer="OrderPlaced"))
    await asyncio.sleep(0)
    command.cancel()
    await asyncio.wait([command])
    process.orders.gate.set()

    await eventually(lambda: process.orders.paused)


@pytest.mark.usefixtures("level")
async def test_the_log_level() -> None:
    """It is that of the root logger, in any case."""
    process = Fixture()
    logging.getLogger().setLevel("WARNING")

    result = await process.execute("log_level", value="debug")
    assert result.text == "the log level is DEBUG; it was WARNING"
    assert logging.getLogger().level == logging.DEBUG
