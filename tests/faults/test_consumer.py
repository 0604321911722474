"""C. Settlement, deleted queues, handlers that hang, and pauses between redeliveries."""

import asyncio
import itertools
import threading
from collections import Counter

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, HandlerCancelled, HandlerTimeout, Queue

# C1: settlement


async def test_c1_a_second_settlement_by_the_handler_is_ignored(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one counts; the second is logged and not sent, and the channel stays open."""
    recorder = Recorder()
    handled: list[bytes] = []

    class Fickle(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            handled.append(message.body)
            message.accept()
            message.reject(requeue=True)

    async with running(url, Fickle, recorder=recorder):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.actions == ["ack"])
        await client.send("orders", b"b")
        await eventually(lambda: recorder.actions == ["ack", "ack"])

    ignored = fields(caplog, "second settlement ignored")
    assert [(each["first"], each["second"]) for each in ignored] == [("ack", "requeue")] * 2
    assert handled == [b"a", b"b"]
    assert errors(caplog) == []


async def test_c1_a_settlement_after_handle_has_returned_is_ignored(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that a handler has started cannot settle the message after `handle` returned."""
    recorder = Recorder()
    kept: list[AMQPMessage[bytes]] = []

    class Keeper(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            kept.append(message)

    async with running(url, Keeper, recorder=recorder):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.actions == ["ack"])
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        kept[0].accept()
        kept[0].reject(requeue=False)
        await client.send("orders", b"b")
        await eventually(lambda: recorder.actions == ["ack", "ack"])

    ignored = fields(caplog, "second settlement ignored")
    assert [each["second"] for each in ignored] == ["ack", "reject"]
    assert [message.redelivered for message in kept] == [False, False]
    assert errors(caplog) == []


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
async def test_c1_an_explicit_settlement_takes_precedence(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, raises: bool
) -> None:
    """`accept` and `reject` apply, even if the handler raises afterwards."""
    await client.declare("dead")
    await client.declare("orders", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    recorder = Recorder()

    class Decided(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes, message: AMQPMessage[bytes]) -> None:
            if body == b"accept" or message.redelivered:
                message.accept()
            elif body == b"reject":
                message.reject(requeue=False)
            else:
                message.reject()
            if raises:
                raise KeyError("after all")

    async with running(url, Decided, recorder=recorder):
        await client.send("orders", b"accept", b"reject", b"requeue")
        await eventually(lambda: len(recorder.settled) == 4)
        await eventually(lambda: rabbit.queues(vhost)["dead"].ready == 1)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        queues = rabbit.queues(vhost)

    assert recorder.actions == ["ack", "reject", "requeue", "ack"]
    assert queues["orders"].ready == 0
    assert queues["orders.dlq"].ready == 0
    assert (await client.take("dead")).body == b"reject"


@pytest.mark.parametrize("option", ["on_success", "on_exception"])
@pytest.mark.parametrize("action", [each for each in Action if each is not Action.RETRY])
async def test_c1_each_action_has_its_result(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, option: str, action: Action
) -> None:
    """Acknowledged, requeued, rejected to the exchange, or copied to the dead-letter queue."""
    await client.declare("dead")
    await client.declare("orders", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    recorder = Recorder()

    async def handle(self: AMQPConsumer, body: bytes, message: AMQPMessage[bytes]) -> None:
        if message.redelivered:
            message.accept()
        if option == "on_exception":
            raise KeyError("failed")

    attributes = {"queues": ["orders"], option: action, "handle": handle}
    async with running(url, type("Acting", (AMQPConsumer,), attributes), recorder=recorder):
        await client.send("orders", b"a")
        expected = ["requeue", "ack"] if action is Action.REQUEUE else [action.value]
        await eventually(lambda: len(recorder.settled) == len(expected))
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        dead = int(action is Action.REJECT)
        await eventually(lambda: rabbit.queues(vhost)["dead"].ready == dead)
        queues = rabbit.queues(vhost)

    assert recorder.actions == expected
    assert queues["orders"].ready == 0
    assert queues["orders.dlq"].ready == int(action is Action.DEAD_LETTER)


# C3: queues that are deleted


async def test_c3_a_consumer_waits_for_a_deleted_queue(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The deletion is detected at once; the queue is not declared; the other is still consumed."""
    consumer, bodies = collector("orders", "others")
    async with running(url, consumer) as runner:
        await client.delete("orders")
        await eventually(lambda: not runner.ready, 5.0, what="noticed")
        reason = runner.health[0].reason
        await client.send("others", b"meanwhile")
        await eventually(lambda: bodies == [b"meanwhile"])
        await eventually(lambda: len(fields(caplog, "queue is missing")) >= 2)
        declared = "orders" in rabbit.queues(vhost)
        await client.declare("orders")
        await client.send("orders", b"afterwards")
        await eventually(lambda: bodies == [b"meanwhile", b"afterwards"])
        await eventually(lambda: runner.ready)
        consumers = Counter(each.queue for each in rabbit.consumers(vhost))

    assert "'orders'" in reason
    assert not declared
    assert len(fields(caplog, "consumer cancelled by the broker")) == 1
    assert consumers == Counter(["orders", "others"])
    assert errors(caplog) == []


async def test_c3_a_deleted_queue_is_declared_again_with_always(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """`declare = "always"` declares it immediately."""
    consumer, bodies = collector("orders", declare="always")
    async with running(url, consumer) as runner:
        await client.delete("orders")
        await eventually(lambda: "orders" in rabbit.queues(vhost))
        await eventually(lambda: runner.ready)
        await client.send("orders", b"a")
        await eventually(lambda: bodies == [b"a"])


async def test_c3_a_queue_deleted_while_its_message_is_handled(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler finishes; its ack of the deleted message has no effect on others."""
    gate = asyncio.Event()
    handled: list[bytes] = []

    class Slow(AMQPConsumer):
        queues = ["orders", "others"]

        async def handle(self, body: bytes) -> None:
            if body == b"slow":
                await gate.wait()
            handled.append(body)

    async with running(url, Slow) as runner:
        await client.send("orders", b"slow")
        await client.delete("orders")
        await eventually(lambda: not runner.ready)
        gate.set()
        await eventually(lambda: handled == [b"slow"])
        await client.send("others", b"fast")
        await eventually(lambda: handled == [b"slow", b"fast"])

    assert errors(caplog) == []


# C5: handlers that hang


async def test_c5_a_handler_that_hangs_is_cancelled_and_frees_its_worker(
    url: str, client: Client
) -> None:
    """After `timeout` it is cancelled, its message has failed, and the next one is handled."""
    recorder = Recorder()
    cancelled: list[bytes] = []

    class Hanging(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        timeout = 0.2
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes) -> None:
            if body == b"hang":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(body)
                    raise

    async with running(url, Hanging, recorder=recorder):
        await client.send("orders", b"hang", b"fine", b"hang", b"fine")
        await eventually(lambda: len(recorder.settled) == 4)
        letter = await client.take("orders.dlq")

    assert recorder.actions == ["dead_letter", "ack", "dead_letter", "ack"]
    assert cancelled == [b"hang", b"hang"]
    assert isinstance(recorder.settled[0].outcome.error, HandlerTimeout)
    assert 0.2 <= recorder.settled[0].seconds < 5.0
    assert letter.body == b"hang"
    assert letter.evidence["error"] == "HandlerTimeout"
    assert "0.2 s" in letter.evidence["reason"]


async def test_c5_a_handler_cancelled_from_inside_has_failed(url: str, client: Client) -> None:
    """A `CancelledError` that workerkit did not cause is a failure; the worker continues."""
    recorder = Recorder()

    class Betrayed(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes) -> None:
            if body == b"betrayed":
                other = asyncio.ensure_future(asyncio.Event().wait())
                asyncio.get_running_loop().call_soon(other.cancel)
                await other

    async with running(url, Betrayed, recorder=recorder):
        await client.send("orders", b"betrayed", b"fine")
        await eventually(lambda: len(recorder.settled) == 2)

    assert recorder.actions == ["dead_letter", "ack"]
    assert isinstance(recorder.settled[0].outcome.error, HandlerCancelled)


async def test_c5_a_sync_handler_that_times_out_runs_to_its_end(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread cannot be cancelled: one ERROR; the message has failed when the thread returns."""
    recorder = Recorder()
    gate = threading.Event()
    handled: list[bytes] = []

    class Blocking(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        timeout = 3.0
        on_exception = Action.DEAD_LETTER

        def handle(self, body: bytes) -> None:
            handled.append(body)
            if body == b"late":
                gate.wait(20.0)

    late = "handler timed out, and a thread cannot be cancelled: waiting for it"
    async with running(url, Blocking, recorder=recorder):
        await client.send("orders", b"late", b"fine")
        await eventually(lambda: fields(caplog, late))
        held = rabbit.queues(vhost)["orders"].unacked
        begun, settled = list(handled), list(recorder.settled)
        gate.set()
        await eventually(lambda: len(recorder.settled) == 2)

    assert held == 2
    assert (begun, settled) == ([b"late"], [])
    assert recorder.actions == ["dead_letter", "ack"]
    assert isinstance(recorder.settled[0].outcome.error, HandlerTimeout)
    assert errors(caplog) == [late]


# D2: requeued messages


async def test_d2_a_message_that_keeps_failing_is_requeued_with_pauses(
    url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First immediately, then after growing pauses, in which other messages are handled."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 4.0)
    loop = asyncio.get_running_loop()
    runs: list[float] = []
    others: list[float] = []

    class Failing(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            if body == b"poison":
                runs.append(loop.time())
                if len(runs) < 4:
                    raise KeyError("not yet")
            else:
                others.append(loop.time())

    async with running(url, Failing):
        await client.send("orders", b"poison")
        await eventually(lambda: len(runs) == 2)
        await client.send("orders", *[b"fine"] * 20)
        await eventually(lambda: len(others) == 20)
        await eventually(lambda: len(runs) == 4, 60.0)

    pauses = [later - earlier for earlier, later in itertools.pairwise(runs)]
    assert pauses[0] < 3.9
    assert 4.0 <= pauses[1] < 7.9
    assert 8.0 <= pauses[2] < 15.9
    assert max(others) < runs[2]


async def test_d2_a_redelivered_message_that_succeeds_resets_the_pauses(
    url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a success, the next repeated failure gets the shortest pause again."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 3.0)
    loop = asyncio.get_running_loop()
    runs: dict[bytes, list[float]] = {b"first": [], b"second": []}

    class Failing(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            runs[body].append(loop.time())
            if len(runs[body]) < 3:
                raise KeyError("not yet")

    async with running(url, Failing):
        await client.send("orders", b"first")
        await eventually(lambda: len(runs[b"first"]) == 3)
        await client.send("orders", b"second")
        await eventually(lambda: len(runs[b"second"]) == 3)

    for times in runs.values():
        assert 3.0 <= times[2] - times[1] < 6.0


async def test_d2_many_messages_that_keep_failing_are_handled_slowly(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Even with more of them than may be held, the number of calls stays small."""
    loop = asyncio.get_running_loop()
    runs = 0

    class Failing(AMQPConsumer):
        queues = ["orders"]
        concurrency = 2

        async def handle(self, body: bytes) -> None:
            nonlocal runs
            runs += 1
            raise KeyError("the database is down")

    await client.declare("orders")
    await client.send("orders", *[b"poison"] * 20)
    async with running(url, Failing):
        until = loop.time() + 2.0
        await eventually(lambda: loop.time() > until or runs > 1_000)

    assert runs <= 100


async def test_d2_messages_that_keep_failing_leave_half_of_the_prefetch_to_the_others(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most half of the prefetch is held; all other messages are handled at full speed."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 5.0)
    loop = asyncio.get_running_loop()
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = ["orders"]
        concurrency = 2
        prefetch = 4

        async def handle(self, body: bytes) -> None:
            if body == b"poison":
                raise KeyError("never")

    async with running(url, Failing, recorder=recorder):
        await client.send("orders", b"poison", b"poison")
        await eventually(lambda: recorder.actions == ["requeue"] * 4)
        held = rabbit.queues(vhost)["orders"].unacked
        began = loop.time()
        await client.send("orders", *[b"fine"] * 50)
        await eventually(lambda: recorder.actions.count("ack") == 50)
        flowed = loop.time() - began

    assert held == 2
    assert flowed < 4.0


async def test_d4_a_quorum_queue_near_its_limit_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Workerkit dead-letters the message before the broker would drop it."""
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = [Queue("orders", type="quorum", arguments={"x-delivery-limit": 2})]

        async def handle(self, body: bytes) -> None:
            raise KeyError("never")

    async with running(url, Failing, recorder=recorder):
        await client.send("orders", b"poison")
        letter = await client.take("orders.dlq")
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        ready = rabbit.queues(vhost)["orders"].ready

    assert recorder.actions == ["requeue", "dead_letter"]
    assert letter.body == b"poison"
    assert letter.evidence["error"] == "KeyError"
    assert ready == 0


async def test_d4_a_quorum_queue_with_reject_for_invalid_bodies_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A dead-letter queue exists for messages near the limit, even if no action needs it."""
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = [Queue("orders", type="quorum", arguments={"x-delivery-limit": 2})]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None:
            raise KeyError("never")

    async with running(url, Failing, recorder=recorder):
        await client.send("orders", b"poison")
        await eventually(lambda: len(recorder.settled) >= 2)
        await eventually(lambda: "orders.dlq" in rabbit.queues(vhost))
        letter = await client.take("orders.dlq")

    assert letter.body == b"poison"
