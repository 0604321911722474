"""A stream that is opened by a method that is not idempotent is opened once."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import running, workerkit, write_package
from tests.ports import free_port
from tests.raw_server import CHUNKED, raw_server
from tests.records import errors, fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import ConnectionLost, Runner, SSEConsumer
from workerkit.cli.probe import probe
from workerkit.health import Readiness, State
from workerkit.testing import sse_server
from workerkit.testing.sse import SSEServer

POST: dict[str, Any] = {"json": {"prompt": "hello"}}


def has_ended(runner: Runner) -> bool:
    """Return whether the only stream of the only consumer has ended."""
    return runner.health[0].state is State.ENDED


async def test_fe1_a_clean_end_ends_a_stream_opened_by_post(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no other request, and the process stays ready; there is one INFO."""
    caplog.set_level(logging.INFO)
    consumer, handled = collector(**POST)

    async with sse_server() as server, consuming(server, consumer) as runner:
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        server.end()
        await eventually(lambda: has_ended(runner))
        ready = runner.ready, Readiness(list(runner.health), started=True).obstacles()

    assert ready == (True, [])
    assert len(server.requests) == 1
    assert [each["reason"] for each in fields(caplog, "stream has ended")] == [
        "the server ended it"
    ]
    assert (errors(caplog), fields(caplog, "stream lost")) == ([], [])


async def test_fe1_a_clean_end_without_events_ends_it_too() -> None:
    """A complete response without an event had its effect as well."""
    consumer, _ = collector(**POST)

    async with sse_server() as server, consuming(server, consumer) as runner:
        server.end()
        await eventually(lambda: has_ended(runner))

    assert len(server.requests) == 1


async def test_fe1_a_loss_in_the_middle_is_an_error_and_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One ERROR with the exception; the hook is called; the process stays ready."""
    told: list[Exception] = []

    class Answer(SSEConsumer):
        connection = "server"
        json = {"prompt": "hello"}

        async def handle(self, data: str) -> None: ...

        async def on_connection_error(self, error: Exception, attempt: int) -> None:
            told.append(error)

    async with sse_server() as server, consuming(server, Answer) as runner:
        await server.send("a")
        await eventually(lambda: runner.health[0].parts[0].last_event)
        server.cut()
        await eventually(lambda: has_ended(runner) and told)
        reason, ready = runner.health[0].reason, runner.ready

    (lost,) = fields(caplog, "stream lost: it is not opened again")
    assert (lost["levelname"], lost["exc_info"][0]) == ("ERROR", ConnectionLost)
    assert lost["reason"] == reason == str(told[0])
    assert ready
    assert len(server.requests) == 1


async def test_fe1_silence_in_the_middle_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that begins, and then is silent for `idle_timeout`, is not reopened."""
    consumer, handled = collector(idle_timeout=0.3, **POST)

    async with sse_server() as server, consuming(server, consumer) as runner:
        await server.send("a")
        await eventually(lambda: has_ended(runner))

    assert handled == ["a"]
    assert len(server.requests) == 1
    assert errors(caplog) == ["stream lost: it is not opened again"]


async def test_fe1_done_ends_a_stream_and_is_not_delivered() -> None:
    """Neither are later events; the worker closes the connection."""
    consumer, handled = collector(done="[DONE]", **POST)

    async with sse_server() as server, consuming(server, consumer) as runner:
        await server.raw(b"data: a\n\ndata: [DONE]\n\ndata: never\n\n")
        await eventually(lambda: has_ended(runner))
        await eventually(lambda: handled == ["a"])
        await eventually(lambda: not server.clients)
        reason = runner.health[0].reason

    assert handled == ["a"]
    assert reason == "done"
    assert len(server.requests) == 1


async def test_fe1_the_cursor_moves_past_done(tmp_path: Path) -> None:
    """A new process resumes after it."""
    one, handled = collector(done="[DONE]")
    async with sse_server() as server:
        async with consuming(server, one, directory=tmp_path) as runner:
            await server.send("a")
            await server.send("[DONE]")
            await eventually(lambda: has_ended(runner) and handled == ["a"])
        again, _ = collector(done="[DONE]")
        async with consuming(server, again, directory=tmp_path):
            await server.client(2)

    assert server.opened[1].last_event_id == "2"


async def test_fe1_connecting_is_retried_with_retry_after(caplog: pytest.LogCaptureFixture) -> None:
    """Before the first event a failed attempt has no effect, and is repeated."""
    consumer, handled = collector(done="[DONE]", **POST)

    async with sse_server() as server:
        server.refuse(429, times=1, headers={"Retry-After": "1"})
        before = time.monotonic()
        async with consuming(server, consumer) as runner:
            seconds = time.monotonic() - before
            server.cut()
            await server.client(2)
            await server.send("a")
            await server.send("[DONE]")
            await eventually(lambda: has_ended(runner) and handled)

    assert seconds >= 1.0
    assert [each.method for each in server.requests] == ["POST"] * 3
    assert len(fields(caplog, "connection failed")) == 1
    assert len(fields(caplog, "stream lost")) == 1


