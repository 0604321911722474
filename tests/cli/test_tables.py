"""What commands print for people, at a real terminal; what a pipe gets has other tests."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.client import connected
from tests.command import environment, started, workerkit, write_package
from tests.pseudo_terminal import CTRL_C, Terminal, at_terminal
from workerkit.testing import embedded_broker

CONSUMERS = """
    from workerkit import AMQPConsumer, RetryPolicy

    class OrderPlaced(AMQPConsumer):
        queues = ["orders", "orders/priority"]
        retry = RetryPolicy((0, 5, 60))

        async def handle(self, body: bytes) -> None: ...
"""
CONTAINER = """
    from contextlib import asynccontextmanager
    from dependency_injector import providers
    from workerkit import WorkerContainer

    @asynccontextmanager
    async def timed(call):
        yield

    class Audit:
        @asynccontextmanager
        async def __call__(self, call):
            yield

    class Container(WorkerContainer):
        audit = providers.Singleton(Audit)
        interceptors = providers.List(timed, audit)
"""
CONCURRENCY = "WORKERKIT_CONSUMERS__ORDER_PLACED__CONCURRENCY"
SECRET = "hunter22"
VARIABLES = {
    CONCURRENCY: "64",
    "WORKERKIT_AMQP__DEFAULT__URL": f"amqp://shop:{SECRET}@h/",
    "WORKERKIT_HTTP__HOST": "[bold]\x1b[31m::1",
}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
# Fails if rich is imported: for people it is needed, and takes longer than most commands.
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from workerkit.cli import main; main()"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with the package `app`."""
    write_package(tmp_path, consumers=CONSUMERS, container=CONTAINER)
    return tmp_path


async def shown(
    cwd: Path, *arguments: str, width: int = 80, variables: dict[str, str] | None = None
) -> Terminal:
    """Run a command at a terminal to its end, and check that it fits and shows no secret."""
    given: dict[str, Any] = {**VARIABLES, **(variables or {})}
    async with at_terminal(*arguments, cwd=cwd, width=width, **given) as terminal:
        code = await terminal.ended()
    assert code == 0, terminal.text
    assert [line for line in terminal.lines if len(line) > width or not line.isprintable()] == []
    assert SECRET not in terminal.text
    return terminal


def joined(terminal: Terminal) -> str:
    """Return all that is shown, without spaces: what was folded is whole again."""
    return re.sub(r"\s", "", terminal.text)


async def test_list(app: Path) -> None:
    """A table shows what differs from the default, with class, interceptors and sources."""
    terminal = await shown(app, "list", "app")

    heading, place, *rows = [line.split(maxsplit=1) for line in terminal.lines if line]
    values = {row[0]: re.split("  +", row[1]) for row in rows}
    assert heading == ["OrderPlaced", "amqp  orders, orders/priority"]
    assert place == ["app.consumers.OrderPlaced", "(consumers.py:4)"]
    assert values.pop("interceptors") == ["app.container.timed, audit"]
    assert values.pop("concurrency") == ["64", "environment"]
    assert values.pop("queues") == ["orders, orders/priority", "class"]
    assert values.pop("retry") == ["delays 0.0, 5.0, 60.0; jitter 0.2", "class"]
    assert [name.isdecimal() for name in values] == [True]
    assert "\x1b[1m64" in terminal.output


async def test_list_with_all_values(app: Path) -> None:
    """`--all` adds the options that have their default."""
    terminal = await shown(app, "list", "app", "--all")

    rows = [re.split("  +", line.strip()) for line in terminal.lines]
    assert ["timeout", "300.0", "default"] in rows
    assert "--all" not in terminal.text


@pytest.mark.parametrize("width", [40, 80, 120])
async def test_settings(app: Path, width: int) -> None:
    """A table shows the variables that are set; on a narrow terminal nothing is cut off."""
    terminal = await shown(app, "settings", "app", width=width)

    text = joined(terminal)
    assert "".join(re.findall(r"^[A-Z_]+", terminal.text, re.MULTILINE)).count(CONCURRENCY) == 1
    start, end = terminal.lines[0].index("VALUE"), terminal.lines[0].index("SOURCE")
    values = "".join(line[start:end].strip() for line in terminal.lines)
    assert r"[bold]\x1b[31m::1" in values
    assert "***" in text
    assert "WORKERKIT_OPS__PORT" not in text
    assert "variablesarenotset;--allshowsthem" in text


async def test_a_variable_is_not_folded(app: Path) -> None:
    """Values are, so that the name of a variable can be copied from 80 columns."""
    name = "WORKERKIT_CONSUMERS__ORDER_PLACED__QUEUES"
    terminal = await shown(
        app, "settings", "app", variables={name: "a-long-name,another-long-name"}
    )

    assert [line for line in terminal.lines if re.match(rf"{name} +a-long-name,", line)]


async def test_settings_with_all_values(app: Path) -> None:
    """`--all` adds the others; a wide terminal shows the default and the type of each."""
    terminal = await shown(app, "settings", "app", "--all", width=140)

    rows = [re.split("  +", line) for line in terminal.lines]
    assert rows[0] == ["VARIABLE", "VALUE", "SOURCE", "DEFAULT", "TYPE"]
    assert [CONCURRENCY, "64", "environment", "16", "int"] in rows
    assert ["WORKERKIT_OPS__PORT", "8081", "default", "int"] in rows


