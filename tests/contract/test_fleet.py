"""Processes of one application find each other over a real RabbitMQ."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from secrets import token_bytes, token_hex
from typing import Any

import aio_pika
import pytest
from pydantic import SecretStr

from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit.amqp.connection import Connection
from workerkit.config.connections import AMQPSettings
from workerkit.config.sections import FleetSettings
from workerkit.console.bus import exchange_of
from workerkit.console.fleet import Fleet
from workerkit.console.model import Command, CommandResult, Operator
from workerkit.console.reports import ConsumerReport, FailureReport, ProcessReport
from workerkit.tasks import cancel_and_wait

APP = "shop"
ALICE = Operator(user="alice", role="operate", address="192.0.2.1")
PAUSE = Command(action="pause", consumer="OrderPlaced")


class Process:
    """One process: an agent, its connection, and its fleet."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.id = token_hex(16)
        self.commands: list[tuple[Command, Operator]] = []
        self.failures = self.consumers = 0
        read = partial(AMQPSettings, url=SecretStr(url), heartbeat=5)
        self.connection = Connection("default", read, None, "consumers")
        self.fleet = Fleet(APP, FleetSettings(**settings), self.connection, self)

    def report(self) -> ProcessReport:
        """Return a report, with as many failures and consumers as a test wants."""
        failure = FailureReport(
            time=datetime.now(UTC), consumer="A", source="a", action="retry", error="E"
        )
        consumer = ConsumerReport(name="A", kind="amqp", bounds=[0.1] * 15, counts=[10**6] * 16)
        return ProcessReport(
            id=self.id,
            app=APP,
            host="here",
            pid=1,
            started=datetime.now(UTC),
            failures=[failure.model_copy(update={"text": "x" * 500})] * self.failures,
            consumers=[consumer] * self.consumers,
        )

    async def execute(self, command: Command, operator: Operator) -> CommandResult:
        """Remember the command."""
        self.commands.append((command, operator))
        return CommandResult(process=self.id, ok=True, text="paused")

    async def sees(self) -> set[str]:
        """Return the ids of the others that answer."""
        return {each.id for each in (await self.fleet.reports()).reports}


@asynccontextmanager
async def processes(
    url: str, count: int, *, sees_all: bool = True, **settings: Any
) -> AsyncIterator[list[Process]]:
    """Run processes inside the block that have found each other, and only each other."""
    found = [Process(url, **settings) for _ in range(count)]
    tasks = [asyncio.create_task(each.connection.run()) for each in found]
    try:
        for each in found:
            each.fleet.start()
        for each in found:
            assert await each.fleet.opened(20.0)
        for each in found if sees_all else ():
            await eventually(partial(_sees_all, each, found))
        yield found
    finally:
        for each in found:
            await each.fleet.close()
        await cancel_and_wait(tasks)


async def _sees_all(process: Process, every: list[Process]) -> bool:
    return await process.sees() == {each.id for each in every} - {process.id}


async def test_processes_find_each_other(rabbit: PrivateRabbit, vhost: str) -> None:
    """Each one gets the reports of all others; one that leaves is not missed."""
    async with processes(rabbit.url(vhost), 3) as (one, two, three):
        answers = await one.fleet.reports()
        assert (answers.silent, answers.problems) == ([], ())

        await three.fleet.close()
        await eventually(lambda: _sees_all(one, [one, two]))
        assert (await one.fleet.reports()).silent == []


async def test_commands(rabbit: PrivateRabbit, vhost: str) -> None:
    """They go to all or to some, with who has sent them, and are executed once."""
    async with processes(rabbit.url(vhost), 3) as (one, two, three):
        results = await one.fleet.execute(PAUSE, ALICE)
        assert {(each.process, each.ok) for each in results} == {(two.id, True), (three.id, True)}
        assert [len(each.commands) for each in (one, two, three)] == [0, 1, 1]
        operator = two.commands[0][1]
        assert (operator.user, operator.role) == ("alice", "operate")
        assert operator.address == "via fleet, 192.0.2.1"

        only = PAUSE.model_copy(update={"processes": [three.id, one.id]})
        assert [each.process for each in await one.fleet.execute(only, ALICE)] == [three.id]
        assert [len(each.commands) for each in (one, two, three)] == [0, 1, 2]


