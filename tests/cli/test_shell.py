"""`workerkit shell`: a prompt with the container and the publisher, at a real terminal."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.client import connected
from tests.command import environment, workerkit, write_package
from tests.pseudo_terminal import CTRL_C, CTRL_D, at_terminal
from tests.rabbit import PrivateRabbit
from workerkit.testing import embedded_broker

CONSUMERS = """
    from workerkit import AMQPConsumer

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: dict[str, int]) -> None:
            print("handled")
"""
CONTAINER = """
    from dependency_injector import providers
    from workerkit import WorkerContainer

    async def open_pool():
        print("pool opened")
        yield "the pool"
        print("pool closed")

    class Container(WorkerContainer):
        pool = providers.Resource(open_pool)
        number = providers.Object(42)
"""
URL = "WORKERKIT_AMQP__DEFAULT__URL"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with the package `shop`."""
    write_package(tmp_path, "shop", consumers=CONSUMERS, container=CONTAINER)
    return tmp_path


async def test_a_session(shop: Path) -> None:
    """The banner's lines work, Ctrl-C cancels an `await`, Ctrl-D leaves and closes resources."""
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("orders")
        variables = {URL: broker.url}
        async with at_terminal(
            "shell", "shop", cwd=shop, width=120, keyboard=True, **variables
        ) as shell:
            await shell.shows(">>> ")
            tried = [line.strip() for line in shell.lines if line.startswith("  ")]
            for line in tried:
                shell.type(f"{line}\n")
            await shell.shows("20.0")
            shell.type("await container.pool(), OrderPlaced.queues\n")
            await shell.shows("('the pool', ['orders'])")
            shell.type("await asyncio.sleep(600)\n")
            await shell.shows("asyncio.sleep(600)\n")
            shell.type(CTRL_C)
            await shell.shows("KeyboardInterrupt")
            shell.type("half a line" + CTRL_C)
            await shell.shows("KeyboardInterrupt", 2)
            shell.type("1 / 0\n")
            await shell.shows("ZeroDivisionError: division by zero")
            shell.type("40 + 2\n")
            await shell.shows("\n42\n")
            shell.type(CTRL_D)
            code = await shell.ended()
        letter = await client.take("orders")

    assert (code, len(tried)) == (0, 3)
    assert "await publisher.publish" in tried[0]
    assert letter.body == b"{}"
    assert shell.text.index("pool opened") < shell.text.index(">>> ")
    assert shell.lines[-1].endswith("pool closed")
    assert "handled" not in shell.lines
    assert "shell.py" not in shell.text


async def test_on_rabbitmq(rabbit: PrivateRabbit, vhost: str, shop: Path) -> None:
    """A command publishes to a real broker, and exits with 0."""
    url = rabbit.url(vhost)
    async with connected(url) as client:
        await client.declare("orders")
        code = "await publisher.publish({'id': 1}, 'orders'); print(await container.pool())"
        done = workerkit("shell", "shop", "-c", code, cwd=shop, **{URL: url})
        letter = await client.take("orders")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["pool opened", "the pool", "pool closed"]
    assert letter.body == b'{"id":1}'


@pytest.mark.parametrize(
    ("code", "exit_code", "error"),
    [
        ("await asyncio.sleep(0)\n1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise ValueError('a\\x1b[31m amqp://u:secret@h')", 1, r"ValueError: a\x1b[31m amqp://u"),
        ("x =", 1, "SyntaxError: invalid syntax"),
        ("raise SystemExit(7)", 7, ""),
        ("import sys; sys.exit('no such order')", 1, "no such order"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_code_that_fails(shop: Path, code: str, exit_code: int, error: str) -> None:
    """The exit code is 1 after an exception; the resources are closed in any case."""
    done = workerkit("shell", "shop", "-c", code, cwd=shop)

    last = done.stderr.splitlines()[-1] if done.stderr else ""
    assert (done.returncode, last.startswith(error)) == (exit_code, True)
    assert "secret" not in last
    assert done.stdout.splitlines()[-1] == "pool closed"


async def test_code_from_a_pipe(shop: Path) -> None:
    """Standard input that is no terminal is a program, and its last statement may raise."""
    program = b"print(await container.pool())\nraise SystemExit(7)\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "workerkit", "shell", "shop"),
        cwd=shop,
        env=environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate(program)

    assert (process.returncode, printed) == (7, b"pool opened\nthe pool\npool closed\n")


def test_a_resource_that_cannot_be_opened(shop: Path) -> None:
    """It is one line, and there is no prompt."""
    container = (shop / "shop/container.py").read_text()
    broken = container.replace('print("pool opened")', 'raise OSError("no pool")')
    (shop / "shop/container.py").write_text(broken)

    done = workerkit("shell", "shop", "-c", "print('unreachable')", cwd=shop)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("resource 'pool' could not be opened: OSError: no pool")
    assert done.stderr.count("\n") == 1
