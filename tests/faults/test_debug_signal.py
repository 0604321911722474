"""SIGUSR1 logs where tasks and threads are, whatever the process does; it never ends it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from textwrap import dedent

import aiohttp
import pytest

from tests.command import Application, process, running, write_package
from tests.waiting import eventually

HANGS = """
    import asyncio
    import os
    import threading
    import time

    from workerkit import HTTPView

    class Hangs(HTTPView):
        routes = ["/hangs"]

        async def get(self) -> str:
            print("hanging", flush=True)
            await self.reserve()
            return ""

        async def reserve(self) -> None:
            await asyncio.get_running_loop().create_future()

    class Sync(HTTPView):
        routes = ["/sync"]

        def get(self) -> str:
            print("sleeping in a thread", flush=True)
            self.look_up()
            return ""

        def look_up(self) -> None:
            time.sleep(60.0)

    class Busy(HTTPView):
        routes = ["/busy"]

        async def get(self) -> str:
            print("blocking", flush=True)
            while True:
                pass

    class Sleeps(HTTPView):
        routes = ["/sleeps"]

        async def get(self) -> str:
            print("blocking", flush=True)
            time.sleep(61.0)
            return ""

    class Locked(HTTPView):
        routes = ["/locked"]

        async def get(self) -> str:
            lock = threading.Lock()
            lock.acquire()
            print("blocking", flush=True)
            lock.acquire()
            return ""

    class Forks(HTTPView):
        routes = ["/forks"]

        async def get(self) -> str:
            pid = os.fork()
            if pid == 0:
                print(f"child {os.getpid()}", flush=True)  # Its signals are set by now.
                time.sleep(600)
                os._exit(0)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            return str(os.waitstatus_to_exitcode(status))
"""
REQUESTED = "tasks and threads, as requested by SIGUSR1"


def place(line: str, function: str, source: str = HANGS) -> str:
    """Return how a report shows the place of a line of the consumers."""
    [number] = [n for n, each in enumerate(source.split("\n"), 1) if line in each]
    return f"app/consumers.py:{number} {function}"


def reports(app: Application) -> int:
    """Return the number of reports."""
    return sum(REQUESTED in line for line in app.err)


async def reported(app: Application, number: int = 1) -> str:
    """Wait for a number of whole reports; return the lines of stderr."""
    await eventually(lambda: reports(app) >= number, what=f"{number} reports in {app!r}")
    await eventually(lambda: any(" tasks, those in" in line for line in app.err[-200:]))
    return "\n".join(app.err)


@asynccontextmanager
async def serving(
    directory: Path, uvloop: bool = True, **variables: str
) -> AsyncIterator[tuple[Application, str]]:
    """Run the views; return the URL of their port."""
    package = write_package(directory, consumers=HANGS)
    given = {"WORKERKIT_HTTP__PORT": "0", **variables}
    async with running(package, cwd=directory, uvloop=uvloop, **given) as app:
        line = await app.says("listening")
        yield app, line.partition("url=")[2]


@asynccontextmanager
async def requests(url: str, *paths: str) -> AsyncIterator[None]:
    """Send requests whose responses may never come; cancel them at the end."""
    async with aiohttp.ClientSession() as session:

        async def get(path: str) -> None:
            async with session.get(f"{url}{path}"):
                pass

        tasks = [asyncio.create_task(get(path)) for path in paths]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@pytest.mark.parametrize("uvloop", [True, False], ids=["uvloop", "asyncio"])
async def test_what_hangs_is_in_the_report(tmp_path: Path, uvloop: bool) -> None:
    """A call that awaits forever and one in a thread, each to its innermost line."""
    async with serving(tmp_path, uvloop) as (app, url), requests(url, "/hangs", "/sync"):
        await app.says("hanging")
        await app.says("sleeping in a thread")
        app.send(signal.SIGUSR1)
        text = await reported(app)
        app.send(signal.SIGTERM)
        app.send(signal.SIGUSR1)
        await reported(app, 2)

    assert place("create_future()", "Hangs.reserve\n") in text
    assert " handles <GET /hangs " in text
    assert " for Hangs, since 0." in text
    assert place("time.sleep(60.0)", "Sync.look_up\n") in text
    assert "1 thread: workerkit-Sync-1" in text
    assert "1 thread: MainThread (runs the event loop)" in text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/busy", "Busy.get"),
        ("/sleeps", place("time.sleep(61.0)", "Sleeps.get")),
        ("/locked", "Locked.get"),
    ],
)
async def test_while_the_event_loop_is_blocked(tmp_path: Path, path: str, shown: str) -> None:
    """By Python code, in `time.sleep`, and by a lock; several times in a row."""
    async with serving(tmp_path) as (app, url), requests(url, path):
        await app.says("blocking")
        for number in range(1, 4):
            app.send(signal.SIGUSR1)
            await reported(app, number)
        for _ in range(500):
            app.send(signal.SIGUSR1)
        text = await reported(app, 4)
        assert app.running

    threads, _, tasks = text.partition(" tasks, those in")
    assert shown in threads
    assert shown in tasks
    assert "awaits nothing: it is running" in tasks
    assert reports(app) < 500


async def test_the_report_is_a_record_of_json(tmp_path: Path) -> None:
    """On one line, whatever the level of the logs."""
    variables = {"WORKERKIT_LOG__FORMAT": "json", "WORKERKIT_LOG__LEVEL": "CRITICAL"}
    package = write_package(tmp_path, consumers=HANGS)
    variables |= {"WORKERKIT_OPS__ENABLED": "true", "WORKERKIT_OPS__PORT": "0"}
    variables |= {"WORKERKIT_HTTP__PORT": "0"}
    async with running(package, cwd=tmp_path, uvloop=True, **variables) as app:
        await app.says("ops server at")
        app.send(signal.SIGUSR1)
        line = await app.says(REQUESTED)

    record = json.loads(line)
    assert record["level"] == "INFO"
    assert "MainThread (runs the event loop)" in record["stack"]


IMPORTING = """
    import os
    import signal
    import time
    from pathlib import Path

    from workerkit import PeriodicTask

    print("importing", flush=True)
    while not Path("gate").exists():
        time.sleep(0.01)


    class Tick(PeriodicTask):
        every = 60.0

        async def handle(self) -> None: ...
