"""`workerkit run --processes`: killed, replaced, hung and orphaned processes, under load.

Real processes, signals, sockets, and RabbitMQ where messages matter.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.client import Client
from tests.command import (
    Application,
    environment,
    process,
    running,
    started,
    workerkit,
    write_package,
)
from tests.ports import free_port
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit.processes.link import VARIABLE

CONSUMERS = """
    import asyncio
    import os

    from workerkit import AMQPConsumer, HTTPView


    def note(name, text):
        # One write, so that nothing of it is lost when the process is killed.
        file = os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, (text + "\\n").encode())
        os.close(file)


    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 4

        async def handle(self, body: str) -> None:
            await asyncio.sleep(0.01)
            note("handled", body)


    class Who(HTTPView):
        routes = ["/who"]

        async def get(self) -> int:
            return os.getpid()
"""
VIEW = """
    import os
    import time

    from workerkit import HTTPView, PeriodicTask


    class Who(HTTPView):
        routes = ["/who"]

        async def get(self) -> int:
            return os.getpid()

        async def post(self) -> None:
            time.sleep(1000)


    class Beat(PeriodicTask):
        every = 0.05

        async def handle(self) -> None:
            with open("beats", "a") as file:
                file.write(f"{os.getpid()}\\n")
"""

TOKENS = ("TOKEN", "OPERATE_TOKEN", "VIEW_TOKEN")
ADAPTED = """
import json
import os
from workerkit.container import WorkerContainer
from workerkit.processes.link import ParentLink, VARIABLE
from workerkit.runner import Runner

