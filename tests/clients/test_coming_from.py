"""The pairs of programs in docs/coming-from get the same messages and print the same lines.

Each section of a page has a program for the other framework, in a block `py`, and one for
workerkit, in a block `python`, which may use what earlier blocks of its page define.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiohttp
import pytest

from tests.clients.application import ROOT
from tests.clients.broker_process import BrokerProcess
from tests.command import Application, process, running, write_package
from tests.ports import free_port
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import Unroutable

PAGES = ROOT / "docs" / "coming-from"
ASYNCWORKER = ROOT / ".venv-asyncworker" / "bin" / "python"
_ADDRESS = "localhost:5672"  # As the programs have it.
_CELERY_LOG = re.compile(r"^\[.*?: WARNING/\w+\] ")


@dataclass(frozen=True, slots=True)
class Case:
    """What happens to both programs of a section.

    Attributes:
        bodies: Messages, by queue.
        lines: What each program prints, in this order.
        path: Of an HTTP request, which both answer with the same JSON.
        call: Sends the message in Celery instead, in Python.
        reply: What the sender gets.
        last: What is printed when the program stops.
        repeats: The same lines may follow.
    """

    page: str
    section: str
    bodies: Mapping[str, Sequence[object]] = field(default_factory=dict)
    lines: Sequence[str] = ()
    path: str = ""
    call: str = ""
    reply: object = None
    last: Sequence[str] = ()
    repeats: bool = False


ONE, TWO = [{"id": 1}], [{"id": 1}, {"id": 2}]
REFUSED = [{"id": -1}, {"id": 2}]
FORWARD = {"orders": [{"id": 1}], "bills": []}

CASES = [
    Case("asyncworker", "Consume a queue", {"orders": ONE}, ["booked 1"]),
    Case("asyncworker", "Consume in batches", {"orders": TWO}, ["booked [1, 2]"]),
    Case("asyncworker", "Reject a message", {"orders": REFUSED}, ["rejected -1", "booked 2"]),
    Case("asyncworker", "When the handler raises", {"orders": ONE}, ["failed 1"]),
    Case("asyncworker", "Publish", FORWARD, ["billed 1"]),
    Case("asyncworker", "Serve HTTP", path="/orders/7"),
    Case(
        "asyncworker",
        "Run at intervals, at start and at shutdown",
        lines=["hello"],
        last=["goodbye"],
        repeats=True,
    ),
    Case("faststream", "Subscribe to a queue", {"orders": ONE}, ["booked 1"]),
    Case("faststream", "Publish what a handler returns", FORWARD, ["billed 1"]),
    Case("faststream", "Dependencies", {"orders": ONE}, ["reserved 1"]),
    Case("faststream", "Reject a message", {"orders": REFUSED}, ["rejected -1", "booked 2"]),
    Case("faststream", "When the handler raises", {"orders": ONE}, ["failed 1"]),
    Case("celery", "A task", {"orders": ONE}, ["booked 1"], call="book.delay(1)"),
    Case(
        "celery",
        "Retries",
        {"orders": ONE},
        ["attempt for 1"] * 3,
        call="book_with_retries.delay(1)",
    ),
    Case(
        "celery",
        "Results",
        {"prices": [{"id": 7}]},
        ["asked for 7"],
        call="print(price.delay(7).get(timeout=60))",
        reply=700,
    ),
    Case("celery", "Periodic tasks", lines=["tick"], repeats=True),
]


def blocks(page: str, language: str) -> dict[str, list[str]]:
    """Return the blocks of a language, by the section that they are in."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", (PAGES / f"{page}.md").read_text(), flags=re.MULTILINE):
        title, _, text = part.partition("\n")
        if texts := re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found[title] = texts
    return found


def test_every_pair_of_programs_has_a_case() -> None:
    """And every case has a pair."""
    shown = {
        (page.stem, section) for page in PAGES.glob("*.md") for section in blocks(page.stem, "py")
    }

    assert {(case.page, case.section) for case in CASES} == shown


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.page}: {case.section}")
async def test_both_programs_do_the_same(
    case: Case, own_broker: BrokerProcess, tmp_path: Path
) -> None:
    """Both print what is expected, one after the other, on the same broker."""
    (program,) = blocks(case.page, "py")[case.section]
    place = urlsplit(own_broker.url)
    (tmp_path / "other.py").write_text(program.replace(_ADDRESS, f"127.0.0.1:{place.port}"))
    port = free_port()
    theirs = _other(case, tmp_path, place.port or 0, port)
    async with theirs as application:
        await _serve(case, application, own_broker.url, port, theirs=True, directory=tmp_path)
    await _drop_queues(own_broker.url, case.bodies)

    before, ours = _ours(case)
    package = write_package(tmp_path, consumers=before + ours)
    async with running(
        package,
        *_options(ours),
        cwd=tmp_path,
        WORKERKIT_AMQP__DEFAULT__URL=own_broker.url,
        WORKERKIT_HTTP__PORT=str(port),
        PYTHONUNBUFFERED="1",
    ) as application:
        await _serve(case, application, own_broker.url, port, theirs=False, directory=tmp_path)


