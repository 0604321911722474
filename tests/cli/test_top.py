"""`workerkit top`, at a terminal and for a pipe, on a server that responds as a worker does."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.command import started, workerkit
from tests.ports import free_port
from tests.pseudo_terminal import CTRL_C, Terminal, at_terminal
from tests.unit.test_safe_text import NASTY
from tests.unit.test_top_lines import consumer, fleet
from tests.waiting import eventually

TAKE, RETURN = "\x1b[?1049h", "\x1b[?1049l"
HOME, END = "\x1b[H", "\x1b[0J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
CTRL_Z, CTRL_S, CTRL_BACKSLASH = "\x1a", "\x13", "\x1c"
TOKEN = "0123456789abcdef"


class Worker:
    """The ops server of a worker, with a console.

    Attributes:
        url: Its address.
        status: Of the next responses.
        hangs: Whether the next requests get no response.
        body: Of the next responses.
        requests: The headers of all requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.hangs = False
        self.body = fleet(2, interval=0.2).model_dump_json()
        self.requests: list[Any] = []

    async def respond(self, request: web.Request) -> web.Response:
        """Respond with the view."""
        self.requests.append(request.headers)
        if self.hangs:
            await asyncio.Event().wait()
        return web.Response(
            text=self.body,
            status=self.status,
            content_type="application/json",
            headers={"Location": "/api/v1/fleet"} if self.status == 307 else {},
        )


@asynccontextmanager
async def serving() -> AsyncIterator[Worker]:
    """Serve a view inside the block."""
    worker = Worker()
    application = web.Application()
    application.router.add_get("/api/v1/fleet", worker.respond)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        worker.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield worker
    finally:
        await runner.cleanup()


@asynccontextmanager
async def top(
    worker: Worker,
    cwd: Path,
    *arguments: str,
    width: int = 80,
    keyboard: bool = True,
    **variables: str,
) -> AsyncIterator[Terminal]:
    """Run it at a terminal inside the block."""
    command = ("top", "--targets", worker.url, "--interval", "0.2", *arguments)
    async with at_terminal(
        *command, cwd=cwd, width=width, keyboard=keyboard, **variables
    ) as terminal:
        yield terminal


def screen(terminal: Terminal) -> list[str]:
    """Return the lines of the last complete screen."""
    complete = terminal.output.rpartition(END)[0]
    shown = Terminal.text_of(complete.rsplit(HOME, 1)[-1])
    return [line.rstrip() for line in shown.split("\n")]