"""


async def test_during_the_import_and_until_the_exit(tmp_path: Path) -> None:
    """The report shows where an import hangs; no signal ends the process before it has stopped."""
    async with running(write_package(tmp_path, consumers=IMPORTING), cwd=tmp_path) as app:
        await app.says("importing")
        app.send(signal.SIGUSR1)
        await app.says("no event loop is running")
        (tmp_path / "gate").touch()
        await app.says("Tick")
        app.send(signal.SIGTERM)
        while app.running:
            with suppress(ProcessLookupError):
                os.kill(app.pid, signal.SIGUSR1)  # `app.send` would collect the exit code.
            await asyncio.sleep(0.01)

        assert await app.ended() == 0
    assert any(place("time.sleep(0.01)", "<module>", IMPORTING) in line for line in app.err)


OWN = """
    import faulthandler
    import signal

    from workerkit import PeriodicTask


    class Tick(PeriodicTask):
        every = 60.0

        async def on_start(self) -> None:
            print("started", flush=True)

        async def handle(self) -> None: ...
"""


@pytest.mark.parametrize(
    "install",
    [
        pytest.param(
            "signal.signal(signal.SIGUSR1, lambda *_: print('own', flush=True))", id="own"
        ),
        pytest.param("signal.signal(signal.SIGUSR1, signal.SIG_DFL)", id="default on purpose"),
    ],
)
async def test_a_handler_of_the_application_stays(tmp_path: Path, install: str) -> None:
    """It is left alone, and a record says so."""
    text = OWN + f"\n    {install}\n"
    async with running(write_package(tmp_path, consumers=text), cwd=tmp_path) as app:
        await app.says("SIGUSR1 has another handler")
        await app.says("started")
        app.send(signal.SIGUSR1)
        if "own" in install:
            await app.says("own")
            app.send(signal.SIGTERM)
            assert await app.ended() == 0
        else:
            assert await app.ended() == -signal.SIGUSR1

    assert reports(app) == 0


BEFORE = """
    import faulthandler
    import signal

    from workerkit import Runner, WorkerContainer

    INSTALL
    Runner(WorkerContainer(), packages=["app"]).run()
"""


@pytest.mark.parametrize(
    ("install", "says"),
    [
        ("faulthandler.register(signal.SIGUSR1)", "most recent call first"),
        ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", ""),
    ],
)
async def test_a_handler_that_was_there_before_stays(
    tmp_path: Path, install: str, says: str
) -> None:
    """Also one that Python does not know, and the wish to ignore the signal."""
    write_package(tmp_path, consumers=OWN)
    script = tmp_path / "start.py"
    script.write_text(dedent(BEFORE.replace("INSTALL", install)))
    given = {"WORKERKIT_LOG__FORMAT": "text", "WORKERKIT_OPS__ENABLED": "false"}
    async with process(sys.executable, str(script), cwd=tmp_path, **given) as app:
        await app.says("SIGUSR1 has another handler")
        await app.says("started")
        app.send(signal.SIGUSR1)
        if says:
            await app.says(says)
        app.send(signal.SIGTERM)

        assert await app.ended() == 0
    assert reports(app) == 0


TWICE = """
    import os
    import signal

    from workerkit import Runner, WorkerContainer

    for _ in range(2):
        Runner(WorkerContainer(), packages=["app"]).run()
        os.kill(os.getpid(), signal.SIGUSR1)
        print("ended", flush=True)
"""


async def test_a_second_run_in_a_process(tmp_path: Path) -> None:
    """It reports as the first one did; between them the signal is ignored."""
    write_package(tmp_path, consumers=OWN)
    script = tmp_path / "start.py"
    script.write_text(dedent(TWICE))
    given = {"WORKERKIT_LOG__FORMAT": "text", "WORKERKIT_OPS__ENABLED": "false"}
    async with process(sys.executable, str(script), cwd=tmp_path, **given) as app:
        for number in (1, 2):
            await eventually(lambda: app.out.count("started") == number)  # noqa: B023
            app.send(signal.SIGUSR1)
            await reported(app, number)
            app.send(signal.SIGTERM)

        assert await app.ended() == 0
    assert app.out.count("ended") == 2


async def test_a_forked_child_has_the_default_action(tmp_path: Path) -> None:
    """As any other process; the signal of the child results in no report of its parent."""
    async with serving(tmp_path) as (app, url), aiohttp.ClientSession() as session:
        response = asyncio.create_task(session.get(f"{url}/forks"))
        pid = int((await app.says("child")).split()[-1])
        os.kill(pid, signal.SIGUSR1)
        async with await response as answer:
            code = int(await answer.json())
        app.send(signal.SIGTERM)

        assert await app.ended() == 0
    assert (code, reports(app)) == (-signal.SIGUSR1, 0)
