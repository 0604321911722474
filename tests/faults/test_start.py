"""A. Start: a broker, a queue or a permission is missing, or a queue is different."""

import asyncio
import itertools
import logging

import pytest

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.consumers import collector
from tests.ports import free_port
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Queue
from workerkit.health import abort_reasons


async def test_a1_a_broker_that_is_down_is_retried(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Refused connections are retried after increasing pauses, with an ERROR for each."""
    caplog.set_level(logging.INFO, "workerkit")
    loop = asyncio.get_running_loop()
    consumer, bodies = collector("orders")
    await client.declare("orders")
    await client.send("orders", b"waiting")
    async with Proxy("127.0.0.1", rabbit.port) as proxy:
        proxy.refuse()
        async with running(proxy.url(url), consumer, ready=False) as runner:
            await eventually(lambda: len(fields(caplog, "connection failed")) == 3)
            ready_meanwhile = runner.ready
            await proxy.accept()
            began = loop.time()
            await eventually(lambda: bodies and runner.ready)
            recovery = loop.time() - began

    failures = fields(caplog, "connection failed")
    assert [each["levelname"] for each in failures] == ["ERROR"] * 3
    assert all(each["exc_info"][1] is not None for each in failures)
    assert [each["attempt"] for each in failures] == [1, 2, 3]
    assert {each["vhost"] for each in failures} == {vhost}
    assert {each["broker"] for each in failures} == {f"amqp://guest@127.0.0.1:{proxy.port}/{vhost}"}
    pauses = [each["retry_in"] for each in failures]
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0 <= pauses[2] <= 2.0
    assert recovery < pauses[2] + 5.0
    assert not ready_meanwhile
    assert errors(caplog) == ["connection failed"] * 3
    back = [each for each in fields(caplog, "connected") if each["role"] == "consumers"]
    assert [(each["levelname"], each["attempt"]) for each in back] == [("INFO", 4)]
    assert bodies == [b"waiting"]


async def test_a1_pauses_between_attempts_are_jittered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Many workers that lost the same broker do not reconnect at the same time."""
    consumers = [collector("q", name=f"Consumer{n}", vhost=f"v{n}")[0] for n in range(8)]
    url = f"amqp://127.0.0.1:{free_port()}/"
    async with running(url, *consumers, ready=False):
        await eventually(lambda: len(fields(caplog, "connection failed")) >= 8)

    first = [each["retry_in"] for each in fields(caplog, "connection failed")[:8]]
    assert len(set(first)) > 2


async def test_a1_a_name_that_does_not_resolve_is_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A DNS failure is like a broker that is down: an ERROR and another attempt."""
    consumer, _ = collector("orders")
    async with running("amqp://broker.invalid:5672/", consumer, ready=False) as runner:
        await eventually(lambda: len(fields(caplog, "connection failed")) == 2, 30.0)
        ready, reason = runner.ready, runner.health[0].reason
        given_up = abort_reasons(runner.health)

    failures = fields(caplog, "connection failed")
    assert [each["attempt"] for each in failures[:2]] == [1, 2]
    assert all("broker.invalid" in each["broker"] for each in failures)
    assert all(each["exc_info"][1] is not None for each in failures)
    assert not ready
    assert "broker.invalid" in reason
    assert given_up == []


async def test_a3_a_missing_queue_keeps_only_its_consumer_waiting(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A consumer waits for a queue that may not be declared; the others consume."""
    options = {"declare": "never", "on_invalid": Action.REJECT}
    late, late_bodies = collector("late", name="Late", **options)
    punctual, punctual_bodies = collector("there", name="Punctual", **options)
    both, both_bodies = collector("late too", "there too", name="Both", **options)
    await client.declare("there", "there too")
    async with running(url, late, punctual, both, ready=False) as runner:
        health = {each.consumer: each for each in runner.health}
        await client.send("there", b"a")
        await client.send("there too", b"b")
        await eventually(lambda: punctual_bodies == [b"a"] and both_bodies == [b"b"])
        # A message may come before the answer to basic.consume.
        await eventually(lambda: health["Punctual"].state == "ready")
        await eventually(lambda: health["Late"].reason and health["Both"].reason)
        states = {name: each.state.value for name, each in health.items()}
        reasons = {name: each.reason for name, each in health.items()}
        declared = set(rabbit.queues(vhost))
        await client.declare("late", "late too")
        await client.send("late", b"c")
        await client.send("late too", b"d")
        await eventually(lambda: late_bodies == [b"c"] and both_bodies == [b"b", b"d"])
        await eventually(lambda: runner.ready)

    assert states == {"Late": "waiting", "Punctual": "ready", "Both": "waiting"}
    assert reasons["Late"] == "queue 'late' is missing"
    assert reasons["Both"] == "queue 'late too' is missing"
    assert declared == {"there", "there too"}


async def test_a3_a_consumer_waits_for_its_missing_dead_letter_queue(
    url: str, client: Client
) -> None:
    """If the queue may not be declared, the reason states how to consume without it."""
    consumer, bodies = collector("orders", declare="never")
    await client.declare("orders")
    await client.send("orders", b"a")
    async with running(url, consumer, ready=False) as runner:
        await eventually(lambda: "orders.dlq" in runner.health[0].reason)
        reason = runner.health[0].reason
        before = list(bodies)
        await client.declare("orders.dlq")
        await eventually(lambda: runner.ready and bodies)

    assert reason == (
        "queue 'orders.dlq' is missing, for dead letters: declare it, or set "
        "on_invalid = Action.REJECT"
    )
    assert before == []
    assert bodies == [b"a"]


@pytest.mark.parametrize("declare", ["missing", "always"])
async def test_a4_a_queue_with_other_arguments_is_not_changed(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    declare: str,
) -> None:
    """A declaration that contradicts the broker's is an ERROR that names both."""
    mistaken, mistaken_bodies = collector(
        Queue("orders", arguments={"x-max-length": 5}), name="Mistaken", declare=declare
    )
    fine, fine_bodies = collector("fine", name="Fine")
    await client.declare("orders", x_max_length=10)
    await client.send("orders", b"stays")
    async with running(url, mistaken, fine, ready=False) as runner:
        await eventually(lambda: len(fields(caplog, "consumer is not ready")) >= 3)
        await eventually(lambda: "fine" in rabbit.queues(vhost))
        await client.send("fine", b"a")
        await eventually(lambda: fine_bodies == [b"a"])
        states = [each.state.value for each in runner.health]
        given_up = abort_reasons(runner.health)
        untouched = rabbit.queues(vhost)["orders"]
        await client.declare("orders", x_max_length=10)  # raises where the arguments differ

    text = str(fields(caplog, "consumer is not ready")[0]["exc_info"][1])
    assert "'orders'" in text
    assert "x-max-length" in text
    assert (untouched.ready, untouched.unacked, untouched.consumers) == (1, 0, 0)
    assert mistaken_bodies == []
    assert states == ["waiting", "ready"]
    assert given_up == []


async def test_a4_a_process_with_only_refused_consumers_exits(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """After three refusals the process ends, with the reason."""
    consumer, _ = collector(Queue("orders", arguments={"x-max-length": 5}))
    await client.declare("orders", x_max_length=10)
    async with running(url, consumer, ready=False) as runner:
        reasons = await eventually(lambda: abort_reasons(runner.health))

    assert len(fields(caplog, "consumer is not ready")) == 3
    assert len(reasons) == 1
    assert "'orders'" in reasons[0]
    assert "x-max-length" in reasons[0]


async def test_a5_a_refused_queue_does_not_affect_the_other(
    rabbit: PrivateRabbit,
    vhost: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The messages of the other queue are not redelivered."""
    recorder = Recorder()
    gate = asyncio.Event()
    runs = 0

    class Both(AMQPConsumer):
        queues = ["open", "secret"]
        declare = "never"
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None:
            nonlocal runs
            runs += 1
            await gate.wait()

    user = f"reader-{vhost}"
    rabbit.add_user(user, "x", vhost, read="open")
    await client.declare("open", "secret")
    await client.send("open", b"a")
    async with running(rabbit.url(vhost, user, "x"), Both, recorder=recorder, ready=False):
        await eventually(lambda: len(fields(caplog, "consumer is not ready")) >= 3)
        reason = str(fields(caplog, "consumer is not ready")[0]["exc_info"][1])
        gate.set()
        await eventually(lambda: recorder.settled)

    assert "'secret'" in reason
    assert runs == 1
    assert recorder.actions == ["ack"]


async def test_a5_the_logged_pause_is_the_real_pause(
    rabbit: PrivateRabbit,
    vhost: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`retry_in` is the time until the next attempt."""
    consumer, _ = collector("secret", declare="never", on_invalid=Action.REJECT)
    user = f"writer-{vhost}"
    rabbit.add_user(user, "x", vhost, read="")
    await client.declare("secret")
    async with running(rabbit.url(vhost, user, "x"), consumer, ready=False):
        await eventually(lambda: len(fields(caplog, "consumer is not ready")) == 3, 20.0)

    failures = fields(caplog, "consumer is not ready")
    for earlier, later in itertools.pairwise(failures):
        seconds = later["created"] - earlier["created"]
        assert earlier["retry_in"] - 0.02 <= seconds < earlier["retry_in"] + 5.0


async def test_c8_queues_whose_long_names_differ_late_are_both_consumed(
    url: str, client: Client
) -> None:
    """Names of the largest length that differ only in the last character."""
    one, other = "q" * 250 + "1", "q" * 250 + "2"
    consumer, bodies = collector(one, other)
    async with running(url, consumer):
        await client.declare(one, other)
        await client.send(one, b"a")
        await client.send(other, b"b")
        await eventually(lambda: sorted(bodies) == [b"a", b"b"])


async def test_many_consumers_that_start_at_the_same_time(
    rabbit: PrivateRabbit, vhost: str
) -> None:
    """Each gets its messages: channels that open and close at the same time do not interfere."""
    for round_ in range(8):
        names = [f"q{round_}.{number}" for number in range(8)]
        started = [collector(name, name=f"C{number}") for number, name in enumerate(names)]
        url = rabbit.url(vhost)
        async with running(url, *[each for each, _ in started]), connected(url) as client:
            for name in names:
                await client.send(name, b"x")
            await eventually(lambda: all(bodies == [b"x"] for _, bodies in started))  # noqa: B023
