"""`workerkit probe`: fast, silent if healthy, one line if not."""

import ast
import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workerkit
from tests.ports import free_port
from workerkit import WorkerSettings
from workerkit.cli.commands import app
from workerkit.cli.probe import probe
from workerkit.health import Health, Part, Readiness
from workerkit.ops.server import OpsServer


async def asked(*arguments: str, part: Part | None = None, host: str = "127.0.0.1") -> int:
    """The exit code of a probe of a server whose only consumer is in this state."""
    part = part or Part()
    readiness = Readiness([Health("Orders", [part])], started=True)
    ops = {"host": host, "port": 0}
    server = OpsServer(WorkerSettings.model_validate({"ops": ops}), readiness, None)
    await server.open()
    port = server.url.rpartition(":")[2]
    try:
        return await asyncio.to_thread(probe, [*arguments, "--port", port, "--timeout", "10"])
    finally:
        await server.close()


@pytest.mark.parametrize("page", [[], ["live"], ["ready"], ["startup"]], ids=str)
async def test_a_healthy_worker(page: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 without output."""
    part = Part()
    part.ready()

    assert await asked(*page, part=part) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("page", [[], ["ready"], ["startup"]], ids=str)
async def test_an_unhealthy_worker(page: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 69 and one line, with the reason in it."""
    part = Part()
    part.waiting("queue 'orders'\nis missing")

    assert await asked(*page, part=part) == 69
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        f"{page[0] if page else 'ready'}: Orders: queue 'orders' is missing\n",
    )


async def test_a_worker_that_is_not_ready_is_alive() -> None:
    """Liveness does not look at consumers."""
    assert await asked("live") == 0


async def test_a_server_on_every_address_is_checked_on_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.0.0.0 is an address to listen on, not one to connect to."""
    monkeypatch.setenv("SHOP_OPS__HOST", "0.0.0.0")

    assert await asked("live", "--prefix", "SHOP_", host="0.0.0.0") == 0


def test_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 69, and the address."""
    port = free_port()

    assert probe(["live", "--port", str(port)]) == 69
    assert capfd.readouterr().err == (
        f"live: no response from 127.0.0.1:{port}: [Errno 111] Connection refused\n"
    )


async def test_a_worker_that_does_not_answer_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    """A blocked event loop: connected, without a response."""

    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        code = await asyncio.to_thread(probe, ["live", "--port", str(port), "--timeout", "0.1"])
        # The client has closed its socket; whether our end has noticed is another matter.
        await asyncio.wait_for(gone.wait(), 10)

    assert code == 69
    assert capfd.readouterr().err == f"live: no response from 127.0.0.1:{port}: timed out\n"


async def test_another_server_answers(capfd: pytest.CaptureFixture[str]) -> None:
    """The response of another server is not accepted."""

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        code = await asyncio.to_thread(probe, ["ready", "--port", str(port), "--timeout", "10"])

    assert (code, capfd.readouterr().err) == (69, "ready: status 404\n")


def test_the_address_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Variables have the given prefix, in any case."""
    port = free_port()
    monkeypatch.setenv("SHOP_OPS__HOST", "localhost")
    monkeypatch.setenv("shop_ops__port", str(port))

    probe(["--prefix", "SHOP_"])

    assert f"no response from localhost:{port}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "'nonsense'"),
        (["--port", "0"], "the port is '0': set it to a number from 1 to 65535 with --port"),
        (["--port", "http"], "the port is 'http'"),
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "soon"], "--timeout"),
    ],
)
def test_usage(arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is exit code 2, which differs from that of an unhealthy worker."""
    with pytest.raises(SystemExit) as exit_:
        probe(arguments)

    assert exit_.value.code == 2
    assert text in capfd.readouterr().err


def test_it_is_a_command_like_the_others() -> None:
    """`workerkit --help` lists it, and it has its own help."""
    assert "probe" in CliRunner().invoke(app, ["--help"]).output
    assert "--prefix" in CliRunner().invoke(app, ["probe", "--help"]).output
    assert CliRunner().invoke(app, ["probe", "--port", str(free_port())]).exit_code == 69


def test_it_imports_little() -> None:
    """It imports neither the framework nor its dependencies."""
    code = (
        "import sys; sys.argv = ['workerkit', 'probe', 'live', '--port', '1']\n"
        "import atexit; atexit.register(lambda: print(*sys.modules))\n"
        "from workerkit.cli import main; main()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    modules = set(done.stdout.split())
    assert done.returncode == 69
    assert {"workerkit.cli.probe", "http.client"} <= modules
    heavy = {"aio_pika", "aiohttp", "asyncio", "pydantic", "pydantic_settings", "typer"}
    assert not modules & {*heavy, "dependency_injector", "prometheus_client", "workerkit.errors"}


def test_every_public_name_can_be_imported() -> None:
    """The names that are imported lazily are those that type checkers see."""
    assert workerkit.__file__ is not None
    tree = ast.parse(Path(workerkit.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workerkit.")
        for alias in node.names
    }

    assert sorted(seen) == sorted(workerkit.__all__)
    for name, module in seen.items():
        assert module is not None
        assert getattr(workerkit, name) is getattr(sys.modules[module], name)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from workerkit import Nothing")
