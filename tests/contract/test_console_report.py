"""What a process reports of itself, while it consumes from a real RabbitMQ."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pamqp.commands import Basic

from tests.application import container_of, package_of
from tests.client import Client, connected
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Consumer, Queue, Reject, Retry, RetryPolicy, Runner
from workerkit.app.process import Process
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.overview import Local, Overview
from workerkit.console.reports import ConsumerReport, ProcessReport, QueueReport
from workerkit.console.snapshot import ProcessAgent, Snapshot


class NoCommands:
    """Executes nothing."""

    async def execute(
        self, command: Command, operator: Operator, process_id: str, host: str, pid: int
    ) -> CommandResult:
        """Refuse a command."""
        return CommandResult(process=process_id, host=host, pid=pid, ok=False, text="refused")


class Running:
    """A process, and what it reports."""

    def __init__(self, process: Process, snapshot: Snapshot) -> None:
        self.process = process
        self.snapshot = snapshot

    def report(self) -> ProcessReport:
        """Return the report of the process, as another process reads it."""
        return ProcessReport.model_validate_json(self.snapshot.report().model_dump_json())

    def consumer(self, name: str) -> ConsumerReport:
        """Return the report of one consumer."""
        return next(each for each in self.report().consumers if each.name == name)


@asynccontextmanager
async def running(url: str, *consumers: type[Consumer], **settings: Any) -> AsyncIterator[Running]:
    """Run *consumers* inside the block, ready."""
    container = container_of(url, **settings)
    assembly = Runner(container, packages=[package_of(*consumers)]).assemble()
    process = Process(assembly, container)
    snapshot = Snapshot(
        assembly.name,
        assembly.settings,
        assembly.transports,
        process.readiness,
        process.metrics,
        drained=lambda: False,
        redact=lambda text: text.replace("hunter2", "***"),
    )
    assert snapshot.report().state == "starting"
    await process.start()
    try:
        await eventually(lambda: process.readiness.ready, what="ready")
        yield Running(process, snapshot)
    finally:
        assert await process.stop() == []


def properties(message_id: str) -> Basic.Properties:
    """Return the properties of a message."""
    return Basic.Properties(message_id=message_id, delivery_mode=2)


async def send(client: Client, *bodies: bytes) -> None:
    """Send messages to the queue `orders`; each has its body as its id."""
    for body in bodies:
        await client.send("orders", body, properties=properties(body.decode()))


async def test_a_report_has_what_the_consumers_have_done(rabbit: PrivateRabbit, vhost: str) -> None:
    """Handled, failed, retried, dead and in flight; queues, connections and the last failures."""
    url, gate = rabbit.url(vhost), asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0.1,), jitter=0)
        concurrency = 4
        prefetch = 7

        async def handle(self, body: str) -> None:
            if body == "wait":
                await gate.wait()
            if body == "fails":
                raise KeyError("hunter2 is missing")
            if body == "later":
                raise Retry(after=0)
            if body == "bad":
                raise Reject("nobody wants it")

    async with running(url, Orders) as found, connected(url) as client:
        await send(client, b"1", b"2", b"3", b"bad", b"fails", b"wait")
        await eventually(lambda: found.consumer("Orders").dead == 2)
        await eventually(lambda: found.consumer("Orders").in_flight == 1)
        orders, report = found.consumer("Orders"), found.report()
        gate.set()
        await eventually(lambda: found.consumer("Orders").handled == 7)

    # Of "fails", the first attempt and the second.
    assert (orders.handled, orders.failed, orders.retried, orders.dead) == (6, 3, 1, 2)
    assert orders.counts[-1] == 6
    assert (orders.kind, orders.source, orders.state, orders.attempts) == (
        *("amqp", "orders", "ready"),
        2,
    )
    shown = url.replace("guest:guest@", "guest@")
    assert orders.queues == [
        QueueReport(
            name="orders",
            connection="default",
            vhost=vhost,
            broker=shown,
            dead_letters="orders.dlq",
        )
    ]
    assert (report.state, report.reasons, report.pid) == ("ready", [], os.getpid())
    assert report.memory is not None
    assert report.memory > 1_000_000
    roles = {each.role: each for each in report.connections}
    assert (roles["consumers"].connected, roles["consumers"].opened) == (True, 1)
    assert (roles["consumers"].name, roles["consumers"].vhost) == ("default", vhost)
    failures = {(each.delivery, each.attempt): each for each in report.failures}
    assert sorted(failures) == [("bad", 1), ("fails", 1), ("fails", 2)]
    bad, first, last = failures["bad", 1], failures["fails", 1], failures["fails", 2]
    assert (bad.error, bad.text, bad.action) == ("Reject", "nobody wants it", "dead_letter")
    assert (first.error, first.text, first.action) == ("KeyError", "'*** is missing'", "retry")
    assert (last.consumer, last.source, last.action) == ("Orders", "orders", "dead_letter")
    assert last.place.startswith("test_console_report.py:")
    assert timedelta(0) <= datetime.now(UTC) - last.time < timedelta(minutes=1)


async def test_connections_that_were_lost(rabbit: PrivateRabbit, vhost: str) -> None:
    """The loss is counted with its reason, and the connection is open again."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            pass

    def consuming() -> Any:
        return next(each for each in found.report().connections if each.role == "consumers")

    async with running(rabbit.url(vhost), Orders) as found:
        await asyncio.to_thread(rabbit.close_all_connections, "maintenance")
        await eventually(lambda: consuming().lost == 1)
        await eventually(lambda: consuming().connected)

        assert (consuming().opened, consuming().reason) == (2, "")
        await eventually(lambda: found.report().state == "ready")


async def test_queues_of_each_kind(rabbit: PrivateRabbit, vhost: str) -> None:
    """Queues per process have their name at the broker, and no dead letters."""
    url = rabbit.url(vhost)

    class News(AMQPConsumer):
        queues = [Queue("news", per_process=True)]

        async def handle(self, body: bytes) -> None:
            pass

    class Log(AMQPConsumer):
        queues = [Queue("log", type="stream")]
        on_invalid = on_exception = Action.REJECT

        async def handle(self, body: bytes) -> None:
            pass

    async with running(url, News, Log) as found:
        [news], [log] = found.consumer("News").queues, found.consumer("Log").queues
        queues = await asyncio.to_thread(rabbit.queues, vhost)

    assert news.name in queues
    assert news.name.startswith("news.")
    assert news.dead_letters is None
    assert (log.name, log.is_stream, log.dead_letters) == ("log", True, None)


async def test_the_overview_of_one_process(rabbit: PrivateRabbit, vhost: str) -> None:
    """Its rate is that of the deliveries between two views."""
    url = rabbit.url(vhost)

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            pass

    async with running(url, Orders) as found, connected(url) as client:
        agent = ProcessAgent(found.snapshot, NoCommands())
        overview = Overview("shop", [Local(agent)], interval=0.3)
        first = await overview.view()
        await send(client, *(str(number).encode() for number in range(20)))
        await eventually(lambda: found.consumer("Orders").handled == 20)

        async def counted() -> Any:
            view = await overview.view()
            return view if view.totals.handled == 20 else None

        view = await eventually(counted)
        await overview.close()

    assert (first.asked, first.answered, first.totals.rate) == (1, 1, 0.0)
    assert max(view.totals.rates) > 1.0
    [row] = view.consumers
    assert (row.name, row.handled, row.state) == ("Orders", 20, "ready")
    assert row.p95 is not None
    assert 0 < row.p95 < 5