assembly = Runner(WorkerContainer(), packages=["app"]).assemble()
ops = ParentLink.inherited().adapt(assembly).settings.ops
print(json.dumps([
    ops.token.get_secret_value(), VARIABLE in os.environ,
    ops.operate_token, ops.view_token, ops.proxy.addresses, ops.console,
]))
"""


def lines(path: Path) -> list[str]:
    """Return the lines that handlers have written to a file so far."""
    return path.read_text().splitlines() if path.exists() else []


class Processes:
    """Two processes of an application, and their parent.

    Attributes:
        parent: The process that was started.
        ops: URL of its ops server.
        http: URL of the views.
    """

    def __init__(self, parent: Application, session: aiohttp.ClientSession, **ports: int) -> None:
        self.parent = parent
        self.ops, self.http = (f"http://127.0.0.1:{ports[name]}" for name in ("ops", "http"))
        self._session = session

    async def page(self, path: str) -> tuple[int, Any]:
        """Return status and body of a page of the ops server."""
        async with self._session.get(f"{self.ops}{path}") as response:
            return response.status, await response.json()

    async def ready(self) -> bool:
        """Return whether all processes are ready."""
        try:
            return (await self.page("/health/ready"))[0] == 200
        except aiohttp.ClientConnectionError:
            return False

    async def metrics(self) -> dict[str, float]:
        """Return each sample that Prometheus would read, by its name and labels."""
        async with self._session.get(f"{self.ops}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
            return {
                f"{each.name}{sorted(each.labels.items())}": each.value
                for family in families
                for each in family.samples
            }

    def pids(self) -> list[int]:
        """Return the processes that the parent has now, in the order of their start."""
        return children(self.parent.pid)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def exist(pids: list[int]) -> bool:
    """Return whether any of these processes exists."""
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


@asynccontextmanager
async def processes(cwd: Path, *arguments: str, **variables: Any) -> AsyncIterator[Processes]:
    """Run two processes of the package `app` inside the block."""
    ops, http = free_port(), free_port()
    variables = {
        "WORKERKIT_LOG__FORMAT": "text",
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__PORT": str(ops),
        "WORKERKIT_HTTP__PORT": str(http),
        **variables,
    }
    async with (
        started("run", "app", "--processes", "2", *arguments, cwd=cwd, **variables) as parent,
        aiohttp.ClientSession() as session,
    ):
        app = Processes(parent, session, ops=ops, http=http)
        await eventually(app.ready)
        yield app


@asynccontextmanager
async def requests(url: str, keep_alive: bool) -> AsyncIterator[list[object]]:
    """Send requests inside the block, one after the other; collect bodies and exceptions."""
    answers: list[object] = []
    ended = asyncio.Event()

    async def send() -> None:
        connector = aiohttp.TCPConnector(force_close=not keep_alive)
        # A client that tries again would hide what was lost.
        async with aiohttp.ClientSession(connector=connector) as session:
            session._retry_connection = False
            while not ended.is_set():
                try:
                    async with session.get(f"{url}/who") as response:
                        answers.append(await response.json() if response.status == 200 else -1)
                except aiohttp.ClientError as error:
                    answers.append(error)

    sending = asyncio.create_task(send())
    try:
        yield answers
    finally:
        ended.set()
        await sending


async def test_a_process_that_is_killed_and_one_that_is_replaced_lose_nothing(
    url: str, rabbit: PrivateRabbit, vhost: str, client: Client, tmp_path: Path
) -> None:
    """Each message is handled, each request answered, and no sum of the metrics falls."""
    write_package(tmp_path, consumers=CONSUMERS)
    sent: list[str] = []

    async def publish(count: int) -> None:
        async with publishing(url) as publisher:
            for _ in range(count):
                sent.append(f"order {len(sent)}")
                await publisher.publish(sent[-1], "orders")

    def all_handled() -> bool:
        return set(lines(tmp_path / "handled")) == set(sent)

    async with processes(tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
        first, second = app.pids()
        await publish(200)
        await eventually(all_handled)
        before = await app.metrics()
        publishing_more = asyncio.create_task(publish(300))
        await eventually(lambda: len(lines(tmp_path / "handled")) > 230)
        os.kill(first, signal.SIGKILL)
        ended = await app.parent.says("process ended")
        not_ready = await app.page("/health/ready")
        alive = await app.page("/health/live")
        between = await app.metrics()
        await publishing_more
        await eventually(all_handled)
        await eventually(app.ready)
        after = await app.metrics()
        third = next(pid for pid in app.pids() if pid != second)

        async with requests(app.http, True) as kept, requests(app.http, False) as fresh:
            await eventually(lambda: kept and fresh)
            publishing_more = asyncio.create_task(publish(600))
            app.parent.send(signal.SIGHUP)
            await app.parent.says("all processes replaced")
            newest = set(app.pids())
            await eventually(lambda: {kept[-1], fresh[-1]} <= newest)
        await publishing_more
        await eventually(all_handled)
        rolled = await app.metrics()
        app.parent.send(signal.SIGTERM)
        code = await app.parent.ended()

    labels = [("consumer", "Orders"), ("outcome", "ack"), ("source", "orders")]
    total = f"workerkit_deliveries_total{labels}"
    up = "workerkit_process_up[('process', '{}')]".format
    assert f"pid={first} signal=SIGKILL" in ended
    assert "restart_in=" in ended
    assert not_ready[0] == 503
    assert not_ready[1]["reasons"][0].startswith("process 1: ")
    assert alive[0] == 200
    assert (before[total], before[up(1)], before[up(2)]) == (200, 1, 1)
    assert between[up(1)] == 0
    assert before[total] <= between[total] <= after[total] <= rolled[total]
    # What both processes of the first pair counted at the end of the load was reported by them.
    assert rolled[total] - after[total] >= 600
    assert after["workerkit_process_restarts_total[('process', '1')]"] == 1
    assert after["process_open_fds[('process', '2')]"] > 0
    assert not newest & {first, second, third}
    assert {type(each) for each in kept + fresh} == {int}
    assert {*kept, *fresh} <= {second, third, *newest}
    assert code == 0, app.parent
    assert rabbit.queues(vhost)["orders"].ready == 0


@pytest.mark.parametrize("token", ["0123456789abcdef", None])
async def test_the_console_of_a_process_accepts_the_token_of_its_parent_only(
    token: str | None, tmp_path: Path
) -> None:
    """Neither operators nor other users of the machine get past the parent through its port."""
    write_package(tmp_path, consumers=VIEW)
    ours, theirs = socket.socketpair()
    described = {"number": 2, "link": theirs.fileno(), "listening": []}
    given = {
        **{f"WORKERKIT_OPS__{name}": f"of an operator: {name}" for name in TOKENS},
        "WORKERKIT_OPS__CONSOLE": "read",
        "WORKERKIT_OPS__PROXY__ADDRESSES": "127.0.0.1",
        VARIABLE: json.dumps({**described, "token": token} if token else described),
    }
    # A process whose parent closes its half ends after a while.
    with ours, theirs:
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", ADAPTED],
            cwd=tmp_path,
            env=environment(given),
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=60.0,
            check=True,
        )
    used, has_variable, *others = json.loads(ended.stdout)

    assert used == token if token else len(used) >= 32
    assert others == [None, None, [], "read"]
    assert not has_variable


async def test_processes_whose_parent_is_killed_stop_without_losing_anything(
    url: str, rabbit: PrivateRabbit, vhost: str, client: Client, tmp_path: Path
) -> None:
    """They finish what they have begun, and end: what they have not begun stays in the queue."""
    write_package(tmp_path, consumers=CONSUMERS)

    async with processes(tmp_path, WORKERKIT_AMQP__DEFAULT__URL=url) as app:
        pids = app.pids()
        async with publishing(url) as publisher:
            await asyncio.gather(
                *(publisher.publish(f"order {number}", "orders") for number in range(1000))
            )
        await eventually(lambda: lines(tmp_path / "handled"))
        app.parent.send(signal.SIGKILL)
        await eventually(lambda: not exist(pids))

        handled = lines(tmp_path / "handled")
        left = await eventually(lambda: rabbit.queues(vhost)["orders"].ready)
        assert len(handled) == len(set(handled))
        assert len(handled) + left == 1000
        assert len(pids) == 2


async def test_many_processes_stop_while_they_start(tmp_path: Path) -> None:
    """SIGTERM is received between two starts; they are not all started first."""
    write_package(tmp_path, views=VIEW)
    async with running(
        "app", "--processes", "500", cwd=tmp_path, WORKERKIT_HTTP__PORT="0"
    ) as parent:
        await parent.says("process started  process_number=2 ")
        parent.send(signal.SIGTERM)
        code = await parent.ended()

    assert code == 0
    assert sum("process started" in line for line in parent.err) < 500


async def test_a_process_that_hangs_is_reported_and_killed(tmp_path: Path) -> None:
    """The pages respond without it; the exit code shows that it did not stop."""
    write_package(tmp_path, views=VIEW)

    async with processes(tmp_path, WORKERKIT_SHUTDOWN_GRACE="0") as app:
        hanging = app.pids()
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(session.post(f"{app.http}/who"))
            live = await eventually(partial(_not_alive, app))
            ready = await app.page("/health/ready")
            metrics = await app.metrics()
            stacks = await app.page("/debug/stacks?format=json")
            probe = workerkit("probe", "live", "--port", app.ops.rpartition(":")[2], cwd=tmp_path)
            beats = set(lines(tmp_path / "beats"))
            app.parent.send(signal.SIGTERM)
            code = await app.parent.ended()
            with pytest.raises(aiohttp.ClientError):
                await request

    number = live["reasons"][0].split()[1].rstrip(":")
    assert live["reasons"] == [f"process {number}: no response within 0.8 s"]
    assert ready[0] == 503
    assert ready[1]["reasons"] == live["reasons"]
    assert metrics[f"workerkit_process_up[('process', '{number}')]"] == 0
    assert metrics["workerkit_ready[]"] == 0
    assert stacks[1]["processes"][number] == {"reasons": ["no response within 0.8 s"]}
    assert (probe.returncode, probe.stderr) == (69, f"live: {live['reasons'][0]}\n")
    assert beats == {str(hanging[0])}
    assert code == 128 + signal.SIGKILL, app.parent
    await app.parent.says("process did not stop: killing it")


async def _not_alive(app: Processes) -> dict[str, Any]:
    status, body = await app.page("/health/live")
    assert status == 503
    found: dict[str, Any] = body
    return found


async def test_a_replacement_that_does_not_start_changes_nothing(tmp_path: Path) -> None:
    """The old processes stay until there are new ones that are ready."""
    write_package(tmp_path, views=VIEW.partition("class Beat")[0])
    module = tmp_path / "app" / "views.py"
    good = module.read_text()

    async with processes(tmp_path) as app:
        before = app.pids()
        module.write_text("class")
        app.parent.send(signal.SIGHUP)
        await app.parent.says("cannot import app.views: SyntaxError")
        reported = await app.parent.says("processes not replaced")
        after = app.pids()
        module.write_text(good)
        app.parent.send(signal.SIGHUP)
        await app.parent.says("all processes replaced")
        replaced = app.pids()
        app.parent.send(signal.SIGINT)
        app.parent.send_group(signal.SIGINT)
        code = await app.parent.ended()

    assert "process_number=2" in reported
    assert before == after
    assert len(replaced) == 2
    assert not {*before} & {*replaced}
    assert code == 0, app.parent


async def test_a_process_that_ends_is_not_killed_by_ctrl_c(tmp_path: Path) -> None:
    """SIGINT is for the parent, also when Python has removed the handlers of a process."""
    write_package(tmp_path, views=VIEW.partition("class Beat")[0])
    async with processes(tmp_path) as app:
        pids = app.pids()
        app.parent.send(signal.SIGTERM)
        while app.parent.running:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
            await asyncio.sleep(0.001)
        code = await app.parent.ended()

    assert code == 0, app.parent


async def test_a_terminal_that_is_closed_stops_all_processes(tmp_path: Path) -> None:
    """It sends SIGHUP, as operators do."""
    write_package(tmp_path, views=VIEW.partition("class Beat")[0])
    in_terminal = "import pty, sys; pty.spawn(sys.argv[1:])"
    command = [sys.executable, "-m", "workerkit", "run", "app", "--processes", "2"]
    variables = {"WORKERKIT_HTTP__PORT": "0", "WORKERKIT_OPS__ENABLED": "false"}

    async with process(
        sys.executable, "-c", in_terminal, *command, cwd=tmp_path, **variables
    ) as terminal:
        await terminal.says("process ready")
        [parent] = children(terminal.pid)
        pids = [parent, *children(parent)]
        terminal.send(signal.SIGKILL)
        await eventually(lambda: not exist(pids))

    assert len(pids) >= 2


async def test_a_start_that_never_succeeds_is_given_up(tmp_path: Path) -> None:
    """After three attempts with growing pauses, of one process only."""
    write_package(
        tmp_path,
        views="""
        from workerkit import HTTPView


        class Who(HTTPView):
            routes = ["/who"]

            async def on_start(self) -> None:
                raise KeyError("no database")

            async def get(self) -> None: ...
        """,
    )
    async with running(
        "app", cwd=tmp_path, WORKERKIT_HTTP__PORT="0", WORKERKIT_PROCESSES="2"
    ) as app:
        code = await app.ended()

    def count(text: str) -> int:
        return sum(text in line for line in app.err)

    assert code == 1
    assert count("process started") == 3
    assert count("process ended  process_number=1") == 2
    assert count("process ended: no process could start") == 1
    assert count("on_start failed: KeyError") == 3


@pytest.mark.parametrize(
    ("arguments", "variables", "fault"),
    [
        (["--processes", "2"], {"SHUTDOWN_GRACE": "x"}, "WORKERKIT_SHUTDOWN_GRACE is 'x'"),
        ([], {"PROCESSES": "0"}, "WORKERKIT_PROCESSES is '0': should be greater than or equal"),
        (["--processes", "no"], {}, "--processes no: should be a number from 1 to 1024, or auto"),
        (["--processes", "9999"], {}, "--processes 9999: should be a number from 1 to 1024"),
        (["--processes", "2", "--embedded-broker"], {}, "--embedded-broker is for one process"),
        (["--processes", "2", "--only", "Beat"], {}, "2 processes have nothing to share: Beat"),
        (["--processes", "2", "--reload"], {}, "--reload is for one process, not --processes 2"),
    ],
)
def test_a_fault_of_configuration_is_printed_once(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], fault: str
) -> None:
    """No process is started."""
    write_package(tmp_path, views=VIEW)
    settings = {f"WORKERKIT_{name}": text for name, text in variables.items()}

    run = workerkit("run", "app", *arguments, cwd=tmp_path, **settings)

    assert run.returncode == 2
    assert run.stderr.startswith(fault)
    assert len(run.stderr.splitlines()) == 1
