"""Streams: messages are not removed from them, and cannot be requeued."""

import asyncio

from tests.application import Recorder, running
from tests.client import Client
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue
from workerkit.amqp.queue import StreamOffset


def reader(
    seen: list[str], offset: StreamOffset, gate: asyncio.Event | None = None
) -> type[AMQPConsumer]:
    """A consumer of a stream that waits at the gate with every message but the first."""

    class Reader(AMQPConsumer):
        queues = [Queue("log", type="stream", stream_offset=offset)]
        concurrency = 1

        async def handle(self, line: str) -> None:
            seen.append(line)
            if line == "bad":
                raise KeyError(line)
            if gate is not None and len(seen) > 1:
                await gate.wait()

    return Reader


async def test_a_stream_is_read_from_its_offset(url: str, client: Client) -> None:
    """A stream can be read twice from the first message on."""
    first: list[str] = []
    second: list[str] = []
    async with running(url, reader(first, "first")):
        await client.send("log", b"a", b"b")
        await eventually(lambda: first == ["a", "b"])

    async with running(url, reader(second, "first")):
        await eventually(lambda: second == ["a", "b"])
        await client.send("log", b"c")
        await eventually(lambda: second == ["a", "b", "c"])


async def test_a_failed_message_is_dead_lettered(url: str, client: Client) -> None:
    """It cannot be requeued to a stream, so it is dead-lettered, and reading continues."""
    seen: list[str] = []
    recorder = Recorder()
    async with running(url, reader(seen, "next"), recorder=recorder):
        await client.send("log", b"bad", b"good")
        letter = await client.take("log.dlq")
        await eventually(lambda: seen == ["bad", "good"])

    assert letter.body == b"bad"
    assert letter.evidence["error"] == "KeyError"
    assert recorder.actions == ["dead_letter", "ack"]


async def test_b2_reading_continues_after_the_settled_messages(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """After a reset no message is skipped, and only the message in progress is redelivered."""
    seen: list[str] = []
    gate = asyncio.Event()
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), reader(seen, "next", gate)) as runner,
    ):
        await client.send("log", b"1", b"2", b"3")
        await eventually(lambda: seen == ["1", "2"])
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await client.send("log", b"4")
        await eventually(lambda: runner.ready)
        gate.set()
        await eventually(lambda: seen[-1] == "4" and len(seen) >= 5)

    assert seen == ["1", "2", "2", "3", "4"]
