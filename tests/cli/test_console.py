"""`workerkit console`: its options, its port, and how it ends."""

import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.command import started, workerkit, write_package

TOKEN = "0123456789abcdef"
CONSUMERS = """
    from workerkit import AMQPConsumer

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None: ...
"""
TARGETS = ("--targets", "http://127.0.0.1:8081")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [TARGETS, ("--url", "amqp://u:hunter2@h", "--app", "shop")])
async def test_it_serves_until_a_signal(
    arguments: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    """The address is the first line; there are probes, as a deployment needs them."""
    async with (
        started("console", *arguments, "--port", "0", cwd=tmp_path) as run,
        aiohttp.ClientSession() as session,
    ):
        url = (await run.says("console at ")).removeprefix("console at ")
        async with session.get(f"{url}/health/live") as response:
            status = response.status
        run.send(number)
        code = await run.ended()

    assert (code, status) == (0, 200)
    assert run.out[0] == f"console at {url}"
    assert "hunter2" not in repr(run)


async def test_other_machines_with_a_token(tmp_path: Path) -> None:
    """The address that is printed is one for this machine."""
    command = ("console", *TARGETS, "--host", "0.0.0.0", "--port", "0")
    async with started(*command, cwd=tmp_path, WORKERKIT_OPS__TOKEN=TOKEN) as run:
        said = await run.says("console at ")
        run.send(signal.SIGTERM)
        code = await run.ended()

    assert code == 0
    assert said.startswith("console at http://127.0.0.1:")
    assert TOKEN not in repr(run)


async def test_it_is_opened_in_a_browser(tmp_path: Path) -> None:
    """The browser of the system gets the address."""
    browser = tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys\nopen('opened', 'w').write(sys.argv[1])\n")
    browser.chmod(0o755)
    command = ("console", *TARGETS, "--port", "0", "--open")
    async with started(*command, cwd=tmp_path, BROWSER=f"{browser} %s") as run:
        url = (await run.says("console at ")).removeprefix("console at ")
        run.send(signal.SIGTERM)
        await run.ended()

    assert (tmp_path / "opened").read_text() == url


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    """One line names the address and the options."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = workerkit("console", *TARGETS, "--port", str(port), cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr == (
        f"no console at http://127.0.0.1:{port}: Address already in use;"
        " choose another --host or --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        ([], {}, "name the processes with PACKAGE, --url or --targets"),
        ([*TARGETS, "--host", "0.0.0.0"], {}, "--host 0.0.0.0: other machines can reach it"),
        ([*TARGETS, "--host", "shop.example"], {}, "set WORKERKIT_OPS__TOKEN, or WORKERKIT_OPS__"),
        (["app", "--host", "::"], {}, "set WORKERKIT_OPS__TOKEN"),
        (TARGETS, {"OPS__CONSOLE": "off"}, "WORKERKIT_OPS__CONSOLE is off: set it to read or"),
        (TARGETS, {"OPS__CONSOLE": "maybe"}, "WORKERKIT_OPS__CONSOLE"),
        (TARGETS, {"OPS__TOKEN": "short"}, "WORKERKIT_OPS__TOKEN"),
        (["--url", "amqp://h"], {}, "--url needs --app"),
    ],
)
def test_wrong_options(
    arguments: list[str], variables: dict[str, str], text: str, tmp_path: Path
) -> None:
    """One line says what would be right."""
    write_package(tmp_path, consumers=CONSUMERS)
    given = {f"WORKERKIT_{name}": value for name, value in variables.items()}

    done = workerkit("console", *arguments, cwd=tmp_path, **given)

    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert "short" not in done.stderr
