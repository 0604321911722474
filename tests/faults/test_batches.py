"""Batches: when they are handled, the result of each message, lost connections, stops."""

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import BaseModel

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, HandlerTimeout

LONG = 60.0
"""Seconds of a `batch_interval` that no test waits for."""

LIMITED = "batch size is limited to the prefetch"


class Order(BaseModel):
    """An order."""

    id: int


def batcher(*queues: str, **options: Any) -> tuple[type[AMQPConsumer], list[list[bytes]]]:
    """Return a consumer that only records the batches that it receives."""
    batches: list[list[bytes]] = []

    async def handle(self: AMQPConsumer, bodies: list[bytes]) -> None:
        batches.append(bodies)

    attributes = {"queues": list(queues), "batch_interval": LONG, "handle": handle, **options}
    return type("Batcher", (AMQPConsumer,), attributes), batches


def numbered(count: int) -> list[bytes]:
    """Return different bodies."""
    return [b"%d" % number for number in range(count)]


def state(rabbit: PrivateRabbit, vhost: str, queue: str = "orders") -> tuple[int, int]:
    """Return the numbers of ready and of unacknowledged messages of a queue."""
    found = rabbit.queues(vhost)[queue]
    return found.ready, found.unacked


# When a batch is handled


async def test_f5_a_full_batch_is_handled_at_once(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A full batch does not wait for the interval; an incomplete one does."""
    loop = asyncio.get_running_loop()
    consumer, batches = batcher("orders", batch_size=3)
    async with running(url, consumer):
        began = loop.time()
        await client.send("orders", *numbered(7))
        await eventually(lambda: len(batches) == 2)
        seconds = loop.time() - began
        await eventually(lambda: state(rabbit, vhost) == (0, 1))
        meanwhile = list(batches)

    assert meanwhile == [[b"0", b"1", b"2"], [b"3", b"4", b"5"]]
    assert seconds < 5.0


async def test_f5_a_partial_batch_is_handled_an_interval_after_its_first_message(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A later message does not make the first one wait longer."""
    loop = asyncio.get_running_loop()
    handled: list[tuple[float, list[bytes]]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 10
        batch_interval = 6.0

        async def handle(self, bodies: list[bytes]) -> None:
            handled.append((loop.time(), bodies))

    async with running(url, Batcher):
        before = loop.time()
        await client.send("orders", b"first")
        await eventually(lambda: loop.time() >= before + 3.0)
        sent = loop.time()
        await client.send("orders", b"second")
        await eventually(lambda: handled)
        await eventually(lambda: state(rabbit, vhost) == (0, 0))

    [(at, bodies)] = handled
    assert bodies == [b"first", b"second"]
    assert before + 6.0 <= at < sent + 6.0


async def test_c1_a_batch_of_messages_from_several_queues(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A batch has the decoded messages of all queues; each is settled on its own queue."""
    recorder = Recorder()
    batches: list[list[AMQPMessage[Order]]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders", "others"]
        batch_size = 4
        batch_interval = LONG

        async def handle(self, messages: list[AMQPMessage[Order]]) -> None:
            batches.append(messages)

    async with running(url, Batcher, recorder=recorder):
        for number in range(2):
            await client.send("orders", b'{"id": %d}' % number)
            await client.send("others", b'{"id": %d}' % (10 + number))
        await eventually(lambda: recorder.settled)
        await eventually(lambda: state(rabbit, vhost) == state(rabbit, vhost, "others") == (0, 0))

    [batch] = batches
    assert sorted((each.queue, each.body.id, each.tag) for each in batch) == [
        ("orders", 0, 1),
        ("orders", 1, 2),
        ("others", 10, 1),
        ("others", 11, 2),
    ]
    assert recorder.actions == ["ack"] * 4
    assert Counter(each.source for each in recorder.settled) == {"orders": 2, "others": 2}


async def test_g1_as_many_batches_as_allowed_run_and_never_more(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """With a concurrency of 2, a third full batch waits for a worker; its messages stay unacked."""
    recorder = Recorder()
    gate = asyncio.Event()
    running_now = most = 0

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        batch_interval = LONG
        concurrency = 2

        async def handle(self, bodies: list[bytes]) -> None:
            nonlocal running_now, most
            running_now += 1
            most = max(most, running_now)
            await gate.wait()
            running_now -= 1

    async with running(url, Batcher, recorder=recorder):
        await client.send("orders", *numbered(12))
        await eventually(lambda: running_now == 2)
        await eventually(lambda: state(rabbit, vhost) == (3, 9))
        gate.set()
        await eventually(lambda: len(recorder.settled) == 12)

    assert most == 2
    assert recorder.actions == ["ack"] * 12


async def test_c5_a_batch_handler_that_is_not_async(url: str, client: Client) -> None:
    """It is called in a thread, with the whole batch."""
    batches: list[list[bytes]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        batch_interval = LONG

        def handle(self, bodies: list[bytes]) -> None:
            batches.append(bodies)

    recorder = Recorder()
    async with running(url, Batcher, recorder=recorder):
        await client.send("orders", b"a", b"b")
        await eventually(lambda: recorder.actions == ["ack", "ack"])

    assert batches == [[b"a", b"b"]]


async def test_c5_a_batch_that_times_out_has_failed_as_a_whole(url: str, client: Client) -> None:
    """The timeout is for one call; all messages that the handler did not settle have failed."""
    recorder = Recorder()

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        batch_interval = LONG
        timeout = 0.2
        on_exception = Action.REJECT

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            messages[0].accept()
            await asyncio.Event().wait()

    async with running(url, Batcher, recorder=recorder):
        await client.send("orders", *numbered(3))
        await eventually(lambda: len(recorder.settled) == 3)

    assert sorted(recorder.actions) == ["ack", "reject", "reject"]
    assert all(isinstance(each.outcome.error, HandlerTimeout) for each in recorder.settled)


# The result of each message


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
async def test_c1_each_message_of_a_batch_has_its_own_result(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, raises: bool
) -> None:
    """The handler may settle single messages; the result of the call applies to the others."""
    await client.declare("dead")
    await client.declare("orders", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    recorder = Recorder()

    class Deciding(AMQPConsumer):
        queues = ["orders"]
        batch_size = 5
        batch_interval = 0.3
        on_exception = Action.DEAD_LETTER

        async def handle(self, messages: list[AMQPMessage[str]]) -> None:
            for message in messages:
                if message.body == "accept" or message.redelivered:
                    message.accept()
                elif message.body == "reject":
                    message.reject(requeue=False)
                elif message.body == "requeue":
                    message.reject()
            if raises:
                raise KeyError("after all")

    async with running(url, Deciding, recorder=recorder):
        await client.send("orders", b"one", b"accept", b"reject", b"requeue", b"two")
        await eventually(lambda: len(recorder.settled) == 6)
        await eventually(lambda: state(rabbit, vhost) == (0, 0))
        await eventually(lambda: state(rabbit, vhost, "dead") == (1, 0))
        others = state(rabbit, vhost, "orders.dlq")

    common = "dead_letter" if raises else "ack"
    fates = Counter((each.delivery.raw.decode(), each.action.value) for each in recorder.settled)
    assert fates == Counter(
        {
            ("one", common): 1,
            ("two", common): 1,
            ("accept", "ack"): 1,
            ("reject", "reject"): 1,
            ("requeue", "requeue"): 1,
            ("requeue", "ack"): 1,
        }
    )
    assert (await client.take("dead")).body == b"reject"
    assert others == ((2, 0) if raises else (0, 0))


async def test_c1_a_second_settlement_in_a_batch_is_ignored(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The first settlement of a message counts; other messages are not affected."""
    recorder = Recorder()

    class Fickle(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        batch_interval = LONG

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            messages[0].accept()
            messages[0].reject()

    async with running(url, Fickle, recorder=recorder):
        await client.send("orders", b"a", b"b")
        await client.send("orders", b"c", b"d")
        await eventually(lambda: len(recorder.settled) == 4)

    assert recorder.actions == ["ack"] * 4
    assert len(fields(caplog, "second settlement ignored")) == 2
    assert errors(caplog) == []


async def test_d1_invalid_messages_are_not_in_the_batch(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """They are dead-lettered; the handler gets the others, and never an empty list."""
    recorder = Recorder()
    batches: list[list[int]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        batch_interval = LONG

        async def handle(self, orders: list[Order]) -> None:
            batches.append([order.id for order in orders])

    async with running(url, Batcher, recorder=recorder):
        await client.send("orders", b'{"id": 1}', b"bad", b'{"id": 2}')
        await client.send("orders", b"worse", b'{"id": "x"}', b"")
        await client.send("orders", b'{"id": 3}', b'{"id": 4}', b'{"id": 5}')
        await eventually(lambda: len(recorder.settled) == 9)
        await eventually(lambda: state(rabbit, vhost) == (0, 0))
        letters = [await client.take("orders.dlq") for _ in range(4)]

    assert batches == [[1, 2], [3, 4, 5]]
    assert recorder.actions.count("ack") == 5
    assert sorted(each.body for each in letters) == [b"", b"bad", b"worse", b'{"id": "x"}']
    assert {each.evidence["error"] for each in letters} == {"InvalidBody"}


# Prefetch


async def test_g3_the_default_prefetch_fits_the_batches(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For each queue: one batch for each concurrent call, and one more that is being filled."""
    consumer, _ = batcher("orders", "others", batch_size=7, concurrency=3)
    async with running(url, consumer):
        prefetches = [(each.queue, each.prefetch) for each in rabbit.consumers(vhost)]

    assert sorted(prefetches) == [("orders", 28), ("others", 28)]
    assert fields(caplog, LIMITED) == []


async def test_g3_a_prefetch_smaller_than_the_batch_limits_it(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch has at most as many messages as the prefetch; one WARNING reports it."""
    consumer, batches = batcher("orders", "others", batch_size=10, prefetch=3)
    async with running(url, consumer):
        prefetches = {each.prefetch for each in rabbit.consumers(vhost)}
        await client.send("orders", *numbered(6))
        await eventually(lambda: len(batches) == 2)

    [warning] = fields(caplog, LIMITED)
    assert prefetches == {3}
    assert batches == [numbered(6)[:3], numbered(6)[3:]]
    assert warning["levelno"] == logging.WARNING
    assert warning["consumer"] == "Batcher"
    assert (warning["batch_size"], warning["prefetch"]) == (10, 3)


# The connection is lost


async def test_b2_an_incomplete_batch_is_discarded_with_its_connection(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages of the lost channel are discarded; each is handled once, after redelivery."""
    recorder = Recorder()
    batches: list[list[tuple[bytes, bool]]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 4
        batch_interval = LONG

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            batches.append([(each.body, each.redelivered) for each in messages])

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Batcher, recorder=recorder) as runner,
        connected(url) as client,
    ):
        await client.send("orders", b"0", b"1", b"2")
        await eventually(lambda: state(rabbit, vhost) == (0, 3))
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        await eventually(lambda: state(rabbit, vhost) == (0, 3))
        handled_meanwhile = list(batches)
        await client.send("orders", b"3")
        await eventually(lambda: state(rabbit, vhost) == (0, 0))

    assert handled_meanwhile == []
    assert [sorted(batch) for batch in batches] == [
        [(b"0", True), (b"1", True), (b"2", True), (b"3", False)]
    ]
    assert recorder.actions == ["ack"] * 4
    assert errors(caplog) == []


async def test_b2_the_interval_of_a_lost_batch_is_cancelled(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The timer of an old batch does not call the handler while the process reconnects."""
    loop = asyncio.get_running_loop()
    recorder = Recorder()
    handled: list[float] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 4
        batch_interval = 4.0

        async def handle(self, bodies: list[bytes]) -> None:
            handled.append(loop.time())

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Batcher, recorder=recorder) as runner,
    ):
        await client.send("orders", b"0", b"1")
        await eventually(lambda: state(rabbit, vhost) == (0, 2))
        proxy.refuse()
        proxy.drop()
        lost = loop.time()
        await eventually(lambda: loop.time() > lost + 4.3)
        handled_meanwhile = list(handled)
        await proxy.accept()
        await eventually(lambda: runner.ready)
        await eventually(lambda: recorder.settled)

    assert handled_meanwhile == []
    assert recorder.actions == ["ack", "ack"]


async def test_b2_a_running_batch_finishes_after_a_loss_and_its_acks_are_not_sent(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It settles nothing; its messages are redelivered, and handled in the next batch."""
    recorder = Recorder()
    gates = [asyncio.Event(), asyncio.Event()]
    batches: list[list[tuple[bytes, bool]]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        batch_interval = LONG
        concurrency = 2

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            number = len(batches)
            batches.append([(each.body, each.redelivered) for each in messages])
            messages[0].reject(requeue=False)
            await gates[number].wait()
            if number == 0:
                raise KeyError("too late")

    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), Batcher, recorder=recorder) as runner,
    ):
        async with connected(url) as client:
            await client.send("orders", b"0", b"1")
        await eventually(lambda: len(batches) == 1)
        proxy.refuse()
        proxy.drop()
        await eventually(lambda: not runner.ready)
        await proxy.accept()
        await eventually(lambda: runner.ready and state(rabbit, vhost) == (0, 2))
        meanwhile = len(batches)
        gates[0].set()
        await eventually(lambda: recorder.actions == ["lost", "lost"])
        await eventually(lambda: len(batches) == 2, what="taken up")
        held = state(rabbit, vhost)
        gates[1].set()
        await eventually(lambda: len(recorder.settled) == 4)
        await eventually(lambda: state(rabbit, vhost) == (0, 0))
        dead = state(rabbit, vhost, "orders.dlq")

    assert batches == [[(b"0", False), (b"1", False)], [(b"0", True), (b"1", True)]]
    assert meanwhile == 1
    assert held == (0, 2)
    assert sorted(recorder.actions[2:]) == ["ack", "reject"]
    assert dead == (0, 0)
    assert errors(caplog) == []


async def test_c3_only_messages_of_a_deleted_queue_leave_the_batch(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages of the other queue stay in the batch, and are settled."""
    recorder = Recorder()
    consumer, batches = batcher("orders", "others", batch_size=4)
    async with running(url, consumer, recorder=recorder):
        await client.send("orders", b"gone", b"gone")
        await client.send("others", b"a", b"b")
        await eventually(lambda: len(batches) == 1)
        await client.send("orders", b"gone")
        await client.send("others", b"c", b"d")
        await eventually(lambda: state(rabbit, vhost) == (0, 1))
        await client.delete("orders")
        await eventually(lambda: fields(caplog, "queue is missing"))
        await client.send("others", b"e", b"f")
        await eventually(lambda: len(batches) == 2)
        await eventually(lambda: state(rabbit, vhost, "others") == (0, 0))

    assert batches[1] == [b"c", b"d", b"e", b"f"]
    assert recorder.actions == ["ack"] * 8


# Stopping


async def test_f5_an_incomplete_batch_does_not_delay_a_stop(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """At a stop it is handled or requeued immediately, with any interval; nothing is lost."""
    loop = asyncio.get_running_loop()
    recorder = Recorder()
    consumer, batches = batcher("orders", batch_size=10)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(url, consumer, recorder=recorder))
        await client.send("orders", *numbered(3))
        await eventually(lambda: state(rabbit, vhost) == (0, 3))
        began = loop.time()
        await stack.aclose()
        seconds = loop.time() - began
    await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
    ready = rabbit.queues(vhost)["orders"].ready

    handled = [body for batch in batches for body in batch]
    assert seconds < 5.0
    assert len(handled) + ready == 3
    assert recorder.actions == ["ack"] * len(handled)
    assert len(batches) <= 1


async def test_f5_a_batch_that_waits_for_a_running_one(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The running one is finished and acked; messages not handled yet are requeued immediately."""
    recorder = Recorder()
    gate = asyncio.Event()
    batches: list[list[bytes]] = []

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        batch_interval = LONG

        async def handle(self, bodies: list[bytes]) -> None:
            batches.append(bodies)
            await gate.wait()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(url, Batcher, recorder=recorder))
        await client.send("orders", *numbered(5))
        await eventually(lambda: len(batches) == 1)
        await eventually(lambda: state(rabbit, vhost) == (0, 5))
        stopping = asyncio.create_task(stack.aclose())
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(2, 3, 0))
        gate.set()
        await stopping
    await eventually(lambda: state(rabbit, vhost) == (2, 0))

    assert batches == [numbered(3)]
    assert recorder.actions == ["ack"] * 3


async def test_f5_a_stop_while_reconnecting_with_an_incomplete_batch(
    rabbit: PrivateRabbit, vhost: str, url: str
) -> None:
    """No message of the lost channel is handled at the stop; all of them are in the queue."""
    recorder = Recorder()
    consumer, batches = batcher("orders", batch_size=10)
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        async with running(proxy.url(url), consumer, recorder=recorder) as runner:
            async with connected(url) as client:
                await client.send("orders", *numbered(3))
            await eventually(lambda: state(rabbit, vhost) == (0, 3))
            proxy.refuse()
            proxy.drop()
            await eventually(lambda: not runner.ready)
        await eventually(lambda: state(rabbit, vhost) == (3, 0))

    assert batches == []
    assert recorder.actions == []
