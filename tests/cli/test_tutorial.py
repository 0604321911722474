"""The tutorial, word by word: its files in a new project, and its commands in order."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.command import environment, running, started, workerkit
from tests.ports import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()


def commands(section: str) -> list[list[str]]:
    """Return the arguments of the commands `workerkit ...` in a section of the page."""
    _, _, rest = PAGE.partition(f"\n## {section}\n")
    text, _, _ = rest.partition("\n## ")
    return [shlex.split(line) for line in re.findall(r"^\$ workerkit (.*)$", text, re.MULTILINE)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project of the tutorial, with the files that it adds."""
    [new] = [each for each in commands("Create the project") if each[0] == "new"]
    created = workerkit(*new, cwd=tmp_path)
    assert created.returncode == 0, created.stderr
    directory = tmp_path / "bookshop"
    for name, text in re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (directory / name).write_text(f"# {name}\n{text}")
    return directory


def test_the_consumer_of_the_tutorial_is_sound(project: Path) -> None:
    """`check` prints what the page shows, its test passes, and its style is that of the project."""
    [check] = commands("Write a consumer")
    done = workerkit(*check, cwd=project)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "refunds"],
        cwd=project,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check"],
        cwd=project,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert f"$ workerkit check bookshop\n{done.stdout}```" in PAGE, done
    assert "1 passed" in tested.stdout, tested.stdout
    assert linted.returncode == 0, linted.stdout


def test_the_faults_of_the_tutorial(project: Path) -> None:
    """The misspelt option and the unknown parameter are reported as the page shows."""
    consumer = project / "bookshop" / "consumers" / "refunds.py"
    text = consumer.read_text().replace("queues =", "queus =")
    consumer.write_text(text.replace("OrderRepository) ->", "OrderRepository, bank: str) ->"))
    [check] = commands("Write a consumer")
    done = workerkit(*check, cwd=project)

    lines = done.stderr.splitlines()
    assert len(lines) == 2, done
    for line in lines:
        shown, _, _ = line.partition("; the container has ")
        assert f"\n{shown}" in PAGE


async def test_messages_fail_and_are_replayed(project: Path) -> None:
    """The commands of "Run it while you work" and "Let a message fail", against a broker."""
    port, http = free_port(), free_port()
    variables = {
        "BOOKSHOP_AMQP__DEFAULT__URL": f"amqp://guest:guest@127.0.0.1:{port}/",
        "BOOKSHOP_HTTP__PORT": str(http),
        "BOOKSHOP_SSE__BOOKSHOP__URL": f"http://127.0.0.1:{http}",
        "BOOKSHOP_OPS__ENABLED": "false",
        "BOOKSHOP_LOG__FORMAT": "text",
    }
    place, refund = commands("Run it while you work")[-2:]
    unknown, invalid, table, letters, second, replay, purge = commands("Let a message fail")[:7]

    def run(arguments: list[str], *more: str) -> str:
        done = workerkit(*arguments, *more, cwd=project, **variables)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    async with (
        started("broker", "--port", str(port), cwd=project) as broker,
        running("bookshop", cwd=project, **variables) as worker,  # type: ignore[arg-type]
    ):
        await broker.says("amqp://")
        await eventually(lambda: run(place), what=repr(worker))
        await worker.says("customer notified")
        run(refund)
        await worker.says("refunded")

        run(unknown)
        run(invalid)
        await eventually(lambda: len(json.loads(run(letters))) == 2, what=repr(worker))
        shown = run(table)
        assert "there is no order 2" in shown
        run(second)
        await eventually(
            lambda: sum("customer notified" in line for line in worker.err) == 2, what=repr(worker)
        )
        run(replay, "--yes")
        await eventually(
            lambda: sum("refunded" in line for line in worker.err) == 2, what=repr(worker)
        )
        run(purge, "--yes")
        assert json.loads(run(letters)) == []
        worker.send(SIGTERM)
        assert await worker.ended() == 0, repr(worker)