@pytest.mark.parametrize(
    ("variables", "colours", "styles"),
    [({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
)
async def test_colours(app: Path, variables: dict[str, str], colours: bool, styles: bool) -> None:
    """`NO_COLOR` switches colours off, and `TERM=dumb` every escape sequence."""
    terminal = await shown(app, "list", "app", variables=variables)

    assert bool(COLOUR.search(terminal.output)) == colours
    assert ("\x1b" in terminal.output) == styles


def test_a_pipe_gets_every_value(app: Path) -> None:
    """What a pipe reads has one option per line, the interceptors last."""
    done = workerkit("list", "app", cwd=app)

    lines = done.stdout.splitlines()
    assert lines[0] == "OrderPlaced  amqp  orders, orders/priority  (app.consumers.OrderPlaced)"
    assert lines[-1] == "    interceptors = app.container.timed, audit"
    assert "    timeout = 300.0  [default]" in lines


def test_forced_colours(app: Path) -> None:
    """`FORCE_COLOR` makes a pipe a terminal."""
    done = workerkit("list", "app", cwd=app, FORCE_COLOR="1", TERM="xterm", COLUMNS="80")

    assert COLOUR.search(done.stdout)
    assert "default" not in done.stdout.replace("have their default", "")


@pytest.mark.parametrize("arguments", [["list", "app"], ["run", "app", "--only", "Unknown"]])
def test_a_pipe_needs_no_rich(app: Path, arguments: list[str]) -> None:
    """What a pipe reads is printed without an import of rich, and so is the log of a run."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RICH, *arguments],
        cwd=app,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, "rich" in done.stderr) == (2 * ("run" in arguments), False)


def test_check_as_json(app: Path) -> None:
    """`check --json` has the consumers, or the problems with exit code 2."""
    good = workerkit("check", "app", "--json", cwd=app)
    bad = workerkit("check", "app", "--json", cwd=app, WORKERKIT_OPS__PORT="x")

    result = {"package": "app", "consumers": ["OrderPlaced"], "problems": [], "warnings": []}
    assert (good.returncode, json.loads(good.stdout), good.stderr) == (0, result, "")
    problems = json.loads(bad.stdout)["problems"]
    assert (bad.returncode, bad.stderr.splitlines()) == (2, problems)
    assert len(problems) == 1


async def test_publish_shows_that_it_waits(tmp_path: Path) -> None:
    """At a terminal, a publish that takes longer than a second shows what it waits for."""
    opened: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: opened.append(writer), "127.0.0.1", 0)
    async with server:
        url = f"amqp://u:{SECRET}@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with at_terminal("publish", url, "orders", "x", cwd=tmp_path) as terminal:
            await terminal.shows("waiting for the broker to accept the message to")
            terminal.type(CTRL_C)
            code = await terminal.ended()
        for writer in opened:
            writer.close()

    assert code != 0
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    assert SECRET not in terminal.text


async def test_publish_as_json(tmp_path: Path) -> None:
    """`publish --json` prints an object with the message id."""
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("orders")
        async with started("publish", broker.url, "orders", "x", "--json", cwd=tmp_path) as publish:
            assert await publish.ended() == 0
        letter = await client.take("orders")

    assert json.loads(publish.out[0]) == {"message_id": letter.properties.message_id}


async def test_dead_letters(tmp_path: Path) -> None:
    """The list is a table whose texts are no markup; a replay shows a bar while it runs.

    A message id of 32 characters, which is to be copied, fits on one line of 80 columns.
    """
    message_id = "f60c7fcdac55476baa5a5252e9697ca4"
    evidence: Any = {
        "x-workerkit-error": "shop.errors.PaymentDeclined",
        "x-workerkit-reason": "[red]no\x1b[31m money",
        "x-workerkit-consumer": "OrderPlaced",
        "x-workerkit-attempt": 4,
        "x-workerkit-failed-at": "2026-01-31T12:00:07+00:00",
    }
    properties = Basic.Properties(message_id=message_id, headers=evidence)
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("orders", "orders.dlq")
        await client.send("orders.dlq", *[b"x" * 118] * 8, properties=properties)
        target = ["--url", broker.url, "orders"]
        listed = await shown(tmp_path, "dead-letters", "list", *target, "--limit", "1")
        slowly = ["replay", *target, "--yes", "--rate", "4"]
        async with at_terminal("dead-letters", *slowly, cwd=tmp_path) as replayed:
            assert await replayed.ended() == 0

    assert [re.split("  +", line.strip()) for line in listed.lines] == [
        ["FAILED AT"],
        ["(UTC)", "CONSUMER", "ERROR, REASON, ID", "ATTEMPT", "REPLAYS"],
        ["2026-01-31", "OrderPlaced", "shop.errors.PaymentDeclined", "4", "0"],
        ["12:00:07", r"[red]no\x1b[31m money"],
        [message_id],
        ["7 more; increase --limit to see all"],
    ]
    assert re.search(r"━ \d replayed, \d of 8 read", replayed.text)
    assert replayed.lines[-1].endswith("8 of 8 dead letters of 'orders' replayed")


def test_completion(app: Path) -> None:
    """Bash completes commands and packages, after `workerkit --install-completion` or this."""
    script = """
        eval "$(workerkit --show-completion)"
        complete_line() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _workerkit_completion workerkit
            echo "${COMPREPLY[@]}"
        }
        complete_line workerkit sett
        complete_line workerkit list ap
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=app,
        env=environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout.split(), done.stderr) == (["settings", "app"], "")