@pytest.mark.parametrize("lose", [SSEServer.cut, SSEServer.end], ids=["reset", "clean end"])
async def test_fe1_reopen_repeats_a_post(lose: Callable[[SSEServer], None]) -> None:
    """With `reopen = True` a POST is repeated, after the last event."""
    consumer, handled = collector(reopen=True, done="[DONE]", **POST)

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        lose(server)
        await server.client(2)
        await server.send("[DONE]")
        await server.client(3)
        await server.send("b")
        await eventually(lambda: handled == ["a", "b"])

    assert [each.last_event_id for each in server.opened] == [None, "1", "2"]


@pytest.mark.parametrize("options", [{}, {"method": "PUT", "json": {}}, {"done": "[DONE]"}])
async def test_fe1_idempotent_methods_are_reopened(options: dict[str, Any]) -> None:
    """GET and PUT are repeated after a loss and after a clean end."""
    consumer, handled = collector(**options)

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        server.end()
        await server.client(2)
        server.cut()
        await server.client(3)


async def test_fe1_reopen_false_with_a_get() -> None:
    """`reopen = False` applies to every method."""
    consumer, _ = collector(reopen=False)

    async with sse_server() as server, consuming(server, consumer) as runner:
        await server.send("a")
        server.end()
        await eventually(lambda: has_ended(runner))

    assert len(server.requests) == 1


ENDS = {
    "clean end": b"0\r\n\r\n",
    "cut off": b"",
    "half an event": b"9\r\ndata: hal\r\n",
    "half a chunk": b"fff\r\ndata: x",
    "garbage": b"zzz\r\n",
}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    failures=st.lists(st.sampled_from([b"", b"HTTP/1.1 503 Busy\r\n\r\n", CHUNKED]), max_size=1),
    events=st.integers(1, 30),
    end=st.sampled_from(sorted(ENDS)),
)
def test_fe1_there_is_one_request_for_any_end(failures: list[bytes], events: int, end: str) -> None:
    """After the first event there is no other request, and every complete event is handled."""

    def answer(number: int, head: bytes) -> bytes:
        if number <= len(failures):
            return failures[number - 1]
        return CHUNKED + b"9\r\ndata: x\n\n\r\n" * events

    async def run() -> int:
        consumer, handled = collector(**POST)
        async with (
            raw_server(answer, hold_from=len(failures) + 1) as server,
            consuming(server.url, consumer, ready=False) as runner,
        ):
            await eventually(lambda: handled == ["x"] * events, what=f"{handled}")
            server.open[0].write(ENDS[end])
            server.open[0].close()
            await eventually(lambda: has_ended(runner))
        return len(server.heads)

    assert asyncio.run(run()) == len(failures) + 1


def test_fe1_check_warns_about_a_post_without_done_and_reopen(tmp_path: Path) -> None:
    """The warning names class and line and what to write; it is no fault."""
    package = write_package(
        tmp_path,
        consumers="""
            from workerkit import SSEConsumer

            class Silent(SSEConsumer):
                url = "http://h/"
                json = {}
                async def handle(self, data: str) -> None: ...

            class Done(Silent):
                done = "[DONE]"

            class Once(Silent):
                reopen = False

            class Plain(SSEConsumer):
                url = "http://h/"
                async def handle(self, data: str) -> None: ...
        """,
    )

    found = workerkit("check", package, cwd=tmp_path)
    variable = {"WORKERKIT_CONSUMERS__SILENT__DONE": "[DONE]"}
    said = workerkit("check", package, cwd=tmp_path, **variable)

    assert (found.returncode, found.stdout) == (0, "app: 4 consumers, no problems\n")
    (warning,) = found.stderr.splitlines()
    assert warning.startswith(
        "warning: app.consumers.Silent (consumers.py:4): the stream is opened"
    )
    assert "set done to the data that ends it, such as '[DONE]', or reopen to True" in warning
    assert (said.returncode, said.stderr) == (0, "")


async def test_fe1_a_process_whose_streams_have_ended_keeps_running(tmp_path: Path) -> None:
    """It is ready, its page says `ended`, and it stops cleanly on request."""
    port = free_port()
    async with sse_server() as server:
        await server.send("a")
        await server.send("[DONE]")
        package = write_package(
            tmp_path,
            consumers=f"""
                from workerkit import SSEConsumer

                class Answer(SSEConsumer):
                    url = {server.url!r}
                    json = {{}}
                    async def handle(self, data: str) -> None:
                        print("got", data, flush=True)
            """,
        )
        variables: dict[str, Any] = {
            "WORKERKIT_OPS__ENABLED": "true",
            "WORKERKIT_OPS__PORT": str(port),
            "WORKERKIT_CONSUMERS__ANSWER__DONE": "[DONE]",
        }
        async with running(package, cwd=tmp_path, **variables) as application:
            await application.says("stream has ended")
            await application.says("got a")
            arguments = ["ready", "--port", str(port), "--timeout", "30"]
            code = await asyncio.to_thread(probe, arguments)
            application.send(signal.SIGTERM)
            ended = await application.ended()

    assert (code, ended) == (0, 0)
    assert len(server.requests) == 1
    assert list(application.lines("got ")) == ["a"]