async def once(worker: Worker, cwd: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run it for a pipe; return the exit code and what it has written."""
    command = ("top", "--targets", worker.url, "--interval", "0.2", *arguments)
    async with started(*command, cwd=cwd, uvloop=True, **variables) as run:
        code = await run.ended()
    return code, "\n".join([*run.out, *run.err])


@pytest.mark.parametrize("ends", ["q", CTRL_C, signal.SIGTERM])
async def test_the_screen_until_somebody_leaves_it(
    ends: str | signal.Signals, tmp_path: Path
) -> None:
    """It follows the worker, and then the terminal is as it was before."""
    async with serving() as worker, top(worker, tmp_path) as terminal:
        await terminal.shows("Consumer1")
        before = terminal.mode
        worker.body = fleet(3, app="later").model_dump_json()
        await eventually(lambda: screen(terminal)[0].startswith("later  3 of 4"))
        last = screen(terminal)
        if isinstance(ends, str):
            terminal.type(ends)
        else:
            terminal.send(ends)
        code = await terminal.ended()

    assert code == 0
    assert any(line.startswith("Consumer2  ready") for line in last)
    assert last[-1].startswith("q quit   s sort: state")
    assert (terminal.output.count(TAKE), terminal.output.count(RETURN)) == (1, 1)
    assert terminal.output.index(HIDE_CURSOR) < terminal.output.rindex(SHOW_CURSOR)
    assert terminal.output.endswith(RETURN)
    assert "Traceback" not in terminal.text
    assert before != terminal.first_mode
    assert terminal.last_mode == terminal.first_mode


async def test_keys_sort_the_consumers(tmp_path: Path) -> None:
    """`s` selects the next order; other keys, also those of several characters, do nothing."""
    rows = [consumer(1, state="ready"), consumer(2, state="waiting")]
    async with serving() as worker:
        worker.body = fleet(rows).model_dump_json()
        async with top(worker, tmp_path) as terminal:
            await eventually(lambda: order(screen(terminal)))
            by_state = screen(terminal)
            for keys in ("\x1b[A", "\x1b[19~", "x", "\x00", "s"):
                terminal.type(keys)
            await eventually(lambda: "s sort: name" in screen(terminal)[-1])
            by_name = screen(terminal)
            terminal.type("q")
            code = await terminal.ended()

    assert code == 0
    assert order(by_state) == ["Consumer2", "Consumer1"]
    assert order(by_name) == ["Consumer1", "Consumer2"]


def order(lines: list[str]) -> list[str]:
    """Return the names of the consumers."""
    return [line.split()[0] for line in lines if line.startswith("Consumer")]


async def test_it_follows_the_size_of_the_window(tmp_path: Path) -> None:
    """A narrow window gets fewer columns, a low one fewer rows, at once."""
    async with serving() as worker:
        worker.body = fleet(100).model_dump_json()
        async with top(worker, tmp_path, "--interval", "3600", width=160) as terminal:
            await terminal.shows("RETRIED")
            terminal.resize(60, 20)
            await eventually(lambda: len(screen(terminal)) == 20)
            narrow = screen(terminal)
            terminal.resize(200, 50)
            await eventually(lambda: len(screen(terminal)) == 50)
            wide = screen(terminal)
            terminal.type("q")
            await terminal.ended()

    assert not [line for line in narrow if "KIND" in line or len(line) > 60]
    assert [line for line in wide if "KIND" in line]
    assert "more consumers do not fit here" in narrow


async def test_a_worker_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """Its last state stays on the screen, with what prevents a newer one."""
    async with serving() as worker, top(worker, tmp_path) as terminal:
        await terminal.shows("Consumer1")
        worker.status = 503
        await eventually(lambda: "status 503" in "".join(screen(terminal)))
        failed = screen(terminal)
        worker.status = 200
        await eventually(lambda: "status 503" not in "".join(screen(terminal)))
        terminal.type("q")
        await terminal.ended()

    assert [line for line in failed if line.startswith("Consumer1")]


async def test_fp5_hostile_texts_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Names and errors of processes move no cursor, set no colour, and forge no line."""
    hostile = NASTY.encode(errors="replace").decode()  # JSON has no lone surrogates.
    async with serving() as worker:
        worker.body = fleet(2, hostile + "\x1b]0;title\x07\x1b[31m\x9b2J").model_dump_json()
        async with top(worker, tmp_path, NO_COLOR="1") as terminal:
            await terminal.shows("q quit")
            terminal.type("q")
            await terminal.ended()
        _, piped = await once(worker, tmp_path)

    drawn = terminal.output[terminal.output.index(HOME) :]
    assert "\x1b]" not in terminal.output
    assert "\x1b[31m" not in drawn
    assert "\x9b" not in terminal.output
    assert "\x07" not in terminal.output
    assert [line for line in piped.split("\n") if not line.isprintable()] == []


async def test_no_color(tmp_path: Path) -> None:
    """Nothing is coloured with NO_COLOR."""
    async with serving() as worker, top(worker, tmp_path, NO_COLOR="1") as terminal:
        await terminal.shows("q quit")
        terminal.type("q")
        await terminal.ended()

    assert "\x1b[32m" not in terminal.output
    assert "\x1b[33m" not in terminal.output


async def test_a_pipe_gets_two_samples_as_text(tmp_path: Path) -> None:
    """The rates of the second are printed, without escape sequences."""
    async with serving() as worker:
        code, text = await once(worker, tmp_path)

    assert code == 0
    assert len(worker.requests) == 2
    assert text.isprintable() or "\x1b" not in text
    assert "Consumer1  amqp  ready" in text


@pytest.mark.parametrize("variables", [{}, {"TERM": "dumb"}])
async def test_once_at_a_terminal(variables: dict[str, str], tmp_path: Path) -> None:
    """It prints without taking the screen, also at a terminal that has none."""
    arguments = () if variables else ("--once",)
    async with (
        serving() as worker,
        top(worker, tmp_path, *arguments, width=80, keyboard=True, **variables) as terminal,
    ):
        code = await terminal.ended()

    assert code == 0
    assert TAKE not in terminal.output
    assert [line for line in terminal.lines if line.startswith("Consumer1  ready")]


async def test_json(tmp_path: Path) -> None:
    """It is the view that the API serves."""
    async with serving() as worker:
        code, text = await once(worker, tmp_path, "--json")

    assert code == 0
    assert json.loads(text) == json.loads(worker.body)


@pytest.mark.parametrize("name", ["TOKEN", "OPERATE_TOKEN", "VIEW_TOKEN"])
async def test_a_token_of_the_environment_is_sent(name: str, tmp_path: Path) -> None:
    """Any of the tokens may look."""
    async with serving() as worker:
        code, _ = await once(worker, tmp_path, **{f"WORKERKIT_OPS__{name}": TOKEN})

    assert code == 0
    assert {each["Authorization"] for each in worker.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, "", "it needs a token: set WORKERKIT_OPS__TOKEN"),
        (403, "", "the token is not allowed to look"),
        (404, "", "no console there: OPS__CONSOLE is off"),
        (307, "", "status 307"),
        (200, "<html>", "the response is not that of a console"),
        (200, "{}", "the response is not that of a console"),
        (200, "[" * 17_000_000, "the response is too large"),
    ],
)
async def test_a_server_that_is_no_console(
    status: int, body: str, text: str, tmp_path: Path
) -> None:
    """One line says what to do; a redirect is not followed, because the request has a token."""
    async with serving() as worker:
        worker.status, worker.body = status, body
        code, said = await once(worker, tmp_path, WORKERKIT_OPS__TOKEN=TOKEN)

    assert code == 1
    assert said.startswith(f"{worker.url}: {text}")
    assert "\n" not in said
    assert len(worker.requests) == 1