def _other(
    case: Case, directory: Path, broker: int, port: int
) -> AbstractAsyncContextManager[Application]:
    """Return the other framework's program, to be run."""
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(directory)}
    if case.page == "celery":
        options = [
            "--pool",
            "solo",
            "--loglevel",
            "WARNING",
            "--without-mingle",
            "--without-gossip",
        ]
        if not case.call:
            options += ["-B", "--schedule", str(directory / "schedule")]
        start = [sys.executable, "-m", "celery", "-A", "other", "worker", *options]
        return process(*start, cwd=directory, **variables)
    python = sys.executable
    if case.page == "asyncworker":
        assert ASYNCWORKER.exists(), "make test-clients creates .venv-asyncworker, with Python 3.11"
        python = str(ASYNCWORKER)
        variables["ASYNCWORKER_AMQP_DEFAULT_PORT"] = str(broker)
        variables["ASYNCWORKER_HTTP_PORT"] = str(port)
    return process(python, "other.py", cwd=directory, **variables)


def _ours(case: Case) -> tuple[str, str]:
    """Return the blocks before the section, and its own."""
    before: list[str] = []
    for section, texts in blocks(case.page, "python").items():
        if section == case.section:
            return "".join(before), "".join(texts)
        before += texts
    raise AssertionError(f"no program for workerkit in {case.section}")


def _options(text: str) -> list[str]:
    """Return options of `workerkit run` for the consumers and the container of this text alone."""
    classes = re.findall(
        r"^class (\w+)\((?:AMQPConsumer|HTTPView|PeriodicTask)\)", text, re.MULTILINE
    )
    options = [option for name in classes for option in ("--only", name)]
    if "class Container" in text:
        options += ["--container", "app.consumers:Container"]
    return options


async def _serve(
    case: Case, application: Application, url: str, port: int, *, theirs: bool, directory: Path
) -> None:
    """Send what the case has, wait for the lines, and stop the program."""
    celery = theirs and case.page == "celery"
    if celery and case.call:
        await _call(case, directory)
    elif case.reply is not None:
        assert await _request(case, url) == case.reply
    else:
        if theirs and case.page == "asyncworker":
            await _declare(url, case.bodies)
        await _publish(case, url, application)
    if case.path:
        assert await eventually(lambda: _get(port, case.path), what=repr(application)) == {"id": 7}
    await eventually(
        lambda: len(_printed(application)) >= len(case.lines), 60.0, what=repr(application)
    )
    application.send(SIGTERM)
    await application.ended()
    printed = _printed(application)
    if case.repeats:
        printed = list(dict.fromkeys(printed))
    assert printed == [*case.lines, *case.last], repr(application)


def _printed(application: Application) -> list[str]:
    """Return what the handlers have printed, without log lines."""
    if any(_CELERY_LOG.match(line) for line in application.err):
        return [_CELERY_LOG.sub("", line) for line in application.err if _CELERY_LOG.match(line)]
    return [line for line in application.out if line and not line.startswith(("{", " ", "-", "["))]


async def _call(case: Case, directory: Path) -> None:
    command = f"from other import *; {case.call}"
    async with process(
        sys.executable, "-c", command, cwd=directory, PYTHONPATH=str(directory)
    ) as caller:
        assert await caller.ended() == 0, repr(caller)
        assert caller.out == ([] if case.reply is None else [str(case.reply)])


async def _request(case: Case, url: str) -> Any:
    ((queue, (body,)),) = case.bodies.items()
    async with publishing(url) as publisher:

        async def reply() -> Any:
            try:
                return await publisher.request(body, queue, returns=int)
            except Unroutable:
                return None

        return await eventually(reply)


async def _publish(case: Case, url: str, application: Application) -> None:
    """Publish as soon as the program has declared its queues."""
    async with publishing(url) as publisher:
        for queue, bodies in case.bodies.items():
            for body in bodies:

                async def published(body: object = body, queue: str = queue) -> bool:
                    try:
                        await publisher.publish(body, queue)
                    except Unroutable:
                        return False
                    return True

                await eventually(published, what=repr(application))


async def _declare(url: str, queues: Mapping[str, object]) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in queues:
            await channel.declare_queue(queue, durable=True)


async def _drop_queues(url: str, queues: Mapping[str, object]) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in queues:
            await channel.queue_delete(queue)


async def _get(port: int, path: str) -> Any:
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as response,
        ):
            return await response.json()
    except (TimeoutError, OSError, aiohttp.ClientError):
        return None
