"""FP4: a child that user code forks is independent of the worker."""

import asyncio
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.client import Client
from tests.command import Application, running, write_package
from tests.ports import free_port
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

# Each handler forks once, in its own way; the child writes its number and sleeps.
FORKS = """
    import multiprocessing
    import os
    import signal
    import subprocess
    import sys
    import time

    from workerkit import AMQPConsumer, HTTPView

    forking = multiprocessing.get_context("fork")


    def sleep(what):
        # One line in one write: parent and child share the pipe.
        os.write(1, f"child {what} {os.getpid()}\\n".encode())
        time.sleep(600)


    def start(what):
        daemon = what == "daemon"
        process = forking.Process(target=sleep, args=(what,), daemon=daemon)
        process.start()
        return process


    def fork(what):
        if os.fork() == 0:
            try:
                sleep(what)
            finally:
                os._exit(0)


    class Forks(AMQPConsumer):
        queues = ["forks"]

        async def handle(self, what: str) -> None:
            if what == "daemon":
                start(what)
            elif what == "raw":
                fork(what)
            elif what == "preexec":
                command = [sys.executable, "-c", "import os, time; print('child preexec',"
                           " os.getpid(), flush=True); time.sleep(600)"]
                subprocess.Popen(command, preexec_fn=lambda: None)
            elif what == "returns":
                pid = os.fork()
                if pid:
                    os.write(1, f"child returns {pid}\\n".encode())


    class Threads(AMQPConsumer):
        queues = ["threads"]

        def handle(self, what: str) -> None:
            fork(what)


    class Hello(HTTPView):
        routes = ["/"]

        async def get(self) -> str:
            return "hello"
"""


async def child(app: Application, what: str) -> int:
    """Return the id of the process that a handler has forked."""
    return int((await app.says(f"child {what} ")).split()[-1])


def alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def ended(pid: int) -> bool:
    """Return whether the process has ended."""
    return not alive(pid)


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_fp4_a_forked_child_ends_on_a_signal(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path, uvloop: bool
) -> None:
    """SIGTERM or SIGINT ends the child, with any way to fork; the worker continues."""
    package = write_package(tmp_path, consumers=FORKS)
    port = str(free_port())
    variables = {"WORKERKIT_AMQP__DEFAULT__URL": url, "WORKERKIT_HTTP__PORT": port}
    async with running(package, cwd=tmp_path, uvloop=uvloop, **variables) as app:
        await app.says("consuming", 60.0)
        for number in (signal.SIGTERM, signal.SIGINT):
            for what in ("raw", "preexec", "daemon"):
                app.out.clear()
                await client.send("forks", what.encode())
                pid = await child(app, what)
                os.kill(pid, number)
                await eventually(partial(ended, pid), what=f"{what} ended by {number!r}")
        await eventually(lambda: "threads" in rabbit.queues(vhost))
        await client.send("threads", b"thread")
        pid = await child(app, "thread")
        os.kill(pid, signal.SIGTERM)
        await eventually(lambda: not alive(pid))
        await eventually(lambda: rabbit.queues(vhost)["forks"].unacked == 0)
        assert "stopping" not in repr(app)
        app.send(signal.SIGTERM)

        assert await app.ended() == 0


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_fp4_a_child_does_not_delay_the_exit(
    url: str, client: Client, tmp_path: Path, uvloop: bool
) -> None:
    """A daemon child ends with the worker; another one may outlive it, but has no open port."""
    package = write_package(tmp_path, consumers=FORKS)
    port, ops = free_port(), free_port()
    variables = {
        "WORKERKIT_AMQP__DEFAULT__URL": url,
        "WORKERKIT_HTTP__PORT": str(port),
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__PORT": str(ops),
    }
    async with running(package, cwd=tmp_path, uvloop=uvloop, **variables) as app:
        await app.says("consuming")
        await client.send("forks", b"daemon", b"raw")
        daemon, raw = await child(app, "daemon"), await child(app, "raw")
        app.send(signal.SIGTERM)
        # The child inherits stdout and stderr of the worker, so these are not closed.
        await eventually(lambda: not app.running)
        try:
            assert alive(raw)
            assert not alive(daemon)
            for each in (port, ops):
                with socket.socket() as bound:
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    bound.bind(("127.0.0.1", each))
                    bound.listen()
        finally:
            os.kill(raw, signal.SIGKILL)

        assert await app.ended() == 0


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_fp4_a_child_that_returns_from_its_handler_settles_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path, uvloop: bool
) -> None:
    """It ends with one line on stderr, and does not write to the broker connection."""
    package = write_package(tmp_path, consumers=FORKS)
    variables = {"WORKERKIT_AMQP__DEFAULT__URL": url, "WORKERKIT_HTTP__PORT": str(free_port())}
    async with running(package, cwd=tmp_path, uvloop=uvloop, **variables) as app:
        await app.says("consuming")
        for _ in range(3):
            await client.send("forks", b"returns")
        await app.says("a forked child returned to the event loop of its parent")
        await eventually(lambda: len(list(app.lines("child returns"))) == 3)
        pids = [int(text) for text in app.lines("child returns")]
        await eventually(lambda: not any(map(alive, pids)))
        await eventually(lambda: rabbit.queues(vhost)["forks"].unacked == 0)
        await client.send("forks", b"nothing")
        await asyncio.to_thread(_ready_is_empty, rabbit, vhost)
        app.send(signal.SIGTERM)
        code = await app.ended()

    assert code == 0
    assert "connection lost" not in repr(app)


def _ready_is_empty(rabbit: PrivateRabbit, vhost: str) -> None:
    asyncio.run(eventually(lambda: rabbit.queues(vhost)["forks"].ready == 0))


STREAMS = """
    import os
    import time

    from workerkit import SSEConsumer


    class Stream(SSEConsumer):
        url = os.environ["STREAM"]

        async def handle(self, data: str) -> None:
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            os.write(1, f"child {data} {pid}\\n".encode())
"""


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_fp4_a_child_does_not_keep_an_event_stream_open(tmp_path: Path, uvloop: bool) -> None:
    """The server detects that the worker was killed, and stops sending."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n")
        if not await reader.read(1):
            left.set()
        writer.close()

    package = write_package(tmp_path, consumers=STREAMS)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, running(package, cwd=tmp_path, uvloop=uvloop, STREAM=url) as app:
        pid = await child(app, "x")
        try:
            app.send(signal.SIGKILL)
            await eventually(lambda: not app.running)
            await eventually(left.is_set)
            assert alive(pid)
        finally:
            os.kill(pid, signal.SIGKILL)