async def test_one_that_hangs_is_reported(rabbit: PrivateRabbit, vhost: str) -> None:
    """The others answer, and it is silent; a command says that it did not answer."""
    async with processes(rabbit.url(vhost), 3) as (one, two, three):
        three.fleet._bus._receive = lambda body, reply_to: None

        answers = await one.fleet.reports()
        assert [each.id for each in answers.reports] == [two.id]
        assert answers.silent == [three.id]
        results = {each.process: each for each in await one.fleet.execute(PAUSE, ALICE)}
        assert results[two.id].ok
        assert not results[three.id].answered
        assert results[three.id].text == "did not answer within 3 s"


async def test_it_comes_back_after_a_loss(rabbit: PrivateRabbit, vhost: str) -> None:
    """Of the connection, and of the queue."""
    async with processes(rabbit.url(vhost), 2) as (one, two):
        rabbit.close_all_connections("maintenance")
        await eventually(lambda: _sees_all(one, [one, two]), 40.0)
        await eventually(lambda: _sees_all(two, [one, two]), 40.0)

        connection = await aio_pika.connect(rabbit.url(vhost))
        async with connection:
            channel = await connection.channel()
            await channel.exchange_delete(exchange_of(APP))
        for each in (one, two):
            each.fleet._bus._deleted.set()
        await eventually(lambda: _sees_all(one, [one, two]), 40.0)


async def test_other_applications_are_not_seen(rabbit: PrivateRabbit, vhost: str) -> None:
    """The name of the exchange is that of the application; queues of users stay as they are."""
    async with processes(rabbit.url(vhost), 2):
        names = rabbit.queues(vhost)
        assert len(names) == 2
        assert all(each.startswith("workerkit.shop.") for each in names)
    await eventually(lambda: rabbit.queues(vhost) == {})


async def test_who_looks_during_an_alarm_stops_no_consumer(
    rabbit: PrivateRabbit, vhost: str
) -> None:
    """The broker reads nothing more from a connection that publishes, also no acks."""
    async with processes(rabbit.url(vhost), 2) as (one, two):
        session = await two.connection.session()
        channel = await session.channel()
        await channel.declare_queue("orders")
        await asyncio.to_thread(rabbit.memory_alarm, on=True)
        try:
            await eventually(partial(_is_blocked, one))
            await eventually(partial(_is_blocked, two))

            # The broker answers on the connections of consumers.
            assert await channel.count("orders") == 0
            assert await (await (await one.connection.session()).channel()).count("orders") == 0
        finally:
            await asyncio.to_thread(rabbit.memory_alarm, on=False)
        await eventually(lambda: _sees_all(one, [one, two]))
        await eventually(lambda: _sees_all(two, [one, two]))


async def _is_blocked(process: Process) -> bool:
    answers = await process.fleet.reports()
    return answers.reports == [] and "blocks publishers" in "".join(answers.problems)


def _hostile() -> list[bytes]:
    """Return messages of somebody who may publish to the exchange."""
    chance = random.Random(17)
    report = {"id": "x", "app": "a", "host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z"}
    found: list[Any] = [
        None,
        [],
        {},
        {"kind": "ask"},
        {"kind": "command"},
        {"kind": "report", "process": "x", "request": "y", "report": report},
        {"kind": "report", "process": "x" * 1000, "report": report},
        {"kind": "hello", "process": "\ud800"},
        {"kind": "bye", "process": "nobody"},
        {"kind": "command", "command": {"action": "destroy"}, "operator": ALICE.model_dump()},
        {"version": 99, "kind": "ask"},
    ]
    bodies = [json.dumps(each).encode() for each in found]
    bodies += [b"", b"[" * 100_000, b'{"kind":', b"\xff\xfe", b"x" * (2 * 1024 * 1024)]
    return bodies + [token_bytes(chance.randrange(1, 200)) for _ in range(200)]


