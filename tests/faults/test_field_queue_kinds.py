"""FR1: workerkit finds out the type of a queue at the broker, and declares nothing."""

from typing import Any

import aiormq
import pytest

from tests.application import running
from tests.client import Client
from tests.rabbit import PrivateRabbit
from tests.records import fields
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue
from workerkit.amqp.queue_types import look_up
from workerkit.amqp.session import connect
from workerkit.config.connections import AMQPSettings

DROPS = "quorum queue without dead_letter_exchange: RabbitMQ 4 may drop messages"
EXISTING: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("classic", {}),
    "many arguments": (
        "classic",
        {"x-max-length": 10, "x-overflow": "drop-head", "x-max-priority": 5},
    ),
    "bare": ("quorum", {"x-queue-type": "quorum"}),
    "limited": ("quorum", {"x-queue-type": "quorum", "x-delivery-limit": 5}),
    "one consumer": ("quorum", {"x-queue-type": "quorum", "x-single-active-consumer": True}),
    "odd": (
        "quorum",
        {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "it's 'x' of type 'int' but current is 5",
            "x-message-ttl": 86_400_000,
            "x-expires": 3_600_000,
            "x-max-length-bytes": 2**40,
        },
    ),
    "stream": ("stream", {"x-queue-type": "stream", "x-max-age": "1D"}),
}


@pytest.mark.parametrize("type_", [None, "classic", "quorum"])
@pytest.mark.parametrize("name", EXISTING)
async def test_fr1_the_type_of_a_queue_is_found_out(
    url: str, client: Client, name: str, type_: Any
) -> None:
    """For any declaration in the class."""
    expected, arguments = EXISTING[name]
    await client.declare(name, **{key.replace("-", "_"): arguments[key] for key in arguments})
    session = await connect(AMQPSettings.model_validate({"url": url}), None, "a test")
    try:
        found = await look_up(session, Queue(name, type_, max_length=7))
    finally:
        await session.close()

    assert found is not None
    assert found.type == expected
    known = {key for key in found.arguments if found.arguments[key] == arguments.get(key)}
    assert "x-dead-letter-exchange" not in arguments or "x-dead-letter-exchange" in known


@pytest.mark.parametrize("flags", [{"auto_delete": True}, {"durable": False, "exclusive": True}])
async def test_fr1_a_queue_that_deletes_itself_is_classic(url: str, flags: Any) -> None:
    """Also that of another connection."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.queue_declare("passing", **{"durable": True, **flags})
    session = await connect(AMQPSettings.model_validate({"url": url}), None, "a test")
    try:
        found = await look_up(session, Queue("passing"))
    finally:
        await session.close()
        await connection.close()

    assert found is not None
    assert found.type == "classic"


@pytest.mark.parametrize("type_", [None, "classic", "quorum", "stream"])
async def test_fr1_finding_the_type_creates_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, type_: Any
) -> None:
    """A queue that was just deleted is not declared again."""
    session = await connect(AMQPSettings.model_validate({"url": url}), None, "a test")
    try:
        found = await look_up(session, Queue("gone", type_))
    finally:
        await session.close()

    assert found is None
    assert rabbit.queues(vhost) == {}


async def test_fr1_without_the_permission_the_type_is_unknown(
    rabbit: PrivateRabbit, vhost: str, client: Client
) -> None:
    """A user that may only read cannot find out the type."""
    await client.declare("bare", x_queue_type="quorum")
    rabbit.add_user(f"reader {vhost}", "secret", vhost, configure="^$", write="^$")
    url = rabbit.url(vhost, f"reader {vhost}", "secret")
    session = await connect(AMQPSettings.model_validate({"url": url}), None, "a test")
    try:
        found = await look_up(session, Queue("bare"))
    finally:
        await session.close()

    assert found is None


@pytest.mark.parametrize("declare", ["missing", "always", "never"])
async def test_fr1_the_warning_depends_on_the_existing_queue(
    url: str, client: Client, caplog: pytest.LogCaptureFixture, declare: str
) -> None:
    """There is a warning for a quorum queue, unless it has a dead-letter exchange."""
    exchange: dict[str, Any] = {"x_dead_letter_exchange": "amq.direct"}
    await client.declare("bare", x_queue_type="quorum")
    await client.declare("safe", x_queue_type="quorum", **exchange)
    await client.declare("classic")
    names = ["bare", "safe", "classic"]
    if declare == "never":
        await client.declare(*[f"{name}.dlq" for name in names])
    if declare == "always":
        names = ["bare"]

    async def handle(self: AMQPConsumer, body: bytes) -> None: ...

    queues = [Queue("bare", "quorum")] if declare == "always" else names
    orders = type("Orders", (AMQPConsumer,), {"queues": queues, "handle": handle})
    orders.declare = declare  # type: ignore[attr-defined]
    async with running(url, orders):
        warnings = fields(caplog, DROPS)

    assert [(each["queue"], each["delivery_limit"]) for each in warnings] == [("bare", None)]


async def test_fr1_a_virtual_host_may_make_plain_names_quorum_queues(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """They are detected as quorum queues. RabbitMQ 3.10 has no such option."""
    rabbit.eval(
        f'rabbit_vhost:update_metadata(<<"{vhost}">>,'
        ' #{default_queue_type => <<"quorum">>}, <<"tests">>)'
        if rabbit.version >= (4,)
        else "ok"
    )

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        raise KeyError("never")

    orders = type("Orders", (AMQPConsumer,), {"queues": ["orders"], "handle": handle})
    orders.retry = None  # type: ignore[attr-defined]
    async with running(url, orders):
        await eventually(lambda: "orders" in rabbit.queues(vhost))
        warned = [each["queue"] for each in fields(caplog, DROPS)]

    assert warned == (["orders"] if rabbit.version >= (4,) else [])
