"""FR6. Any data of a server, at the login or later, can only end its own connection."""

import asyncio
import logging
import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis

from tests.application import running
from tests.client import Client, connected
from tests.consumers import collector
from tests.fuzzed_broker import Fuzzed, Plan, plans
from tests.host_names import LOOPS
from tests.waiting import eventually
from workerkit import Action, Runner
from workerkit.tasks import Backoff

pytestmark = pytest.mark.any_broker

EXAMPLES = int(os.environ.get("TEST_FUZZ_EXAMPLES", "60"))
FIRST, CAP = 0.02, 0.05
MEMORY = 64 * 2**20 + EXAMPLES * 2**18  # Pytest keeps each record, with its traceback.
ALLOWED = ("connection failed", "consumer is not ready", "the event loop is blocked")


def memory() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Log(logging.Handler):
    """A handler that collects the relevant parts of workerkit's log records.

    Attributes:
        reasons: Why each connection to the fuzzed server ended, in order.
        errors: The messages of all records at ERROR or above.
        pauses: Seconds until the next attempt, of each that failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.errors: set[str] = set()
        self.pauses: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the relevant parts of a record."""
        fields: dict[str, Any] = vars(record)
        if record.levelno >= logging.ERROR:
            self.errors.add(record.getMessage())
        if fields.get("connection") != "odd":
            return
        if record.msg == "connection failed":
            self.reasons.append(fields["error"].partition("): ")[2])
            self.pauses.append(fields["retry_in"])
        elif record.msg == "connection lost":
            self.reasons.append(fields["reason"])


@pytest.fixture
def log() -> Iterator[Log]:
    """Listen to workerkit."""
    logger, handler = logging.getLogger("workerkit"), Log()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


class Worker:
    """A worker that consumes from a good broker and from the fuzzed one."""

    def __init__(self, url: str) -> None:
        self.complaints: list[dict[str, Any]] = []
        self.server = Fuzzed()
        self._url = url
        self._over = asyncio.Event()
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner: Runner | None = None
        self._client: Client | None = None
        self._bodies: list[bytes] = []

    async def run(self) -> None:
        """Run until `stop`."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        good, self._bodies = collector("good", name="Good")
        bad, _ = collector("bad", name="Bad", connection="odd", on_invalid=Action.REJECT)
        async with self.server, connected(self._url) as self._client:
            amqp = {"odd": {"url": self.server.url, "connect_timeout": 0.3, "heartbeat": 5}}
            async with running(self._url, good, bad, ready=False, amqp=amqp) as self._runner:
                self._up.set_result(None)
                await self._over.wait()

    async def start(self) -> asyncio.Task[None]:
        """Start it."""
        task = asyncio.create_task(self.run())
        await self._up
        return task

    async def attempt(self, plan: Plan) -> None:
        """Let one connection follow a plan; then the good broker delivers a message."""
        assert self._client is not None
        assert self._runner is not None
        server, number = self.server, self.server.ended + 1
        server.plans.put_nowait(plan)
        await eventually(lambda: server.ended >= number, what=f"an attempt with {plan}")
        body = b"%d" % number
        await self._client.send("good", body)
        await eventually(lambda: body in self._bodies[-1:], what=f"the neighbour beside {plan}")
        assert not self._runner.crashed, plan

    async def stop(self) -> None:
        """Stop it."""
        self._over.set()


@pytest.mark.timeout(120 + EXAMPLES)
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_fr6_any_broker_loses_its_own_connection_only(
    url: str, log: Log, capfd: Any, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """The process continues, with one record for each attempt and bounded memory."""
    monkeypatch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=FIRST, cap=CAP))
    monkeypatch.setattr("workerkit.amqp.replies.RPC_DEADLINE", 0.3)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:

        async def made() -> Worker:
            return Worker(url)

        worker = runner.run(made())
        task = runner.run(worker.start())
        before = memory()

        @given(plans())
        @settings_of_hypothesis(max_examples=EXAMPLES, database=None, derandomize=EXAMPLES <= 60)
        def fuzz(plan: Plan) -> None:
            runner.run(worker.attempt(plan))

        fuzz()
        grown = memory() - before
        runner.run(worker.stop())
        runner.run(asyncio.wait_for(asyncio.shield(task), 60.0))
        accepted = worker.server.accepted

    assert all(log.reasons), log.reasons
    # The last one ends when the process stops, which is no failure.
    # On a busy machine an attempt may be over before its connection is accepted.
    early = sum(reason.startswith("no answer within") for reason in log.reasons)
    assert len(accepted) - 1 <= len(log.reasons) <= len(accepted) + early
    assert {each for each in log.errors if not each.startswith(ALLOWED)} == set()
    assert all(FIRST / 2 <= pause <= CAP for pause in log.pauses)
    assert all(b - a >= FIRST / 2 * 0.9 for a, b in pairwise(accepted))
    assert worker.complaints == []
    assert grown < MEMORY
    assert capfd.readouterr().err == ""
