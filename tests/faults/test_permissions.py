"""A5 and C8: a missing permission is found at the start, named, and affects no other consumer."""

import asyncio
import re

import pytest

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.consumers import collector
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, Queue
from workerkit.health import Health, abort_reasons

REFUSED = "consumer is not ready"
IN_USE = "queue is used by another connection"


def user(
    rabbit: PrivateRabbit, vhost: str, configure: str = ".*", write: str = ".*", read: str = ".*"
) -> str:
    """Return the address of the virtual host for a new user with these permissions."""
    name = f"limited-{vhost}"
    rabbit.add_user(name, "x", vhost, configure, write, read)
    return rabbit.url(vhost, name, "x")


def named(health: list[Health] | object, name: str) -> Health:
    """Return the health of one consumer."""
    assert isinstance(health, list)
    return next(each for each in health if each.consumer == name)


async def test_a5_no_permission_to_read(rabbit: PrivateRabbit, vhost: str, client: Client) -> None:
    """It is named with the queue, and the other consumer runs."""
    refused, bodies = collector("secret", name="Refused")
    fine, fine_bodies = collector("fine", name="Fine")
    await client.declare("secret", "fine")
    await client.send("secret", b"a")
    await client.send("fine", b"b")
    limited = user(rabbit, vhost, read="fine")
    async with running(limited, refused, fine, ready=False) as runner:
        await eventually(lambda: fine_bodies == [b"b"])
        reason = await eventually(lambda: named(runner.health, "Refused").reason)

    assert "grant read on 'secret'" in reason
    assert "ACCESS_REFUSED" in reason
    assert bodies == []


