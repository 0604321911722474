"""Output of commands: foreign texts cannot move the cursor, add colours or forge lines."""

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from tests.command import process, running, workerkit, write_package
from tests.unit.test_safe_text import FORGED, NASTY, TEXTS
from workerkit.http.problem import problem

COLOURED = "a\x1b[31m\x9b2J\u202e"
CONSUMER = """
    from workerkit import AMQPConsumer

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None: ...
"""
FAILING = f"raise ValueError({NASTY!r} + 'amqp://u:hunter2@h')"


def shown(*texts: str) -> list[str]:
    """Return the lines of an output, all of them harmless."""
    lines = [line for text in texts for line in text.split("\n")]
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if line.startswith(FORGED)] == []
    return lines


@pytest.mark.parametrize("command", ["list", "settings", "check"])
def test_fp5_a_value_of_a_setting_is_shown_escaped(tmp_path: Path, command: str) -> None:
    """Control characters in a variable are shown, and have no effect on the terminal."""
    write_package(tmp_path, consumers=CONSUMER)
    variables = {
        "WORKERKIT_CONSUMERS__ORDERS__QUEUES": f"{COLOURED},b",
        "WORKERKIT_CURSORS": COLOURED,
        f"WORKERKIT_{'X' if command == 'check' else 'HTTP__HOST'}": COLOURED,
    }

    done = workerkit(command, "app", cwd=tmp_path, **variables)

    lines = shown(done.stdout, done.stderr)
    assert [line for line in lines if r"a\x1b[31m" in line] or command == "check"


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("traceback", [False, True])
def test_fp5_a_fault_is_shown_escaped(tmp_path: Path, command: str, traceback: bool) -> None:
    """A fault is one line, its traceback is indented, and neither has a password of a URL."""
    write_package(tmp_path, consumers=CONSUMER, broken=FAILING)

    done = workerkit(command, "app", *["--traceback"] * traceback, cwd=tmp_path)

    lines = shown(done.stderr.removesuffix("\n"), done.stdout)
    assert done.returncode == 2
    assert "hunter2" not in done.stderr
    assert "amqp://***@h" in done.stderr
    assert traceback == (len(lines) > 2)
    assert traceback == ("Traceback (most recent call last):" in lines)


@asynccontextmanager
async def answering(reasons: object) -> AsyncIterator[int]:
    """A server that gives *reasons* on every page, and its port."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"reasons": reasons}, status=503)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_fp5_a_probe_shows_what_it_was_problem_escaped(tmp_path: Path) -> None:
    """Another server on the port may respond with anything."""
    async with (
        answering([NASTY]) as port,
        process(
            sys.executable,
            "-m",
            "workerkit",
            "probe",
            "ready",
            "--port",
            str(port),
            "--timeout",
            "30",
            cwd=tmp_path,
        ) as probe,
    ):
        code = await probe.ended()

    assert (code, len(probe.err)) == (69, 1)
    assert shown(*probe.err)[0].startswith("ready: a ")


@given(TEXTS, TEXTS)
@example(NASTY, NASTY)
def test_fp5_a_problem_page_is_printable(detail: str, name: str) -> None:
    """A page may be printed on a terminal; its content is unchanged."""
    page = problem(422, detail, parts=[{"in": "query", "name": name, "detail": detail}])

    assert isinstance(page.body, bytes)
    assert page.body.decode("ascii").isprintable()
    found = json.loads(page.body)
    assert found.get("detail", "") == detail
    assert found["errors"][0]["name"] == name


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_fp5_a_problem_page_keeps_any_language(detail: str) -> None:
    """Text of any language survives."""
    body = problem(400, detail).body

    assert isinstance(body, bytes)
    assert json.loads(body).get("detail", "") == detail


async def test_fp5_a_request_forges_no_line_of_a_log(tmp_path: Path) -> None:
    """Path, header and cookie of a request, quoted by a handler and by a middleware that fail."""
    views = """
        from aiohttp import web
        from workerkit import HTTPView

        class Echo(HTTPView):
            routes = ["/{path:[^/]*}"]

            async def get(self, request: web.Request) -> None:
                raise ValueError(request.path + request.headers.get("X-A", ""))
    """
    container = """
        import logging
        from aiohttp import web
        from dependency_injector import providers
        from workerkit import WorkerContainer

        @web.middleware
        async def failing(request, handler):
            logging.getLogger("app").info("got %s", request.path, extra={"path": request.path})
            if request.query:
                raise ValueError(request.query_string)
            return await handler(request)

        class Container(WorkerContainer):
            middlewares = providers.List(providers.Object(failing))
    """
    name = write_package(tmp_path, views=views, container=container)
    path = quote(NASTY, errors="surrogatepass")
    variables: dict[str, Any] = {"WORKERKIT_HTTP__PORT": "0"}
    async with running(name, cwd=tmp_path, **variables) as app, aiohttp.ClientSession() as session:
        at = (await app.says("listening")).rpartition("url=")[2].strip('"')
        for query in ("", f"?{path}"):
            url = URL(f"{at}/{path}{query}", encoded=True)
            async with session.get(url, headers={"X-A": "a\x80\x9b\u202e"}) as answer:
                assert answer.status == 500
                body = await answer.text()
                assert body.isprintable()
        await app.says("request failed")
        await app.says("middleware failed")
        app.send(signal.SIGTERM)
        await app.ended()

    lines = shown(*app.err)
    assert [line for line in lines if not line.startswith(("2", "  "))] == []
    assert len([line for line in lines if line.startswith("2") and ": got /a" in line]) == 2
