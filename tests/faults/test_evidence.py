"""The evidence in the headers of a dead letter, and the texts that must not be in it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers
from pydantic import BaseModel

from tests.application import container_of, package_of, running
from tests.client import Client
from tests.command import workerkit, write_package
from tests.records import fields
from workerkit import Action, AMQPConsumer, DeclarationError, Reject, RetryPolicy, Runner
from workerkit.amqp.consumer import AMQPOptions
from workerkit.amqp.copies import Copies
from workerkit.amqp.queue import Queue
from workerkit.delivery import Outcome
from workerkit.testing import fake_message

DSN = "postgres://app:hunter2@db/shop"
CARD = "4111 1111 1111"
HOW: dict[bytes, Callable[[], Exception]] = {
    b"dsn": lambda: OSError(f"cannot connect to {DSN}"),
    b"card": lambda: KeyError(CARD),
    b"reject": lambda: Reject(CARD),
}


class Payment(BaseModel):
    amount: int


class Orders(AMQPConsumer):
    """A consumer that fails in the way that its message requests."""

    queues = ["orders"]
    on_exception = Action.DEAD_LETTER

    async def handle(self, body: bytes) -> None:
        raise HOW[body]()


class Brief(Orders):
    name = "Orders"
    evidence = "brief"


async def letter(
    url: str, client: Client, body: bytes, consumer: type[AMQPConsumer] = Orders, **more: Any
) -> dict[str, Any]:
    """Return the evidence of a message that was dead-lettered."""
    await client.declare("orders", "orders.dlq")
    await client.send("orders", body)
    redact = more.pop("redact", None)
    container = container_of(url, **more)
    container.redact.override(providers.Object(redact))
    async with Runner(container, packages=[package_of(consumer)]).running():
        return (await client.take("orders.dlq")).evidence


async def test_fp10_a_password_of_a_url_is_masked(url: str, client: Client) -> None:
    """Text and traceback are kept, without the password."""
    found = await letter(url, client, b"dsn")

    assert found["reason"] == "cannot connect to postgres://app:***@db/shop"
    assert found["error"] == "OSError"
    assert "test_evidence.py" in found["traceback"]
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("where", ["class", "connection", "consumer"])
@pytest.mark.parametrize(("body", "error"), [(b"card", "KeyError"), (b"reject", "Reject")])
async def test_fp10_brief_evidence_has_no_text_of_an_exception(
    url: str, client: Client, where: str, body: bytes, error: str
) -> None:
    """It has the class of the exception and its place, with each way to set the option."""
    settings: dict[str, Any] = {}
    if where == "connection":
        settings = {"amqp": {"default": {"url": url, "evidence": "brief"}}}
    if where == "consumer":
        settings = {"consumers": {"orders": {"evidence": "brief"}}}

    found = await letter(url, client, body, Brief if where == "class" else Orders, **settings)

    name, _, line = found["reason"].partition(":")
    assert (found["error"], name) == (error, f"{error} (test_evidence.py")
    assert line.removesuffix(")").isdecimal()
    assert "traceback" not in found
    assert CARD not in str(found)
    assert {"consumer", "queue", "attempt", "failed-at", "routing-key"} <= found.keys()


async def test_fp10_brief_evidence_of_an_invalid_body(url: str, client: Client) -> None:
    """It has no names of fields, because they come from the sender."""

    class Strict(AMQPConsumer):
        queues = ["orders"]
        evidence = "brief"

        async def handle(self, payments: dict[str, Payment]) -> None: ...

    found = await letter(url, client, f'{{"{CARD}": {{"amount": "{CARD}"}}}}'.encode(), Strict)

    assert (found["reason"], found["error"]) == ("InvalidBody", "InvalidBody")
    assert CARD not in str(found)


async def test_fp10_redact_gets_the_texts_before_they_are_written(url: str, client: Client) -> None:
    """Reason and traceback are those that the function returns."""
    found = await letter(url, client, b"card", redact=lambda text: text.replace(CARD, "<card>"))

    assert found["reason"] == "'<card>'"
    assert found["traceback"].endswith("KeyError: '<card>'\n")
    assert CARD not in str(found)


@pytest.mark.parametrize("returned", [None, b"x"])
async def test_fp10_a_redact_that_fails_leaves_brief_evidence(
    url: str, client: Client, caplog: pytest.LogCaptureFixture, returned: object
) -> None:
    """The message is dead-lettered nevertheless, and a WARNING has the reason."""

    def redact(text: str) -> Any:
        if returned is None:
            raise ValueError(text)
        return returned

    found = await letter(url, client, b"card", redact=redact)

    [warning] = fields(caplog, "redact failed: the dead letter gets brief evidence")
    assert warning["levelno"] == logging.WARNING
    assert warning["reason"].startswith("ValueError (" if returned is None else "TypeError")
    assert found["reason"].startswith("KeyError (test_evidence.py:")
    assert CARD not in str(found)


async def test_fp10_a_redact_that_is_no_function_is_a_fault(url: str) -> None:
    """It is reported before a message is handled, with what is valid."""
    container = container_of(url)
    container.redact.override(providers.Object("card"))

    with pytest.raises(DeclarationError, match="redact provides a str: it should be a function"):
        async with Runner(container, packages=[package_of(Orders)]).running():
            pass


async def test_fp10_a_retried_message_has_no_text(url: str, client: Client) -> None:
    """Copies that wait for the next attempt do not contain the exception."""

    class Failing(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy((600,))

        async def handle(self, body: bytes) -> None:
            raise KeyError(CARD)

    await client.declare("orders")
    async with running(url, Failing):
        await client.send("orders", b"x")
        copy = await client.take("orders.retry.600s")

    assert sorted(copy.evidence) == [
        "attempt",
        "exchange",
        "first-failed-at",
        "queue",
        "routing-key",
    ]
    assert CARD not in str(copy)


def test_fp10_redact_is_used_for_logs(tmp_path: Path) -> None:
    """All log records of a process are redacted, also while it ends."""
    container = """
        from dependency_injector import providers
        from workerkit import WorkerContainer

        def redact(text: str) -> str:
            return text.replace("4111 1111", "<card>")

        class Container(WorkerContainer):
            redact = providers.Object(redact)
    """
    consumers = """
        from workerkit import PeriodicTask

        class Failing(PeriodicTask):
            every = 60.0

            async def handle(self) -> None:
                raise SystemExit("4111 1111")
    """
    name = write_package(tmp_path, container=container, consumers=consumers)

    done = workerkit("run", name, cwd=tmp_path, WORKERKIT_OPS__ENABLED="false")

    assert done.returncode == 1
    assert "<card>" in done.stderr
    assert "4111 1111" not in done.stderr


class Destinations:
    """Publishes no copy, and remembers the queues."""

    def __init__(self) -> None:
        self.destinations: list[Queue] = []

    async def publish(self, message: Any, to: Queue, copies: Any) -> None:
        self.destinations.append(to)


async def test_fp11_the_declaration_of_a_retry_queue_is_created_once() -> None:
    """All messages with the same delay use the same object."""
    published: Any = Destinations()
    options = AMQPOptions(name="Orders", queues=(Queue("orders"),), retry=RetryPolicy((5, 60)))
    copies = Copies(options, published)
    message = fake_message(b"x", queue="orders")

    for delay in (5.0, 5.0, 60.0, 5.0):
        await copies.retry(message, Outcome(Action.RETRY, delay=delay))

    first, second, other, last = published.destinations
    assert first is second is last
    assert (first.name, other.name) == ("orders.retry.5s", "orders.retry.60s")