async def test_malformed_messages(
    rabbit: PrivateRabbit, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They change nothing, and fill neither the memory nor the log."""
    caplog.set_level(logging.WARNING)
    async with processes(rabbit.url(vhost), 2) as (one, two):
        connection = await aio_pika.connect(rabbit.url(vhost))
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(exchange_of(APP))
            for body in _hostile():
                await exchange.publish(aio_pika.Message(body, reply_to="nowhere"), "")
            for number in range(2_000):
                hello = {"kind": "hello", "process": f"ghost-{number}"}
                await exchange.publish(aio_pika.Message(json.dumps(hello).encode()), "")

        await eventually(lambda: len(one.fleet._members) >= 900)
        assert len(one.fleet._members) <= 1_000
        assert two.id in await one.sees()
        assert one.commands == two.commands == []
        warnings = [each for each in caplog.records if each.name.startswith("workerkit.console")]
        assert len(warnings) <= 2


async def _publish(url: str, reply_to: str, *messages: dict[str, Any]) -> None:
    """Publish messages of somebody who is no process."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(exchange_of(APP))
        for each in messages:
            await exchange.publish(
                aio_pika.Message(json.dumps(each).encode(), reply_to=reply_to), ""
            )


async def test_answers_go_to_processes_only(rabbit: PrivateRabbit, vhost: str) -> None:
    """A message with the name of another queue to reply to gets no answer."""
    url = rabbit.url(vhost)
    command = {"action": "pause", "consumer": "A"}
    async with processes(url, 2) as (one, two), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("orders", durable=True)
        await _publish(
            url,
            "orders",
            {"kind": "hello", "process": "x", "request": "new"},
            {"kind": "ask", "process": "x", "request": "1"},
            {"kind": "command", "request": "2", "command": command, "operator": ALICE.model_dump()},
            {"kind": "hello", "process": "the last one"},
        )
        await eventually(lambda: "the last one" in one.fleet._members)
        await eventually(lambda: "the last one" in two.fleet._members)
        # What was sent before is in the queues: an answer to a later question has arrived.
        assert await _sees_all(one, [one, two])
        assert await _sees_all(two, [one, two])

        assert rabbit.queues(vhost)["orders"].ready == 0
        assert one.commands == two.commands == []


async def test_a_new_process_replaces_one_that_is_forgotten(
    rabbit: PrivateRabbit, vhost: str
) -> None:
    """A thousand processes that were killed do not keep a command from a new one."""
    url = rabbit.url(vhost)
    async with processes(url, 1) as (one,):
        await _publish(url, "", *({"kind": "hello", "process": f"{n}"} for n in range(1_100)))
        await eventually(lambda: "1099" in one.fleet._members)
        async with processes(url, 1, sees_all=False) as (new,):
            await eventually(lambda: new.id in one.fleet._members)
            only = PAUSE.model_copy(update={"processes": [new.id]})
            assert [each.ok for each in await one.fleet.execute(only, ALICE)] == [True]
            assert [each for each, _ in new.commands] == [only]


async def test_a_large_report_is_shortened(rabbit: PrivateRabbit, vhost: str) -> None:
    """Without its failures it fits, or without histograms, or without consumers."""
    async with processes(rabbit.url(vhost), 2) as (one, two):
        two.failures = 3_000
        report = await eventually(partial(_only_report, one))
        assert (report.id, report.failures) == (two.id, [])

        two.consumers = 4_000
        report = await eventually(partial(_only_report, one))
        assert (len(report.consumers), report.consumers[0].counts) == (4_000, [])

        two.consumers = 8_000
        report = await eventually(partial(_only_report, one))
        assert (report.id, report.consumers) == (two.id, [])
        assert report.reasons == ["its report is too large to show its consumers"]


async def _only_report(process: Process) -> ProcessReport:
    """Return the report of the only other process, once it answers in time."""
    reports = (await process.fleet.reports()).reports
    assert len(reports) == 1
    return reports[0]


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_a_user_who_may_not(
    rabbit: PrivateRabbit, vhost: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With `on`, one WARNING names the permission; with `auto`, there is none."""
    caplog.set_level(logging.WARNING)
    user = f"user-{token_hex(4)}"
    rabbit.add_user(user, "secret", vhost=vhost, configure="^orders$", write="^$", read="^orders$")
    process = Process(rabbit.url(vhost, user, "secret"), mode=mode)
    task = asyncio.create_task(process.connection.run())
    try:
        process.fleet.start()
        await eventually(lambda: "workerkit.shop" in process.fleet._bus.problem)
        answers = await process.fleet.reports()
        assert answers.reports == []
        assert "configure on 'workerkit.shop'" in answers.problems[0]
        assert process.connection.connected
    finally:
        await process.fleet.close()
        await cancel_and_wait([task])
    warnings = [each for each in caplog.records if each.name.startswith("workerkit.console")]
    assert len(warnings) == (mode == "on")
