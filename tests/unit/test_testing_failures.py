"""FP16: a test of a handler that always fails ends soon, with what the handler raised."""

import asyncio
from typing import Any

import pytest

from tests.application import package_of
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    PeriodicTask,
    Retry,
    RetryPolicy,
    SSEConsumer,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.testing import override, running, sse_server


class Broken(Exception):
    """What the handlers of these tests raise."""


async def test_fp16_a_handler_that_always_raises() -> None:
    """The error names consumer, message and number, and its cause is the handler's exception."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise Broken("no customer")

    text = (
        r"Orders: message 'm-1' of queue 'orders' was requeued more than 10 times, and nothing "
        "ends that: the handler raised .*Broken: no customer"
    )
    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        await app.publish(b"", "orders", message_id="m-1")
        with pytest.raises(AssertionError, match=text) as caught:
            await app.idle(deadline=60.0)

        assert isinstance(caught.value.__cause__, Broken)
        assert {each.action for each in app.settled("Orders")} == {"requeue"}
        assert 11 <= len(app.settled("Orders")) < 100


@pytest.mark.parametrize("limit", [0, 1, 5])
async def test_fp16_the_number_can_be_chosen(limit: int) -> None:
    """One more than allowed fails the test; 0 allows no failure at all."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise Broken

    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        await app.publish(b"", "orders")
        with pytest.raises(AssertionError, match=f"requeued more than {limit} times"):
            await app.idle(max_requeues=limit)


@pytest.mark.parametrize(("failures", "allowed"), [(10, 10), (15, None), (15, 15)])
async def test_fp16_failures_that_are_expected(failures: int, allowed: int | None) -> None:
    """A handler that succeeds in the end may fail as often as the test allows."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        left = failures

        async def handle(self, body: bytes) -> None:
            if self.left:
                self.left -= 1
                raise Broken

    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        await app.publish(b"", "orders")
        await app.idle(max_requeues=allowed)

        actions = [each.action for each in app.settled("Orders")]
        assert actions == ["requeue"] * failures + ["ack"]


async def test_fp16_many_messages_that_fail_once_each() -> None:
    """Each message is counted for itself, also where the bodies are equal."""

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes, message: AMQPMessage) -> None:
            if not message.redelivered:
                raise Broken

    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        for _ in range(10):
            await app.publish(b"same", "orders")
        await app.idle(max_requeues=1)

        assert len(app.settled("Orders")) == 20


async def test_fp16_a_policy_limits_its_retries_by_itself() -> None:
    """More retries than requeues are allowed, and the message is a dead letter in the end."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 5, 60))

        async def handle(self, body: bytes) -> None:
            raise Broken

    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        await app.publish(b"", "orders")
        await app.idle()

        assert len(app.settled("Orders")) == 13
        assert len(app.dead_letters("orders")) == 1


def raises(error: Exception) -> Any:
    async def handle(self: Any, body: bytes) -> None:
        raise error

    return handle


def rejects() -> Any:
    async def handle(self: Any, message: AMQPMessage[bytes]) -> None:
        message.reject()

    return handle


def batches() -> Any:
    async def handle(self: Any, bodies: list[bytes]) -> None:
        raise Broken

    return handle


@pytest.mark.parametrize(
    ("handle", "why"),
    [
        (raises(Retry(after=60)), "the handler raised Retry"),
        (rejects(), "the handler requested it"),
        (batches(), "the handler raised Broken"),
    ],
    ids=["retry without a policy", "reject", "batch"],
)
async def test_fp16_other_ways_to_fail_for_ever(handle: Any, why: str) -> None:
    """Whatever makes a message come back without an end fails the test."""
    consumer = type("Orders", (AMQPConsumer,), {"queues": ["orders"], "handle": handle})
    async with running(WorkerContainer(), packages=[package_of(consumer)]) as app:
        for _ in range(3):
            await app.publish(b"", "orders")
        with pytest.raises(AssertionError, match=rf"Orders: message '.*' .* 10 times.*{why}"):
            await app.idle(deadline=60.0)


@pytest.mark.parametrize("batch", [False, True])
async def test_fp16_an_event_that_always_fails(batch: bool) -> None:
    """The same event is tried again for ever; the text has its id."""

    class Events(SSEConsumer):
        connection = "shop"
        routes = ["/events"]

        if batch:

            async def handle(self, events: list[str]) -> None:
                raise Broken("no plan")
        else:

            async def handle(self, event: str) -> None:  # type: ignore[misc]
                raise Broken("no plan")

    container = WorkerContainer()
    async with sse_server() as server:
        settings = WorkerSettings.model_validate({"sse": {"shop": {"url": server.url}}})
        with override(container, settings=settings):
            async with running(container, packages=[package_of(Events)]) as app:
                await server.send("a")
                with pytest.raises(AssertionError, match=r"<SSEEvent .* 10 times.*no plan") as got:
                    await app.idle(deadline=60.0)

    assert isinstance(got.value.__cause__, Broken)


async def test_fp16_periodic_tasks() -> None:
    """A call that raises is in its record; one that asks for retries without an end is stopped."""

    class Fails(PeriodicTask):
        every = 60.0

        async def handle(self) -> None:
            raise Broken("no time")

    class Endless(PeriodicTask):
        every = 60.0

        async def handle(self) -> None:
            raise Retry("again")

    async with running(WorkerContainer(), packages=[package_of(Fails, Endless)]) as app:
        await app.tick("Fails")
        with pytest.raises(AssertionError, match=r"Endless: .* 10 times") as caught:
            await app.tick("Endless")

        assert isinstance(caught.value.__cause__, Retry)
        [record] = app.settled("Fails")
        assert record.reason == "no time"


async def test_fp16_what_is_not_idle_in_time_names_the_last_failure() -> None:
    """A message that waits behind one that failed: the failure may be the reason."""
    gate = asyncio.Event()

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            if body == b"fails":
                raise Broken("no customer")
            await gate.wait()

    async with running(WorkerContainer(), packages=[package_of(Orders)]) as app:
        await app.publish(b"hangs", "orders")
        await app.publish(b"fails", "orders")
        text = "not idle after 0.3 s: .*; the last failure: Orders raised .*Broken: no customer"
        with pytest.raises(AssertionError, match=text) as caught:
            await app.idle(deadline=0.3, max_requeues=None)
        gate.set()

        assert isinstance(caught.value.__cause__, Broken)
