"""A fork does what `python -m workerkit` does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import environment, started, workerkit, write_package

CONSUMERS = """
    import importlib.util, os, sys
    from workerkit import AMQPConsumer

    print(os.getcwd(), os.environ.get("SHOP"), sys.path[0], sys.argv[1:], sys.stdin.read())
    print(importlib.util.find_spec("uvloop") is not None, file=sys.stderr)

    class OrderPlaced(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None: ...
"""


@pytest.mark.parametrize(
    "arguments", [["check", "app"], ["list", "app", "--json"], ["check", "nope"], ["--bogus"], []]
)
def test_a_fork_does_what_a_start_does(tmp_path: Path, arguments: list[str]) -> None:
    """Output, errors and exit code are the same."""
    write_package(tmp_path, consumers=CONSUMERS)
    real = subprocess.run(
        [sys.executable, "-m", "workerkit", *arguments],
        cwd=tmp_path,
        env=environment({"SHOP": "shop"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    fork = workerkit(*arguments, cwd=tmp_path, SHOP="shop")

    assert (fork.returncode, fork.stdout, fork.stderr) == (
        real.returncode,
        real.stdout,
        real.stderr,
    )


async def test_a_fork_is_a_process_of_its_own(tmp_path: Path) -> None:
    """It leads a group, gets signals, and its exit code is that of a process."""
    async with started("broker", "--port", "0", cwd=tmp_path) as broker:
        await broker.says("amqp://")
        group = os.getpgid(broker.pid)
        broker.send(signal.SIGKILL)
        code = await broker.ended()

    assert (group, code) == (broker.pid, -signal.SIGKILL)
