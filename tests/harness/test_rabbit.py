"""The private node of the tests: start, failures, inspection, cleanup."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from tests.rabbit import ConsumerState, PrivateRabbit, QueueState, RabbitFailed
from tests.waiting import eventually


def _alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter between opening and reading
        return False


async def _connect(rabbit: PrivateRabbit, vhost: str = "/") -> AbstractConnection:
    return await aio_pika.connect(rabbit.url(vhost), timeout=10)


async def _ignore(message: AbstractIncomingMessage) -> None:
    """Take a message and never settle it."""


async def test_queues_and_consumers_are_seen(rabbit: PrivateRabbit, vhost: str) -> None:
    """The counts of messages, consumers, prefetch, channels and connections are the broker's."""
    connection = await _connect(rabbit, vhost)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=7)
        queue = await channel.declare_queue("odd/queue")
        for _ in range(3):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), "odd/queue")
        first = await queue.get()
        before = rabbit.queues(vhost)
        tag = await queue.consume(_ignore)
        await eventually(lambda: rabbit.queues(vhost)["odd/queue"].unacked == 3)

        assert before == {"odd/queue": QueueState(ready=2, unacked=1, consumers=0)}
        assert rabbit.consumers(vhost) == [ConsumerState("odd/queue", tag, prefetch=7)]
        assert (rabbit.connections(vhost), rabbit.channels(vhost)) == (1, 1)
        assert not first.processed
    await eventually(lambda: rabbit.connections(vhost) == 0)


async def test_quorum_queues_are_seen_at_once(rabbit: PrivateRabbit, vhost: str) -> None:
    """Immediately, not only with their statistics every five seconds."""
    seen = []
    async with await _connect(rabbit, vhost) as connection:
        channel = await connection.channel()
        await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
        for _ in range(3):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), "q")
            seen.append(rabbit.queues(vhost)["q"].ready)

    assert seen == [1, 2, 3]


async def test_connections_are_closed_by_the_broker(rabbit: PrivateRabbit, vhost: str) -> None:
    """Closing all connections reaches the client, with the reason."""
    connection = await _connect(rabbit, vhost)
    reasons: list[BaseException | None] = []
    connection.close_callbacks.add(lambda _, reason: reasons.append(reason))

    rabbit.close_all_connections("maintenance, 'now'")

    await eventually(lambda: "maintenance, 'now'" in str(reasons))
    await connection.close()


async def test_a_user_has_only_its_permissions(rabbit: PrivateRabbit, vhost: str) -> None:
    """A user may do only what its patterns allow, with any password."""
    user = f"reader-{vhost}"
    rabbit.add_user(user, "p@ss/wörd", vhost, configure="", write="", read=".*")
    connection = await aio_pika.connect(rabbit.url(vhost, user, "p@ss/wörd"), timeout=10)
    async with connection:
        channel = await connection.channel()

        with pytest.raises(aio_pika.exceptions.ChannelClosed, match="ACCESS_REFUSED"):
            await channel.declare_queue("forbidden")


def test_an_expression_that_raises_is_an_error(rabbit: PrivateRabbit) -> None:
    """An Erlang error is raised as an exception that contains the expression."""
    assert rabbit.eval("1 + 1.") == "2"

    with pytest.raises(RabbitFailed, match="badmatch"):
        rabbit.eval("1 = 2")


def test_rabbitmqctl_works(rabbit: PrivateRabbit) -> None:
    """`rabbitmqctl` reaches the private node."""
    assert "guest" in rabbit.ctl("list_users")


async def test_a_node_breaks_and_recovers_on_request(broker: PrivateRabbit) -> None:
    """Alarm, freeze, SIGKILL and restart work; address and durable data stay."""
    address = broker.url()
    connection = await _connect(broker)
    channel = await connection.channel()
    await channel.declare_queue("durable", durable=True)
    await channel.declare_queue("transient")

    broker.memory_alarm(on=True)
    assert "memory" in broker.eval("rabbit_alarm:get_alarms()")
    broker.memory_alarm(on=False)
    assert broker.eval("rabbit_alarm:get_alarms()") == "[]"

    broker.pause()
    with pytest.raises(TimeoutError):
        broker.eval("ok", timeout=0.5)
    broker.resume()
    assert broker.eval("ok") == "ok"

    if broker.version < (4, 3):
        # The node answers a declaration before Mnesia has written it to the disk.
        assert broker.eval("mnesia:sync_log()") == "ok"
    broker.kill()
    await connection.close()
    with pytest.raises(OSError, match=r".*"):
        await _connect(broker)
    assert await asyncio.to_thread(broker.start) < 60
    assert set(broker.queues()) == {"durable"}

    assert await asyncio.to_thread(broker.restart) < 60
    assert set(broker.queues()) == {"durable"}
    assert broker.url() == address


async def test_two_nodes_start_at_once_and_nothing_is_left_of_them() -> None:
    """Nodes do not disturb each other; `close` leaves no process and no directory."""
    nodes = [PrivateRabbit(), PrivateRabbit()]
    try:
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes))
        pids = [pid for node in nodes for pid in node.pids()]
        homes = [Path(node.eval('list_to_binary(os:getenv("HOME"))')) for node in nodes]
        names = {node.eval("node()") for node in nodes}
        neighbours = {node.eval("nodes()") for node in nodes}
    finally:
        for node in nodes:
            node.close()

    assert len(names) == 2
    assert neighbours == {"[]"}
    assert len(pids) >= 4  # node and epmd, each twice
    # Helpers lose their environment, by which they are known, before they have ended.
    await eventually(lambda: not any(map(_alive, pids)))
    assert not any(home.exists() for home in homes)


def test_nothing_is_left_of_a_node_that_cannot_start() -> None:
    """A failed start raises with the output of the node, and removes everything."""
    node = PrivateRabbit(conf="no_such_setting = 1")

    with pytest.raises(RabbitFailed, match="no_such_setting"):
        node.start()
    assert node.pids() == []


async def test_a_node_ends_with_the_process_that_started_it() -> None:
    """SIGKILL of the test run leaves no node behind."""
    code = (
        "from tests.rabbit import PrivateRabbit; node = PrivateRabbit(); node.start();"
        " home = node.eval('list_to_binary(os:getenv(\"HOME\"))');"
        " print(home, *node.pids(), flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        home, *numbers = (await asyncio.to_thread(owner.stdout.readline)).split()
        pids = [int(number) for number in numbers]
        assert len(pids) >= 2

        os.kill(owner.pid, signal.SIGKILL)

        await eventually(lambda: not any(map(_alive, pids)))
    assert not Path(home).exists()
