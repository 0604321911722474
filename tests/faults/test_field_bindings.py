"""FR9: the bindings of a class are created at each start, also those of an existing queue."""

import logging
from secrets import token_hex

import pytest

from tests.application import running
from tests.client import Client
from tests.consumers import collector
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import Binding, Exchange, Queue

REFUSED = "binding refused: the queue receives nothing through it"
CREATED = "binding created"


@pytest.mark.parametrize("declare", ["missing", "always"])
async def test_fr9_a_binding_that_is_added_to_a_class_is_created(
    url: str, client: Client, declare: str
) -> None:
    """The queue exists and has messages; messages of the new exchange arrive as well."""
    await client.declare("orders")
    topics = Exchange("topics", type="topic")
    bindings = [Binding(topics, "order.*"), Binding("amq.fanout")]
    consumer, bodies = collector(Queue("orders", bindings=bindings), declare=declare)
    for _ in range(2):
        async with running(url, consumer), publishing(url) as publisher:
            await publisher.publish(b"topic", "order.placed", exchange="topics")
            await publisher.publish(b"fanout", "", exchange="amq.fanout")
            await eventually(lambda: sorted(bodies) == [b"fanout", b"topic"])
            bodies.clear()


async def test_fr9_a_binding_of_a_deleted_exchange_is_created_again(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """A reconnect is a start: an exchange that was deleted is declared and bound."""
    shop = Exchange("shop", type="fanout")
    consumer, bodies = collector(Queue("orders", bindings=[Binding(shop)]))
    async with running(url, consumer) as runner, publishing(url) as publisher:
        await client.delete_exchange("shop")
        rabbit.close_all_connections("once more")
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        await publisher.publish(b"a", "", exchange="shop")
        await eventually(lambda: bodies == [b"a"])


async def test_fr9_never_binds_nothing(url: str, client: Client) -> None:
    """With declare = "never" no bindings are created either."""
    await client.declare("orders", "orders.dlq")
    consumer, bodies = collector(Queue("orders", bindings=[Binding("amq.fanout")]), declare="never")
    async with running(url, consumer), publishing(url) as publisher:
        await publisher.publish(b"fanout", "", exchange="amq.fanout", mandatory=False)
        await client.send("orders", b"direct")
        await eventually(lambda: bodies)

    assert bodies == [b"direct"]


async def test_fr9_a_refused_binding_is_one_warning(
    rabbit: PrivateRabbit, vhost: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the binding; the consumer consumes, and binds once it is permitted."""
    caplog.set_level(logging.INFO)
    await client.declare("orders", "orders.dlq")
    name = f"user-{token_hex(4)}"
    rabbit.add_user(name, "x", vhost, read="orders.*")
    consumer, bodies = collector(Queue("orders", bindings=[Binding("amq.topic", "order.*")]))
    url = rabbit.url(vhost, name, "x")
    async with running(url, consumer) as runner, publishing(rabbit.url(vhost)) as publisher:
        await client.send("orders", b"a")
        await eventually(lambda: bodies == [b"a"])
        rabbit.close_all_connections("once more")
        await eventually(lambda: not runner.ready)
        await eventually(lambda: runner.ready)
        rabbit.ctl("set_permissions", "-p", vhost, name, ".*", ".*", ".*")
        await eventually(lambda: fields(caplog, CREATED))
        await publisher.publish(b"b", "order.placed", exchange="amq.topic")
        await eventually(lambda: b"b" in bodies)

    [warning] = fields(caplog, REFUSED)
    named = {key: warning[key] for key in ("consumer", "queue", "exchange", "routing_key")}
    assert named == {
        "consumer": "Collector",
        "queue": "orders",
        "exchange": "amq.topic",
        "routing_key": "order.*",
    }
    assert warning["levelno"] == logging.WARNING
    assert "grant write on 'orders' and read on 'amq.topic'" in warning["error"]
    assert errors(caplog) == []


async def test_fr9_an_exchange_that_is_declared_later_is_bound_then(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """An exchange that is only named is not declared, and need not exist yet."""
    caplog.set_level(logging.INFO)
    await client.declare("orders")
    consumer, bodies = collector(Queue("orders", bindings=[Binding("shop", "orders")]))
    async with running(url, consumer), publishing(url) as publisher:
        await client.send("orders", b"a")
        await eventually(lambda: bodies == [b"a"])
        await client.declare_exchange("shop")
        await eventually(lambda: fields(caplog, CREATED))
        await publisher.publish(b"b", "orders", exchange="shop")
        await eventually(lambda: bodies == [b"a", b"b"])

    assert [each["exchange"] for each in fields(caplog, REFUSED)] == ["shop"]
