"""Processes at known addresses, which answer with anything, or not at all."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest

from tests.ports import free_port
from workerkit.console.model import Command, CommandReport, CommandResult, Operator
from workerkit.console.reports import ConsumerReport, ProcessReport
from workerkit.console.targets import Targets
from workerkit.tasks import cancel_and_wait

ALICE = Operator(user="alice", role="operate", address="192.0.2.1")
PAUSE = Command(action="pause", consumer="Orders")
REPORT = ProcessReport(
    id="one",
    app="shop",
    host="h",
    pid=1,
    started=datetime(2026, 12, 1, tzinfo=UTC),
    consumers=[ConsumerReport(name="Orders", kind="amqp")],
)

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def response(status: str, body: bytes, *headers: str) -> bytes:
    """Return a response of HTTP/1.1."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def server(answer: bytes | Answer, heads: list[bytes] | None = None) -> AsyncIterator[str]:
    """Answer each request inside the block in the same way, and yield the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            await answer(head, writer)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(serve(reader, writer))
        tasks.append(serving)
        await asyncio.wait([serving])
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    tasks: list[asyncio.Task[None]] = []
    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await cancel_and_wait(tasks)


@asynccontextmanager
async def targets(*urls: str, token: str | None = None) -> AsyncIterator[Targets]:
    """Close them after the block."""
    made = Targets(lambda: urls, token)
    try:
        yield made
    finally:
        await made.close()


GOOD = response("200 OK", REPORT.model_dump_json().encode())
DEEP = b"[" * 200_000
ESCAPES = json.dumps({"detail": "no\n\x1b[31mred \u202e amqp://shop:secret@broker"}).encode()


async def test_the_answers_of_some_do_not_depend_on_others() -> None:
    """Who does not answer, or answers with anything else, is a problem in words."""

    async def hang(head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    nowhere = f"http://127.0.0.1:{free_port()}"
    async with (
        server(GOOD) as good,
        server(hang) as hangs,
        server(response("200 OK", DEEP)) as deep,
        server(response("200 OK", b"{}")) as other,
        server(b"nonsense\r\n\r\n") as nonsense,
        targets(good, hangs, deep, other, nonsense, nowhere) as all_targets,
    ):
        began = asyncio.get_running_loop().time()
        answers = await all_targets.reports()
        seconds = asyncio.get_running_loop().time() - began
        assert [each.id for each in answers.reports] == ["one"]
        assert answers.silent == []
        assert [each.partition(": ")[0] for each in answers.problems] == [
            hangs,
            deep,
            other,
            nonsense,
            nowhere,
        ]
        assert f"{hangs}: no answer within 1 s" in answers.problems
        assert f"{other}: the answer is no report of a process" in answers.problems
        assert seconds < 5


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (response("401 Unauthorized", b"{}"), "status 401; set the token of the workers in OPS__T"),
        (response("403 Forbidden", DEEP), "status 403; set the token of the workers in OPS__TOKEN"),
        (response("500 No", b'{"title": "broken"}'), "status 500: broken"),
        (response("503 No", ESCAPES), r"status 503: no\n\x1b[31mred \u202e amqp://shop:***@broker"),
        (response("302 Found", b"", "Location: http://127.0.0.1:1/"), "status 302"),
        (response("200 OK", b" " * (6 * 1024 * 1024)), "the answer has more than 5242880 bytes"),
        (
            response(
                "200 OK", zlib.compress(b" " * (64 * 1024 * 1024)), "Content-Encoding: deflate"
            ),
            "the answer has more than 5242880 bytes",
        ),
    ],
    ids=["401", "deep", "500", "escapes", "redirect", "large", "compressed"],
)
async def test_what_else_a_server_answers(answer: bytes, problem: str) -> None:
    """It is a sentence on one line, without secrets and without control characters."""
    async with server(answer) as url, targets(url) as one:
        (found,) = (await one.reports()).problems
        assert found.startswith(f"{url}: ")
        assert problem in found
        assert found.isprintable()


async def test_commands() -> None:
    """They go once to each process that is meant, with the token and who has sent them."""
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        result = CommandResult(process="one", ok=True, text="paused")
        done = CommandReport(asked=1, answered=1, text="", results=[result])
        body = done.model_dump_json().encode()
        writer.write(response("200 OK", body) if head.startswith(b"POST") else GOOD)

    async with (
        server(answer, heads) as url,
        targets(url, f"{url}/.", token="a" * 20) as one,
    ):
        assert [each.ok for each in await one.execute(PAUSE, ALICE)] == [True]
        other = PAUSE.model_copy(update={"processes": ["two"]})
        assert await one.execute(other, ALICE) == []

    posts = [each for each in heads if each.startswith(b"POST")]
    assert len(posts) == 1
    assert b"Authorization: Bearer aaaaaaaaaaaaaaaaaaaa\r\n" in posts[0]
    assert b"alice" in posts[0]


async def test_one_that_has_ended_is_silent() -> None:
    """It is known from its last answer, and a command says that it did not answer."""
    async with targets(url := f"http://127.0.0.1:{free_port()}") as one:
        one._known[url] = "one"
        assert (await one.reports()).silent == ["one"]
        (result,) = await one.execute(PAUSE, ALICE)
        assert (result.process, result.ok, result.answered) == ("one", False, False)
