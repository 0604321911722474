"""D3, D6, E. Processes that are killed: attempts are counted, nothing is lost.

Real processes and SIGKILL. Handlers write to files: a pipe could be lost with its process.
"""

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.client import Client
from tests.command import Application, running, write_package
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually

PREFETCH = 8
CONSUMERS = """
    import os
    from pathlib import Path

    from workerkit import AMQPConsumer, AMQPMessage, Publisher, Queue, RetryPolicy


    def note(name, text):
        # One write, so that nothing of it is lost when the process is killed.
        file = os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, (text + "\\n").encode())
        os.close(file)


    class Orders(AMQPConsumer):
        queues = [{queue}]
        concurrency = 4
        retry = RetryPolicy(delays=(0.2, 0.2, 0.2), jitter=0)

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: str, message: AMQPMessage) -> None:
            note("calls", f"{{os.getpid()}} {{body}} {{message.attempt}}")
            kind = body.split(":")[0]
            if kind == "deadly":
                os.kill(os.getpid(), 9)
            if kind == "never" or (kind == "twice" and message.attempt < 3):
                raise KeyError(body)
            if kind == "forward":
                await self.publisher.publish(body, "copies")
            note("handled", body)
"""


def lines(path: Path) -> list[str]:
    """Return the lines that handlers have written to a file so far."""
    return path.read_text().splitlines() if path.exists() else []


def start(tmp_path: Path, url: str, queue: str = '"orders"') -> dict[str, Any]:
    """Write the package, and return the variables for its processes."""
    if not (tmp_path / "app").exists():
        write_package(tmp_path, consumers=CONSUMERS.format(queue=queue))
    return {"WORKERKIT_AMQP__DEFAULT__URL": url, "WORKERKIT_LOG__LEVEL": "INFO"}


async def test_d3_attempts_survive_a_crash_and_are_shared_by_replicas(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path
) -> None:
    """The attempts of all processes are counted together; a killed process adds none."""
    variables = start(tmp_path, url)
    async with running("app", cwd=tmp_path, **variables) as first:
        await first.says("consuming")
        await client.send("orders", b"never:0")
        await eventually(lambda: lines(tmp_path / "calls"))
        # It waits in the broker now, or soon.
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        first.send(signal.SIGKILL)
        await first.ended()
    async with (
        running("app", cwd=tmp_path, **variables) as second,
        running("app", cwd=tmp_path, **variables) as third,
    ):
        await second.says("consuming")
        await third.says("consuming")
        await client.send("orders", *(b"never:%d" % number for number in range(1, 20)))
        bodies: set[str] = set()
        while len(bodies) < 20:
            bodies.add((await client.take("orders.dlq")).body.decode())
        # If a process is killed after it copied a message and before the ack, another handles both.
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)

    calls = [line.split() for line in lines(tmp_path / "calls")]
    assert bodies == {f"never:{number}" for number in range(20)}
    assert len({pid for pid, *_ in calls}) == 3
    for body in bodies:
        attempts = [int(attempt) for _, each, attempt in calls if each == body]
        # The first process may have been killed between a move and its acknowledgement.
        assert sorted(set(attempts)) == [1, 2, 3, 4]
        assert attempts == [1, 2, 3, 4] or body == "never:0"


async def test_d3_a_message_in_a_quorum_queue_that_kills_the_process_is_dead_lettered(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path
) -> None:
    """It is dead-lettered before the broker would drop it, and other messages are handled."""
    queue = 'Queue("orders", "quorum", delivery_limit=2)'
    variables = start(tmp_path, url, queue)
    async with running("app", cwd=tmp_path, **variables) as app:
        await app.says("consuming")
        await client.send("orders", b"deadly:0")
        await app.ended()
    async with running("app", cwd=tmp_path, **variables) as app:
        await app.ended()
    async with running("app", cwd=tmp_path, **variables) as app:
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready)
        await client.send("orders", b"ok:0")
        await eventually(lambda: lines(tmp_path / "handled") == ["ok:0"])
    letter = await client.take("orders.dlq")

    assert letter.body == b"deadly:0"
    assert "never settled" in letter.evidence["reason"]
    assert len(lines(tmp_path / "calls")) == 3