def test_nothing_responds(tmp_path: Path) -> None:
    """The port of the settings is asked, and what else can be named is said."""
    port = str(free_port())

    done = workerkit("top", cwd=tmp_path, WORKERKIT_OPS__PORT=port, WORKERKIT_OPS__HOST="0.0.0.0")

    assert done.returncode == 1
    assert done.stderr == (
        f"http://127.0.0.1:{port}: no response: Connection refused; name running workers with"
        " PACKAGE, --url or --targets\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--targets", "10.0.0.7:8081"], "should be an address such as http://HOST:PORT"),
        (["--targets", "ftp://h:1"], "should be an address such as http://HOST:PORT"),
        (["--targets", "http://[::1"], "should be an address such as http://HOST:PORT"),
        (["--targets", "http://u:hunter2@h:1"], "has a user; set a token"),
        (["--targets", "http://h:1/?token=hunter2"], "should end after the port"),
        (["--targets", " , "], "--targets names no address"),
        (["--url", "http://h"], "should start with amqp:// or amqps://"),
        (["--url", "h"], "--url should start with amqp:// or amqps://"),
        (["--url", "amqp://u:hunter2@h"], "--url needs --app"),
        (["amqp://u:hunter2@h"], "--url needs --app"),
        (["app", "--url", "amqp://h", "--app", "app"], "leave one of them out"),
        (["--url", "amqp://h", "--app", "a b\x1b[31m"], "should have at most 100 letters"),
        (["missing"], "missing"),
    ],
)
def test_wrong_options(arguments: list[str], text: str, tmp_path: Path) -> None:
    """One line says what would be right, without passwords."""
    done = workerkit("top", *arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().isprintable()
    assert "hunter2" not in done.stderr


async def test_a_server_that_hangs_does_not_keep_the_terminal(tmp_path: Path) -> None:
    """The request that waits is cancelled; keys that stop programs and output have no effect."""
    async with serving() as worker, top(worker, tmp_path) as terminal:
        await terminal.shows("Consumer1")
        worker.hangs = True
        seen = len(worker.requests)
        await eventually(lambda: len(worker.requests) > seen)
        for key in (CTRL_Z, CTRL_S, CTRL_BACKSLASH, "s"):
            terminal.type(key)
        await eventually(lambda: "s sort: name" in screen(terminal)[-1])
        terminal.type(CTRL_C)
        code = await terminal.ended()

    assert code == 0
    assert terminal.output.endswith(RETURN)
    assert terminal.last_mode == terminal.first_mode


async def test_without_a_keyboard(tmp_path: Path) -> None:
    """It runs until a signal if its standard input is no terminal."""
    async with serving() as worker, top(worker, tmp_path, keyboard=False) as terminal:
        await terminal.shows("Consumer1")
        terminal.type("q")
        seen = len(worker.requests)
        await eventually(lambda: len(worker.requests) > seen + 2)
        terminal.send(signal.SIGTERM)
        code = await terminal.ended()

    assert code == 0
    assert terminal.output.endswith(RETURN)
