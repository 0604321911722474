"""The recipe for Celery in docs/interoperability.md, with real producers, workers and RabbitMQ."""

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain

from tests.application import Recorder, running
from tests.command import process
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "interoperability.md"
# The module of a Celery application, as the users of the recipe have it.
APPLICATION = """
import os
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])

@app.task(name="shop.bill")
def bill(order, note=""):
    return f"{order} {note}"
"""


@pytest.fixture
def page() -> SimpleNamespace:
    """What the blocks of the page define."""
    namespace: dict[str, Any] = {"__name__": "shop"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), namespace)
    return SimpleNamespace(**namespace)


@pytest.fixture
def url(rabbit: PrivateRabbit, vhost: str) -> str:
    """The address of a virtual host of this test."""
    return rabbit.url(vhost)


@pytest.fixture
def celery(url: str) -> Iterator[Celery]:
    """A producer."""
    app = Celery("shop", broker=url)
    app.conf.accept_content = ["json", "pickle"]
    yield app
    app.close()


@asynccontextmanager
async def tasks(page: SimpleNamespace, url: str) -> AsyncIterator[tuple[Recorder, list[str]]]:
    """Run the consumer of the page; yield what was settled, and what it has done."""
    recorder, journal = Recorder(), page.Journal()

    class Tasks(page.Tasks):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(journal)

    async with running(url, Tasks, recorder=recorder):
        yield recorder, journal.lines


async def test_a_celery_producer_drives_a_consumer(
    page: SimpleNamespace, url: str, celery: Celery
) -> None:
    """Tasks by name, with positional and named arguments, a countdown, and one that has expired."""
    async with tasks(page, url) as (recorder, lines):
        celery.send_task("shop.bill", (7,), {"note": "urgent"})
        celery.send_task("shop.refund", kwargs={"order": 8, "amount": 2.5})
        celery.send_task("shop.bill", (9,), countdown=0.5, expires=3600)
        celery.send_task("shop.bill", (10,), expires=-1)
        await eventually(lambda: len(recorder.settled) == 5, what="five settled messages")

    assert sorted(lines) == ["bill 7 urgent", "bill 9", "refund 8: 2.5"]
    assert sorted(recorder.actions) == ["ack", "ack", "ack", "ack", "retry"]


async def test_what_is_refused(page: SimpleNamespace, url: str, celery: Celery) -> None:
    """Unknown tasks, wrong arguments, chains, and pickled bodies, each with its reason."""
    async with tasks(page, url) as (recorder, lines):
        celery.send_task("shop.other")
        celery.send_task("shop.bill", (7, "a", "b"))
        celery.send_task("shop.bill", (7,), {"unknown": 1})
        celery.send_task("shop.bill", (7,), serializer="pickle")
        first, second = (celery.signature(name, (1,)) for name in ("shop.bill", "shop.refund"))
        chain(first, second).apply_async()
        await eventually(lambda: len(recorder.settled) == 5, what="five settled messages")

    found = [(each.action.value, str(each.outcome.error)) for each in recorder.settled]
    assert lines == []
    assert sorted(found) == [
        ("dead_letter", "[key]: There is no such field"),
        (
            "dead_letter",
            (
                "the body is pickled, which is not read because it could run any code; the body:"
                " Invalid JSON: expected value at line 1 column 1"
            ),
        ),
        (
            "dead_letter",
            "the body: Value error, has callbacks, a chain or a chord: only Celery runs those",
        ),
        (
            "dead_letter",
            "the body: Value error, should be the arguments of the task, as [args, kwargs, embed]",
        ),
        (
            "reject",
            "header 'task' is unknown: 'shop.other'; Tasks knows 'shop.bill', 'shop.refund'",
        ),
    ]


async def test_a_celery_worker_runs_a_task_of_workerkit(
    page: SimpleNamespace, url: str, tmp_path: Path
) -> None:
    """Its result is that of the task with these arguments."""
    (tmp_path / "shop_tasks.py").write_text(APPLICATION)
    results = tmp_path / "results"
    results.mkdir()
    variables = {"BROKER": url, "RESULTS": f"file://{results}"}
    command = [sys.executable, "-m", "celery", "-A", "shop_tasks", "worker", "--pool", "solo"]
    options = ["--hostname", f"recipe@{os.getpid()}", "--without-gossip", "--without-mingle"]

    async with process(*command, *options, "--loglevel", "INFO", cwd=tmp_path, **variables) as run:
        await run.says("ready.")
        async with publishing(url) as publisher:
            task_id = await page.send_task(publisher, "shop.bill", 7, note="urgent")
        app = Celery("shop", broker=url, backend=variables["RESULTS"])
        result = app.AsyncResult(task_id)
        await eventually(result.ready, what="the result")
        assert result.get() == "7 urgent"
        app.close()
