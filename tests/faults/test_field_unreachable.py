"""FR3: a queue whose node is down exists. A consumer consumes without its dead-letter queue."""

import logging

import pytest

from tests.application import running
from tests.client import Client, connected
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Queue, RetryPolicy
from workerkit.amqp.declare import is_unreachable

WITHOUT = "consuming without a queue for dead letters or retries"
DECLARED = "declared what was missing"


def name_of(vhost: str, queue: str) -> str:
    """Return the name of a queue in Erlang."""
    return f'rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)'


def take_down(rabbit: PrivateRabbit, vhost: str, queue: str) -> None:
    """Make the broker reply as if the node that has a classic queue were down.

    Before 4.2 that is a queue that is declared, and of which no process is known. Since then a
    single node replies this for queues that do not start again.
    """
    name = name_of(vhost, queue)
    if rabbit.version < (4, 2):
        rabbit.eval(f"ok = mnesia:dirty_delete(rabbit_queue, {name})")
    else:
        rabbit.eval(f"rabbit_db_queue:update({name}, fun(Q) -> amqqueue:set_state(Q, crashed) end)")


def bring_up(rabbit: PrivateRabbit, vhost: str, queue: str) -> None:
    """Undo `take_down`."""
    name = name_of(vhost, queue)
    if rabbit.version < (4, 2):
        rabbit.eval(
            f"[Queue] = mnesia:dirty_read(rabbit_durable_queue, {name}),"
            " ok = mnesia:dirty_write(rabbit_queue, amqqueue:set_decorators(Queue, []))"
        )
    else:
        rabbit.eval(f"rabbit_db_queue:update({name}, fun(Q) -> amqqueue:set_state(Q, live) end)")


def answer(rabbit: PrivateRabbit) -> str:
    """Return the broker's reply then."""
    if rabbit.version < (4, 2):
        return "is down or inaccessible"
    return "has crashed and failed to restart"


@pytest.mark.parametrize("beside", ["q.dlq", "q.retry.1s"])
async def test_fr3_a_dead_letter_queue_whose_node_is_down_stops_no_consumer(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    beside: str,
) -> None:
    """Also at the first start: it is not missing, so no consumer waits for it or declares it."""
    retries = Queue("q", retry_type="classic")
    consumer, bodies = collector(retries, retry=RetryPolicy(delays=(1,)))
    async with running(url, consumer):
        pass
    caplog.clear()
    take_down(rabbit, vhost, beside)
    try:
        async with running(url, consumer) as runner:
            await client.send("q", b"a")
            await eventually(lambda: bodies == [b"a"])
            rabbit.close_all_connections("once more")
            await eventually(lambda: len(fields(caplog, WITHOUT)) == 2)
            await eventually(lambda: runner.ready)
            await send_anew(rabbit, vhost, b"b")
            await eventually(lambda: b"b" in bodies)
    finally:
        bring_up(rabbit, vhost, beside)

    reasons = {each["reason"] for each in fields(caplog, WITHOUT)}
    assert len(reasons) == 1
    [reason] = reasons
    assert reason.startswith(f"queue '{beside}' exists and cannot be reached: ")
    assert answer(rabbit) in reason
    assert fields(caplog, "queue is missing") == fields(caplog, DECLARED) == []
    assert {each["levelno"] for each in fields(caplog, WITHOUT)} == {logging.WARNING}


async def send_anew(rabbit: PrivateRabbit, vhost: str, body: bytes) -> None:
    """Send a body to `q` over a new connection."""
    async with connected(rabbit.url(vhost)) as client:
        await client.send("q", body)


async def test_fr3_messages_that_fail_stay_in_their_queue(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that cannot be dead-lettered is kept, and dead-lettered when the node is back."""

    class Strict(AMQPConsumer):
        queues = ["q"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, number: int) -> None: ...

    async with running(url, Strict):
        pass
    take_down(rabbit, vhost, "q.dlq")
    try:
        async with running(url, Strict):
            await client.send("q", b"no number")
            if rabbit.version < (4, 2):
                await eventually(
                    lambda: fields(caplog, "message could not be copied and stays in its queue")
                )
                state = rabbit.queues(vhost)["q"]
                assert state.ready + state.unacked == 1
            bring_up(rabbit, vhost, "q.dlq")
            letter = await client.take("q.dlq")
    finally:
        bring_up(rabbit, vhost, "q.dlq")

    assert letter.body == b"no number"


async def test_fr3_a_consumer_waits_for_its_queue_whose_node_is_down(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not reported as missing, and is consumed when its node is back."""
    await client.declare("q", "q.dlq")
    consumer, bodies = collector("q")
    take_down(rabbit, vhost, "q")
    try:
        async with running(url, consumer, ready=False) as runner:
            reason = await eventually(lambda: runner.health[0].reason)
            bring_up(rabbit, vhost, "q")
            await eventually(lambda: runner.ready)
            await client.send("q", b"a")
            await eventually(lambda: bodies == [b"a"])
    finally:
        bring_up(rabbit, vhost, "q")

    assert reason.startswith("queue 'q' exists and cannot be reached: ")
    assert answer(rabbit) in reason
    assert fields(caplog, "queue is unreachable")
    assert fields(caplog, "queue is missing") == fields(caplog, DECLARED) == []


async def test_fr3_a_node_that_does_not_reply_stops_no_consumer(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer continues within two seconds, although there is no reply for its dead letters."""
    consumer, bodies = collector("q")
    process = f"element(2, {{ok, Queue}} = rabbit_amqqueue:lookup({name_of(vhost, 'q.dlq')}))"
    process = f"amqqueue:get_pid({process})"
    async with running(url, consumer) as runner:
        rabbit.eval(f"sys:suspend({process})")
        try:
            rabbit.close_all_connections("once more")
            await eventually(lambda: fields(caplog, WITHOUT))
            await eventually(lambda: runner.ready)
            await send_anew(rabbit, vhost, b"a")
            await eventually(lambda: bodies == [b"a"])
        finally:
            rabbit.eval(f"sys:resume({process})")

    [warning] = fields(caplog, WITHOUT)
    assert warning["reason"] == "no answer for q.dlq within 1 s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible", True),
        ("queue 'q' in vhost '/' process is stopped by supervisor", True),
        ("queue 'q' in vhost '/' has crashed and failed to restart", True),
        ("failed to perform operation on queue 'q' in vhost '/' due to timeout", True),
        ("no queue 'q' in vhost '/'", False),
        ("no queue 'lost due to timeout' in vhost '/'", False),
        ("no queue 'q' in vhost 'home node is down or inaccessible'", False),
        ("no exchange 'e' in vhost '/'", False),
    ],
)
def test_fr3_down_is_not_missing(text: str, expected: bool) -> None:
    """The reply texts of RabbitMQ 3.10 to 4.3, all of them with code 404."""
    assert is_unreachable(f"queue.declare of 'q': NOT_FOUND - {text}") is expected