async def test_a5_no_permission_to_declare_the_queue(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """A missing queue that may not be declared is named with the permission for it."""
    refused, _ = collector("orders", name="Refused")
    fine, fine_bodies = collector("fine", name="Fine")
    limited = user(rabbit, vhost, configure="fine.*")
    async with running(limited, refused, fine, ready=False) as runner:
        await eventually(lambda: "fine" in rabbit.queues(vhost))
        await client.send("fine", b"a")
        await eventually(lambda: fine_bodies == [b"a"])
        reason = await eventually(lambda: named(runner.health, "Refused").reason)

    assert "grant configure on 'orders'" in reason
    assert "orders" not in rabbit.queues(vhost)


async def test_a5_no_permission_to_declare_the_dead_letter_queue(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """Found before the first message fails, with both solutions; the other consumer runs."""
    refused, bodies = collector("orders", name="Refused")
    fine, fine_bodies = collector("fine", name="Fine", on_invalid=Action.REJECT)
    await client.declare("orders", "fine")
    await client.send("orders", b"a")
    limited = user(rabbit, vhost, configure="")
    async with running(limited, refused, fine, ready=False) as runner:
        await client.send("fine", b"b")
        await eventually(lambda: fine_bodies == [b"b"])
        reason = await eventually(lambda: named(runner.health, "Refused").reason)
        await client.declare("orders.dlq")
        await eventually(lambda: bodies == [b"a"])

    assert "grant configure on 'orders.dlq'" in reason
    assert "on_invalid = Action.REJECT" in reason


async def test_a5_no_permission_to_publish_dead_letters(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """Without write on the default exchange no message could be copied: found before."""
    refused, bodies = collector("orders", name="Refused")
    fine, fine_bodies = collector("fine", name="Fine", on_invalid=Action.REJECT)
    await client.declare("orders", "orders.dlq", "fine")
    await client.send("orders", b"a")
    limited = user(rabbit, vhost, write="^$")
    async with running(limited, refused, fine, ready=False) as runner:
        await client.send("fine", b"b")
        await eventually(lambda: fine_bodies == [b"b"])
        reason = await eventually(lambda: named(runner.health, "Refused").reason)

    assert bodies == []
    assert "'orders.dlq'" in reason
    assert "amq.default" in reason
    assert re.search(r"grant write on '(amq\.default)?'", reason)
    assert "on_invalid = Action.REJECT" in reason


async def test_a5_with_reject_read_permission_is_enough(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """With `on_invalid = REJECT` a user that may only read consumes, also invalid bodies."""
    recorder = Recorder()

    class Reader(AMQPConsumer):
        queues = ["orders"]
        on_invalid = Action.REJECT

        async def handle(self, order: dict[str, int]) -> None: ...

    await client.declare("orders")
    async with running(
        user(rabbit, vhost, configure="", write="", read="orders"), Reader, recorder=recorder
    ):
        await client.send("orders", b"bad", b'{"id": 1}')
        await eventually(lambda: len(recorder.settled) == 2)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)

    assert sorted(recorder.actions) == ["ack", "reject"]
    assert set(rabbit.queues(vhost)) == {"orders"}


async def test_a5_a_process_with_only_refused_consumers_exits(
    rabbit: PrivateRabbit, vhost: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """After three refusals the start fails, and the error names the permission."""
    consumer, _ = collector("orders")
    await client.declare("orders")
    async with running(user(rabbit, vhost, configure=""), consumer, ready=False) as runner:
        [reason] = await eventually(lambda: abort_reasons(runner.health))

    assert len(fields(caplog, REFUSED)) == 3
    assert "grant configure on 'orders.dlq'" in reason


async def test_a5_a_permission_that_is_granted_later_is_used(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """If another consumer runs, the refused one is retried until it has the permission."""
    refused, bodies = collector("secret", name="Refused")
    fine, _ = collector("fine", name="Fine")
    await client.declare("secret")
    await client.send("secret", b"a")
    limited = user(rabbit, vhost, read="fine")
    async with running(limited, refused, fine, ready=False) as runner:
        await eventually(lambda: named(runner.health, "Refused").reason)
        rabbit.ctl("set_permissions", "-p", vhost, f"limited-{vhost}", ".*", ".*", ".*")
        await eventually(lambda: bodies == [b"a"])
        await eventually(lambda: runner.ready)


async def test_c8_a_class_that_cannot_start_does_not_affect_the_others(
    rabbit: PrivateRabbit, vhost: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exclusive queue of another connection, and a virtual host that does not exist."""
    locked, _ = collector(Queue("locked", exclusive=True, durable=False), name="Locked")
    lost, _ = collector("q", name="Lost", vhost="nowhere")
    fine, bodies = collector("fine", name="Fine")
    holder, _ = collector(Queue("locked", exclusive=True, durable=False), name="Holder")
    async with (
        running(url, holder),
        running(url, locked, lost, fine, ready=False) as runner,
        connected(url) as client,
    ):
        await eventually(lambda: len(fields(caplog, IN_USE)) >= 3)
        await eventually(lambda: len(fields(caplog, "connection failed")) >= 3)
        await client.send("fine", b"a")
        await eventually(lambda: bodies == [b"a"])
        states = {each.consumer: each.state.value for each in runner.health}
        reason = named(runner.health, "Locked").reason
        given_up = abort_reasons(runner.health)

    assert states == {"Locked": "waiting", "Lost": "waiting", "Fine": "ready"}
    assert "'locked'" in reason
    assert given_up == []


async def test_c8_a_class_that_fails_at_first_starts_later(url: str) -> None:
    """It is retried, and runs when the cause is removed."""
    queue = Queue("locked", exclusive=True, durable=False)
    consumer, bodies = collector(queue, name="Locked", on_invalid=Action.REJECT)
    holder, _ = collector(queue, name="Holder", on_invalid=Action.REJECT)
    fine, _ = collector("fine", name="Fine")
    held = asyncio.Event()
    free = asyncio.Event()

    async def hold() -> None:
        async with running(url, holder):
            held.set()
            await free.wait()

    holding = asyncio.create_task(hold())
    await held.wait()
    async with running(url, consumer, fine, ready=False) as runner:
        await eventually(lambda: "locked" in named(runner.health, "Locked").reason)
        free.set()
        await holding
        await eventually(lambda: runner.ready)

    assert bodies == []