async def test_d3_a_classic_queue_does_not_count_what_kills_the_process(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path
) -> None:
    """The message is redelivered to the next process, and is never lost."""
    variables = start(tmp_path, url)
    await client.declare("orders")
    await client.send("orders", b"deadly:0")
    for number in range(2):
        async with running("app", cwd=tmp_path, **variables) as app:
            assert await app.ended() == -signal.SIGKILL
        await eventually(lambda: rabbit.queues(vhost)["orders"].ready == 1)
        assert len(lines(tmp_path / "calls")) == number + 1

    assert {line.split()[2] for line in lines(tmp_path / "calls")} == {"1"}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_d6_killed_at_any_moment_nothing_is_lost(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path, kind: str
) -> None:
    """Every message is handled or dead-lettered, and messages of handlers are published."""
    variables = start(tmp_path, url, f'Queue("orders", "{kind}")')
    kinds = ("ok", "twice", "never", "forward")
    sent = [f"{kinds[number % 4]}:{number}" for number in range(400)]
    doomed = {body for body in sent if body.startswith("never")}
    source = random.Random(7)
    await client.declare("copies")
    async with running("app", cwd=tmp_path, **variables) as app:
        await app.says("consuming")
        await client.send("orders", *map(str.encode, sent[:100]))
        await kill(app, source)
    for number in range(1, 4):
        async with running("app", cwd=tmp_path, **variables) as app:
            await app.says("consuming")
            await client.send("orders", *map(str.encode, sent[number * 100 : (number + 1) * 100]))
            await kill(app, source)
    async with running("app", cwd=tmp_path, **variables) as app:
        await app.says("consuming")

        def over() -> bool:
            queues = rabbit.queues(vhost)
            waiting = {name: each for name, each in queues.items() if "dlq" not in name}
            del waiting["copies"]
            assert queues["orders.dlq"].ready >= len(doomed)
            assert all(each.ready + each.unacked == 0 for each in waiting.values()), waiting
            assert {*lines(tmp_path / "handled")} | doomed >= {*sent}
            return True

        await eventually(over, 20.0)
        app.send(signal.SIGTERM)
        assert await app.ended() == 0
    dead = await bodies(rabbit, vhost, client, "orders.dlq")
    copies = await bodies(rabbit, vhost, client, "copies")
    handled = Counter(lines(tmp_path / "handled"))

    assert set(handled) == set(sent) - doomed
    assert set(dead) == doomed
    assert set(copies) == {body for body in sent if body.startswith("forward")}
    twice = {"handled": handled, "dead": dead, "copies": copies}
    extra = {name: sum(each.values()) - len(each) for name, each in twice.items()}
    # Duplicates are allowed: at most as many as handlers ran when processes were killed.
    assert max(extra.values()) <= 4 * PREFETCH, extra


async def kill(app: Application, source: random.Random) -> None:
    """Kill a process after a random time."""
    await asyncio.sleep(source.uniform(0.02, 0.5))
    app.send(signal.SIGKILL)
    await app.ended()


async def bodies(rabbit: PrivateRabbit, vhost: str, client: Client, queue: str) -> Counter[str]:
    """Take and return all messages of a queue."""
    count = rabbit.queues(vhost)[queue].ready
    return Counter([(await client.take(queue)).body.decode() for _ in range(count)])


async def test_f5_a_process_exits_at_once_while_messages_wait_for_a_retry(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, tmp_path: Path
) -> None:
    """Messages keep waiting in the broker; the next process gets them with their attempt."""
    variables = start(tmp_path, url)
    loop = asyncio.get_running_loop()
    async with running(
        "app", cwd=tmp_path, **variables, WORKERKIT_CONSUMERS__ORDERS__RETRY__DELAYS="6"
    ) as app:
        await app.says("consuming")
        await client.send("orders", b"never:0")
        await eventually(lambda: rabbit.queues(vhost)["orders.retry.6s"].ready == 1)
        began = loop.time()
        app.send(signal.SIGTERM)
        code = await app.ended()
        seconds = loop.time() - began
    async with running("app", cwd=tmp_path, **variables):
        await eventually(
            lambda: "2" in {line.split()[2] for line in lines(tmp_path / "calls")}, 20.0
        )

    assert code == 0
    assert seconds < 5.0


async def test_d3_an_attempt_that_a_sender_wrote_is_limited(
    url: str, client: Client, tmp_path: Path
) -> None:
    """An attempt number of the sender counts: no attempt follows the last one."""
    variables = start(tmp_path, url)
    async with running("app", cwd=tmp_path, **variables) as app:
        await app.says("consuming")
        sent = Basic.Properties(headers={"x-workerkit-attempt": 4})
        await client.send("orders", b"never:0", properties=sent)
        letter = await client.take("orders.dlq")

    assert letter.evidence["attempt"] == 4
