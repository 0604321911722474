"""The types of dead-letter and retry queues, and of queues whose class states no type."""

import logging

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Queue, Reject, RetryPolicy
from workerkit.amqp.queue import QueueType

KEPT = "queue exists with another type than QUEUE_TYPE and is used unchanged"
NO_LIMIT = {"x-delivery-limit": "-1"}


def queue_types(rabbit: PrivateRabbit, vhost: str) -> dict[str, str]:
    """Return the type of every queue of a virtual host."""
    rows = rabbit._rows(
        "[[element(4, amqqueue:get_name(Queue)), atom_to_binary(amqqueue:get_type(Queue))]"
        f' || Queue <- rabbit_amqqueue:list(<<"{vhost}">>)]'
    )
    return {name: kind.removeprefix("rabbit_").removesuffix("_queue") for name, kind in rows}


def limit_of(rabbit: PrivateRabbit, vhost: str, queue: str) -> str:
    """Return the delivery limit in the declaration of a queue, or `none`."""
    return rabbit.eval(
        f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue,'
        f' <<"{queue}">>)), case lists:keyfind(<<"x-delivery-limit">>, 1,'
        " amqqueue:get_arguments(Queue)) of {_, _, Limit} -> Limit; false -> none end"
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("quorum", "quorum"), ("classic", "classic"), ("stream", "quorum"), (None, "classic")],
)
async def test_fr3_dead_letters_are_as_replicated_as_their_queue(
    rabbit: PrivateRabbit, vhost: str, url: str, kind: QueueType | None, expected: str
) -> None:
    """The dead-letter queue has the type of its queue; that of a stream is a quorum queue."""
    consumer, _ = collector(Queue("q", kind))
    async with running(url, consumer):
        found = queue_types(rabbit, vhost)

    assert found == {"q": kind or "classic", "q.dlq": expected}


async def test_fr3_a_quorum_queue_of_dead_letters_drops_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """It has no delivery limit: a dead letter that is read 30 times stays in the queue."""
    consumer, _ = collector(Queue("q", "quorum"))
    async with running(url, consumer):
        limit = limit_of(rabbit, vhost, "q.dlq")
        await client.send("q.dlq", b"a")
    for _ in range(30):
        await client.give_back("q.dlq")
        await eventually(lambda: rabbit.queues(vhost)["q.dlq"].ready == 1)

    # Absence means "no limit" before 4.0, and 20 since then.
    assert limit == ("none" if rabbit.version < (4,) else "-1")
    assert (await client.take("q.dlq")).body == b"a"


async def test_fr3_a_classic_queue_of_dead_letters_that_exists_is_used_as_it_is(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Version 0.1.0 declared one for a quorum queue; it is used with any value of `declare`."""
    await client.declare("q", x_queue_type="quorum")
    await client.declare("q.dlq")
    for declare in ("missing", "always", "never"):
        consumer, _ = collector(
            Queue("q", "quorum"), handle=_gives_up, on_exception=Action.DEAD_LETTER, declare=declare
        )
        async with running(url, consumer):
            await client.send("q", b"a")
            assert (await client.take("q.dlq")).body == b"a"

    assert queue_types(rabbit, vhost) == {"q": "quorum", "q.dlq": "classic"}
    assert [each for each in errors(caplog) if "moved" in each or "ready" in each] == []


async def _gives_up(self: AMQPConsumer, body: bytes) -> None:
    raise Reject("never")


async def test_queue_type_quorum_by_setting(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Queues that state no type, and their retries and dead letters, become quorum queues."""
    recorder = Recorder()

    class Shop(AMQPConsumer):
        queues = [
            "plain",
            Queue("bounded", max_length=10),
            Queue("stated", "classic"),
            Queue("important", max_priority=5),
            Queue("passing", exclusive=True),
        ]
        retry = RetryPolicy(delays=(0.1,))

        async def handle(self, body: bytes) -> None:
            raise ValueError("no")

    amqp = {"default": {"url": url, "queue_type": "Quorum"}}
    async with running(url, Shop, recorder=recorder, amqp=amqp):
        found = queue_types(rabbit, vhost)
        await client.send("plain", b"a")
        letter = await client.take("plain.dlq")
    # The queues exist now, and agree with what is declared.
    async with running(url, Shop, amqp=amqp):
        pass

    assert letter.body == b"a"
    assert recorder.actions == ["retry", "dead_letter"]
    classic = {"stated", "stated.dlq", "important", "important.dlq", "passing", "passing.dlq"}
    assert {name for name, kind in found.items() if kind == "classic"} == classic
    assert {"plain", "plain.dlq", "plain.retry.100ms", "bounded", "bounded.dlq"} <= set(found)


@pytest.mark.parametrize("declare", ["missing", "always", "never"])
async def test_queue_type_does_not_change_existing_queues(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    declare: str,
) -> None:
    """An existing classic queue is consumed, with one INFO, and is not declared again."""
    caplog.set_level(logging.INFO)
    await client.declare("plain", "plain.dlq", "bounded.dlq")
    await client.declare("bounded", x_max_length=10)
    consumer, bodies = collector("plain", Queue("bounded", max_length=10))
    amqp = {"default": {"url": url, "queue_type": "quorum", "declare": declare}}
    async with running(url, consumer, amqp=amqp) as runner:
        await client.send("plain", b"a")
        await client.send("bounded", b"b")
        await eventually(lambda: sorted(bodies) == [b"a", b"b"])
        rabbit.close_all_connections("once more")
        await eventually(lambda: len(fields(caplog, "consuming")) == 4)
        await eventually(lambda: runner.ready)

    assert set(queue_types(rabbit, vhost).values()) == {"classic"}
    kept = sorted(each["queue"] for each in fields(caplog, KEPT))
    assert kept == ([] if declare == "never" else ["bounded", "plain"])
    assert {each["levelno"] for each in fields(caplog, KEPT)} <= {logging.INFO}


async def test_queue_type_still_refuses_other_arguments(url: str, client: Client) -> None:
    """Only the type may differ, and no argument that the class states."""
    await client.declare("bounded", x_max_length=11)
    consumer, _ = collector(Queue("bounded", max_length=10))
    amqp = {"default": {"url": url, "queue_type": "quorum"}}
    async with running(url, consumer, ready=False, amqp=amqp) as runner:
        reason = await eventually(lambda: runner.health[0].reason)

    assert "differs in 'x-max-length'" in reason


async def test_fr3_dead_letters_have_the_default_type_of_the_virtual_host(
    rabbit: PrivateRabbit, vhost: str
) -> None:
    """If that is quorum, the dead-letter queue has no limit. 3.10 has no default type."""
    name = f"{vhost}-quorum"
    if rabbit.version < (4,):
        rabbit.add_vhost(name)
    else:
        rabbit.ctl("add_vhost", name, "--default-queue-type", "quorum")
        rabbit.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    try:
        consumer, _ = collector("q")
        async with running(rabbit.url(name), consumer):
            found, limit = queue_types(rabbit, name), limit_of(rabbit, name, "q.dlq")
    finally:
        rabbit.delete_vhost(name)

    if rabbit.version < (4,):
        assert (found, limit) == ({"q": "classic", "q.dlq": "classic"}, "none")
    else:
        assert (found, limit) == ({"q": "quorum", "q.dlq": "quorum"}, "-1")
